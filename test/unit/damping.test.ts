// A container that has been moved on suspicion too often stays where it is, and whoever looks is told why (`movesPerMinute`).
import assert from "node:assert/strict";
import { type Log, noLog } from "../../actors/ports/log.js";
import type { Prober } from "../../actors/ports/prober.js";
import { MemoryPlacementStore } from "../../runtime/placement/memory.js";
import { createProxy } from "../../runtime/proxy/proxy.js";
import { systemClock } from "../../runtime/system-clock.js";
import { send } from "../lab/cluster.js";
import { closeAll, tcpServer } from "../lab/hop.js";
import { hostOf, recordOf } from "../lab/records.js";

const requestTimeoutMs = 1000;

describe("a move that is damped", () => {
  const open: { close(): Promise<unknown> }[] = [];
  afterEach(async () => {
    for (const part of open.splice(0).toReversed()) await part.close();
    await closeAll();
  });

  /** A host that accepts connections and never says anything, and a proxy that may not move anything on suspicion. */
  async function silent() {
    const warnings: { readonly details: object; readonly message: string }[] = [];
    const log: Log = { ...noLog, warn: (details, message) => void warnings.push({ details, message }) };
    const prober: Prober = { probe: async (_target, timeoutMs) => ({ kind: "timeout", afterMs: timeoutMs }) };
    const store = new MemoryPlacementStore({ clock: systemClock, ttlMs: 60_000 });
    open.push(store);
    const host = await tcpServer((socket) => void socket.resume());
    const other = await tcpServer((socket) => socket.destroy());
    await store.putSpec(recordOf("blog"));
    await store.join(hostOf("other", { address: other.address, port: other.port }));
    const owner = await store.join(hostOf("owner", { address: host.address, port: host.port }));
    await owner.claim({ container: "blog", expected: 0, reason: "planted" });
    const listen = { address: "127.0.0.1", port: 0 };
    const proxy = await createProxy({ listen, store, log, prober, requestTimeoutMs, movesPerMinute: 0 });
    open.push(proxy);
    return { proxy, warnings, asked: () => host.accepted(), others: () => other.accepted() };
  }

  it("is logged with the container, its host, the number of moves, the reason and the setting", async () => {
    const { proxy, warnings, others } = await silent();
    await send(proxy, "blog.localhost");
    const said = warnings.find(({ message }) => message.includes("movesPerMinute"));
    assert.ok(said !== undefined, JSON.stringify(warnings));
    const { reason, ...details } = said.details as { reason: string };
    assert.deepEqual(details, { container: "blog", host: "owner", moves: 0 });
    assert.match(reason, /^owner: /);
    assert.equal(others(), 0, "nobody else was asked");
    assert.equal(proxy.view.placement("blog")?.host, "owner");
  });

  it("leaves the request with its silent host until its own deadline, and then the client is answered", async () => {
    const { proxy, asked } = await silent();
    const reply = await send(proxy, "blog.localhost");
    assert.equal(reply.status, 503, reply.text);
    assert.equal(reply.headers["retry-after"], "1");
    assert.match(reply.text, /stays on owner.*movesPerMinute/);
    assert.ok(reply.ms > requestTimeoutMs / 2 && reply.ms < requestTimeoutMs + 2000, `after ${reply.ms} ms`);
    assert.ok(asked() > 0, "it was sent to its host");
  });
});
