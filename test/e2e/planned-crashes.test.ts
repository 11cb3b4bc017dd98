// The source or the target of a planned move is killed at each step of it: the drain, the image of its memory, the claim, the start.
// Afterwards there is one owner, it serves, and the hosts themselves have removed what was left (test/lab/strays.ts).
import assert from "node:assert/strict";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { cannotRestore, eventually } from "../lab/cluster.js";
import { CrashLab, type Subject } from "../lab/crash-lab.js";

type Kind = "fast" | "confirmed" | "exclusive" | "with its memory";

const specs: Readonly<Record<Kind, Partial<ContainerSpec>>> = {
  fast: { takeover: "fast" },
  confirmed: { takeover: "confirmed" },
  exclusive: { takeover: "exclusive" },
  "with its memory": { takeover: "fast", onIdle: "suspend", idleTimeoutMs: 600_000 },
};

/** In the order in which they are passed. */
const source: Readonly<Record<Kind, readonly string[]>> = {
  fast: [
    "hosts.claim.before",
    "hosts.claim.after",
    "hosts.activate.before",
    "hosts.activate.after",
    "engine.stop.before",
    "engine.stop.after",
  ],
  confirmed: ["engine.stop.before", "engine.stop.after", "hosts.claim.before", "hosts.claim.after"],
  exclusive: [
    "engine.stop.before",
    "engine.stop.after",
    "hosts.claim.before",
    "hosts.claim.after",
    "hosts.activate.before",
    "hosts.activate.after",
  ],
  "with its memory": [
    "images.begin.after",
    "engine.checkpoint.before",
    "engine.checkpoint.after",
    "draft.publish.before",
    "draft.publish.after",
    "engine.stop.before",
    "engine.stop.after",
    "hosts.claim.before",
    "hosts.claim.after",
  ],
};

const target: Readonly<Record<Kind, readonly string[]>> = {
  fast: [
    "membership.claim.before",
    "membership.claim.after",
    "engine.standby.before",
    "engine.standby.after",
    "standby.run.before",
    "standby.run.after",
  ],
  confirmed: ["membership.claim.before", "membership.claim.after"],
  exclusive: ["membership.claim.before", "membership.claim.after", "standby.run.after"],
  "with its memory": [
    "membership.claim.before",
    "membership.claim.after",
    "images.takeSuspended.before",
    "images.takeSuspended.after",
    "engine.restore.before",
    "engine.restore.after",
  ],
};

describe("a crash at each step of a planned move", function () {
  this.timeout(120_000);
  let crash: CrashLab;

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    crash = await CrashLab.open("planned", 4);
  });
  afterEach(() => crash?.withdraw());
  after(() => crash?.close());

  /** Moves it to another host, on the way to which somebody is killed. @returns who */
  async function killed({ name, owner }: Subject, point: string): Promise<string> {
    const { cluster } = crash.lab;
    const to = cluster.hosts.find((host) => host !== owner) as string;
    await crash.order(point, "stop");
    // A fast one has moved before its source has stopped it.
    const moved = cluster.relocate(name, to).catch(() => {});
    const standing = await crash.standing();
    await cluster.killAgent(standing);
    await moved;
    return standing;
  }

  for (const kind of Object.keys(specs) as Kind[]) {
    for (const point of source[kind])
      it(`has one owner, which serves, when the source of a container (${kind}) is killed at ${point}`, async () => {
        const subject = await crash.ready(specs[kind]);
        assert.equal(await killed(subject, point), subject.owner);
        const reply = await crash.lab.send(subject.hostname);
        assert.equal(reply.status, 200, reply.text);
        await crash.settled(subject);
      });

    for (const point of target[kind])
      it(`has one owner, which serves, when the target of a container (${kind}) is killed at ${point}`, async () => {
        const subject = await crash.ready(specs[kind]);
        assert.notEqual(await killed(subject, point), subject.owner);
        const reply = await crash.lab.send(subject.hostname);
        assert.equal(reply.status, 200, reply.text);
        await crash.settled(subject);
      });
  }

  for (const kind of Object.keys(specs) as Kind[])
    it(`answers a GET that was being answered when the source of a container (${kind}) is killed while it drains`, async () => {
      const subject = await crash.ready(specs[kind]);
      const { cluster } = crash.lab;
      const slow = crash.lab.send(subject.hostname, { path: "/?ms=3000", id: "slow" });
      await eventually("it is at work on the request", async () =>
        (await crash.lab.lines(subject.name)).some(({ id }) => id === "slow"),
      );
      const to = cluster.hosts.find((host) => host !== subject.owner) as string;
      const moved = cluster.relocate(subject.name, to).catch(() => {});
      await eventually("it drains", async () => {
        const status = await cluster.status(subject.owner);
        return status?.containers.some((each) => each.name === subject.name && each.state === "relocating.draining");
      });
      await cluster.killAgent(subject.owner);
      const reply = await slow;
      assert.equal(reply.status, 200, reply.text);
      await moved;
      await crash.settled(subject);
    });

  it("serves again when the moved container is killed while its source waits for the start on the target", async () => {
    const subject = await crash.ready();
    const { cluster } = crash.lab;
    const to = cluster.hosts.find((host) => host !== subject.owner) as string;
    await crash.order("hosts.activate.after", "stop");
    const moved = cluster.relocate(subject.name, to).catch(() => {});
    const standing = await crash.standing();
    assert.equal(standing, subject.owner);
    const pids = await eventually("it runs on the target", async () => {
      const found = await crash.processes(subject.name, to);
      return found.length > 0 && found;
    });
    for (const pid of pids) process.kill(pid, "SIGKILL");
    crash.resume(standing);
    await moved;
    const reply = await crash.lab.send(subject.hostname);
    assert.equal(reply.status, 200, reply.text);
    await crash.settled(subject);
  });
});
