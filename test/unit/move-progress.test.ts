// How long a drain is waited for.
import assert from "node:assert/strict";
import { untilDrained } from "../../runtime/cli/move-progress.js";
import type { HostStatus } from "../../runtime/dispatcher/control.js";

function statusOf(names: readonly string[], moving: boolean): HostStatus {
  const containers = names.map((name) => ({
    name,
    state: "running.serving",
    epoch: 1,
    inFlight: 0,
    pid: 1,
    address: undefined,
    how: undefined,
    reason: undefined,
    imageTrouble: undefined,
  }));
  return { id: "a", state: "running", leaseProven: true, draining: true, moving, capacity: 100, containers };
}

/** A clock whose time passes only while something waits on it. */
function virtualClock() {
  let nowMs = 0;
  return {
    now: () => nowMs,
    timestamp: () => "",
    setTimeout: (run: (...args: unknown[]) => void, ms: number): unknown => {
      nowMs += ms;
      return setImmediate(run);
    },
    clearTimeout: (timer: unknown): void => clearImmediate(timer as NodeJS.Immediate),
  };
}

describe("the wait for a drain", () => {
  const standstillMs = 90_000;

  it("lasts for as long as containers leave, however long that is, and counts them", async () => {
    const clock = virtualClock();
    const all = ["a", "b", "c", "d"];
    const said = new Set<string>();
    // One leaves each minute.
    const ask = async () => {
      const left = all.slice(Math.floor(clock.now() / 60_000));
      return statusOf(left, left.length > 0);
    };
    const deps = { clock, ask, standstillMs, say: (text: string) => void said.add(text) };
    assert.deepEqual(await untilDrained(deps, all.length, statusOf(all, true)), []);
    assert.deepEqual([...said], ["a: 0 of 4 moved", "a: 1 of 4 moved", "a: 2 of 4 moved", "a: 3 of 4 moved"]);
  });

  it("ends where nothing has left for long, and does not say that nobody took what is still moving", async () => {
    const ask = async () => statusOf(["stuck"], true);
    const deps = { clock: virtualClock(), ask, standstillMs, say() {} };
    await assert.rejects(untilDrained(deps, 1, statusOf(["stuck"], true)), {
      code: "DEADLINE_EXCEEDED",
      message: /still moving stuck.*hakobu drain a/,
    });
  });

  it("names what stays when the host has ended its drain", async () => {
    const ask = async () => statusOf(["unwanted"], false);
    const deps = { clock: virtualClock(), ask, standstillMs, say() {} };
    assert.deepEqual(await untilDrained(deps, 2, statusOf(["unwanted", "moved"], true)), ["unwanted"]);
  });
});
