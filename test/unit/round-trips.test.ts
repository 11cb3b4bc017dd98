// The time-out of a probe, from measured round trips.
import assert from "node:assert/strict";
import { RoundTrips } from "../../actors/round-trips.js";

const after = (...rtts: readonly number[]): RoundTrips => {
  const trips = new RoundTrips();
  for (const rtt of rtts) trips.note(rtt);
  return trips;
};
const times = (n: number, rtt: number): number[] => Array.from({ length: n }, () => rtt);

describe("the time-out of a probe", () => {
  it("is the cap until enough is known", () => {
    assert.equal(after().timeoutMs(50, 100), 100);
    assert.equal(after(...times(7, 0.2)).timeoutMs(50, 100), 100);
  });

  it("falls to the floor where answers are quick and even, and never below it", () => {
    assert.equal(after(...times(8, 0.2)).timeoutMs(50, 100), 50);
  });

  it("leaves room where answers are slow or uneven, up to the cap", () => {
    const slow = after(...times(50, 60)).timeoutMs(50, 100);
    assert.ok(slow >= 60 && slow < 70, String(slow));
    const uneven = after(...Array.from({ length: 40 }, (_, i) => (i % 2 === 0 ? 1 : 15))).timeoutMs(50, 1000);
    assert.ok(uneven > 50, String(uneven));
    assert.equal(after(...times(20, 300)).timeoutMs(50, 100), 100);
  });

  it("never exceeds a cap that is under the floor", () => {
    assert.equal(after(...times(20, 0.2)).timeoutMs(50, 20), 20);
  });
});
