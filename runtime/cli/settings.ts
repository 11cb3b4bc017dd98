// Settings of the configuration schema as options of a command.
import { type Command, Option } from "commander";
import { type EtcdConfig, proxySettings, readProxyConfig, type Setting } from "../config/program.js";
import type { EtcdOptions, EtcdTls } from "../placement/etcd-client.js";

/** What commander hands over: a value for each option that was given, by the path of its setting. */
export type Given = Readonly<Record<string, string | undefined>>;

/** Adds one option for each setting. Defaults stay with the schema, which explains them in etc/hakobu/. */
export function withSettings(command: Command, settings: readonly Setting[]): Command {
  for (const { option, path, variable, description } of settings) {
    const added = new Option(`${option} <value>`, `${description} (${variable})`);
    added.attributeName = () => path;
    command.addOption(added);
  }
  return command.option("--config <file.yaml>", "configuration file; options and environment variables win");
}

/** Only what names a setting. */
export function givenSettings(options: Given, settings: readonly Setting[]): Given {
  return Object.fromEntries(settings.map(({ path }) => [path, options[path]]));
}

const etcdSettings = proxySettings.filter(({ path }) => path.startsWith("etcd."));

/** For commands that talk to etcd: where it is, and how. */
export function withEtcd(command: Command): Command {
  return withSettings(command, etcdSettings);
}

/** @throws HakobuError CONFIG_INVALID */
export async function etcdFrom(options: Given): Promise<EtcdOptions> {
  const given = givenSettings(options, etcdSettings);
  const { etcd } = await readProxyConfig({ file: options.config, env: process.env, options: given });
  return etcdOptions(etcd);
}

export function etcdOptions({ endpoints, prefix, ttlMs, callTimeoutMs, tls, auth }: EtcdConfig): EtcdOptions {
  return {
    hosts: endpoints,
    prefix,
    ttlSeconds: Math.round(ttlMs / 1000),
    callTimeoutMs,
    ...(tls === undefined ? {} : { tls: tlsOptions(tls) }),
    ...(auth === undefined ? {} : { auth }),
  };
}

function tlsOptions({ ca, cert, key }: NonNullable<EtcdConfig["tls"]>): EtcdTls {
  return {
    ...(ca === undefined ? {} : { caFile: ca }),
    ...(cert === undefined || key === undefined ? {} : { certFile: cert, keyFile: key }),
  };
}
