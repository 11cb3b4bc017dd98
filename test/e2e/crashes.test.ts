// A member is killed at each step of a move (runtime/fault-points.ts). Afterwards: the request is answered, there is one owner, one
// running copy, no half-written image is used, and the hosts themselves have removed what the others left (test/lab/strays.ts).
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { runCommand } from "../../runtime/engines/command.js";
import { cannotRestore, eventually } from "../lab/cluster.js";
import { CrashLab } from "../lab/crash-lab.js";
import { strays, straysAfter } from "../lab/strays.js";

describe("a crash at each step of a move", function () {
  this.timeout(120_000);
  let crash: CrashLab;

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    crash = await CrashLab.open("crash", 4);
  });
  afterEach(() => crash?.withdraw());
  after(() => crash?.close());

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
      const subject = await crash.ready();
      await crash.order(point, "kill");
      await crash.lab.cluster.killHost(subject.owner);
      const reply = await crash.lab.send(subject.hostname);
      assert.equal(reply.status, 200, reply.text);
      assert.ok(await crash.taken(), "the point was passed");
      await crash.settled(subject);
    });

  for (const point of ["engine.start.after", "engine.checkpoint.after", "draft.publish.before", "draft.publish.after"])
    it(`answers the very first request when its host is killed at ${point}, and uses no half-written image`, async () => {
      const subject = await crash.fresh();
      await crash.order(point, "kill");
      const reply = await crash.lab.send(subject.hostname);
      assert.equal(reply.status, 200, reply.text);
      assert.ok(await crash.taken(), "the point was passed");
      await crash.settled(subject);
      await crash.lab.cluster.killHost((await crash.lab.cluster.owner(subject.name)) as string);
      const moved = await crash.lab.send(subject.hostname);
      assert.equal(moved.status, 200, moved.text);
      await crash.settled(subject);
    });

  /** Brings a move to a point, does something there, and lets it go on. */
  async function interrupted(point: string, act: (host: string, name: string) => Promise<unknown>) {
    const subject = await crash.ready();
    await crash.lab.cluster.killHost(subject.owner);
    return { ...subject, ...(await crash.interrupted(point, subject.hostname, (host) => act(host, subject.name))) };
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
      const subject = await interrupted(point, () => crash.lab.cluster.killProxy());
      await subject.reply;
      await crash.lab.cluster.startProxy();
      await crash.settled(subject);
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
      const subject = await interrupted(point, () => crash.lab.cluster.etcdServer.kill());
      // Once it is claimed, etcd is not needed any more.
      const needsEtcd = point === "membership.claim.before";
      if (!needsEtcd) {
        const answer = await subject.reply;
        assert.equal(answer.status, 200, answer.text);
      }
      await crash.lab.cluster.etcdServer.restart();
      const answer = await subject.reply;
      assert.ok(answer.status === 200 || (needsEtcd && answer.status === 503), `${answer.status}: ${answer.text}`);
      await crash.settled(subject);
    });

  const killContainer = async (host: string, name: string): Promise<void> => {
    const pids = await crash.processes(name, host);
    assert.notEqual(pids.length, 0, `${name} exists on ${host} at that point`);
    for (const pid of pids) process.kill(pid, "SIGKILL");
  };

  for (const point of ["engine.standby.after", "standby.run.before", "standby.run.after"])
    it(`answers the request when the container is killed while its new host is at ${point}`, async () => {
      const subject = await interrupted(point, killContainer);
      const answer = await subject.reply;
      assert.equal(answer.status, 200, answer.text);
      await crash.settled(subject);
    });

  for (const point of [
    "engine.start.after",
    "images.begin.before",
    "engine.checkpoint.before",
    "engine.checkpoint.after",
    "draft.publish.before",
    "draft.publish.after",
  ])
    it(`answers the very first request when the container is killed while its host is at ${point}`, async () => {
      const subject = await crash.fresh();
      const { reply } = await crash.interrupted(point, subject.hostname, (host) => killContainer(host, subject.name));
      const answer = await reply;
      assert.equal(answer.status, 200, answer.text);
      await crash.settled(subject);
    });

  it("answers the request that wakes a container which is killed as soon as it was restored", async () => {
    const subject = await crash.ready({ idleTimeoutMs: 500 });
    await crash.asleep(subject);
    const { reply } = await crash.interrupted("engine.restore.after", subject.hostname, (host) =>
      killContainer(host, subject.name),
    );
    const answer = await reply;
    assert.equal(answer.status, 200, answer.text);
    await crash.settled(subject);
  });

  it("would find what a host left: a namespace, a control group, a mount, and a process in its network", async () => {
    const { cluster } = crash.lab;
    const host = cluster.network.host("a");
    const root = existsSync("/sys/fs/cgroup/cgroup.controllers") ? "/sys/fs/cgroup" : "/sys/fs/cgroup/pids";
    const group = join(root, "hakobu", cluster.hostId("a"), "left");
    const mounted = join(cluster.stateDir("a"), "runc", "left", "layer");
    const run = (command: readonly string[]) =>
      runCommand(command, { failure: "UNAVAILABLE", title: "planting", timeoutMs: 5000 });
    const [program = "", ...args] = host.wrap(["sleep", "60"]);
    assert.deepEqual(await strays(cluster), []);
    await mkdir(group, { recursive: true });
    await mkdir(mounted, { recursive: true });
    await run(["ip", "netns", "add", `${host.namespace}-left`]);
    await run(["mount", "-t", "tmpfs", "left", mounted]);
    const process = spawn(program, args, { stdio: "ignore" });
    try {
      const planted = [
        `host a, cgroup: ${group}`,
        "host a, mount: left/layer",
        "host a, namespace: left",
        `host a, process: ${process.pid} sleep 60`,
      ];
      await eventually("all four are found", async () => isDeepStrictEqual((await strays(cluster)).sort(), planted));
    } finally {
      process.kill("SIGKILL");
      await run(["umount", mounted]);
      await run(["ip", "netns", "delete", `${host.namespace}-left`]);
      await rmdir(group);
    }
    assert.deepEqual(await straysAfter(cluster, 2000), []);
  });
});
