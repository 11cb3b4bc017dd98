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
