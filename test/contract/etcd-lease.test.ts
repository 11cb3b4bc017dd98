// The lease is reported lost before etcd drops it, whatever happens to etcd, the network and this process.
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { Keys } from "../../runtime/placement/etcd-records.js";
import { claimOf, hostNamed } from "./placement-store.js";

import { callTimeoutMs, EtcdBench, ms, now } from "./etcd-bench.js";

describe("etcd placement store: the lease", () => {
  const etcd = new EtcdBench();

  it("keeps its lease through a cut of one second", async () => {
    const member = await etcd.storeAt([etcd.proxy.url]).join(hostNamed("a"));
    etcd.proxy.mode = "refuse";
    etcd.proxy.cut();
    const cutAt = now();
    const view = await etcd.viewOf(etcd.storeAt(etcd.server.endpoints));
    await view.until(() => now() > cutAt + 1000);
    etcd.proxy.mode = "pass";
    await view.until(() => now() > cutAt + 4500, 6000);
    assert.ok(view.hosts.has("a"));
    assert.ok(member.provenUntil > now());
    assert.equal((await member.claim(claimOf("blog", 0))).kind, "won");
  });

  for (const mode of ["blackhole", "dropResponses"] as const)
    it(`reports its lease lost before etcd drops it (P3): ${mode}`, async () => {
      const member = await etcd.storeAt([etcd.proxy.url], { ttlSeconds: 2 }).join(hostNamed("a"));
      const gone = etcd.dropped(etcd.storeAt(etcd.server.endpoints), "a");
      const cutAt = now();
      etcd.proxy.mode = mode;
      // In `dropResponses` etcd goes on hearing keep-alives that nobody can prove; that only makes it drop the keys later.
      await member.lost;
      const lostAt = now();
      const trustedUntil = member.provenUntil;
      etcd.proxy.mode = "refuse";
      etcd.proxy.cut();
      const goneAt = await gone;
      assert.ok(trustedUntil <= lostAt);
      assert.ok(lostAt < goneAt, `${lostAt} ${goneAt}`);
      assert.ok(goneAt - trustedUntil >= 400, "the stop budget");
      report(`${mode}: lost ${ms(lostAt - cutAt)} after the cut, etcd dropped the host ${ms(goneAt - lostAt)} later`);
    });

  it("reports its lease lost before etcd drops it when etcd itself is stopped and goes on", async () => {
    const member = await etcd.storeAt(etcd.server.endpoints, { ttlSeconds: 2 }).join(hostNamed("a"));
    etcd.server.pause();
    const pausedAt = now();
    await member.lost;
    const lostAt = now();
    etcd.server.resume();
    const goneAt = await etcd.dropped(etcd.storeAt(etcd.server.endpoints), "a");
    assert.ok(lostAt < goneAt);
    report(`SIGSTOP of etcd: lost ${ms(lostAt - pausedAt)} after, etcd dropped the host ${ms(goneAt - lostAt)} later`);
  });

  it("reports its lease lost as soon as etcd says that it is gone", async () => {
    const member = await etcd.storeAt([etcd.proxy.url]).join(hostNamed("a"));
    const connection = etcd.raw();
    const { kvs } = await connection.call("a read", ({ kv }) => kv.range({ key: new Keys(etcd.prefix).host("a") }));
    const revokedAt = now();
    await connection.call("a revocation", ({ leaseClient }) => leaseClient.leaseRevoke({ ID: kvs[0]?.lease ?? "" }));
    assert.match(await member.lost, /dropped/);
    assert.ok(now() - revokedAt < 1500);
    assert.ok(member.provenUntil <= now());
    assert.equal((await member.claim(claimOf("blog", 0))).kind, "unavailable");
  });

  it("reports its lease lost at once when it is told to look, and etcd has dropped it before its time", async () => {
    const member = await etcd.storeAt([etcd.proxy.url]).join(hostNamed("a"));
    await member.check();
    assert.ok(member.provenUntil > now(), "it holds");
    const connection = etcd.raw();
    const { kvs } = await connection.call("a read", ({ kv }) => kv.range({ key: new Keys(etcd.prefix).host("a") }));
    await connection.call("a revocation", ({ leaseClient }) => leaseClient.leaseRevoke({ ID: kvs[0]?.lease ?? "" }));
    await member.check();
    assert.ok(member.provenUntil <= now());
    assert.match(await member.lost, /no longer/);
  });

  it("does not trust its lease when its process wakes from a suspension longer than the TTL", async () => {
    const child = holder(etcd.server.endpoints, etcd.prefix);
    etcd.cleanups.push(() => child.process.kill("SIGKILL"));
    assert.match(await child.line(), /^joined/);
    const gone = etcd.dropped(etcd.storeAt(etcd.server.endpoints), "a");
    child.process.kill("SIGSTOP");
    const goneAt = await gone;
    child.process.kill("SIGCONT");
    const said = [await child.line(), await child.line()].sort();
    assert.match(said[0] as string, /^lost /);
    assert.equal(said[1], "woke, lease proven: false");
    assert.ok(now() - goneAt < 2000);
  });
});

/** Measurements, beside the test's name. */
function report(text: string): void {
  process.stdout.write(`        ${text}\n`);
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
    let last = performance.now();
    setInterval(() => {
      const now = performance.now();
      if (now - last > 1000) console.log("woke, lease proven:", now < member.provenUntil);
      last = now;
    }, 10);
    member.lost.then((reason) => console.log("lost", reason));
    console.log("joined");
  `;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", code], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  return { process: child, line: async () => String((await lines.next()).value) };
}
