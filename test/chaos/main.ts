// `npm run chaos -- --minutes 10 --seed S`: a long run, with its progress. Exit status 1 when a violation was found, or the run left
// anything on the machine.
import { parseArgs } from "node:util";
import { leftoversSince, markChildren, snapshotMachine } from "../lab/leftovers.js";
import { cannotRestore } from "../lab/cluster.js";
import { report, runChaos } from "./run.js";

const { values } = parseArgs({ options: { minutes: { type: "string", default: "10" }, seed: { type: "string" } } });
const minutes = Number(values.minutes);
const seed = values.seed === undefined ? Date.now() % 1_000_000 : Number(values.seed);
if (!(minutes > 0) || !Number.isInteger(seed)) {
  console.error("usage: npm run chaos -- [--minutes 10] [--seed 1]");
  process.exit(2);
}
const why = await cannotRestore();
if (why !== undefined) {
  console.error(`no chaos here: ${why}`);
  process.exit(2);
}
markChildren();
const machine = snapshotMachine();
const interrupted = new AbortController();
process.once("SIGINT", () => interrupted.abort(new Error("interrupted")));
process.once("SIGTERM", () => interrupted.abort(new Error("interrupted")));
const result = await runChaos({
  name: "chaos",
  seed,
  durationMs: minutes * 60_000,
  progress: (line) => console.log(line),
  signal: interrupted.signal,
});
console.log(`\nseed ${seed}, ${minutes} minutes\n${report(result)}`);
const { left, others } = await leftoversSince(machine);
if (others.length > 0)
  console.log(`only processes are judged as leftovers, since others are at work: ${others.join("; ")}`);
if (left.length > 0) console.log(`left on the machine:\n${left.join("\n")}`);
process.exitCode = result.violations.length + left.length === 0 ? 0 : 1;
