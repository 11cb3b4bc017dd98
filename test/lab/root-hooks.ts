// Around all tests: the machine is afterwards as it was before (leftovers.ts). Loaded by mocha (etc/mocharc.json).
import assert from "node:assert/strict";
import type { Context, RootHookObject } from "mocha";
import { diff, type Machine, markChildren, othersAtWork, snapshotMachine } from "./leftovers.js";

/** The kernel takes namespaces and links apart, and processes end, a moment after they were told to. */
const GRACE_MS = 5_000;
const POLL_MS = 100;

let before: Machine;

export const mochaHooks: RootHookObject = {
  beforeAll() {
    markChildren();
    before = snapshotMachine();
  },

  async afterAll(this: Context) {
    this.timeout(2 * GRACE_MS);
    const end = performance.now() + GRACE_MS;
    let left = diff(before, snapshotMachine());
    while (left.length > 0 && performance.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      left = diff(before, snapshotMachine());
    }
    const others = left.length > 0 ? othersAtWork() : [];
    if (others.length > 0) {
      process.stdout.write(
        `  only processes are judged as leftovers, since others are at work: ${others.join("; ")}\n`,
      );
      left = left.filter((line) => line.startsWith("processes: "));
    }
    assert.deepEqual(left, [], "the tests left these on the machine");
  },
};
