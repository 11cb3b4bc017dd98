// The placement store over etcd when etcd, the network, or this process misbehaves.
import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Membership, Placement, PlacementStore } from "../../actors/ports/placement-store.js";
import { EtcdConnection, type EtcdOptions, etcdSettings } from "../../runtime/placement/etcd-client.js";
import { encode, Keys } from "../../runtime/placement/etcd-records.js";
import { type EtcdServer, startEtcd, startEtcdCluster } from "../../runtime/placement/etcd-server.js";
import { EtcdPlacementStore } from "../../runtime/placement/etcd.js";
import { systemClock } from "../../runtime/system-clock.js";
import { TcpProxy } from "../lab/tcp-proxy.js";
import { claimOf, hostNamed, sorted, specNamed, View, win } from "./placement-store.js";

const now = (): number => performance.now();
const callTimeoutMs = 500;

describe("etcd placement store under faults", () => {
  let directory: string;
  let server: EtcdServer;
  let proxy: TcpProxy;
  let prefix: string;
  let tests = 0;
  let warnings: object[];
  const cleanups: (() => unknown)[] = [];

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-etcd-"));
    server = await startEtcd({ dataDir: join(directory, "data") });
  });
  after(async () => {
    await server?.kill();
    await rm(directory, { recursive: true, force: true });
  });
  beforeEach(async () => {
    prefix = `faults${++tests}/`;
    warnings = [];
    proxy = await TcpProxy.start(server.endpoints[0] as string);
  });
  afterEach(async () => {
    server.resume();
    for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
    await proxy.close();
  });

  const storeAt = (hosts: readonly string[], options: Partial<EtcdOptions> = {}): EtcdPlacementStore => {
    const log = { debug() {}, info() {}, warn: (details: object) => void warnings.push(details), error() {} };
    const all = { hosts, prefix, ttlSeconds: 3, callTimeoutMs, ...options };
    const store = new EtcdPlacementStore(all, { clock: systemClock, log });
    cleanups.push(() => store.close());
    return store;
  };
  const viewOf = async (store: PlacementStore): Promise<View> => {
    const view = new View(store);
    cleanups.push(() => view.close());
    await view.until(() => view.count("connected") > 0);
    return view;
  };
  /** Raw access beside the store, to etcd itself. */
  const raw = (hosts: readonly string[] = server.endpoints): EtcdConnection => {
    const connection = new EtcdConnection(etcdSettings({ hosts, prefix, ttlSeconds: 3, callTimeoutMs: 5000 }));
    cleanups.push(() => connection.close());
    return connection;
  };
  /** When etcd no longer has the host. */
  const dropped = async (store: PlacementStore, id: string): Promise<number> => {
    const view = await viewOf(store);
    await view.until(() => !view.hosts.has(id), 10_000);
    return now();
  };

  it("misses nothing when the connection is cut again and again, also right after each new start (P5)", async () => {
    const view = new View(storeAt([proxy.url]));
    cleanups.push(() => view.close());
    const truth = storeAt(server.endpoints);
    let cuts = 0;
    let connects = 0;
    for (let n = 0; n < 500; n++) {
      await truth.putSpec(specNamed(`s${n % 97}`, `h${n}`));
      if (n % 7 === 3) await truth.deleteSpec(`s${n % 13}`);
      const connected = view.count("connected");
      if (n % 60 === 30 || (connected > connects && connected % 2 === 1)) {
        connects = connected;
        cuts++;
        proxy.cut();
      }
    }
    await truth.putSpec(specNamed("end"));
    await view.until(() => view.specs.has("end"));
    const fresh = await viewOf(truth);
    assert.deepEqual(sorted(view.specs), sorted(fresh.specs));
    assert.ok(cuts >= 8);
    assert.equal(view.count("reset"), 1);
    assert.ok(view.count("disconnected") >= 3);
  });

  it("delivers a backlog of thousands of revisions whole, though it is cut in the middle (F1)", async () => {
    const view = await viewOf(storeAt([proxy.url]));
    const connection = raw();
    const keys = new Keys(prefix);
    proxy.mode = "refuse";
    proxy.cut();
    const total = 3500;
    for (let n = 0; n < total; n += 50) {
      const batch = Array.from({ length: 50 }, (_, i) => specNamed(`s${n + i}`));
      await Promise.all(
        batch.map((record) =>
          connection.call("a put", ({ kv }) => kv.put({ key: keys.spec(record.spec.name), value: encode(record) })),
        ),
      );
    }
    proxy.mode = "pass";
    for (let cut = 1; cut <= 3; cut++) {
      await view.until(() => view.specs.size > (total * cut) / 5, 10_000);
      proxy.cut();
    }
    await view.until(() => view.specs.size === total, 10_000);
    assert.equal(view.count("reset"), 1);
  });

  it("delivers a mass expiry, one revision in several messages, whole though it is cut between them (F1)", async () => {
    const connection = raw();
    const keys = new Keys(prefix);
    const total = 20_000;
    const { ID } = await connection.call("a lease", ({ leaseClient }) => leaseClient.leaseGrant({ TTL: 60 }));
    const name = (n: number): string => `${"long-name-".repeat(20)}${n}`;
    const value = encode({ host: "a", since: systemClock.timestamp(), reason: "test" });
    for (let n = 0; n < total; n += 100) {
      const success = Array.from({ length: 100 }, (_, i) => ({
        request_put: { key: keys.placement(name(n + i)), value, lease: ID },
      }));
      await connection.call("puts", ({ kv }) => kv.txn({ compare: [], success, failure: [] }));
    }
    const view = await viewOf(storeAt([proxy.url], { callTimeoutMs: 2000 }));
    assert.equal(view.placements.size, total);
    let received = 0;
    proxy.onResponse = (data) => {
      received += data.length;
      if (received > 3_000_000 && received - data.length <= 3_000_000) proxy.cut();
    };
    await connection.call("an expiry", ({ leaseClient }) => leaseClient.leaseRevoke({ ID }));
    await view.until(() => view.placements.size === 0, 10_000);
    assert.equal(view.count("disconnected"), 1);
    assert.equal(view.count("reset"), 1);
    const deletions = view.log.filter(({ kind }) => kind === "placement").length;
    assert.ok(deletions > total, "the part that was delivered is delivered again");
  });

  it("delivers a reset after the missed history was compacted", async () => {
    const view = await viewOf(storeAt([proxy.url]));
    const truth = storeAt(server.endpoints);
    await truth.putSpec(specNamed("before"));
    await view.until(() => view.specs.has("before"));
    proxy.mode = "refuse";
    proxy.cut();
    await truth.deleteSpec("before");
    await truth.putSpec(specNamed("after"));
    const connection = raw();
    const { header } = await connection.call("a put", ({ kv }) =>
      kv.put({ key: Buffer.from("other"), value: Buffer.alloc(0) }),
    );
    await connection.call("a compaction", ({ kv }) => kv.compact({ revision: header.revision }));
    proxy.mode = "pass";
    await view.until(() => view.count("reset") === 2 && view.specs.has("after"));
    assert.deepEqual([...view.specs.keys()], ["after"]);
  });

  it("notices a watch that is silent without an error, and comes back (F3)", async () => {
    const view = await viewOf(storeAt([proxy.url], { callTimeoutMs: 200 }));
    const truth = storeAt(server.endpoints);
    proxy.mode = "blackhole";
    await view.until(() => view.count("disconnected") === 1, 4000);
    await truth.putSpec(specNamed("meanwhile"));
    proxy.mode = "pass";
    await view.until(() => view.specs.has("meanwhile"));
    assert.equal(view.count("reset"), 1);
  });

  it("lists thousands of placements in pages of one revision", async () => {
    const connection = raw();
    const keys = new Keys(prefix);
    const total = 5000;
    for (let n = 0; n < total; n += 100) {
      const success = Array.from({ length: 100 }, (_, i) => ({
        request_put: {
          key: keys.placement(`c${n + i}`),
          value: encode({ host: `h${n % 7}`, since: systemClock.timestamp(), reason: "test" }),
        },
      }));
      await connection.call("puts", ({ kv }) => kv.txn({ compare: [], success, failure: [] }));
    }
    const view = await viewOf(storeAt([proxy.url]));
    assert.equal(view.placements.size, total);
    assert.equal(view.count("reset"), 1);
  });

  it("skips foreign and damaged values with a warning, and delivers the rest", async () => {
    const connection = raw();
    const put = (key: string, value: string): Promise<unknown> =>
      connection.call("a put", ({ kv }) => kv.put({ key: Buffer.from(prefix + key), value: Buffer.from(value) }));
    await put("unknown", "x");
    await put("containers/x/y/z", "x");
    await put("hosts/bad", "{");
    await put("hosts/wrong", JSON.stringify(hostNamed("right")));
    await put("containers/blog/placement", JSON.stringify({ host: 7 }));
    const store = storeAt([proxy.url]);
    await store.putSpec(specNamed("good"));
    const view = await viewOf(store);
    assert.deepEqual([view.hosts.size, view.placements.size, [...view.specs.keys()]], [0, 0, ["good"]]);
    assert.equal(warnings.length, 5);
    await put("containers/good/spec", "[]");
    await view.until(() => !view.specs.has("good"));
    const member = await store.join(hostNamed("bad"));
    assert.deepEqual(await member.claim(claimOf("blog", 0)), { kind: "lost" });
  });

  it("keeps its lease through a cut of one second", async () => {
    const member = await storeAt([proxy.url]).join(hostNamed("a"));
    proxy.mode = "refuse";
    proxy.cut();
    const cutAt = now();
    const view = await viewOf(storeAt(server.endpoints));
    await view.until(() => now() > cutAt + 1000);
    proxy.mode = "pass";
    await view.until(() => now() > cutAt + 4500, 6000);
    assert.ok(view.hosts.has("a"));
    assert.ok(member.provenUntil > now());
    assert.equal((await member.claim(claimOf("blog", 0))).kind, "won");
  });

  for (const mode of ["blackhole", "dropResponses"] as const)
    it(`reports its lease lost before etcd drops it (P3): ${mode}`, async () => {
      const member = await storeAt([proxy.url], { ttlSeconds: 2 }).join(hostNamed("a"));
      const gone = dropped(storeAt(server.endpoints), "a");
      const cutAt = now();
      proxy.mode = mode;
      // In `dropResponses` etcd goes on hearing keep-alives that nobody can prove; that only makes it drop the keys later.
      await member.lost;
      const lostAt = now();
      const trustedUntil = member.provenUntil;
      proxy.mode = "refuse";
      proxy.cut();
      const goneAt = await gone;
      assert.ok(trustedUntil <= lostAt);
      assert.ok(lostAt < goneAt, `${lostAt} ${goneAt}`);
      assert.ok(goneAt - trustedUntil >= 400, "the stop budget");
      report(`${mode}: lost ${ms(lostAt - cutAt)} after the cut, etcd dropped the host ${ms(goneAt - lostAt)} later`);
    });

  it("reports its lease lost before etcd drops it when etcd itself is stopped and goes on", async () => {
    const member = await storeAt(server.endpoints, { ttlSeconds: 2 }).join(hostNamed("a"));
    server.pause();
    const pausedAt = now();
    await member.lost;
    const lostAt = now();
    server.resume();
    const goneAt = await dropped(storeAt(server.endpoints), "a");
    assert.ok(lostAt < goneAt);
    report(`SIGSTOP of etcd: lost ${ms(lostAt - pausedAt)} after, etcd dropped the host ${ms(goneAt - lostAt)} later`);
  });

  it("reports its lease lost as soon as etcd says that it is gone", async () => {
    const member = await storeAt([proxy.url]).join(hostNamed("a"));
    const connection = raw();
    const { kvs } = await connection.call("a read", ({ kv }) => kv.range({ key: new Keys(prefix).host("a") }));
    const revokedAt = now();
    await connection.call("a revocation", ({ leaseClient }) => leaseClient.leaseRevoke({ ID: kvs[0]?.lease ?? "" }));
    assert.match(await member.lost, /dropped/);
    assert.ok(now() - revokedAt < 1500);
    assert.ok(member.provenUntil <= now());
    assert.equal((await member.claim(claimOf("blog", 0))).kind, "unavailable");
  });

  it("reports its lease lost at once when it is told to look, and etcd has dropped it before its time", async () => {
    const member = await storeAt([proxy.url]).join(hostNamed("a"));
    await member.check();
    assert.ok(member.provenUntil > now(), "it holds");
    const connection = raw();
    const { kvs } = await connection.call("a read", ({ kv }) => kv.range({ key: new Keys(prefix).host("a") }));
    await connection.call("a revocation", ({ leaseClient }) => leaseClient.leaseRevoke({ ID: kvs[0]?.lease ?? "" }));
    await member.check();
    assert.ok(member.provenUntil <= now());
    assert.match(await member.lost, /no longer/);
  });

  it("does not trust its lease when its process wakes from a suspension longer than the TTL", async () => {
    const child = holder(server.endpoints, prefix);
    cleanups.push(() => child.process.kill("SIGKILL"));
    assert.match(await child.line(), /^joined/);
    const gone = dropped(storeAt(server.endpoints), "a");
    child.process.kill("SIGSTOP");
    const goneAt = await gone;
    child.process.kill("SIGCONT");
    const said = [await child.line(), await child.line()].sort();
    assert.match(said[0] as string, /^lost /);
    assert.equal(said[1], "woke, lease proven: false");
    assert.ok(now() - goneAt < 2000);
  });

  it("reads a claim back whose answer was lost, and has won (P4)", async () => {
    const member = await storeAt([proxy.url]).join(hostNamed("a"));
    for (let expected = 0, round = 0; round < 3; round++) {
      const view = await viewOf(storeAt(server.endpoints));
      const before = view.placements.get("blog")?.epoch;
      proxy.mode = "dropResponses";
      const claimed = member.claim(claimOf("blog", expected));
      await view.until(() => view.placements.get("blog")?.epoch !== before);
      proxy.mode = "pass";
      proxy.cut();
      const outcome = await claimed;
      assert.equal(outcome.kind, "won", JSON.stringify(outcome));
      const { placement } = outcome as { placement: Placement };
      assert.deepEqual(placement, view.placements.get("blog"));
      assert.equal(view.log.filter(({ kind }) => kind === "placement").length, 1);
      expected = placement.epoch;
    }
  });

  it("never says lost of a claim that it won, nor won of one that it lost, while the connection is cut at random", async () => {
    const [a, b] = (await Promise.all(
      ["a", "b"].map((id) => storeAt([proxy.url], { ttlSeconds: 5 }).join(hostNamed(id))),
    )) as [Membership, Membership];
    const connection = raw();
    let cuts = 0;
    const cutter = setInterval(() => {
      if (cuts++ % 3 < 2) proxy.cut();
    }, 23);
    cleanups.push(() => clearInterval(cutter));
    let unknown = 0;
    const won: Placement[] = [];
    let expected = 0;
    for (let n = 0; n < 60; n++) {
      const outcomes = await Promise.all([a, b].map((member) => member.claim(claimOf("blog", expected))));
      const truth = await connection.call("a read", ({ kv }) => kv.range({ key: new Keys(prefix).placement("blog") }));
      const epoch = Number(truth.kvs[0]?.mod_revision ?? 0);
      for (const outcome of outcomes) {
        if (outcome.kind === "won") assert.equal(outcome.placement.epoch, epoch);
        if (outcome.kind === "lost") assert.equal(outcome.placement?.epoch, epoch);
        if (outcome.kind === "won") won.push(outcome.placement);
        if (outcome.kind === "unavailable") unknown++;
      }
      expected = epoch;
    }
    assert.equal(new Set(won.map(({ epoch }) => epoch)).size, won.length);
    assert.ok(won.length >= 20, `${won.length} won, ${unknown} unknown`);
  });

  it("fails within its deadlines while etcd hangs, and works with the same client afterwards", async () => {
    const store = storeAt(server.endpoints, { ttlSeconds: 10 });
    const member = await store.join(hostNamed("a"));
    server.pause();
    const startedAt = now();
    await assert.rejects(store.putSpec(specNamed("x")), { code: "STORE_UNAVAILABLE", retryable: true });
    assert.ok(now() - startedAt < callTimeoutMs + 250, ms(now() - startedAt));
    const claimedAt = now();
    assert.equal((await member.claim(claimOf("blog", 0))).kind, "unavailable");
    assert.ok(now() - claimedAt < 2 * callTimeoutMs + 300, ms(now() - claimedAt));
    server.resume();
    const view = await viewOf(storeAt(server.endpoints));
    await assert.doesNotReject(eventually(() => store.putSpec(specNamed("y"))));
    // The claim without an answer may have been applied when etcd went on; either way the next one makes it ours.
    await win(member, "blog", 0);
    await view.until(() => view.placements.get("blog")?.host === "a");
  });

  it("goes on with the same clients after a crash and restart of etcd, with lease, placements and position intact", async () => {
    const store = storeAt(server.endpoints, { ttlSeconds: 5 });
    const member = await store.join(hostNamed("a"));
    const placement = await win(member, "blog", 0);
    const view = await viewOf(store);
    await server.restart();
    await eventually(() => store.putSpec(specNamed("after")));
    await view.until(() => view.specs.has("after"));
    assert.equal(view.count("reset"), 1);
    assert.deepEqual(view.placements.get("blog"), placement);
    await view.until(() => member.provenUntil > now() + 3000);
    await win(member, "shop", 0);
  });

  it("delivers a reset where etcd came back with a shorter history than was seen (F2)", async () => {
    const own = await startEtcd({ dataDir: join(directory, "own") });
    cleanups.push(() => own.kill());
    const store = storeAt(own.endpoints);
    for (let n = 0; n < 20; n++) await store.putSpec(specNamed("lost"));
    const view = await viewOf(store);
    await own.kill();
    await rm(join(directory, "own"), { recursive: true });
    await own.restart();
    await eventually(() => store.putSpec(specNamed("found")));
    await view.until(() => view.specs.has("found"));
    assert.deepEqual([...view.specs.keys()], ["found"]);
  });

  it("goes on over the other members of a cluster when any one of them dies", async () => {
    const cluster = await startEtcdCluster(3, { dataDir: join(directory, "cluster") });
    cleanups.push(() => Promise.all(cluster.members.map((each) => each.kill())));
    const store = storeAt(cluster.endpoints, { ttlSeconds: 5, callTimeoutMs: 1500 });
    const member = await eventually(() => store.join(hostNamed("a")));
    const view = await viewOf(store);
    for (const [index, victim] of cluster.members.entries()) {
      await victim.kill();
      await eventually(() => store.putSpec(specNamed(`after${index}`)));
      await view.until(() => view.specs.has(`after${index}`), 8000);
      const outcome = await eventually(async () => {
        const claimed = await member.claim(claimOf(`c${index}`, 0));
        assert.equal(claimed.kind, "won", JSON.stringify(claimed));
        return claimed;
      });
      assert.equal(outcome.kind, "won");
      await victim.restart();
    }
    assert.equal(view.count("reset"), 1);
    assert.ok(view.hosts.has("a"));
  }).timeout(40_000);

  it("speaks TLS and proves who it is with a certificate; without one it is told what to check", async () => {
    const pem = certificates(directory);
    await pem.write();
    const secure = await startEtcd({ dataDir: join(directory, "secure"), tls: pem });
    cleanups.push(() => secure.kill());
    const hosts = secure.endpoints.map((endpoint) => endpoint.replace("127.0.0.1", "localhost"));
    const store = storeAt(hosts, { tls: pem, callTimeoutMs: 2000 });
    await store.putSpec(specNamed("sealed"));
    const view = await viewOf(store);
    assert.ok(view.specs.has("sealed"));
    const stranger = storeAt(hosts, { tls: { caFile: pem.caFile } });
    await assert.rejects(stranger.putSpec(specNamed("x")), { code: "STORE_UNAVAILABLE" });
  });

  it("goes on with a password after a restart of etcd has voided its token", async () => {
    const own = await startEtcd({ dataDir: join(directory, "guarded") });
    cleanups.push(() => own.kill());
    const auth = { username: "root", password: "correct horse" };
    await raw(own.endpoints).call("the users", async (client) => {
      await client.auth.userAdd({ name: auth.username, password: auth.password });
      await client.auth.roleAdd({ name: "root" });
      await client.auth.userGrantRole({ user: auth.username, role: "root" });
      await client.auth.authEnable();
    });
    const store = storeAt(own.endpoints, { auth, ttlSeconds: 5 });
    const member = await store.join(hostNamed("a"));
    const view = await viewOf(store);
    await own.restart();
    await eventually(() => store.putSpec(specNamed("after")));
    await view.until(() => view.specs.has("after"));
    await view.until(() => member.provenUntil > now() + 3000);
    assert.equal(view.count("reset"), 1);
    const stranger = storeAt(own.endpoints, { auth: { ...auth, password: "wrong" } });
    await assert.rejects(stranger.putSpec(specNamed("x")), { code: "STORE_REFUSED" });
  });

  it("refuses unsafe or contradictory options by name", () => {
    const good: EtcdOptions = { hosts: ["http://127.0.0.1:2379"], ttlSeconds: 5, callTimeoutMs: 1000 };
    const bad: [string, Partial<EtcdOptions>][] = [
      ["hosts", { hosts: [] }],
      ["hosts", { hosts: ["127.0.0.1:2379"] }],
      ["hosts", { hosts: ["http://a:1", "https://b:1"] }],
      ["prefix", { prefix: "hakobu" }],
      ["ttlSeconds", { ttlSeconds: 1 }],
      ["ttlSeconds", { ttlSeconds: 2.5 }],
      ["renewEveryMs", { renewEveryMs: 2000 }],
      ["stopBudgetMs", { stopBudgetMs: 2500 }],
      ["stopBudgetMs", { stopBudgetMs: 0 }],
      ["callTimeoutMs", { callTimeoutMs: 0 }],
      ["tls", { tls: { caFile: "ca.pem" } }],
      ["tls", { hosts: ["https://a:1"], tls: { caFile: "ca.pem", certFile: "cert.pem" } }],
      ["auth", { auth: { username: "hakobu", password: "" } }],
    ];
    for (const [field, options] of bad)
      assert.throws(() => etcdSettings({ ...good, ...options }), {
        code: "CONFIG_INVALID",
        message: new RegExp(`: ${field} `),
      });
    const settings = etcdSettings(good);
    assert.deepEqual([settings.renewEveryMs, settings.stopBudgetMs, settings.prefix], [1250, 1000, "hakobu/"]);
    const missing = { hosts: ["https://a:1"], tls: { caFile: join(directory, "absent.pem") } };
    assert.throws(() => storeAt(missing.hosts, missing), { code: "CONFIG_INVALID" });
  });
});

function ms(value: number): string {
  return `${Math.round(value)} ms`;
}

/** Measurements, beside the test's name. */
function report(text: string): void {
  process.stdout.write(`        ${text}\n`);
}

async function eventually<T>(run: () => Promise<T>, timeoutMs = 8000): Promise<T> {
  const deadline = now() + timeoutMs;
  for (;;) {
    try {
      return await run();
    } catch (error) {
      if (now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

/** Another process that joins as host `a` and says when it finds that time has passed, and when its lease is lost. */
function holder(hosts: readonly string[], prefix: string): { process: ChildProcess; line(): Promise<string> } {
  const modules = ["runtime/placement/etcd.js", "runtime/system-clock.js"].map((path) =>
    JSON.stringify(new URL(`../../${path}`, import.meta.url)),
  );
  const host = JSON.stringify(hostNamed("a"));
  const options = JSON.stringify({ hosts, prefix, ttlSeconds: 2, callTimeoutMs });
  const code = `
    const { EtcdPlacementStore } = await import(${modules[0]});
    const { systemClock } = await import(${modules[1]});
    const log = { debug() {}, info() {}, warn() {}, error() {} };
    const member = await new EtcdPlacementStore(${options}, { clock: systemClock, log }).join(${host});
    console.log("joined");
    let last = performance.now();
    setInterval(() => {
      const now = performance.now();
      if (now - last > 1000) console.log("woke, lease proven:", now < member.provenUntil);
      last = now;
    }, 10);
    member.lost.then((reason) => console.log("lost", reason));
  `;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", code], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  return { process: child, line: async () => String((await lines.next()).value) };
}

/** An authority and one certificate for both sides, for localhost. */
function certificates(directory: string): {
  caFile: string;
  certFile: string;
  keyFile: string;
  write(): Promise<void>;
} {
  const path = (name: string): string => join(directory, name);
  const files = { caFile: path("ca.pem"), certFile: path("cert.pem"), keyFile: path("key.pem") };
  const openssl = (...args: string[]): void => void execFileSync("openssl", args, { stdio: "ignore" });
  const write = async (): Promise<void> => {
    const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl("req", "-x509", ...key, "-keyout", path("ca.key"), "-out", files.caFile, "-subj", "/CN=test", "-days", "2");
    openssl("req", ...key, "-keyout", files.keyFile, "-out", path("csr.pem"), "-subj", "/CN=hakobu");
    await writeFile(
      path("ext.cnf"),
      "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n",
    );
    const authority = ["-CA", files.caFile, "-CAkey", path("ca.key"), "-CAcreateserial"];
    const request = ["-in", path("csr.pem"), "-out", files.certFile, "-days", "2", "-extfile", path("ext.cnf")];
    openssl("x509", "-req", ...authority, ...request);
  };
  return { ...files, write };
}
