import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { PlacementStore } from "../../actors/ports/placement-store.js";
import { type EtcdServer, startEtcd } from "../../runtime/placement/etcd-server.js";
import { EtcdPlacementStore } from "../../runtime/placement/etcd.js";
import { MemoryPlacementStore } from "../../runtime/placement/memory.js";
import { systemClock } from "../../runtime/system-clock.js";
import { placementStoreContract } from "./placement-store.js";

const silent = { debug() {}, info() {}, warn() {}, error() {} };

placementStoreContract("memory", async () => {
  const ttlMs = 200;
  const store = new MemoryPlacementStore({ clock: systemClock, ttlMs });
  return { ttlMs, now: () => systemClock.now(), client: () => store, dispose: () => store.close() };
});

describe("on etcd", () => {
  let directory: string;
  let server: EtcdServer;
  let benches = 0;
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-etcd-"));
    server = await startEtcd({ dataDir: join(directory, "data") });
  });
  after(async () => {
    await server?.kill();
    await rm(directory, { recursive: true, force: true });
  });

  placementStoreContract("etcd", async () => {
    const clients: PlacementStore[] = [];
    const prefix = `bench${++benches}/`;
    const options = { hosts: server.endpoints, prefix, ttlSeconds: 2, callTimeoutMs: 2000 };
    return {
      ttlMs: 2000,
      now: () => systemClock.now(),
      client: () => {
        const store = new EtcdPlacementStore(options, { clock: systemClock, log: silent });
        clients.push(store);
        return store;
      },
      dispose: async () => {
        await Promise.all(clients.map((client) => client.close()));
      },
    };
  });
});
