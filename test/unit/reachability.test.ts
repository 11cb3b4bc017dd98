// When a host's answer is late, and who is told.
import assert from "node:assert/strict";
import { SimulatedClock } from "xstate";
import type { Clock } from "../../actors/ports/clock.js";
import type { Prober, ProbeResult } from "../../actors/ports/prober.js";
import { ReachabilityActor } from "../../actors/reachability.js";
import { ActorRegistry } from "../../actors/registry.js";

describe("a host that is late", () => {
  function opened() {
    const simulated = new SimulatedClock();
    const clock: Clock = Object.assign(simulated, { timestamp: () => "" });
    let answer: (result: ProbeResult) => void = () => {};
    const prober: Prober = { probe: () => new Promise((resolve) => (answer = resolve)) };
    const target = { address: "127.0.0.1", port: 1 };
    const options = { freshMs: 10, probeTimeoutMs: 100, probeFloorMs: 50 };
    const actor = new ReachabilityActor({ clock, prober, registry: new ActorRegistry() }, "a", target, options);
    let late = 0;
    actor.watch({ probeTimeoutMs: 100, hostLate: () => late++, hostSilent: () => {} });
    const turn = async (ms: number) => {
      for (let each = 0; each < ms; each++) simulated.increment(1);
      await new Promise(setImmediate);
    };
    const answered = async () => {
      answer({ kind: "alive", rttMs: 0.5 });
      await turn(1);
    };
    return { actor, turn, answered, late: () => late };
  }

  it("is said to be so to requests that wait, once for each probe, before it is suspected", async () => {
    const { actor, turn, answered, late } = opened();
    for (let each = 0; each < 8; each++) {
      void actor.probe(100);
      await answered();
    }
    assert.equal(late(), 0);
    void actor.probe(100);
    await turn(9);
    assert.equal(late(), 0);
    await turn(10);
    assert.equal(late(), 1);
    assert.equal(actor.state, "trusted");
    await turn(20);
    assert.equal(late(), 1);
    actor.stop();
  });

  it("has half of the time-out while too little is known of it", async () => {
    const { actor, turn, late } = opened();
    void actor.probe(100);
    await turn(49);
    assert.equal(late(), 0);
    await turn(10);
    assert.equal(late(), 1);
    actor.stop();
  });
});

describe("a host as a proxy sees it", () => {
  function opened(...answers: readonly ProbeResult[]) {
    const simulated = new SimulatedClock();
    const clock: Clock = Object.assign(simulated, { timestamp: () => "" });
    const asked: number[] = [];
    const prober: Prober = {
      probe: (_target, timeoutMs) => {
        asked.push(timeoutMs);
        return Promise.resolve(answers[Math.min(asked.length, answers.length) - 1] as ProbeResult);
      },
    };
    const target = { address: "127.0.0.1", port: 1 };
    const options = { freshMs: 10, probeTimeoutMs: 100, probeFloorMs: 50 };
    const actor = new ReachabilityActor({ clock, prober, registry: new ActorRegistry() }, "a", target, options);
    const turn = async (ms: number) => {
      for (let each = 0; each < ms; each++) {
        simulated.increment(1);
        await new Promise(setImmediate);
      }
    };
    return { actor, asked, turn };
  }
  const alive: ProbeResult = { kind: "alive", rttMs: 1 };
  const silent: ProbeResult = { kind: "timeout", afterMs: 100 };
  const unasked: ProbeResult = { kind: "unknown", code: "EMFILE" };

  it("has to be asked again as soon as it has broken a connection, and stays trusted until it has answered", async () => {
    const { actor } = opened(alive);
    await actor.probe(100);
    assert.equal(actor.fresh, true);
    actor.interrupted();
    assert.deepEqual([actor.fresh, actor.state], [false, "trusted"]);
    await actor.probe(100);
    assert.equal(actor.fresh, true);
    actor.stop();
  });

  it("is not suspected when this machine could not ask", async () => {
    const { actor } = opened(unasked);
    for (let each = 0; each < 5; each++) await actor.probe(100);
    assert.equal(actor.state, "trusted");
    actor.stop();
  });

  it("stays suspected, and no more than that, while it cannot be asked again", async () => {
    const { actor, asked, turn } = opened(silent, unasked);
    await actor.probe(100);
    assert.equal(actor.state, "suspected");
    await turn(300);
    assert.ok(asked.length > 5);
    assert.equal(actor.state, "suspected");
    actor.stop();
  });

  it("is asked with all of the time-out while it is suspected, and its answers count among its round trips", async () => {
    const { actor, asked, turn } = opened(...Array.from({ length: 8 }, () => alive), silent, {
      kind: "alive",
      rttMs: 80,
    });
    for (let each = 0; each < 9; each++) await actor.probe(100);
    assert.deepEqual([asked[8], actor.state], [50, "suspected"]);
    await turn(30);
    assert.deepEqual([asked[9], actor.state], [100, "trusted"]);
    await actor.probe(100);
    assert.equal(asked[10], 100);
    actor.stop();
  });
});
