// `hakobu experiment`: the main job of `npm start`. The paper's experiment on this machine, shown as it runs; then the cluster
// stays up to be played with.
import { spawn } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { Command } from "commander";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import { readSpecFile } from "../config/spec-file.js";
import { specRecord } from "../config/spec.js";
import { experiment } from "../experiment/experiment.js";
import { chart, type Run, summarise, table } from "../experiment/picture.js";
import type { LocalCluster } from "../local/cluster.js";
import { type UpOptions, upOptions, welcome, withCluster } from "./up.js";
import { packageRoot } from "../package-root.js";
import { progress } from "./output.js";

const examples = join(packageRoot(), "examples");

interface ExperimentFlags extends UpOptions {
  readonly once?: boolean;
  readonly json?: boolean;
  readonly requests: string;
}

export function experimentCommand(program: Command): void {
  upOptions(
    program
      .command("experiment")
      .description("run the paper's experiment here: a steady run of requests, and half-way the owner is cut off"),
  )
    .option("--once", "end after the table instead of staying up")
    .option("--requests <n>", "requests of the run with the image; the cold run has half", "600")
    .option("--json", "print the results as JSON on standard output")
    .action(async (flags: ExperimentFlags) => {
      const requests = Number(flags.requests);
      if (!Number.isInteger(requests) || requests < 20)
        throw new HakobuError("CONFIG_INVALID", `--requests ${flags.requests}: give a whole number from 20 up`);
      const line = progress();
      line.say("starting the cluster: placement store, two hosts and the proxy");
      await withCluster({ ...flags, hosts: "2" }, async (cluster, interrupted) => {
        const runs = await bothRuns(cluster, requests, (text) => line.say(text));
        line.done();
        show(cluster, runs, flags.json === true);
        if (flags.once === true) return;
        welcome(cluster, runs[0]?.hostname);
        await interrupted;
      });
      line.done();
    });
}

/** Charts, table and verdict; the exit status tells whether a request failed. */
function show(cluster: LocalCluster, runs: readonly Run[], json: boolean): void {
  const summaries = runs.map(summarise);
  if (json) console.log(JSON.stringify({ mode: cluster.mode, runs: summaries }, null, 2));
  else {
    for (const run of runs) console.log(`\n${chart(run)}`);
    console.log(`\n${table(summaries)}`);
    const [image, cold] = summaries;
    if (image !== undefined && cold !== undefined)
      console.log(
        `The request that found its host dead: ${image.slowMs.toFixed(0)} ms from the image, ` +
          `${cold.slowMs.toFixed(0)} ms by a cold start: ${(cold.slowMs / image.slowMs).toFixed(1)} times as long.`,
      );
  }
  for (const run of summaries) {
    if (run.failed === 0 && run.how !== "not moved") continue;
    console.error(`hakobu: ${run.title}: ${run.failed} requests failed, ${run.how}. Logs: ${cluster.logs}`);
    process.exitCode = 1;
  }
}

/** With an engine that restores: from the image, then cold. Else the cold run alone. */
async function bothRuns(cluster: LocalCluster, requests: number, onProgress: (text: string) => void): Promise<Run[]> {
  const restorable = cluster.engines.includes("runc");
  const record = restorable ? await django(cluster, onProgress) : await counter();
  const common = { cluster, path: "/", onProgress };
  const cold: SpecRecord = variant(record, "cold", { onReady: false });
  if (!restorable) return [await experiment({ ...common, title: "cold start", record, requests })];
  return [
    await experiment({ ...common, title: "CRIU image", record, requests }),
    await experiment({ ...common, title: "cold start", record: cold, requests: Math.ceil(requests / 2) }),
  ];
}

async function django(cluster: LocalCluster, onProgress: (text: string) => void): Promise<SpecRecord> {
  const directory = join(examples, "django");
  const data = join(cluster.shared, "guestbook");
  onProgress("preparing the application's database");
  await mkdir(data, { recursive: true });
  await execute("bash", [join(directory, "prepare.sh"), data]);
  return first(join(directory, "site.yaml"), { HAKOBU_EXAMPLE_DIR: directory, HAKOBU_DATA_DIR: data });
}

function counter(): Promise<SpecRecord> {
  const directory = join(examples, "node");
  return first(join(directory, "app.yaml"), { HAKOBU_EXAMPLE_DIR: directory });
}

async function first(file: string, env: NodeJS.ProcessEnv): Promise<SpecRecord> {
  const [record] = await readSpecFile(file, { ...process.env, ...env });
  return record as SpecRecord;
}

function variant(
  { spec }: SpecRecord,
  suffix: string,
  checkpoint: Partial<SpecRecord["spec"]["checkpoint"]>,
): SpecRecord {
  const name = `${spec.name}-${suffix}`;
  const changed = {
    ...spec,
    name,
    hostnames: [`${name}.localhost`],
    checkpoint: { ...spec.checkpoint, ...checkpoint },
  };
  return specRecord(changed);
}

function execute(program: string, args: readonly string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"], timeout: 120_000 });
    let error = "";
    child.stderr.on("data", (chunk: Buffer) => {
      error = (error + chunk.toString()).slice(-2000);
    });
    child.once("error", reject);
    child.once("exit", (code) =>
      code === 0 ? resolve() : reject(new HakobuError("START_FAILED", `${args.join(" ")} failed: ${error.trim()}`)),
    );
  });
}
