// The main job, end to end on real parts: etcd, a proxy, two agents in network namespaces, runc and CRIU.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readdir, readFile, truncate } from "node:fs/promises";
import { join } from "node:path";
import { request } from "undici";
import { cannotRestore, eventually, openTestCluster, type Reply, type TestCluster } from "../lab/cluster.js";

describe("relocation", function () {
  this.timeout(90_000);
  let lab: TestCluster;
  let count = 0;

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    lab = await openTestCluster("reloc", ["a", "b"]);
  });
  after(async () => {
    await lab?.close();
  });
  afterEach(async () => {
    for (const host of lab?.cluster.hosts ?? []) await lab.cluster.heal(host);
  });

  /** A container of its own for each test, which has answered once: placed, started cold, checkpointed. */
  async function ready(more: Parameters<TestCluster["journal"]>[1] = {}) {
    const name = `app-${++count}`;
    await lab.cluster.apply([lab.journal(name, more)]);
    const reply = await lab.send(`${name}.localhost`);
    assert.equal(reply.status, 200, reply.text);
    const owner = (await lab.cluster.owner(name)) as string;
    const other = lab.cluster.hosts.find((host) => host !== owner) as string;
    const state = async () => (await lab.cluster.status(owner))?.containers.find((each) => each.name === name);
    return { name, hostname: `${name}.localhost`, owner, other, state };
  }

  const json = (reply: Reply) => JSON.parse(reply.text) as { count: number; host: string; epoch: number };
  const movesOf = async (name: string) => (await lab.cluster.moves()).filter((move) => move.container === name);

  it("starts cold, takes an image when the port listens, and restores from it after an idle stop", async () => {
    const { name, hostname, state } = await ready({ idleTimeoutMs: 300 });
    const [first] = await movesOf(name);
    assert.equal(first?.how, "cold");
    assert.equal((await readdir(join(lab.cluster.shared, "images", name))).length, 1);
    await eventually("it stops when idle", async () => (await state())?.state === "stopped");
    const woken = await lab.send(hostname);
    assert.equal(woken.status, 200);
    assert.equal((await state())?.how, "restored");
    assert.equal((await lab.lines(name)).filter((line) => line.event === "start").length, 1, "one cold start only");
  });

  it("answers the request that finds the owner cut off from the other host, restored", async () => {
    const { name, hostname, owner, other } = await ready();
    await lab.cluster.cut(owner);
    const reply = await lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    assert.match(json(reply).host, new RegExp(`-${other}$`));
    const move = (await movesOf(name)).at(-1);
    assert.equal(move?.how, "restored", move?.note);
    assert.ok((move?.probeMs ?? 0) >= 40, `probe ${move?.probeMs} ms`);
    assert.equal((await lab.lines(name)).filter((line) => line.event === "start").length, 1);
    assert.ok(move?.phases["resume"] !== undefined, "the restore began before the claim was won");
  });

  it("restores ahead for an owner that is late and then answers, runs nothing of it, and leaves nothing", async () => {
    const { name, hostname, owner, other, state } = await ready();
    const { address, port } = lab.cluster.agent(other);
    const answer = await request(`http://${address}:${port}/v1/prepare`, {
      method: "POST",
      body: JSON.stringify({ container: name }),
    });
    assert.deepEqual([answer.statusCode, await answer.body.json()], [202, { prepares: true }]);
    const root = join(lab.cluster.stateDir(other), "runc", name, "root");
    await eventually("it is being restored", () => existsSync(root));
    const { pid } = (await state()) ?? {};
    for (let each = 1; each <= 5; each++) assert.equal((await lab.send(hostname)).status, 200);
    await eventually("nothing of it is left", () => !existsSync(root));
    assert.deepEqual([await lab.cluster.owner(name), (await state())?.pid], [owner, pid]);
    const instances = new Set((await lab.lines(name)).map(({ instance }) => instance));
    assert.equal(instances.size, 1, "only the owner's copy has run");
  });

  it("stops the old copy when its host comes back", async () => {
    const { name, hostname, owner, state } = await ready();
    await lab.cluster.cut(owner);
    assert.equal((await lab.send(hostname)).status, 200);
    assert.notEqual(await lab.cluster.owner(name), owner);
    await lab.cluster.heal(owner);
    await eventually("the old copy is gone", async () => (await state()) === undefined);
  });

  it("moves away from a host whose agent was killed, and the agent stops what it lost when it is started again", async () => {
    const { name, hostname, owner, other, state } = await ready();
    await lab.cluster.killAgent(owner);
    const reply = await lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    assert.match(json(reply).host, new RegExp(`-${other}$`));
    await lab.cluster.startAgent(owner);
    assert.equal(await state(), undefined);
    assert.equal(await lab.cluster.owner(name), other);
  });

  it("keeps a container that survived its agent, and its memory", async () => {
    const { name, hostname, owner, state } = await ready();
    await lab.send(hostname, { method: "POST" });
    const pid = (await state())?.pid;
    await lab.cluster.killAgent(owner);
    await lab.cluster.startAgent(owner);
    assert.equal(await lab.cluster.owner(name), owner);
    assert.equal((await state())?.pid, pid);
    const reply = await lab.send(hostname);
    assert.deepEqual([reply.status, json(reply).count], [200, 1]);
    const { epoch } = (await lab.cluster.placementSeen(name)) ?? {};
    assert.equal(json(reply).epoch, epoch, "it knows that it was claimed again");
  });

  it("brings a container whose process was killed back on its own host", async () => {
    const { name, hostname, owner, state } = await ready();
    const pid = (await state())?.pid as number;
    process.kill(pid, "SIGKILL");
    const reply = await lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    assert.equal(await lab.cluster.owner(name), owner);
    assert.notEqual((await state())?.pid, pid);
  });

  it("does not take a container that stands still, and accepts nothing any more, for a dead host", async () => {
    const { name, hostname, owner, state } = await ready();
    const { pid, epoch } = (await state()) as { pid: number; epoch: number };
    process.kill(pid, "SIGSTOP");
    const begunMs = performance.now();
    const asked = Array.from({ length: 300 }, () => lab.send(hostname));
    try {
      while (performance.now() - begunMs < 1500) {
        const placed = await lab.cluster.placementSeen(name);
        assert.deepEqual([placed?.host, placed?.epoch], [lab.cluster.hostId(owner), epoch]);
      }
    } finally {
      process.kill(pid, "SIGCONT");
    }
    for (const reply of await Promise.all(asked)) assert.equal(reply.status, 200, reply.text);
    assert.deepEqual([(await state())?.pid, (await state())?.epoch], [pid, epoch]);
  });

  it("moves away from a host that died with everything on it", async () => {
    const { hostname, owner, other } = await ready();
    await lab.cluster.killHost(owner);
    const reply = await lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    assert.match(json(reply).host, new RegExp(`-${other}$`));
  });

  it("survives a false alarm: a delayed probe moves the container, and the old copy is stopped afterwards", async () => {
    const { name, hostname, owner, other, state } = await ready();
    await eventually("nothing was heard for a while", () => lab.cluster.network.delay(owner, 400).then(() => true));
    const reply = await lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    assert.equal(await lab.cluster.owner(name), other);
    await eventually("the old copy is gone", async () => (await state()) === undefined);
  });

  it("restores once for many requests that come at the same time", async () => {
    const { name, hostname, owner } = await ready();
    const before = (await movesOf(name)).length;
    await lab.cluster.cut(owner);
    const replies = await Promise.all(Array.from({ length: 20 }, () => lab.send(hostname)));
    assert.deepEqual(new Set(replies.map((reply) => reply.status)), new Set([200]));
    assert.equal((await movesOf(name)).length, before + 1);
    const after = (await lab.lines(name)).filter((line) => line.event === "request");
    assert.equal(new Set(after.slice(1).map((line) => line.pid)).size, 1);
  });

  it("runs a POST once: it waits for the move, and is never sent a second time once it may have been seen", async () => {
    const { name, hostname, owner } = await ready();
    await lab.cluster.cut(owner);
    const held = await lab.send(hostname, { method: "POST", id: "held", body: "x".repeat(100_000) });
    assert.equal(held.status, 200, held.text);
    const now = (await lab.cluster.owner(name)) as string;
    await lab.cluster.heal(owner);
    const slow = lab.send(hostname, { method: "POST", id: "slow", path: "/?ms=5000" });
    await eventually("it has begun", async () => (await lab.lines(name)).some((line) => line.id === "slow"));
    await lab.cluster.cut(now);
    const lost = await slow;
    assert.equal(lost.status, 502, lost.text);
    assert.match(lost.text, /may have taken effect[\s\S]*Trace: [0-9a-f]{32}/);
    const ids = (await lab.lines(name)).filter((line) => line.method === "POST").map((line) => line.id);
    assert.deepEqual(ids, ["held", "slow"]);
  });

  it("goes on after the proxy was killed and started again, before and during a move", async () => {
    const { name, hostname, owner, other, state } = await ready();
    await lab.cluster.killProxy();
    await lab.cluster.startProxy();
    assert.equal((await lab.send(hostname)).status, 200);
    await lab.cluster.cut(owner);
    const interrupted = lab.send(hostname);
    const there = async () => (await lab.cluster.status(other))?.containers.some((each) => each.name === name);
    await eventually("the other host has claimed it", there);
    await lab.cluster.killProxy();
    await interrupted;
    await lab.cluster.startProxy();
    const reply = await lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    assert.match(json(reply).host, new RegExp(`-${other}$`));
    await lab.cluster.heal(owner);
    await eventually("the old copy is gone", async () => (await state()) === undefined);
  });

  it("pays for an image with damaged pages with one cold start, and sets it aside", async () => {
    const { name, hostname, owner } = await ready();
    const images = join(lab.cluster.shared, "images", name);
    const [epoch] = await readdir(images);
    const directory = join(images, epoch as string);
    const files = await readdir(directory, { recursive: true });
    const pages = files.find((file) => /pages-\d+\.img$/.test(file)) as string;
    const { length } = await readFile(join(directory, pages));
    await truncate(join(directory, pages), Math.floor(length / 2));
    await lab.cluster.cut(owner);
    const reply = await lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    const move = (await movesOf(name)).at(-1);
    assert.equal(move?.how, "cold");
    assert.ok(move?.note, "the reason is told");
  });

  it("runs what is asked for once the specification changed, and takes a new image of that", async () => {
    const { name, hostname, state } = await ready();
    const before = (await state())?.pid;
    const changed = lab.journal(name, { env: { JOURNAL: `/shared/${name}.journal`, NEW: "1" } });
    await lab.cluster.apply([changed]);
    await eventually("the old copy is gone", async () => (await state())?.pid !== before);
    assert.equal((await lab.send(hostname)).status, 200);
    assert.equal((await state())?.how, "cold");
    const images = join(lab.cluster.shared, "images", name);
    const manifests = await Promise.all(
      (await readdir(images)).map((epoch) => readFile(join(images, epoch, "manifest.json"), "utf8")),
    );
    assert.ok(
      manifests.some((text) => text.includes(changed.hash)),
      "there is an image of the new specification",
    );
    process.kill((await state())?.pid as number, "SIGKILL");
    assert.equal((await lab.send(hostname)).status, 200);
    assert.equal((await state())?.how, "restored");
  });

  it("hands a container over on purpose without one failed request", async () => {
    const { name, hostname, owner, other } = await ready();
    let stop = false;
    const statuses: number[] = [];
    const load = (async () => {
      while (!stop)
        statuses.push((await lab.send(hostname, { method: statuses.length % 3 === 0 ? "POST" : "GET" })).status);
    })();
    await eventually("the load runs", () => statuses.length > 20);
    const answer = await lab.cluster.relocate(name, other);
    assert.match(answer.host, new RegExp(`-${other}$`));
    const at = statuses.length;
    await eventually("the load goes on", () => statuses.length > at + 20);
    stop = true;
    await load;
    assert.deepEqual(new Set(statuses), new Set([200]));
    assert.notEqual(owner, await lab.cluster.owner(name));
  });
});
