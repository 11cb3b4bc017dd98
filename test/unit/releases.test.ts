// Placements that a host gives up, also while the store is away.
import assert from "node:assert/strict";
import { SimulatedClock } from "xstate";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Clock } from "../../actors/ports/clock.js";
import { noLog } from "../../actors/ports/log.js";
import type { Membership } from "../../actors/ports/placement-store.js";
import { Releases } from "../../actors/releases.js";

describe("releases", () => {
  function opened() {
    const simulated = new SimulatedClock();
    const clock: Clock = Object.assign(simulated, { timestamp: () => "" });
    const state = {
      away: true,
      wanted: false,
      epoch: undefined as number | undefined,
      attempts: [] as string[],
      answer: () => {},
    };
    const membership = {
      release: async (container: string, epoch: number) => {
        state.attempts.push(`${container} ${epoch}`);
        if (state.away) throw new HakobuError("STORE_UNAVAILABLE", "away");
        await new Promise<void>((resolve) => {
          state.answer = resolve;
        });
      },
    } as unknown as Membership;
    const held: { membership: Membership | undefined } = { membership };
    const releases = new Releases({
      clock,
      log: noLog,
      membership: () => held.membership,
      wanted: () => state.wanted,
      heldUnder: () => state.epoch,
    });
    const turn = async (ms = 0) => {
      await new Promise(setImmediate);
      simulated.increment(ms);
      await new Promise(setImmediate);
    };
    return { state, held, releases, turn };
  }

  it("are tried again until the store has done them", async () => {
    const { state, releases, turn } = opened();
    let done = false;
    void releases.giveUp("blog", 5).then(() => (done = true));
    await turn(500);
    await turn(500);
    assert.equal(state.attempts.length, 3);
    assert.equal(done, false);
    state.away = false;
    await turn(500);
    state.answer();
    await turn();
    assert.equal(done, true);
    assert.deepEqual([...new Set(state.attempts)], ["blog 5"]);
  });

  it("leave alone what is wanted here again, and end with the lease (R1)", async () => {
    const { state, held, releases, turn } = opened();
    state.wanted = true;
    let done = false;
    void releases.giveUp("blog", 5).then(() => (done = true));
    await turn(500);
    assert.equal(state.attempts.length, 0);
    held.membership = undefined;
    await turn(500);
    assert.equal(done, true);
  });

  it("end when the container is here again under another epoch (R1)", async () => {
    const { state, releases, turn } = opened();
    state.wanted = true;
    let done = false;
    void releases.giveUp("blog", 5).then(() => (done = true));
    await turn(500);
    assert.equal(done, false);
    state.epoch = 7;
    await turn(500);
    assert.equal(done, true);
    assert.equal(state.attempts.length, 0);
  });

  it("let nobody claim while one is under way (R2)", async () => {
    const { state, releases, turn } = opened();
    state.away = false;
    void releases.giveUp("blog", 5);
    let settled = false;
    void releases.settled("blog").then(() => (settled = true));
    await turn();
    assert.equal(settled, false);
    state.answer();
    await turn();
    assert.equal(settled, true);
  });
});
