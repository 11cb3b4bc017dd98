// A member is killed at each step of a move (runtime/fault-points.ts). Afterwards: the request is answered, there is one owner, one
// running copy, nothing of the others is left, and no half-written image is used.
import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cannotRestore, eventually, openTestCluster, type TestCluster } from "../lab/cluster.js";

describe("a crash at each step of a move", function () {
  this.timeout(120_000);
  const ttlSeconds = 4;
  let faults: string;
  let lab: TestCluster;
  let count = 0;

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    faults = await mkdtemp(join(tmpdir(), "hakobu-faults-"));
    process.env.HAKOBU_FAULTS = faults;
    // What is read ahead would pass the points too.
    lab = await openTestCluster("crash", ["a", "b", "c"], { ttlSeconds, hostSettings: { warmImages: "0B" } });
  });
  after(async () => {
    delete process.env.HAKOBU_FAULTS;
    await lab?.close();
    if (faults !== undefined) await rm(faults, { recursive: true, force: true });
  });

  const order = (point: string, what: "kill" | "stop") => writeFile(join(faults, point), what);
  const taken = async () => (await readdir(faults)).length === 0;

  async function ready() {
    const name = `crash-${++count}`;
    await lab.cluster.apply([lab.journal(name)]);
    const reply = await lab.send(`${name}.localhost`);
    assert.equal(reply.status, 200, reply.text);
    return { name, hostname: `${name}.localhost`, owner: (await lab.cluster.owner(name)) as string };
  }

  /** Processes in the control groups of a container, by host. */
  async function running(name: string): Promise<string[]> {
    const found: string[] = [];
    for (const host of lab.cluster.hosts)
      for (const root of ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"]) {
        const file = join(root, "hakobu", `crash-${host}`, name, "cgroup.procs");
        const pids = (await readFile(file, "utf8").catch(() => "")).split("\n").filter((line) => line !== "");
        if (pids.length === 0) continue;
        found.push(host);
        break;
      }
    return found;
  }

  /** Everybody is back; then one owner, which runs it, and nobody else does. */
  async function settled(name: string, hostname: string) {
    for (const host of lab.cluster.hosts) await lab.cluster.heal(host);
    const reply = await eventually("it is served", async () => {
      const answer = await lab.send(hostname);
      return answer.status === 200 && answer;
    });
    const owner = (await lab.cluster.owner(name)) as string;
    await eventually("one copy runs, at the owner's", async () => {
      const hosts = await running(name);
      return hosts.length === 1 && hosts[0] === owner;
    });
    assert.match((JSON.parse(reply.text) as { host: string }).host, new RegExp(`-${owner}$`));
    for (const host of lab.cluster.hosts) {
      const status = await lab.cluster.status(host);
      const has = status?.containers.some((each) => each.name === name) ?? false;
      assert.equal(has, host === owner, `${host} ${has ? "has" : "lacks"} it`);
    }
  }

  for (const point of [
    "membership.claim.before",
    "membership.claim.after",
    "images.find.after",
    "engine.standby.before",
    "engine.standby.after",
    "standby.run.before",
    "standby.run.after",
  ])
    it(`answers the request when the host that takes over is killed at ${point}`, async () => {
      const { name, hostname, owner } = await ready();
      await order(point, "kill");
      await lab.cluster.killHost(owner);
      const reply = await lab.send(hostname);
      assert.equal(reply.status, 200, reply.text);
      assert.ok(await taken(), "the point was passed");
      await settled(name, hostname);
    });

  for (const point of ["engine.start.after", "engine.checkpoint.after", "draft.publish.before", "draft.publish.after"])
    it(`answers the very first request when its host is killed at ${point}, and uses no half-written image`, async () => {
      const name = `crash-${++count}`;
      await lab.cluster.apply([lab.journal(name)]);
      await order(point, "kill");
      const reply = await lab.send(`${name}.localhost`);
      assert.equal(reply.status, 200, reply.text);
      assert.ok(await taken(), "the point was passed");
      await settled(name, `${name}.localhost`);
      const owner = (await lab.cluster.owner(name)) as string;
      await lab.cluster.killHost(owner);
      const moved = await lab.send(`${name}.localhost`);
      assert.equal(moved.status, 200, moved.text);
      await settled(name, `${name}.localhost`);
    });

  /** Brings a move to a point, does something there, and lets it go on. */
  async function interrupted(point: string, act: (host: string) => Promise<void>) {
    const { name, hostname, owner } = await ready();
    await order(point, "stop");
    await lab.cluster.killHost(owner);
    const reply = lab.send(hostname);
    const host = await eventually("a host stands at the point", async () => {
      for (const each of lab.cluster.hosts) {
        const pid = lab.cluster.agentPid(each);
        const stat = pid === undefined ? "" : await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
        if (stat.slice(stat.lastIndexOf(")") + 2).startsWith("T")) return each;
      }
      return undefined;
    });
    await act(host);
    process.kill(lab.cluster.agentPid(host) as number, "SIGCONT");
    return { name, hostname, reply };
  }

  for (const point of [
    "membership.claim.before",
    "membership.claim.after",
    "engine.standby.before",
    "engine.standby.after",
    "standby.run.before",
    "standby.run.after",
  ])
    it(`has one owner when the proxy is killed while a host is at ${point}`, async () => {
      const { name, hostname, reply } = await interrupted(point, () => lab.cluster.killProxy());
      await reply;
      await lab.cluster.startProxy();
      await settled(name, hostname);
    });

  for (const point of [
    "membership.claim.before",
    "membership.claim.after",
    "images.find.after",
    "engine.standby.before",
    "engine.standby.after",
    "standby.run.before",
    "standby.run.after",
  ])
    it(`has one owner when etcd is killed while a host is at ${point}, and recovers without a restart of anything else`, async () => {
      const { name, hostname, reply } = await interrupted(point, () => lab.cluster.etcdServer.kill());
      // Once it is claimed, etcd is not needed any more.
      const needsEtcd = point === "membership.claim.before";
      if (!needsEtcd) {
        const answer = await reply;
        assert.equal(answer.status, 200, answer.text);
      }
      await lab.cluster.etcdServer.restart();
      const answer = await reply;
      assert.ok(answer.status === 200 || (needsEtcd && answer.status === 503), `${answer.status}: ${answer.text}`);
      await settled(name, hostname);
    });

  it("answers the request when the container is killed as soon as it was restored", async () => {
    const { name, hostname, reply } = await interrupted("standby.run.after", async (host) => {
      const file = join("/sys/fs/cgroup/pids/hakobu", `crash-${host}`, `crash-${count}`, "cgroup.procs");
      for (const pid of (await readFile(file, "utf8")).split("\n"))
        if (pid !== "") process.kill(Number(pid), "SIGKILL");
    });
    const answer = await reply;
    assert.equal(answer.status, 200, answer.text);
    await settled(name, hostname);
  });
});
