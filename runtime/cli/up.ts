// `hakobu up`: a whole cluster on this machine, until Ctrl-C.
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Command } from "commander";
import { HakobuError } from "../../actors/hakobu-error.js";
import { readProxyConfig } from "../config/program.js";
import { readSpecFile } from "../config/spec-file.js";
import { canRestore, examine, missingToRestore } from "../doctor/doctor.js";
import type { LocalCluster } from "../local/cluster.js";
import { createLoopbackCluster } from "../local/loopback.js";
import { createNamespacesCluster } from "../local/namespaces.js";
import { programLog } from "../log.js";
import { startTracing } from "../tracing/opentelemetry.js";

export interface UpOptions {
  readonly hosts?: string;
  readonly listen: string;
  readonly admin: string;
  readonly dir?: string;
  readonly file?: string;
}

export function upOptions(command: Command): Command {
  return command
    .option("--listen <address:port>", "where the proxy takes requests", "127.0.0.1:8080")
    .option("--admin <address:port>", "where its admin API listens", "127.0.0.1:8081")
    .option(
      "--dir <directory>",
      "for state, images and logs (default: /var/lib/hakobu/up as root, else in the temporary directory)",
    );
}

export function upCommand(program: Command): void {
  upOptions(program.command("up").description("a whole cluster on this machine: placement store, proxy and hosts"))
    .option("--hosts <n>", "how many hosts", "2")
    .option("-f, --file <spec.yaml>", "applications to apply at once")
    .action(async (options: UpOptions) => {
      await withCluster(options, async (cluster, interrupted) => {
        if (options.file !== undefined) await cluster.apply(await readSpecFile(options.file, process.env));
        welcome(cluster, undefined);
        await interrupted;
      });
    });
}

/** In network namespaces where this machine and user can, else on loopback addresses, saying in one line what is missing. */
async function openCluster(options: UpOptions): Promise<LocalCluster> {
  const count = Number(options.hosts ?? "2");
  if (!Number.isInteger(count) || count < 1 || count > 16)
    throw new HakobuError("CONFIG_INVALID", `--hosts ${options.hosts}: give a number from 1 to 16`);
  const hosts = Array.from({ length: count }, (_, index) => String.fromCharCode(97 + index));
  const given = { "proxy.listen": options.listen, "proxy.admin": options.admin };
  const { listen: proxy, admin } = (await readProxyConfig({ env: {}, options: given })).proxy;
  const checks = await examine();
  const log = programLog(process.env.HAKOBU_LOG ?? "warn");
  if (canRestore(checks)) {
    const directory = options.dir ?? "/var/lib/hakobu/up";
    return createNamespacesCluster({ name: "up", hosts, directory, proxy, admin, log });
  }
  const missing = missingToRestore(checks).join(", ");
  console.error(
    `No checkpoint and restore here (missing: ${missing}): hosts on loopback addresses, the process engine, cold starts. ` +
      "For all of it: sudo npm start. Details: hakobu doctor",
  );
  const directory = options.dir ?? join(tmpdir(), `hakobu-${process.getuid?.() ?? "user"}`);
  const tracing = startTracing({ service: "hakobu", instance: "loopback", log });
  const cluster = await createLoopbackCluster({ hosts, directory, proxy, admin, log, tracer: tracing.tracer });
  const close = async (): Promise<void> => {
    await cluster.close();
    await tracing.close();
  };
  return { ...cluster, close };
}

export function welcome(cluster: LocalCluster, hostname: string | undefined): void {
  const at = ({ address: host, port }: { address: string; port: number }): string => `${host}:${port}`;
  const lines = [
    "",
    hostname === undefined
      ? `  requests     http://${at(cluster.proxy)}/  (by host name, for example http://blog.localhost:${cluster.proxy.port}/)`
      : `  application  http://${hostname}:${cluster.proxy.port}/   or   curl http://${at(cluster.proxy)}/`,
    `  admin        http://${at(cluster.admin)}/`,
    ...(cluster.etcd === undefined
      ? []
      : [`  etcd         ${cluster.etcd}   (npx hakobu get --etcd-endpoints ${cluster.etcd})`]),
  ];
  for (const host of cluster.hosts) {
    const hand = cluster.byHand(host);
    if (hand === undefined) continue;
    lines.push(`  cut ${host}        ${hand.cut}`);
  }
  const hand = cluster.byHand(cluster.hosts[0] as string);
  if (hand !== undefined) lines.push(`  heal all     ${hand.heal}`);
  lines.push("", "Ctrl-C ends it and cleans up.");
  console.log(lines.join("\n"));
}

/** Opens a cluster, works with it until the work or the user ends it, and removes it in any case. */
export async function withCluster(
  options: UpOptions,
  work: (cluster: LocalCluster, interrupted: Promise<void>) => Promise<void>,
): Promise<void> {
  const interrupted = new Promise<void>((resolve) => {
    process.once("SIGINT", () => resolve());
    process.once("SIGTERM", () => resolve());
  });
  const cluster = await openCluster(options);
  try {
    await Promise.race([work(cluster, interrupted), interrupted]);
  } finally {
    await cluster.close();
  }
}
