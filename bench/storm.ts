// npm run bench:storm: a host dies with 50 containers, and all of them are asked for at the same moment. How long until the last one
// has answered, for several numbers of containers that may come up at once (`host.startsAtOnce`).
//   --quick       20 containers, the default number only, one pass; nothing is written
//   --out DIR     where the results go (default bench/results)
// Exit status 1: a request failed, or a container was not restored from its image.
import { mkdir, rm, writeFile } from "node:fs/promises";
import { availableParallelism, cpus, release, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import Table from "cli-table3";
import { HakobuError, reasonOf } from "../actors/hakobu-error.js";
import type { MoveReport } from "../actors/move-report.js";
import { fail, progress } from "../runtime/cli/output.js";
import { specRecord } from "../runtime/config/spec.js";
import { canRestore, examine, missingToRestore } from "../runtime/doctor/doctor.js";
import { failed, get, median } from "../runtime/experiment/load.js";
import { createNamespacesCluster, type NamespacesCluster } from "../runtime/local/namespaces.js";
import { programLog } from "../runtime/log.js";
import { packageRoot } from "../runtime/package-root.js";
import { applications } from "./relocation/applications.js";
import { freePorts } from "./relocation/free-ports.js";
import { quiet } from "./relocation/quiet.js";

const home = "/var/lib/hakobu/bench/storm";
const defaultWidth = Math.max(2, availableParallelism());
const roundsPerCluster = 2;
const requestLimitMs = 60_000;
const settleLimitMs = 60_000;
/** Containers that are started for the first time at once. */
const warmUpWidth = 4;

interface Round {
  readonly atOnce: number;
  /** Until the first, the median and the last answer, from when all were asked for. */
  readonly firstMs: number;
  readonly medianMs: number;
  readonly lastMs: number;
  readonly failed: number;
  readonly restored: number;
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { quick: { type: "boolean" }, out: { type: "string" } } });
  const quick = values.quick === true;
  const out = values.out ?? join(packageRoot(), "bench/results");
  const containers = quick ? 20 : 50;
  const widths = [...new Set([1, defaultWidth, 2 * defaultWidth, 4 * defaultWidth, 50])].sort((a, b) => a - b);
  // There and back, so that what changes over time meets all of them.
  const order = quick ? [defaultWidth] : [...widths, ...widths.toReversed()];
  const checks = await examine();
  if (!canRestore(checks))
    throw new HakobuError("UNAVAILABLE", `needs ${missingToRestore(checks).join(", ")}; details: hakobu doctor`);
  const interrupted = new AbortController();
  const interrupt = (): void => interrupted.abort(new HakobuError("ABORTED", "interrupted"));
  process.once("SIGINT", interrupt);
  process.once("SIGTERM", interrupt);
  const line = progress();
  const rounds: Round[] = [];
  try {
    for (const [index, atOnce] of order.entries()) {
      const say = (text: string): void => line.say(`${index + 1} of ${order.length}, ${atOnce} at once: ${text}`);
      rounds.push(...(await withCluster(containers, atOnce, interrupted.signal, say)));
    }
  } finally {
    line.done();
  }
  const results = summary(rounds, containers);
  console.log(table(results));
  if (rounds.some((round) => round.failed > 0 || round.restored < containers)) process.exitCode = 1;
  if (quick) return;
  await mkdir(out, { recursive: true });
  await writeFile(join(out, "storm.json"), `${JSON.stringify(results, null, 2)}\n`);
}

async function withCluster(
  count: number,
  atOnce: number,
  signal: AbortSignal,
  say: (text: string) => void,
): Promise<Round[]> {
  // What else a run that was killed has left, its agents find and remove.
  await rm(join(home, "shared"), { recursive: true, force: true });
  await mkdir(home, { recursive: true, mode: 0o700 });
  const [port, adminPort] = await freePorts(2);
  const cluster = await createNamespacesCluster({
    name: "burst",
    hosts: ["a", "b"],
    directory: home,
    proxy: { address: "127.0.0.1", port: port as number },
    admin: { address: "127.0.0.1", port: adminPort as number },
    log: programLog("silent"),
    hostSettings: { startsAtOnce: atOnce, capacity: count },
    proxySettings: { movesPerMinute: 1000 },
  });
  try {
    const names = await prepare(cluster, count, signal, say);
    const rounds: Round[] = [];
    for (let round = 1; round <= roundsPerCluster; round++) {
      const from = round % 2 === 1 ? "a" : "b";
      say(`round ${round}: waiting for a calm moment`);
      await quiet(signal);
      rounds.push(await storm(cluster, names, from, atOnce));
      say(`round ${round}: ${Math.round(rounds.at(-1)?.lastMs ?? 0)} ms until the last answer; healing`);
      await cluster.heal(from);
      await until(`host ${from} has stopped its old copies`, signal, async () => {
        const status = await cluster.status(from);
        return status !== undefined && status.containers.length === 0;
      });
    }
    return rounds;
  } finally {
    await cluster.close();
    await rm(home, { recursive: true, force: true });
  }
}

/** All on host a, each with an image. @returns their names */
async function prepare(
  cluster: NamespacesCluster,
  count: number,
  signal: AbortSignal,
  say: (text: string) => void,
): Promise<string[]> {
  const node = applications.find(({ name }) => name === "Node");
  if (node === undefined) throw new HakobuError("CONFIG_INVALID", "the benchmark has no application called Node");
  const spec = await node.prepare(join(home, "data"), undefined);
  const checkpoint = { ...spec.checkpoint, onReady: true, at: "warm" } as const;
  const names = Array.from({ length: count }, (_, index) => `storm-${index + 1}`);
  await cluster.apply(
    names.map((name) =>
      specRecord({ ...spec, name, hostnames: [`${name}.localhost`], idleTimeoutMs: 0, takeover: "fast", checkpoint }),
    ),
  );
  const left = [...names];
  const next = async (): Promise<void> => {
    for (let name = left.pop(); name !== undefined; name = left.pop()) {
      signal.throwIfAborted();
      say(`starting containers, ${left.length} left`);
      const sample = await ask(cluster, name);
      if (failed(sample))
        throw new HakobuError("START_FAILED", `${name}: ${sample.error ?? `status ${sample.status}`}`);
      if ((await cluster.owner(name)) !== "a") await cluster.relocate(name, "a");
    }
  };
  await Promise.all(Array.from({ length: warmUpWidth }, next));
  await until(
    "every container runs on host a",
    signal,
    async () => (await cluster.status("a"))?.containers.length === count,
  );
  return names;
}

async function storm(
  cluster: NamespacesCluster,
  names: readonly string[],
  from: string,
  atOnce: number,
): Promise<Round> {
  const since = Date.now();
  await cluster.cut(from);
  const samples = await Promise.all(names.map((name) => ask(cluster, name)));
  const moves = (await cluster.moves()).filter((move: MoveReport) => Date.parse(move.at) >= since);
  const times = samples.map(({ ms }) => ms);
  return {
    atOnce,
    firstMs: Math.min(...times),
    medianMs: median(times),
    lastMs: Math.max(...times),
    failed: samples.filter(failed).length,
    restored: moves.filter(({ how }) => how === "restored").length,
  };
}

function ask(cluster: NamespacesCluster, name: string) {
  return get({ ...cluster.proxy, hostname: `${name}.localhost`, path: "/", timeoutMs: requestLimitMs });
}

async function until(what: string, signal: AbortSignal, test: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + settleLimitMs;
  while (!(await test())) {
    signal.throwIfAborted();
    if (performance.now() > end) throw new HakobuError("DEADLINE_EXCEEDED", `${what}: not within ${settleLimitMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function summary(rounds: readonly Round[], containers: number) {
  const [cpu] = cpus();
  const machine = `${cpus().length} x ${cpu?.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}`;
  const widths = [...new Set(rounds.map(({ atOnce }) => atOnce))].map((atOnce) => {
    const of = rounds.filter((round) => round.atOnce === atOnce);
    const middle = (pick: (round: Round) => number): number => Math.round(median(of.map(pick)));
    return {
      atOnce,
      rounds: of.length,
      firstMs: middle(({ firstMs }) => firstMs),
      medianMs: middle(({ medianMs }) => medianMs),
      lastMs: middle(({ lastMs }) => lastMs),
      failed: of.reduce((sum, round) => sum + round.failed, 0),
      restored: of.reduce((sum, round) => sum + round.restored, 0),
    };
  });
  return { machine, date: new Date().toISOString(), containers, defaultAtOnce: defaultWidth, widths };
}

function table({ containers, defaultAtOnce, widths }: ReturnType<typeof summary>): string {
  const head = ["at once", "first", "median", "last answer, ms", "failed", "restored"];
  const rows = new Table({ head, style: { head: [], border: [] } });
  for (const each of widths) {
    const all = each.rounds * containers;
    const width = `${each.atOnce}${each.atOnce === defaultAtOnce ? " (default)" : ""}`;
    rows.push([
      width,
      each.firstMs,
      each.medianMs,
      each.lastMs,
      `${each.failed} of ${all}`,
      `${each.restored} of ${all}`,
    ]);
  }
  return rows.toString();
}

try {
  await main();
} catch (error) {
  console.error(`bench: ${reasonOf(error)}. Logs: ${home}/logs`);
  process.exitCode = fail(error);
}
