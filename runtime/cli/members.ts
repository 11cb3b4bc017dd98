// `hakobu proxy` and `hakobu host`: one member of a cluster, until it is told to end.
import { mkdir } from "node:fs/promises";
import type { Command } from "commander";
import type { Engine } from "../../actors/ports/engine.js";
import type { Log } from "../../actors/ports/log.js";
import { adminApi } from "../admin/admin.js";
import { hostSettings, proxySettings, readHostConfig, readProxyConfig } from "../config/program.js";
import { HaconiwaEngine } from "../engines/haconiwa/engine.js";
import { ProcessEngine } from "../engines/process.js";
import { RuncEngine } from "../engines/runc/engine.js";
import { withFaultPoints } from "../fault-points.js";
import { createHost } from "../host.js";
import { koaServer, listen, shut } from "../http-server.js";
import { collectHourly } from "../images/collector.js";
import { configuredImages, secretDirectories } from "../images/configured.js";
import { programLog } from "../log.js";
import { EtcdPlacementStore } from "../placement/etcd.js";
import { createProxy } from "../proxy/proxy.js";
import { systemClock } from "../system-clock.js";
import { startTracing } from "../tracing/opentelemetry.js";
import { read } from "./store.js";
import { etcdOptions, type Given, givenSettings, withSettings } from "./settings.js";

export function memberCommands(program: Command): void {
  withSettings(
    program.command("proxy").description("take requests and carry each to the host of its container"),
    proxySettings,
  ).action(runProxy);
  withSettings(
    program
      .command("host")
      .description("own containers on this machine")
      .addHelpText(
        "after",
        "\nSIGTERM moves its containers to other hosts first; SIGINT stops them. It needs root for runc: see hakobu doctor.",
      ),
    hostSettings,
  ).action(runHost);
}

async function runProxy(options: Given): Promise<void> {
  const given = givenSettings(options, proxySettings);
  const {
    etcd,
    log: logging,
    proxy,
  } = await readProxyConfig({ file: options.config, env: process.env, options: given });
  const log = programLog(logging.level);
  const stop = stopSignal();
  const tracing = startTracing({
    service: "hakobu-proxy",
    instance: `${proxy.listen.address}:${proxy.listen.port}`,
    log,
  });
  const store = new EtcdPlacementStore(etcdOptions(etcd), { clock: systemClock, log });
  const member = await createProxy({
    ...proxy,
    freshMs: proxy.probe.freshMs,
    probeTimeoutMs: proxy.probe.timeoutMs,
    probeFloorMs: proxy.probe.floorMs,
    probeKind: proxy.probe.kind,
    store,
    log,
    tracer: tracing.tracer,
  });
  const admin = koaServer(adminApi(member));
  await listen(admin, proxy.admin);
  log.info({ ...proxy.listen, admin: `${proxy.admin.address}:${proxy.admin.port}` }, "proxy ready");
  await stop;
  await member.close();
  await shut(admin);
  await store.close();
  await tracing.close();
}

async function runHost(options: Given): Promise<void> {
  const given = givenSettings(options, hostSettings);
  const config = await readHostConfig({ file: options.config, env: process.env, options: given });
  const { etcd, log: logging, host } = config;
  const log = programLog(logging.level);
  const stop = stopSignal();
  const { id, stateDir } = host;
  const images = await configuredImages(config, log);
  await images.prepare();
  const hidden = secretDirectories(config);
  for (const directory of [stateDir, host.images]) await mkdir(directory, { recursive: true, mode: 0o700 });
  const tracing = startTracing({ service: "hakobu-host", instance: id, log });
  const store = new EtcdPlacementStore(etcdOptions(etcd), { clock: systemClock, log });
  const joining = new AbortController();
  void stop.then(() => joining.abort(new Error("told to end while it was joining")));
  const member = await createHost(
    {
      ...host,
      store: withFaultPoints(store, "store", { join: "membership" }),
      log,
      tracer: tracing.tracer,
      engines: host.engines.map((name) =>
        withFaultPoints(engine(name, id, stateDir, hidden, log), "engine", { standby: "standby" }),
      ),
      images: withFaultPoints(images, "images", { begin: "draft" }),
    },
    joining.signal,
  );
  const endCollections = collectHourly(
    (wanted) => images.collect(wanted),
    async () => new Set([...(await read(store)).specs()].map(({ spec }) => spec.name)),
  );
  const signal = await stop;
  log.info({ signal }, signal === "SIGTERM" ? "told to end: moves its containers away" : "told to end");
  await member.close({ drain: signal === "SIGTERM" });
  await endCollections();
  await images.close();
  await store.close();
  await tracing.close();
}

type EngineName = "runc" | "process" | "haconiwa";

export function engine(
  name: EngineName,
  hostId: string,
  stateDir: string,
  hidden: readonly string[],
  log: Log,
): Engine {
  switch (name) {
    case "runc":
      return new RuncEngine({ hostId, stateDir, log, hidden });
    case "process":
      return new ProcessEngine({ hostId, stateDir, log });
    case "haconiwa":
      return new HaconiwaEngine({ hostId, stateDir, log, hidden });
  }
}

/** The first of SIGINT and SIGTERM; a second one ends the process at once. */
function stopSignal(): Promise<"SIGINT" | "SIGTERM"> {
  return new Promise((resolve) => {
    process.once("SIGINT", () => resolve("SIGINT"));
    process.once("SIGTERM", () => resolve("SIGTERM"));
  });
}
