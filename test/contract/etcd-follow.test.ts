// What follows etcd misses nothing, whatever happens to the connection, the history and the values.
import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { encode, Keys } from "../../runtime/placement/etcd-records.js";
import { startEtcd } from "../../runtime/placement/etcd-server.js";
import { systemClock } from "../../runtime/system-clock.js";
import { claimOf, hostNamed, sorted, specNamed, View } from "./placement-store.js";

import { EtcdBench, eventually } from "./etcd-bench.js";

describe("etcd placement store: following", () => {
  const etcd = new EtcdBench();

  it("misses nothing when the connection is cut again and again, also right after each new start (P5)", async () => {
    const view = new View(etcd.storeAt([etcd.proxy.url]));
    etcd.cleanups.push(() => view.close());
    const truth = etcd.storeAt(etcd.server.endpoints);
    let cuts = 0;
    let connects = 0;
    for (let n = 0; n < 500; n++) {
      await truth.putSpec(specNamed(`s${n % 97}`, `h${n}`));
      if (n % 7 === 3) await truth.deleteSpec(`s${n % 13}`);
      const connected = view.count("connected");
      if (n % 60 === 30 || (connected > connects && connected % 2 === 1)) {
        connects = connected;
        cuts++;
        etcd.proxy.cut();
      }
    }
    await truth.putSpec(specNamed("end"));
    await view.until(() => view.specs.has("end"));
    const fresh = await etcd.viewOf(truth);
    assert.deepEqual(sorted(view.specs), sorted(fresh.specs));
    assert.ok(cuts >= 8);
    assert.equal(view.count("reset"), 1);
    assert.ok(view.count("disconnected") >= 3);
  });

  it("delivers a backlog of thousands of revisions whole, though it is cut in the middle (F1)", async () => {
    const view = await etcd.viewOf(etcd.storeAt([etcd.proxy.url]));
    const connection = etcd.raw();
    const keys = new Keys(etcd.prefix);
    etcd.proxy.mode = "refuse";
    etcd.proxy.cut();
    const total = 3500;
    for (let n = 0; n < total; n += 50) {
      const batch = Array.from({ length: 50 }, (_, i) => specNamed(`s${n + i}`));
      await Promise.all(
        batch.map((record) =>
          connection.call("a put", ({ kv }) => kv.put({ key: keys.spec(record.spec.name), value: encode(record) })),
        ),
      );
    }
    etcd.proxy.mode = "pass";
    for (let cut = 1; cut <= 3; cut++) {
      await view.until(() => view.specs.size > (total * cut) / 5, 10_000);
      etcd.proxy.cut();
    }
    await view.until(() => view.specs.size === total, 10_000);
    assert.equal(view.count("reset"), 1);
  });

  it("delivers a mass expiry, one revision in several messages, whole though it is cut between them (F1)", async () => {
    const connection = etcd.raw();
    const keys = new Keys(etcd.prefix);
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
    const view = await etcd.viewOf(etcd.storeAt([etcd.proxy.url], { callTimeoutMs: 2000 }));
    assert.equal(view.placements.size, total);
    let received = 0;
    etcd.proxy.onResponse = (data) => {
      received += data.length;
      if (received > 3_000_000 && received - data.length <= 3_000_000) etcd.proxy.cut();
    };
    await connection.call("an expiry", ({ leaseClient }) => leaseClient.leaseRevoke({ ID }));
    await view.until(() => view.placements.size === 0, 10_000);
    assert.equal(view.count("disconnected"), 1);
    assert.equal(view.count("reset"), 1);
    const deletions = view.log.filter(({ kind }) => kind === "placement").length;
    assert.ok(deletions > total, "the part that was delivered is delivered again");
  });

  it("delivers a reset after the missed history was compacted", async () => {
    const view = await etcd.viewOf(etcd.storeAt([etcd.proxy.url]));
    const truth = etcd.storeAt(etcd.server.endpoints);
    await truth.putSpec(specNamed("before"));
    await view.until(() => view.specs.has("before"));
    etcd.proxy.mode = "refuse";
    etcd.proxy.cut();
    await truth.deleteSpec("before");
    await truth.putSpec(specNamed("after"));
    const connection = etcd.raw();
    const { header } = await connection.call("a put", ({ kv }) =>
      kv.put({ key: Buffer.from("other"), value: Buffer.alloc(0) }),
    );
    await connection.call("a compaction", ({ kv }) => kv.compact({ revision: header.revision }));
    etcd.proxy.mode = "pass";
    await view.until(() => view.count("reset") === 2 && view.specs.has("after"));
    assert.deepEqual([...view.specs.keys()], ["after"]);
  });

  it("notices a watch that is silent without an error, and comes back (F3)", async () => {
    const view = await etcd.viewOf(etcd.storeAt([etcd.proxy.url], { callTimeoutMs: 200 }));
    const truth = etcd.storeAt(etcd.server.endpoints);
    etcd.proxy.mode = "blackhole";
    await view.until(() => view.count("disconnected") === 1, 4000);
    await truth.putSpec(specNamed("meanwhile"));
    etcd.proxy.mode = "pass";
    await view.until(() => view.specs.has("meanwhile"));
    assert.equal(view.count("reset"), 1);
  });

  it("lists thousands of placements in pages of one revision", async () => {
    const connection = etcd.raw();
    const keys = new Keys(etcd.prefix);
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
    const view = await etcd.viewOf(etcd.storeAt([etcd.proxy.url]));
    assert.equal(view.placements.size, total);
    assert.equal(view.count("reset"), 1);
  });

  it("skips foreign and damaged values with a warning, and delivers the rest", async () => {
    const connection = etcd.raw();
    const put = (key: string, value: string): Promise<unknown> =>
      connection.call("a put", ({ kv }) => kv.put({ key: Buffer.from(etcd.prefix + key), value: Buffer.from(value) }));
    await put("unknown", "x");
    await put("containers/x/y/z", "x");
    await put("hosts/bad", "{");
    await put("hosts/wrong", JSON.stringify(hostNamed("right")));
    await put("containers/blog/placement", JSON.stringify({ host: 7 }));
    const store = etcd.storeAt([etcd.proxy.url]);
    await store.putSpec(specNamed("good"));
    const view = await etcd.viewOf(store);
    assert.deepEqual([view.hosts.size, view.placements.size, [...view.specs.keys()]], [0, 0, ["good"]]);
    assert.equal(etcd.warnings.length, 5);
    await put("containers/good/spec", "[]");
    await view.until(() => !view.specs.has("good"));
    const member = await store.join(hostNamed("bad"));
    assert.deepEqual(await member.claim(claimOf("blog", 0)), { kind: "lost" });
  });

  it("delivers a reset where etcd came back with a shorter history than was seen (F2)", async () => {
    const own = await startEtcd({ dataDir: join(etcd.directory, "own") });
    etcd.cleanups.push(() => own.kill());
    const store = etcd.storeAt(own.endpoints);
    for (let n = 0; n < 20; n++) await store.putSpec(specNamed("lost"));
    const view = await etcd.viewOf(store);
    await own.kill();
    await rm(join(etcd.directory, "own"), { recursive: true });
    await own.restart();
    await eventually(() => store.putSpec(specNamed("found")));
    await view.until(() => view.specs.has("found"));
    assert.deepEqual([...view.specs.keys()], ["found"]);
  });
});
