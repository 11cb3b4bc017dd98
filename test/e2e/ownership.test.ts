// Who owns a container when hosts, proxies and etcd fail, case by case. test/chaos has them all at once, at random.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { request } from "undici";
import { EtcdConnection, etcdSettings } from "../../runtime/placement/etcd-client.js";
import { Keys } from "../../runtime/placement/etcd-records.js";
import {
  cannotRestore,
  eventually,
  type LabOptions,
  openTestCluster,
  type Reply,
  send,
  type TestCluster,
} from "../lab/cluster.js";

const ttlSeconds = 3;
const ttlMs = ttlSeconds * 1000;
/** docs/reference/faults.md: what `exclusive` adds to the TTL at most. */
const takeoverMarginMs = 3000;
const beatMs = 50;

/** A cluster for the tests of one suite, in `lab` once its `before` has run. */
function cluster(name: string, hosts: readonly string[], options: LabOptions) {
  const the = { lab: undefined as unknown as TestCluster };
  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    the.lab = await openTestCluster(name, hosts, { ttlSeconds, callTimeoutMs: 1000, ...options });
  });
  after(async () => {
    await the.lab?.close();
  });
  return the;
}

/** As a stale leader of etcd 3.4.23 does (https://github.com/etcd-io/etcd/issues/15247). */
async function dropLease(endpoints: readonly string[], host: string): Promise<void> {
  const connection = new EtcdConnection(etcdSettings({ hosts: endpoints, ttlSeconds, callTimeoutMs: 5000 }));
  try {
    const key = new Keys("hakobu/").host(host);
    const { kvs } = await connection.call("a read", ({ kv }) => kv.range({ key }));
    const lease = { ID: kvs[0]?.lease ?? "" };
    await connection.call("a revocation", ({ leaseClient }) => leaseClient.leaseRevoke(lease));
  } finally {
    connection.close();
  }
}

const body = (reply: Reply) => JSON.parse(reply.text) as { count: number; host: string; epoch: number };

describe("ownership", function () {
  this.timeout(60_000);
  const the = cluster("owner", ["a", "b"], { proxies: 2, proxySettings: { movesPerMinute: 100 } });
  let count = 0;

  afterEach(async () => {
    for (const host of the.lab?.cluster.hosts ?? []) {
      the.lab.cluster.resumeAgent(host);
      await the.lab.cluster.heal(host);
    }
  });

  /** A container that has answered once, on host a. */
  async function ready(more: Parameters<TestCluster["journal"]>[1] = {}) {
    const { lab } = the;
    const name = `own-${++count}`;
    await lab.cluster.apply([lab.journal(name, { ...more, env: { BEAT_MS: String(beatMs) } })]);
    const hostname = `${name}.localhost`;
    const first = await lab.send(hostname);
    assert.equal(first.status, 200, first.text);
    if ((await lab.cluster.owner(name)) !== "a") await lab.cluster.relocate(name, "a");
    await eventually("both proxies know that it is on host a", async () => {
      const seen = await Promise.all([0, 1].map((proxy) => lab.cluster.placementSeen(name, proxy)));
      return seen.every((placement) => placement?.host === lab.cluster.hostId("a"));
    });
    const { epoch } = body(await lab.send(hostname));
    const on = async (host: string) =>
      (await lab.cluster.status(host))?.containers.find((container) => container.name === name);
    return { name, hostname, epoch, on };
  }

  const onB = (reply: Reply): void => {
    assert.equal(reply.status, 200, reply.text);
    assert.equal(body(reply).host, the.lab.cluster.hostId("b"));
  };
  /** What a proxy with that knowledge would send straight to the agent. */
  const direct = (host: string, name: string, epoch: number, sent?: () => void): Promise<Reply> =>
    send(the.lab.cluster.agent(host), name, {
      headers: { "hakobu-container": name, "hakobu-epoch": String(epoch) },
      id: `direct-${++count}`,
      ...(sent === undefined ? {} : { sent }),
    });
  /** Times at which copies of it were alive, by host, from its journal: on other hosts than a, those since `sinceMs`. */
  const alive = async (name: string, sinceMs = 0) => {
    const spans = new Map<string, { first: number; last: number }>();
    for (const { host, at } of await the.lab.lines(name)) {
      const id = host.slice(-1);
      if (id !== "a" && at < sinceMs) continue;
      const span = spans.get(id) ?? { first: at, last: at };
      spans.set(id, { first: span.first, last: at });
    }
    return spans as ReadonlyMap<string, { readonly first: number; readonly last: number }>;
  };

  it("takes an exclusive container over when the lease has ended and not before, and there are never two of it", async () => {
    const { name, hostname } = await ready({ takeover: "exclusive" });
    const cutAt = Date.now();
    await the.lab.cluster.cut("a");
    const reply = await the.lab.send(hostname);
    onB(reply);
    const spans = await alive(name, cutAt);
    const [old, next] = [spans.get("a"), spans.get("b")];
    assert.ok(old !== undefined && next !== undefined);
    assert.ok(old.last < next.first, `host a's copy lived until ${old.last - next.first} ms after host b's began`);
    // The lease was renewed at most a quarter of the TTL before the cut.
    assert.ok(next.first - cutAt > ttlMs / 2, `taken over after ${next.first - cutAt} ms`);
    assert.ok(reply.ms < ttlMs + takeoverMarginMs, `answered after ${reply.ms} ms`);
  });

  it("never has two of an exclusive container when etcd drops a lease that its host can still prove", async () => {
    const { name, hostname } = await ready({ takeover: "exclusive" });
    const [before] = (await the.lab.lines(name)).slice(-1);
    const slow = the.lab.send(hostname, { path: "/?ms=3000", id: "slow" });
    await eventually("the old copy is at work on a request", async () =>
      (await the.lab.lines(name)).some(({ id }) => id === "slow"),
    );
    const droppedAt = Date.now();
    await dropLease(the.lab.cluster.etcdServer.endpoints, the.lab.cluster.hostId("a"));
    const reply = await the.lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    const lines = await the.lab.lines(name);
    const old = lines.filter(({ instance }) => instance === before?.instance).map(({ at }) => at);
    const next = lines.filter(({ instance, at }) => instance !== before?.instance && at >= droppedAt);
    assert.ok(next.length > 0, "another copy has answered");
    const overlapMs = Math.max(...old) - Math.min(...next.map(({ at }) => at));
    assert.ok(overlapMs < 0, `the old copy lived until ${overlapMs} ms after the next one began`);
    assert.equal((await slow).status, 200, "it was sent again, for it was safe to");
  });

  it("has killed an exclusive container whose agent was killed before another host starts it", async () => {
    const { name, hostname } = await ready({ takeover: "exclusive" });
    await eventually("its guard knows it", async () => {
      const span = (await alive(name)).get("a");
      return span !== undefined && span.last - span.first > 1500;
    });
    const killedAt = Date.now();
    await the.lab.cluster.killAgent("a");
    onB(await the.lab.send(hostname));
    const spans = await alive(name, killedAt);
    const [old, next] = [spans.get("a"), spans.get("b")];
    assert.ok(old !== undefined && next !== undefined);
    assert.ok(old.last < next.first, `host a's copy lived until ${old.last - next.first} ms after host b's began`);
    assert.ok(old.last - killedAt < 1000, `it lived for ${old.last - killedAt} ms after its agent`);
    await the.lab.cluster.startAgent("a");
  });

  it("serves nothing stale after an agent stood still for longer than its lease", async () => {
    const exclusive = await ready({ takeover: "exclusive" });
    const fast = await ready();
    const pausedAt = Date.now();
    the.lab.cluster.pauseAgent("a");
    const [fastReply, exclusiveReply] = await Promise.all([
      the.lab.send(fast.hostname),
      the.lab.send(exclusive.hostname),
    ]);
    onB(fastReply);
    onB(exclusiveReply);
    // They wait in its socket: the first things that it reads on waking.
    let waiting = 0;
    const stale = [fast, exclusive].map(({ name, epoch }) => direct("a", name, epoch, () => waiting++));
    await eventually("both are in its socket", () => waiting === 2);
    the.lab.cluster.resumeAgent("a");
    for (const reply of await Promise.all(stale))
      assert.ok([421, 503].includes(reply.status), `${reply.status}: ${reply.text}`);
    for (const { on, name } of [fast, exclusive]) {
      await eventually("the old copy is gone", async () => (await on("a")) === undefined);
      const served = (await the.lab.lines(name)).filter(({ event, at }) => event === "request" && at > pausedAt);
      const firstB = served.findIndex(({ host }) => host.endsWith("-b"));
      assert.ok(
        served.slice(firstB).every(({ host }) => host.endsWith("-b")),
        `${name}: host a served after host b`,
      );
    }
  });

  it("moves an exclusive container not at all when its host was silent for less than the lease", async () => {
    const { hostname, name, epoch } = await ready({ takeover: "exclusive" });
    the.lab.cluster.pauseAgent("a");
    const waiting = the.lab.send(hostname);
    await sleep(ttlMs / 5); // The fault's length.
    the.lab.cluster.resumeAgent("a");
    const reply = await waiting;
    assert.deepEqual([reply.status, body(reply).epoch], [200, epoch], reply.text);
    assert.equal(await the.lab.cluster.owner(name), "a");
  });

  it("leaves a confirmed container where it is when only the proxies cannot reach its host, and answers afterwards", async () => {
    const confirmed = await ready({ takeover: "confirmed" });
    const fast = await ready();
    await the.lab.cluster.network.blind("a", the.lab.cluster.agent("a").port);
    const waiting = the.lab.send(confirmed.hostname);
    onB(await the.lab.send(fast.hostname));
    await sleep(500); // The fault's length: the confirmed one is tried and refused again and again.
    await the.lab.cluster.heal("a");
    const reply = await waiting;
    assert.deepEqual([reply.status, body(reply).epoch], [200, confirmed.epoch], reply.text);
    assert.equal(await the.lab.cluster.owner(confirmed.name), "a");
  });

  it("moves a confirmed container when the other host cannot reach its owner either", async () => {
    const { hostname } = await ready({ takeover: "confirmed" });
    await the.lab.cluster.cut("a");
    const reply = await the.lab.send(hostname);
    onB(reply);
    assert.ok(reply.ms < ttlMs, `${reply.ms} ms: without waiting for the lease`);
  });

  it("gives one owner and one restore when both proxies find a host dead at the same time", async () => {
    const { name, hostname } = await ready();
    await the.lab.cluster.cut("a");
    const replies = await Promise.all(Array.from({ length: 20 }, (_, each) => the.lab.send(hostname, {}, each % 2)));
    for (const reply of replies) onB(reply);
    const epochs = new Set(replies.map((reply) => body(reply).epoch));
    assert.equal(epochs.size, 1);
    // Host b may have run it before, under an older epoch, and that copy may still be ending.
    const copies = (await the.lab.lines(name)).filter(({ epoch }) => epochs.has(epoch));
    assert.equal(new Set(copies.map(({ instance }) => instance)).size, 1);
  });

  it("refuses a request with an older epoch, names the owner, and executes nothing", async () => {
    const { name, epoch } = await ready();
    await the.lab.cluster.relocate(name, "b");
    const before = (await the.lab.lines(name)).filter(({ event }) => event === "request").length;
    for (const host of ["a", "b"]) {
      const reply = await direct(host, name, epoch);
      assert.equal(reply.status, 421, reply.text);
      assert.equal(reply.headers["hakobu-verdict"], "moved");
      const { placement } = JSON.parse(reply.text) as { placement?: { host: string } };
      assert.equal(placement?.host, the.lab.cluster.hostId("b"));
    }
    assert.equal((await the.lab.lines(name)).filter(({ event }) => event === "request").length, before);
  });

  it("steps down when a request names a newer epoch than its own", async () => {
    const { name, hostname, epoch, on } = await ready();
    assert.equal((await direct("a", name, epoch + 1_000_000)).status, 421);
    await eventually("it has left", async () => (await on("a"))?.epoch !== epoch);
    const reply = await the.lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    assert.ok(body(reply).epoch > epoch);
  });

  it("puts a proxy with a stale table right without another move", async () => {
    const { name, hostname } = await ready();
    const moves = (await the.lab.cluster.movesOf(1)).length;
    the.lab.cluster.pauseProxy(1);
    // It waits in the proxy's socket from before the move.
    let sent = false;
    const waiting = the.lab.send(hostname, { sent: () => (sent = true) }, 1);
    try {
      await eventually("it is in the socket", () => sent);
      await the.lab.cluster.relocate(name, "b");
    } finally {
      the.lab.cluster.resumeProxy(1);
    }
    onB(await waiting);
    assert.equal((await the.lab.cluster.movesOf(1)).length, moves);
  });

  describe("under load", () => {
    /** Sends one after the other through both proxies while `work` goes on, and a little longer. @returns what was not 200 */
    async function failuresDuring(hostnames: readonly string[], work: () => Promise<void>): Promise<string[]> {
      const failures: string[] = [];
      let over = false;
      let sent = 0;
      const load = async (hostname: string): Promise<void> => {
        for (let each = 0; !over; each++) {
          const method = each % 3 === 0 ? "POST" : "GET";
          const reply = await the.lab.send(hostname, { method, path: each % 10 === 0 ? "/?ms=200" : "/" }, each % 2);
          sent++;
          if (reply.status !== 200) failures.push(`${method} ${hostname}: ${reply.status} ${reply.text}`);
        }
      };
      const loads = hostnames.map(load);
      await eventually("the load runs", () => sent > 20);
      await work();
      const at = sent;
      await eventually("the load goes on", () => sent > at + 20);
      over = true;
      await Promise.all(loads);
      return failures;
    }

    it("drains a host and lets it take containers again, without a failed request", async () => {
      const all = [await ready(), await ready({ takeover: "confirmed" }), await ready({ takeover: "exclusive" })];
      const failures = await failuresDuring(
        all.map(({ hostname }) => hostname),
        async () => {
          await the.lab.cluster.drain("a");
          await eventually("it is empty", async () => (await the.lab.cluster.status("a"))?.containers.length === 0);
        },
      );
      assert.deepEqual(failures, []);
      await assert.rejects(the.lab.cluster.relocate(all[0]?.name as string, "a"), /drains/);
      await the.lab.cluster.undrain("a");
      await eventually("it takes one again", () =>
        the.lab.cluster.relocate(all[0]?.name as string, "a").then(
          () => true,
          () => false,
        ),
      );
    });

    it("drains by itself on SIGTERM, without a failed request", async () => {
      const all = [await ready(), await ready({ takeover: "exclusive" })];
      const failures = await failuresDuring(
        all.map(({ hostname }) => hostname),
        () => the.lab.cluster.stopAgent("a"),
      );
      assert.deepEqual(failures, []);
      for (const { name } of all) assert.equal(await the.lab.cluster.owner(name), "b");
    });
  });

  it("serves what it knows while etcd is away, says why it cannot place anything, and recovers by itself", async () => {
    const { lab } = the;
    const known = await ready();
    const unplaced = `own-${++count}`;
    await lab.cluster.apply([lab.journal(unplaced)]);
    for (const [stop, start] of [
      [() => Promise.resolve(lab.cluster.etcdServer.pause()), () => Promise.resolve(lab.cluster.etcdServer.resume())],
      [() => lab.cluster.etcdServer.kill(), () => lab.cluster.etcdServer.restart()],
    ] as const) {
      await stop();
      try {
        const end = performance.now() + ttlMs + 2000;
        let refused: Reply | undefined;
        // Also beyond the leases' end.
        while (performance.now() < end) {
          const reply = await lab.send(known.hostname);
          assert.equal(reply.status, 200, reply.text);
          refused = await lab.send(`${unplaced}.localhost`);
          assert.equal(refused.status, 503, refused.text);
        }
        assert.match(refused?.text ?? "", /lease|placement store|fenced/);
        assert.ok(Number(refused?.headers["retry-after"]) > 0);
      } finally {
        await start();
      }
      for (const host of lab.cluster.hosts) await lab.cluster.heal(host);
      await eventually("it is placed again", async () => (await lab.cluster.placementSeen(known.name)) !== undefined);
    }
    await eventually(
      "what was unplaced is placed",
      async () => (await lab.send(`${unplaced}.localhost`)).status === 200,
    );
    assert.equal((await lab.send(known.hostname)).status, 200);
  });
});

describe("a cluster of small hosts", function () {
  this.timeout(60_000);
  const the = cluster("small", ["a", "b"], { hostSettings: { capacity: 2 }, proxySettings: { movesPerMinute: 2 } });

  afterEach(async () => {
    for (const host of the.lab?.cluster.hosts ?? []) await the.lab.cluster.heal(host);
  });

  async function suspected(host: string): Promise<boolean> {
    const { address, port } = the.lab.cluster.admin;
    const answer = await request(`http://${address}:${port}/hosts`);
    const hosts = (await answer.body.json()) as { id: string; reachability: string }[];
    return hosts.some(({ id, reachability }) => id === the.lab.cluster.hostId(host) && reachability !== "trusted");
  }

  it("keeps a container where it is when it has been moved on suspicion too often in a minute", async () => {
    const { lab } = the;
    await lab.cluster.apply([lab.journal("flap")]);
    assert.equal((await lab.send("flap.localhost")).status, 200);
    for (let move = 1; move <= 3; move++) {
      const owner = (await lab.cluster.owner("flap")) as string;
      await lab.cluster.network.blind(owner, lab.cluster.agent(owner).port);
      const waiting = lab.send("flap.localhost");
      if (move === 3) await eventually("the proxy has found it dead", () => suspected(owner));
      else await waiting;
      await lab.cluster.heal(owner);
      const reply = await waiting;
      assert.equal(reply.status, 200, reply.text);
      const now = await lab.cluster.owner("flap");
      if (move < 3) assert.notEqual(now, owner, "moved");
      else assert.equal(now, owner, "stays");
    }
    await lab.cluster.delete("flap");
    for (const host of ["a", "b"])
      await eventually("it is gone", async () => (await lab.cluster.status(host))?.containers.length === 0);
  });

  it("lets a full host refuse with the reason, the next one take it, and says so when all are full", async () => {
    const { lab } = the;
    const names = Array.from({ length: 5 }, (_, index) => `full-${index + 1}`);
    await lab.cluster.apply(names.map((name) => lab.journal(name)));
    const replies: Reply[] = [];
    for (const name of names) replies.push(await lab.send(`${name}.localhost`));
    assert.deepEqual(
      replies.map(({ status }) => status),
      [200, 200, 200, 200, 503],
    );
    assert.ok(Number(replies.at(-1)?.headers["retry-after"]) > 0);
    const hosts = replies.slice(0, 4).map((reply) => body(reply).host);
    assert.deepEqual([...hosts].sort(), ["small-a", "small-a", "small-b", "small-b"]);
    const { address, port } = lab.cluster.agent("a");
    const claim = { container: "full-5", expected: 0, reason: "asked by a test" };
    const answer = await request(`http://${address}:${port}/v1/claim`, { method: "POST", body: JSON.stringify(claim) });
    assert.deepEqual(await answer.body.json(), { kind: "refused", reason: "host small-a is full (2 containers)" });
  });
});
