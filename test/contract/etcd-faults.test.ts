// Claims and calls while etcd or the network misbehaves; who may call.
import assert from "node:assert/strict";
import { join } from "node:path";
import type { Membership, Placement } from "../../actors/ports/placement-store.js";
import { type EtcdOptions, etcdSettings } from "../../runtime/placement/etcd-client.js";
import { Keys } from "../../runtime/placement/etcd-records.js";
import { startEtcd, startEtcdCluster } from "../../runtime/placement/etcd-server.js";
import { certificates } from "../lab/certificates.js";
import { claimOf, hostNamed, specNamed, win } from "./placement-store.js";

import { callTimeoutMs, EtcdBench, eventually, ms, now } from "./etcd-bench.js";

describe("etcd placement store under faults", () => {
  const etcd = new EtcdBench();

  it("reads a claim back whose answer was lost, and has won (P4)", async () => {
    const member = await etcd.storeAt([etcd.proxy.url]).join(hostNamed("a"));
    for (let expected = 0, round = 0; round < 3; round++) {
      const view = await etcd.viewOf(etcd.storeAt(etcd.server.endpoints));
      const before = view.placements.get("blog")?.epoch;
      etcd.proxy.mode = "dropResponses";
      const claimed = member.claim(claimOf("blog", expected));
      await view.until(() => view.placements.get("blog")?.epoch !== before);
      etcd.proxy.mode = "pass";
      etcd.proxy.cut();
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
      ["a", "b"].map((id) => etcd.storeAt([etcd.proxy.url], { ttlSeconds: 5 }).join(hostNamed(id))),
    )) as [Membership, Membership];
    const connection = etcd.raw();
    let cuts = 0;
    const cutter = setInterval(() => {
      if (cuts++ % 3 < 2) etcd.proxy.cut();
    }, 23);
    etcd.cleanups.push(() => clearInterval(cutter));
    let unknown = 0;
    const won: Placement[] = [];
    let expected = 0;
    for (let n = 0; n < 60; n++) {
      const outcomes = await Promise.all([a, b].map((member) => member.claim(claimOf("blog", expected))));
      const truth = await connection.call("a read", ({ kv }) =>
        kv.range({ key: new Keys(etcd.prefix).placement("blog") }),
      );
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
    const store = etcd.storeAt(etcd.server.endpoints, { ttlSeconds: 10 });
    const member = await store.join(hostNamed("a"));
    etcd.server.pause();
    const startedAt = now();
    await assert.rejects(store.putSpec(specNamed("x")), { code: "STORE_UNAVAILABLE", retryable: true });
    assert.ok(now() - startedAt < callTimeoutMs + 250, ms(now() - startedAt));
    const claimedAt = now();
    assert.equal((await member.claim(claimOf("blog", 0))).kind, "unavailable");
    assert.ok(now() - claimedAt < 2 * callTimeoutMs + 300, ms(now() - claimedAt));
    etcd.server.resume();
    const view = await etcd.viewOf(etcd.storeAt(etcd.server.endpoints));
    await assert.doesNotReject(eventually(() => store.putSpec(specNamed("y"))));
    // The claim without an answer may have been applied when etcd went on; either way the next one makes it ours.
    await win(member, "blog", 0);
    await view.until(() => view.placements.get("blog")?.host === "a");
  });

  it("goes on with the same clients after a crash and restart of etcd, with lease, placements and position intact", async () => {
    const store = etcd.storeAt(etcd.server.endpoints, { ttlSeconds: 5 });
    const member = await store.join(hostNamed("a"));
    const placement = await win(member, "blog", 0);
    const view = await etcd.viewOf(store);
    await etcd.server.restart();
    await eventually(() => store.putSpec(specNamed("after")));
    await view.until(() => view.specs.has("after"));
    assert.equal(view.count("reset"), 1);
    assert.deepEqual(view.placements.get("blog"), placement);
    await view.until(() => member.provenUntil > now() + 3000);
    await win(member, "shop", 0);
  });

  it("goes on over the other members of a cluster when any one of them dies", async () => {
    const cluster = await startEtcdCluster(3, { dataDir: join(etcd.directory, "cluster") });
    etcd.cleanups.push(() => Promise.all(cluster.members.map((each) => each.kill())));
    const store = etcd.storeAt(cluster.endpoints, { ttlSeconds: 5, callTimeoutMs: 1500 });
    const member = await eventually(() => store.join(hostNamed("a")));
    const view = await etcd.viewOf(store);
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
    const pem = await certificates(etcd.directory);
    const secure = await startEtcd({ dataDir: join(etcd.directory, "secure"), tls: pem });
    etcd.cleanups.push(() => secure.kill());
    const hosts = secure.endpoints.map((endpoint) => endpoint.replace("127.0.0.1", "localhost"));
    const store = etcd.storeAt(hosts, { tls: pem, callTimeoutMs: 2000 });
    await store.putSpec(specNamed("sealed"));
    const view = await etcd.viewOf(store);
    assert.ok(view.specs.has("sealed"));
    const stranger = etcd.storeAt(hosts, { tls: { caFile: pem.caFile } });
    await assert.rejects(stranger.putSpec(specNamed("x")), { code: "STORE_UNAVAILABLE" });
  });

  it("goes on with a password after a restart of etcd has voided its token", async () => {
    const own = await startEtcd({ dataDir: join(etcd.directory, "guarded") });
    etcd.cleanups.push(() => own.kill());
    const auth = { username: "root", password: "correct horse" };
    await etcd.raw(own.endpoints).call("the users", async (client) => {
      await client.auth.userAdd({ name: auth.username, password: auth.password });
      await client.auth.roleAdd({ name: "root" });
      await client.auth.userGrantRole({ user: auth.username, role: "root" });
      await client.auth.authEnable();
    });
    const store = etcd.storeAt(own.endpoints, { auth, ttlSeconds: 5 });
    const member = await store.join(hostNamed("a"));
    const view = await etcd.viewOf(store);
    await own.restart();
    await eventually(() => store.putSpec(specNamed("after")));
    await view.until(() => view.specs.has("after"));
    await view.until(() => member.provenUntil > now() + 3000);
    assert.equal(view.count("reset"), 1);
    const stranger = etcd.storeAt(own.endpoints, { auth: { ...auth, password: "wrong" } });
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
    const missing = { hosts: ["https://a:1"], tls: { caFile: join(etcd.directory, "absent.pem") } };
    assert.throws(() => etcd.storeAt(missing.hosts, missing), { code: "CONFIG_INVALID" });
  });
});
