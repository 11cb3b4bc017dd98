// The cluster without root: hosts on loopback addresses in this process, child processes as containers, placements in memory.
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Log } from "../../actors/ports/log.js";
import type { Registered } from "../../actors/registry.js";
import type { Tracer } from "../../actors/ports/tracer.js";
import { adminApi } from "../admin/admin.js";
import { ProcessEngine } from "../engines/process.js";
import { createHost, type HakobuHost } from "../host.js";
import { koaServer, listen, shut } from "../http-server.js";
import { DirectoryImageStore } from "../images/directory-store.js";
import { MemoryPlacementStore } from "../placement/memory.js";
import { createProxy } from "../proxy/proxy.js";
import { systemClock } from "../system-clock.js";
import { hostStatus } from "../dispatcher/control.js";
import type { LocalCluster } from "./cluster.js";
import type { AddressInfo } from "node:net";

export interface LoopbackOptions {
  readonly hosts: readonly string[];
  readonly directory: string;
  readonly proxy: { readonly address: string; readonly port: number };
  readonly admin: { readonly address: string; readonly port: number };
  readonly log: Log;
  readonly tracer: Tracer;
  readonly ttlMs?: number;
}

export interface LoopbackCluster extends LocalCluster {
  /** Every live actor of every member. */
  actors(): readonly Registered[];
}

export async function createLoopbackCluster(options: LoopbackOptions): Promise<LoopbackCluster> {
  const { directory, log, tracer } = options;
  const shared = join(directory, "shared");
  await mkdir(shared, { recursive: true });
  const store = new MemoryPlacementStore({ clock: systemClock, ttlMs: options.ttlMs ?? 10_000 });
  const members = new Map<string, HakobuHost>();
  const start = async (id: string): Promise<void> => {
    const index = options.hosts.indexOf(id);
    const host = await createHost({
      id,
      listen: { address: `127.0.1.${index + 1}`, port: members.get(id)?.port ?? 0 },
      store,
      engines: [new ProcessEngine({ hostId: id, stateDir: join(directory, "hosts", id), log })],
      images: new DirectoryImageStore({ directory: join(shared, "images"), log }),
      log,
      tracer,
    });
    members.set(id, host);
  };
  for (const id of options.hosts) await start(id);
  const proxy = await createProxy({ listen: options.proxy, store, log, tracer });
  const admin = koaServer(adminApi(proxy));
  await listen(admin, options.admin);
  let closed: Promise<void> | undefined;
  return {
    mode: "loopback",
    hosts: options.hosts,
    engines: ["process"],
    proxy: { address: proxy.address, port: proxy.port },
    admin: admin.address() as AddressInfo,
    etcd: undefined,
    shared,
    logs: "standard error",
    apply: async (records) => {
      for (const record of records) await store.putSpec(record);
    },
    delete: async (name) => {
      await store.deleteSpec(name);
    },
    owner: (container) => Promise.resolve(proxy.view.placement(container)?.host),
    status: (id) => {
      const host = members.get(id);
      return Promise.resolve(host && hostStatus(host.actor));
    },
    actors: () =>
      [proxy.registry, ...[...members.values()].map((host) => host.registry)].flatMap((each) => each.list()),
    moves: () => Promise.resolve(proxy.relocations.reports),
    cut: async (id) => members.get(id)?.destroy(),
    heal: start,
    byHand: () => undefined,
    close: () =>
      (closed ??= (async () => {
        await proxy.close();
        await shut(admin);
        for (const [id, host] of members) {
          // A host that was cut left its containers running: it comes back to stop them.
          if (host.actor.state !== "running") await start(id).catch(() => {});
          await members.get(id)?.close();
        }
        await store.close();
        await rm(join(directory, "hosts"), { recursive: true, force: true });
      })()),
  };
}
