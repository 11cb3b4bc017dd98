// A minute of faults on a whole cluster under load, judged by the history checker. `npm run chaos` makes longer ones.
// The plan of faults is always the same here, so that a change is judged by the same faults as the one before; `npm run chaos` draws
// a new one each time. HAKOBU_CHAOS_SEED asks for another.
import assert from "node:assert/strict";
import { cannotRestore } from "../lab/cluster.js";
import { report, type RunResult, runChaos } from "./run.js";

const durationMs = 60_000;

describe("a cluster under random faults", function () {
  this.timeout(300_000);
  let result: RunResult;
  const progress: string[] = [];
  const seed = Number(process.env.HAKOBU_CHAOS_SEED ?? 736_904);

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    result = await runChaos({ name: "storm", seed, durationMs, progress: (line) => progress.push(line) });
  });

  it("keeps one owner, loses no request that could be answered, and cleans up", () => {
    const told = `HAKOBU_CHAOS_SEED=${seed}\n${progress.join("\n")}\n${report(result)}`;
    assert.equal(result.violations.length, 0, told);
  });

  it("was a real test: requests of all policies, many faults", () => {
    const { summary, faults } = result;
    const applied = [...faults.values()].reduce((sum, count) => sum + count, 0);
    assert.ok(summary.requests > 500, `${summary.requests} requests`);
    assert.ok(applied >= 15 && faults.size >= 8, `${applied} faults of ${faults.size} kinds`);
  });
});
