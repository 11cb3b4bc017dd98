// How far one request can go: hosts whose tables contradict each other, proxies in a circle, and a proxy whose table is stale.
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { noLog } from "../../actors/ports/log.js";
import type { PlacementStore, StoreChange } from "../../actors/ports/placement-store.js";
import { header, path } from "../../runtime/dispatcher/protocol.js";
import { ProcessEngine } from "../../runtime/engines/process.js";
import { createHost, type HakobuHost } from "../../runtime/host.js";
import { DirectoryImageStore } from "../../runtime/images/directory-store.js";
import { MemoryPlacementStore } from "../../runtime/placement/memory.js";
import { createProxy, type HakobuProxy, type ProxyOptions } from "../../runtime/proxy/proxy.js";
import { systemClock } from "../../runtime/system-clock.js";
import { eventually, fixtures, freePorts, send } from "../lab/cluster.js";
import { closeAll, httpServer, type Listening } from "../lab/hop.js";
import { hostOf, placementOf, recordOf } from "../lab/records.js";
import { TcpProxy } from "../lab/tcp-proxy.js";

/** As C4 of runtime/proxy/carrier.ts has it. */
const hopLimit = 5;
const hostname = "blog.localhost";

describe("the hops of one request", function () {
  this.timeout(30_000);
  const open: { close(): Promise<unknown> }[] = [];
  const keep = <T extends { close(): Promise<unknown> }>(part: T): T => {
    open.push(part);
    return part;
  };

  afterEach(async () => {
    for (const part of open.splice(0).toReversed()) await part.close();
    await closeAll();
  });

  const newStore = () => keep(new MemoryPlacementStore({ clock: systemClock, ttlMs: 60_000 }));

  async function proxyOn(store: PlacementStore, more: Partial<ProxyOptions> = {}): Promise<HakobuProxy> {
    const listen = { address: "127.0.0.1", port: 0 };
    return keep(await createProxy({ listen, store, log: noLog, requestTimeoutMs: 10_000, ...more }));
  }

  /** A host that says of every request and every claim that another one owns the container. `epoch`: of that claim. */
  async function denying(other: string, epoch: () => number): Promise<{ server: Listening; requests: () => number }> {
    let requests = 0;
    const server = await httpServer((incoming, outgoing) => {
      const placement = placementOf("blog", other, epoch());
      if (incoming.headers[header.container] === undefined) {
        incoming.resume();
        outgoing.writeHead(incoming.url === path.claim ? 421 : 404);
        outgoing.end(JSON.stringify({ kind: "moved", placement }));
        return;
      }
      requests++;
      outgoing.writeHead(421, { [header.verdict]: "moved", "content-type": "application/json" });
      outgoing.end(JSON.stringify({ verdict: "moved", placement }));
    });
    return { server, requests: () => requests };
  }

  for (const [title, step] of [
    ["always name a newer owner", 1],
    ["name each other in one epoch", 0],
  ] as const)
    it(`are bounded, and the client is told, when two hosts ${title}`, async () => {
      const store = newStore();
      let epoch = 1000;
      const next = (): number => (epoch += step);
      const a = await denying("b", next);
      const b = await denying("a", next);
      await store.putSpec(recordOf("blog"));
      const memberships = await Promise.all([
        store.join(hostOf("a", { address: a.server.address, port: a.server.port })),
        store.join(hostOf("b", { address: b.server.address, port: b.server.port })),
      ]);
      const claimed = await memberships[0].claim({ container: "blog", expected: 0, reason: "planted" });
      assert.equal(claimed.kind, "won");
      const proxy = await proxyOn(store);
      const reply = await send(proxy, hostname);
      assert.equal(reply.status, 503, reply.text);
      assert.match(reply.text, /blog/);
      const passed = a.requests() + b.requests();
      assert.ok(passed >= 1 && passed <= hopLimit, `${passed} forwards`);
      for (const membership of memberships) membership.abandon();
    });

  it("end with a 508 where the second proxy of a circle meets what the first one sent, and go no further", async () => {
    const stores = [newStore(), newStore()];
    const proxies = await Promise.all(stores.map((store) => proxyOn(store)));
    // To each, the other one is the host that owns the container.
    for (const [index, store] of stores.entries()) {
      await store.putSpec(recordOf("blog"));
      const { address, port } = proxies[1 - index] as HakobuProxy;
      const membership = await store.join(hostOf("elsewhere", { address, port }));
      assert.equal((await membership.claim({ container: "blog", expected: 0, reason: "planted" })).kind, "won");
    }
    for (const proxy of proxies) {
      await eventually("it knows the owner", () => proxy.view.placement("blog") !== undefined);
      const reply = await send(proxy, hostname);
      assert.equal(reply.status, 508, reply.text);
      assert.match(reply.text, /circle/);
      assert.ok(reply.ms < 2000, `answered after ${reply.ms} ms`);
    }
  });

  it("are one more, and only once, when a proxy's table is stale: one 421, and its table is right", async () => {
    const store = newStore();
    const directory = await mkdtemp(join(tmpdir(), "hakobu-hops-"));
    keep({ close: () => rm(directory, { recursive: true, force: true }) });
    const refusals = new Map<string, number>();
    const hosts = new Map<string, HakobuHost>();
    for (const [index, id] of ["a", "b"].entries()) {
      const address = `127.0.3.${index + 1}`;
      const [port] = (await freePorts(1)) as [number];
      const between = keep(await TcpProxy.start(`${address}:${port}`));
      between.onResponse = (data) => {
        if (data.toString("latin1").startsWith("HTTP/1.1 421")) refusals.set(id, (refusals.get(id) ?? 0) + 1);
      };
      const host = await createHost({
        id,
        listen: { address, port },
        advertise: { address: "127.0.0.1", port: between.port },
        store,
        engines: [new ProcessEngine({ hostId: id, stateDir: join(directory, id), log: noLog })],
        images: new DirectoryImageStore({ directory: join(directory, "images"), log: noLog }),
        log: noLog,
      });
      hosts.set(id, keep(host));
    }
    const command = [process.execPath, join(fixtures, "journal.mjs")];
    const checkpoint = { onReady: false, at: "warm", warmup: "/", timeoutMs: 1000 } as const;
    await store.putSpec(recordOf("blog", { command, checkpoint }));
    const stream = new Held();
    const proxy = await proxyOn(stream.of(store));
    const first = await send(proxy, hostname);
    assert.equal(first.status, 200, first.text);
    const from = proxy.view.placement("blog")?.host as string;
    const to = from === "a" ? "b" : "a";
    stream.hold();
    await hosts.get(from)?.actor.relocate("blog", to, "a planned move");
    assert.equal(proxy.view.placement("blog")?.host, from, "the proxy has not heard of it");
    const moved = await send(proxy, hostname);
    assert.equal(moved.status, 200, moved.text);
    assert.deepEqual([...refusals], [[from, 1]]);
    assert.equal(proxy.view.placement("blog")?.host, to);
    assert.equal((await send(proxy, hostname)).status, 200);
    assert.deepEqual([...refusals], [[from, 1]]);
    stream.release();
  });
});

/** A store whose stream of changes can be held back. */
class Held {
  #gate: Promise<void> = Promise.resolve();
  #open: () => void = () => {};

  hold(): void {
    this.#gate = new Promise((resolve) => {
      this.#open = resolve;
    });
  }

  release(): void {
    this.#open();
  }

  of(store: PlacementStore): PlacementStore {
    const gate = (): Promise<void> => this.#gate;
    return {
      async *follow(signal: AbortSignal): AsyncGenerator<StoreChange, void, void> {
        for await (const change of store.follow(signal)) {
          await gate();
          yield change;
        }
      },
      putSpec: (record) => store.putSpec(record),
      updateSpec: (name, change) => store.updateSpec(name, change),
      deleteSpec: (name) => store.deleteSpec(name),
      join: (record) => store.join(record),
      read: (container) => store.read(container),
      close: () => store.close(),
    };
  }
}
