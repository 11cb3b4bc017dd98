import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { PlacementStore } from "../../actors/ports/placement-store.js";
import { type EtcdServer, startEtcd } from "../../runtime/placement/etcd-server.js";
import { EtcdPlacementStore } from "../../runtime/placement/etcd.js";
import { MemoryPlacementStore } from "../../runtime/placement/memory.js";
import { systemClock } from "../../runtime/system-clock.js";
import { hostNamed, placementStoreContract, specNamed, View, win } from "./placement-store.js";

const silent = { debug() {}, info() {}, warn() {}, error() {} };

describe("placement store in memory", () => {
  it("gives a follower that falls far behind everything anew instead of a queue without bound (P5)", async () => {
    const store = new MemoryPlacementStore({ clock: systemClock, ttlMs: 200 });
    const stream = store.follow(new AbortController().signal);
    await stream.next();
    await stream.next();
    for (let n = 0; n <= 10_000; n++) await store.putSpec(specNamed("busy", `h${n}`));
    const { value } = await stream.next();
    assert.deepEqual(value, { kind: "reset", specs: [specNamed("busy", "h10000")], hosts: [], placements: [] });
    await store.putSpec(specNamed("busy", "next"));
    assert.equal((await stream.next()).value?.kind, "spec");
    await store.close();
    assert.equal((await stream.next()).done, true);
  });

  it("tells a host whose lease was revoked, and removes what hung on it", async () => {
    const store = new MemoryPlacementStore({ clock: systemClock, ttlMs: 200 });
    const member = await store.join(hostNamed("a"));
    await win(member, "blog", 0);
    store.revoke("a");
    assert.match(await member.lost, /revoked/);
    assert.ok(member.provenUntil <= systemClock.now());
    const view = new View(store);
    await view.until(() => view.count("connected") > 0);
    assert.deepEqual([view.hosts.size, view.placements.size], [0, 0]);
    await store.close();
    await view.ended;
  });
});

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
