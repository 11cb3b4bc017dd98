// Around all tests: the machine is afterwards as it was before (leftovers.ts). Loaded by mocha (etc/mocharc.json).
import assert from "node:assert/strict";
import type { Context, RootHookObject } from "mocha";
import { leftoversSince, type Machine, markChildren, snapshotMachine } from "./leftovers.js";

let before: Machine;

export const mochaHooks: RootHookObject = {
  beforeAll() {
    markChildren();
    before = snapshotMachine();
  },

  async afterAll(this: Context) {
    this.timeout(20_000);
    const { left, others } = await leftoversSince(before);
    if (others.length > 0)
      process.stdout.write(
        `  only processes are judged as leftovers, since others are at work: ${others.join("; ")}\n`,
      );
    assert.deepEqual(left, [], "the tests left these on the machine");
  },
};
