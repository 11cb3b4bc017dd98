// The statecharts: generated paths reach every state and keep the invariants; the transitions that matter, one by one.
import assert from "node:assert/strict";
import { createActor, fromPromise, SimulatedClock } from "xstate";
import { getSimplePaths } from "xstate/graph";
import { containerMachine, type RestoreOutcome } from "../../machines/container.js";
import { hostMachine } from "../../machines/host.js";
import { reachabilityMachine, type Verdict } from "../../machines/reachability.js";
import { type ChooseOutcome, type RelocationContext, relocationMachine } from "../../machines/relocation.js";
import { leaves, nameOf } from "../lab/paths.js";

const done = (id: string, output?: unknown) => ({ type: `xstate.done.actor.${id}`, output, actorId: id });
const failed = (id: string) => ({ type: `xstate.error.actor.${id}`, error: new Error("planted"), actorId: id });

interface Path {
  readonly states: readonly string[];
  readonly events: readonly string[];
}

/** Simple paths, told apart by state and by what of the context decides the way. */
function paths(machine: unknown, input: unknown, events: readonly object[], key: (context: never) => unknown): Path[] {
  type Machine = typeof containerMachine;
  const found = getSimplePaths(machine as Machine, {
    input: input as never,
    events: events as never,
    limit: 20_000,
    serializeState: (state) => JSON.stringify([state.value, state.status, key(state.context as never)]),
    stopWhen: (state) => state.status !== "active",
  });
  return found.map((path) => ({
    states: path.steps.map((step) => nameOf(step.state.value)),
    events: path.steps.map((step) => step.event.type),
  }));
}

function assertReached(
  machine: Parameters<typeof leaves>[0],
  found: readonly Path[],
  transient: readonly string[] = [],
) {
  const seen = new Set(found.flatMap((path) => path.states));
  const missing = leaves(machine).filter((leaf) => !seen.has(leaf) && !transient.includes(leaf));
  assert.deepEqual(missing, [], "states that no path reaches");
  assert.ok(found.length >= 4, `only ${found.length} paths`);
}

describe("the statechart of a container", () => {
  const reason = "planted";
  const fresh = { restorable: true, exclusive: false, adopted: false };
  const events = [
    { type: "REQUEST" },
    { type: "IDLE" },
    { type: "GONE" },
    { type: "RELOCATE", reason },
    { type: "RELOCATE", reason, keepMemory: true },
    { type: "OWNERSHIP_LOST", reason },
    { type: "FENCE", reason },
    { type: "RESTART", reason },
    done("restore", { kind: "restored" }),
    done("restore", { kind: "noImage", why: reason }),
    failed("restore"),
    done("start"),
    failed("start"),
    done("checkpoint"),
    failed("checkpoint"),
    done("suspend"),
    failed("suspend"),
    done("drain"),
    failed("drain"),
    done("lastImage"),
    failed("lastImage"),
    done("finish"),
    done("stop"),
    failed("stop"),
    { type: "xstate.after.backoff.container.failed" },
    { type: "xstate.after.stopAgain.container.stuck" },
  ];
  const key = ({ wanted, leaving, imageWanted, keepMemory }: Record<string, unknown>) => [
    wanted,
    leaving,
    imageWanted,
    keepMemory,
  ];
  let all: Path[] = [];
  before(() => {
    all = paths(containerMachine, fresh, events, key);
  });

  it("reaches every state by some path", () => {
    assertReached(containerMachine, all, ["settling"]);
  });

  it("never starts anything again after ownership was lost (C4)", () => {
    for (const { states, events: taken } of all) {
      const lost = taken.findIndex((type) => type === "OWNERSHIP_LOST" || type === "FENCE" || type === "RELOCATE");
      if (lost < 0) continue;
      const after = states.slice(lost);
      assert.ok(!after.some((state) => state === "restoring" || state === "starting"), taken.join(" "));
    }
  });

  it("leaves a state in which processes may exist only through stopping (C3)", () => {
    const alive = (state: string) => /^(restoring|starting|running|relocating)/.test(state);
    for (const { states } of all)
      states.forEach((state, index) => {
        const before = states[index - 1];
        if (before !== undefined && alive(before) && !alive(state)) assert.equal(state, "stopping");
      });
  });

  it("starts nothing after a stop that failed, before one has succeeded (C5)", () => {
    for (const { states, events: taken } of all)
      states.forEach((state, index) => {
        if (states[index - 1] === "stuck") assert.ok(state === "stuck" || state === "stopping", taken.join(" "));
        if (states[index - 1] === "stopping" && state !== "stopping" && state !== "stuck")
          assert.equal(taken[index], "xstate.done.actor.stop");
      });
  });

  /** An actor whose operations end when the test says so. */
  function live(input = fresh) {
    const clock = new SimulatedClock();
    const under: Record<
      string,
      { resolve: (value?: unknown) => void; reject: (e: Error) => void; signal: AbortSignal }
    > = {};
    const operation = <T>(id: string) =>
      fromPromise<T>(
        ({ signal }) =>
          new Promise<T>((resolve, reject) => {
            under[id] = { resolve: resolve as (value?: unknown) => void, reject, signal };
          }),
      );
    const actor = createActor(
      containerMachine.provide({
        actors: {
          restore: operation<RestoreOutcome>("restore"),
          start: operation<void>("start"),
          checkpoint: operation<void>("checkpoint"),
          suspend: operation<void>("suspend"),
          lastImage: operation<void>("lastImage"),
          drain: operation<void>("drain"),
          stop: operation<void>("stop"),
        },
      }),
      { clock, input },
    ).start();
    const state = () => nameOf(actor.getSnapshot().value);
    const end = async (id: string, value?: unknown) => {
      under[id]?.resolve(value);
      await new Promise(setImmediate);
    };
    const fail = async (id: string) => {
      under[id]?.reject(new Error(`planted: ${id}`));
      await new Promise(setImmediate);
    };
    return { actor, clock, state, end, fail, under };
  }
  const restored: RestoreOutcome = { kind: "restored" };
  const noImage: RestoreOutcome = { kind: "noImage", why: "none yet" };

  it("goes on serving when a request comes while it is suspending", async () => {
    const { actor, state, end, under } = live();
    actor.send({ type: "REQUEST" });
    await end("restore", restored);
    actor.send({ type: "IDLE" });
    assert.equal(state(), "running.suspending");
    actor.send({ type: "REQUEST" });
    assert.equal(state(), "running.serving");
    assert.equal(under.suspend?.signal.aborted, true);
    await end("suspend");
    assert.equal(state(), "running.serving");
  });

  it("goes on serving when its memory could not be kept", async () => {
    const { actor, state, end, fail } = live();
    actor.send({ type: "REQUEST" });
    await end("restore", restored);
    actor.send({ type: "IDLE" });
    await fail("suspend");
    assert.equal(state(), "running.serving");
    assert.equal(actor.getSnapshot().context.reason, "planted: suspend");
  });

  it("takes a last image after the drain of a planned move that keeps its memory, and leaves also without it", async () => {
    for (const ending of ["end", "fail"] as const) {
      const { actor, state, under, ...operations } = live();
      actor.send({ type: "REQUEST" });
      await operations.end("restore", restored);
      actor.send({ type: "RELOCATE", reason: "planned", keepMemory: true });
      assert.equal(state(), "relocating.draining");
      assert.equal(under.lastImage, undefined);
      await operations.end("drain");
      assert.equal(state(), "relocating.imaging");
      await operations[ending]("lastImage");
      assert.equal(state(), "stopping");
      await operations.end("stop");
      assert.equal(state(), "left");
    }
  });

  it("takes no last image once another host owns it", async () => {
    const first = live();
    first.actor.send({ type: "REQUEST" });
    await first.end("restore", restored);
    first.actor.send({ type: "RELOCATE", reason: "planned", keepMemory: true });
    first.actor.send({ type: "OWNERSHIP_LOST", reason: "taken" });
    await first.end("drain");
    assert.equal(first.state(), "stopping");
    const second = live();
    second.actor.send({ type: "REQUEST" });
    await second.end("restore", restored);
    second.actor.send({ type: "RELOCATE", reason: "planned", keepMemory: true });
    await second.end("drain");
    second.actor.send({ type: "OWNERSHIP_LOST", reason: "taken" });
    assert.equal(second.state(), "stopping");
    assert.equal(second.under.lastImage?.signal.aborted, true);
  });

  it("stops when no request comes while it is suspending, and restores for the next", async () => {
    const { actor, state, end } = live();
    actor.send({ type: "REQUEST" });
    await end("restore", restored);
    actor.send({ type: "IDLE" });
    await end("suspend");
    assert.equal(state(), "stopping");
    await end("stop");
    assert.equal(state(), "stopped");
    actor.send({ type: "REQUEST" });
    assert.equal(state(), "restoring");
  });

  it("starts cold after a restore that failed, and takes a new image (C2)", async () => {
    const { actor, state, end, fail } = live();
    actor.send({ type: "REQUEST" });
    await fail("restore");
    assert.equal(state(), "starting");
    assert.equal(actor.getSnapshot().context.reason, "planted: restore");
    await end("start");
    assert.equal(state(), "running.checkpointing");
    await end("checkpoint");
    assert.equal(state(), "running.serving");
  });

  it("serves all the same when no image could be taken", async () => {
    const { actor, state, end, fail } = live();
    actor.send({ type: "REQUEST" });
    await end("restore", noImage);
    await end("start");
    await fail("checkpoint");
    assert.equal(state(), "running.serving");
    assert.equal(actor.getSnapshot().context.reason, "planted: checkpoint");
  });

  it("aborts the restore and stops for good when ownership is lost while restoring", async () => {
    const { actor, state, end, under } = live();
    actor.send({ type: "REQUEST" });
    actor.send({ type: "OWNERSHIP_LOST", reason: "taken" });
    assert.equal(state(), "stopping");
    assert.equal(under.restore?.signal.aborted, true);
    actor.send({ type: "REQUEST" });
    await end("stop");
    assert.equal(state(), "left");
    assert.equal(actor.getSnapshot().status, "done");
  });

  it("aborts a checkpoint and drains when it has to leave meanwhile", async () => {
    const { actor, state, end, under } = live();
    actor.send({ type: "REQUEST" });
    await end("restore", noImage);
    await end("start");
    actor.send({ type: "RELOCATE", reason: "planned" });
    assert.equal(state(), "relocating.draining");
    assert.equal(under.checkpoint?.signal.aborted, true);
    await end("drain");
    await end("stop");
    assert.equal(state(), "left");
  });

  it("kills without a drain when it is fenced", async () => {
    const { actor, state, end } = live();
    actor.send({ type: "REQUEST" });
    await end("restore", restored);
    actor.send({ type: "FENCE", reason: "lease" });
    assert.equal(state(), "stopping");
    await end("stop");
    assert.equal(state(), "left");
  });

  it("comes back for a request that arrived while it was stopping", async () => {
    const { actor, state, end } = live();
    actor.send({ type: "REQUEST" });
    await end("restore", restored);
    actor.send({ type: "GONE" });
    actor.send({ type: "REQUEST" });
    await end("stop");
    assert.equal(state(), "restoring");
  });

  it("waits longer after each failed start, and tries again on the request after the wait", async () => {
    const { actor, clock, state, end, fail } = live({ ...fresh, restorable: false });
    for (const backoffMs of [250, 500]) {
      actor.send({ type: "REQUEST" });
      assert.equal(state(), "starting");
      await fail("start");
      await end("stop");
      assert.equal(state(), "failed");
      actor.send({ type: "REQUEST" });
      clock.increment(backoffMs - 1);
      assert.equal(state(), "failed");
      clock.increment(1);
      assert.equal(state(), "stopped");
    }
  });

  it("finishes what is being answered before it stops for a changed specification, and wakes for what came meanwhile", async () => {
    const { actor, state, end } = live();
    actor.send({ type: "REQUEST" });
    await end("restore", restored);
    actor.send({ type: "RESTART", reason: "changed" });
    assert.equal(state(), "running.finishing");
    actor.send({ type: "REQUEST" });
    actor.send({ type: "RESTART", reason: "changed again" });
    assert.equal(state(), "running.finishing");
    await end("drain");
    assert.equal(state(), "stopping");
    await end("stop");
    assert.equal(state(), "restoring");
  });

  it("tries a stop that failed again, ever less often, and has left only when it succeeded, where it is exclusive (C5)", async () => {
    const { actor, clock, state, end, fail } = live({ ...fresh, exclusive: true });
    actor.send({ type: "REQUEST" });
    await end("restore", restored);
    actor.send({ type: "FENCE", reason: "lease" });
    for (const pauseMs of [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]) {
      await fail("stop");
      assert.equal(state(), "stuck");
      clock.increment(pauseMs - 1);
      assert.equal(state(), "stuck");
      clock.increment(1);
      assert.equal(state(), "stopping");
    }
    await end("stop");
    assert.equal(state(), "left");
  });

  it("gives up a copy that cannot be stopped after some attempts, where it is not exclusive and leaves (C5)", async () => {
    const { actor, clock, state, end, fail } = live();
    actor.send({ type: "REQUEST" });
    await end("restore", restored);
    actor.send({ type: "GONE" });
    for (let attempt = 1; attempt <= 10; attempt++) {
      await fail("stop");
      assert.equal(state(), "stuck");
      clock.increment(10_000);
    }
    await fail("stop");
    actor.send({ type: "OWNERSHIP_LOST", reason: "taken" });
    assert.equal(state(), "left");
  });

  it("goes by what its specification says now", async () => {
    const { actor, state, end } = live({ ...fresh, restorable: false });
    actor.send({ type: "SPECIFIED", restorable: true, exclusive: false });
    actor.send({ type: "REQUEST" });
    assert.equal(state(), "restoring");
    await end("restore", noImage);
    actor.send({ type: "SPECIFIED", restorable: false, exclusive: false });
    await end("start");
    assert.equal(state(), "running.serving", "no image is wanted any more");
  });

  it("begins in running when it was adopted", () => {
    assert.equal(live({ ...fresh, adopted: true }).state(), "running.serving");
  });
});

describe("the statechart of a host", () => {
  const events = [
    { type: "JOIN" },
    { type: "LEASE_LOST", reason: "planted" },
    { type: "DRAIN" },
    done("join"),
    failed("join"),
    done("leave"),
    failed("leave"),
  ];

  it("reaches every state by some path, and is fenced whenever its lease is lost (H2)", () => {
    const machine = hostMachine.provide({ actions: { fence: () => {} } });
    const found = paths(machine, undefined, events, () => null);
    assertReached(machine, found);
    for (const { states, events: taken } of found)
      taken.forEach((type, index) => {
        if (type === "LEASE_LOST" && states[index - 1] === "running") assert.equal(states[index], "fenced");
      });
  });
});

describe("the statechart of reachability", () => {
  const events = [
    { type: "ALIVE" },
    { type: "SILENT", reason: "planted" },
    { type: "REFUSED", reason: "planted" },
    { type: "LEASE_EXPIRED" },
    done("reprobe", "alive"),
    done("reprobe", "silent"),
    done("reprobe", "refused"),
  ];
  const key = ({ misses }: { misses: number }) => Math.min(misses, 4);

  it("reaches every state by some path, and trusts on any sign of life (R3)", () => {
    const found = paths(reachabilityMachine, undefined, events, key);
    assertReached(reachabilityMachine, found);
    for (const { states, events: taken } of found)
      taken.forEach((type, index) => {
        if (type === "ALIVE") assert.equal(states[index], "trusted");
        if (type === "REFUSED" || type === "LEASE_EXPIRED") assert.equal(states[index], "unreachable");
      });
  });

  it("suspects after one miss and gives up after three (R1)", async () => {
    const verdicts = ["silent", "silent"] as const;
    let asked = 0;
    const actor = createActor(
      reachabilityMachine.provide({
        actors: {
          reprobe: fromPromise<Verdict>(() =>
            asked < verdicts.length ? Promise.resolve(verdicts[asked++] ?? "alive") : new Promise<never>(() => {}),
          ),
        },
      }),
    ).start();
    actor.send({ type: "SILENT", reason: "no answer" });
    assert.equal(actor.getSnapshot().value, "suspected");
    while (actor.getSnapshot().value === "suspected") await new Promise(setImmediate);
    assert.equal(actor.getSnapshot().value, "unreachable");
    assert.equal(actor.getSnapshot().context.misses, 3);
  });
});

describe("the statechart of a relocation", () => {
  const owner = { host: "a", epoch: 7 };
  const input = (proven: boolean) => ({
    container: "blog",
    owner,
    reason: { text: "planted", proven, certain: false },
    attemptLimit: 2,
    deadlineMs: 1000,
  });
  const events = [
    done("probe", "alive"),
    done("probe", "dead"),
    done("choose", { kind: "candidate", host: "b", owner }),
    done("choose", { kind: "taken", owner: { host: "c", epoch: 9 } }),
    done("choose", { kind: "none", why: "planted" }),
    failed("choose"),
    done("claim", { kind: "won", owner: { host: "b", epoch: 8 } }),
    done("claim", { kind: "taken", owner: { host: "c", epoch: 9 } }),
    done("claim", { kind: "refused", why: "full" }),
    failed("claim"),
    done("activate", { kind: "active" }),
    done("activate", { kind: "failed", why: "planted" }),
    failed("activate"),
    { type: "xstate.after.deadline.relocation" },
  ];
  const key = ({ tried, refusals }: { tried: string[]; refusals: string[] }) => [tried.length, refusals.length > 0];

  it("reaches every state by some path, and claims nothing while the owner answers (M1)", () => {
    const found = paths(relocationMachine, input(false), events, key);
    assertReached(relocationMachine, found);
    for (const { states, events: taken } of found) {
      const alive = taken.findIndex((type, index) => type === "xstate.done.actor.probe" && states[index] === "done");
      if (alive >= 0) assert.ok(!states.includes("claiming"));
    }
  });

  it("tries no more candidates than its limit (M2)", () => {
    for (const { states, events: taken } of paths(relocationMachine, input(true), events, key)) {
      const entries = states.filter((state, index) => state === "claiming" && states[index - 1] !== "claiming");
      assert.ok(entries.length <= 2, taken.join(" "));
    }
  });

  it("ends in failed with the reasons when its deadline passes (M3)", () => {
    const clock = new SimulatedClock();
    const actor = createActor(
      relocationMachine.provide({
        actors: { choose: fromPromise<ChooseOutcome, RelocationContext>(() => new Promise(() => {})) },
      }),
      { clock, input: input(true) },
    ).start();
    clock.increment(1000);
    const { status, output } = actor.getSnapshot();
    assert.equal(status, "done");
    assert.deepEqual(output, { kind: "failed", why: "not done within 1000 ms" });
  });
});
