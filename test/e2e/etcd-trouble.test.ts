// What users see while etcd refuses to write, and while the clock is set: what runs goes on, what needs a claim says why, and
// nothing has to be started again afterwards. (etcd away and hung: ownership.test.ts; single calls: test/contract/etcd-faults.)
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { EtcdConnection, etcdSettings } from "../../runtime/placement/etcd-client.js";
import { cannotRestore, eventually, openTestCluster, type Reply, type TestCluster } from "../lab/cluster.js";

const ttlSeconds = 3;
const body = (reply: Reply) => JSON.parse(reply.text) as { host: string; epoch: number };

describe("an etcd without space", function () {
  this.timeout(60_000);
  let lab: TestCluster;
  let etcd: EtcdConnection;

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    lab = await openTestCluster("space", ["a", "b"], { ttlSeconds, callTimeoutMs: 1000 });
    etcd = new EtcdConnection(
      etcdSettings({ hosts: lab.cluster.etcdServer.endpoints, ttlSeconds, callTimeoutMs: 5000 }),
    );
  });
  after(async () => {
    etcd?.close();
    await lab?.close();
  });

  /** What etcd raises by itself when its quota is used up, and what an operator lowers afterwards. */
  const alarm = (action: "Activate" | "Deactivate") =>
    etcd.call("an alarm", ({ maintenance }) => maintenance.alarm({ action, alarm: "Nospace" }));

  it("stops nothing that runs, refuses what needs a claim with the reason, and goes on when there is space again", async () => {
    const { cluster } = lab;
    await cluster.apply(["runs", "moves", "new"].map((name) => lab.journal(name)));
    for (const name of ["runs", "moves"]) {
      const reply = await lab.send(`${name}.localhost`);
      assert.equal(reply.status, 200, reply.text);
      if ((await cluster.owner(name)) !== (name === "runs" ? "b" : "a"))
        await cluster.relocate(name, name === "runs" ? "b" : "a");
    }
    const { epoch } = body(await lab.send("runs.localhost"));
    await alarm("Activate");
    try {
      // Longer than a lease: keep-alives write nothing, so no host is lost.
      const end = performance.now() + ttlSeconds * 1000 + 500;
      while (performance.now() < end) {
        const reply = await lab.send("runs.localhost");
        assert.deepEqual([reply.status, body(reply).epoch], [200, epoch], reply.text);
        const refused = await lab.send("new.localhost");
        assert.equal(refused.status, 503);
        assert.match(refused.text, /database space exceeded; free space/);
        assert.ok(Number(refused.headers["retry-after"]) > 0);
      }
      await cluster.killHost("a");
      const stays = await lab.send("moves.localhost");
      assert.equal(stays.status, 503, stays.text);
      assert.match(stays.text, /space exceeded/);
      assert.equal((await lab.send("runs.localhost")).status, 200);
    } finally {
      await alarm("Deactivate");
    }
    for (const name of ["moves", "new"]) {
      const reply = await eventually(`${name} is served`, async () => {
        const answer = await lab.send(`${name}.localhost`);
        return answer.status === 200 && answer;
      });
      assert.equal(body(reply).host, cluster.hostId("b"));
    }
  });
});

describe("an etcd that is away for less than a lease", function () {
  this.timeout(60_000);
  let lab: TestCluster;

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    lab = await openTestCluster("away", ["a", "b"], { ttlSeconds: 20, callTimeoutMs: 300 });
  });
  after(async () => {
    await lab?.close();
  });

  it("does not keep a container from everybody that was stopped for a planned move and could not be given up", async () => {
    const { cluster } = lab;
    await cluster.apply([lab.journal("planned", { takeover: "exclusive" })]);
    assert.equal((await lab.send("planned.localhost")).status, 200);
    const from = (await cluster.owner("planned")) as string;
    await cluster.etcdServer.kill();
    try {
      await assert.rejects(cluster.relocate("planned", from === "a" ? "b" : "a"), /store does not answer/);
      const log = join(cluster.logs, `host-${from}.log`);
      await eventually("it could not be given up", async () =>
        (await readFile(log, "utf8")).includes("not given up yet"),
      );
    } finally {
      await cluster.etcdServer.restart();
    }
    await eventually("it is served", async () => (await lab.send("planned.localhost")).status === 200, 5000);
  });
});

describe("a clock that is set", function () {
  this.timeout(60_000);
  const library = faketime();
  const names = ["LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE", "FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC"] as const;
  const kept = names.map((name) => [name, process.env[name]] as const);
  let directory: string;
  let lab: TestCluster;
  let others: ReadonlySet<string>;

  before(async function () {
    others = new Set(await sharedClocks());
    const why = library === undefined ? "needs the package faketime" : await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    directory = await mkdtemp(join(tmpdir(), "hakobu-clock-"));
    const offset = join(directory, "offset");
    await writeFile(offset, "+0");
    // Agents and proxies inherit it. CLOCK_MONOTONIC stays, as it does when a clock is set.
    for (const [index, value] of [library as string, offset, "1", "1"].entries())
      process.env[names[index] as string] = value;
    try {
      lab = await openTestCluster("clock", ["a", "b"], { ttlSeconds, callTimeoutMs: 1000 });
    } finally {
      for (const [name, value] of kept)
        if (value === undefined) delete process.env[name];
        else process.env[name] = value;
    }
  });
  after(async () => {
    await lab?.close();
    if (directory !== undefined) await rm(directory, { recursive: true, force: true });
    for (const name of await sharedClocks()) if (!others.has(name)) await rm(join("/dev/shm", name), { force: true });
  });

  for (const [direction, offset] of [
    ["forwards", "+7200"],
    ["back", "-7200"],
  ] as const)
    it(`moves nothing and kills nothing when it goes ${direction} by two hours, and relocation works`, async () => {
      const { cluster } = lab;
      const [calm, cut] = [`calm-${direction}`, `cut-${direction}`];
      await cluster.apply([lab.journal(calm, { takeover: "exclusive" }), lab.journal(cut)]);
      const first: Reply[] = [];
      for (const name of [calm, cut]) {
        if ((await lab.send(`${name}.localhost`)).status !== 200) assert.fail(`${name} does not run`);
        if ((await cluster.owner(name)) !== (name === calm ? "b" : "a"))
          await cluster.relocate(name, name === calm ? "b" : "a");
        first.push(await lab.send(`${name}.localhost`));
      }
      await writeFile(join(directory, "offset"), offset);
      const end = performance.now() + ttlSeconds * 1000 + 500;
      while (performance.now() < end)
        for (const [index, name] of [calm, cut].entries()) {
          const reply = await lab.send(`${name}.localhost`);
          assert.deepEqual([reply.status, body(reply).epoch], [200, body(first[index] as Reply).epoch], reply.text);
        }
      await cluster.cut("a");
      const moved = await lab.send(`${cut}.localhost`);
      assert.deepEqual([moved.status, body(moved).host], [200, cluster.hostId("b")], moved.text);
      const since = Date.parse((await cluster.placementSeen(cut))?.since ?? "");
      const shiftMs = since - Date.now();
      assert.ok(Math.abs(shiftMs - Number(offset) * 1000) < 60_000, `the agent's clock is ${shiftMs} ms off`);
      assert.equal((await lab.send(`${calm}.localhost`)).status, 200);
      await cluster.heal("a");
    });
});

/** libfaketime makes two for each process, and leaves those of one that is killed. */
async function sharedClocks(): Promise<string[]> {
  return (await readdir("/dev/shm")).filter((name) => /^(sem\.)?faketime_/.test(name));
}

function faketime(): string | undefined {
  const machine = execFileSync("uname", ["-m"]).toString().trim();
  const path = `/usr/lib/${machine}-linux-gnu/faketime/libfaketime.so.1`;
  return existsSync(path) ? path : undefined;
}
