// The experiment for one application: the paper's run, once for each way to start; then rounds of one relocation, one wake from
// stopped and one bare restore, the ways taking turns, so that what else the machine does meets all of them.
import { setTimeout as wait } from "node:timers/promises";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import type { MoveReport } from "../../actors/move-report.js";
import { specRecord } from "../../runtime/config/spec.js";
import { failed, get, load, median, type Sample } from "../../runtime/experiment/load.js";
import type { NamespacesCluster } from "../../runtime/local/namespaces.js";
import { variant, type Way, ways } from "./applications.js";
import type { Floor } from "./floor.js";
import { quiet } from "./quiet.js";

/** One relocation: the slow request as the client saw it, and what the proxy reports of the move. */
export interface Relocation {
  readonly ms: number;
  readonly move: MoveReport;
}

export interface PaperRun {
  readonly samples: readonly Sample[];
  /** When the host was cut off, in milliseconds since the run began. */
  readonly cutAtMs: number;
  /** Index of the slow request. */
  readonly slow: number;
}

export interface Measured {
  readonly name: string;
  readonly requests: number;
  readonly failed: number;
  /** What did not go as it should, in words; the numbers are then not to be trusted. */
  readonly surprises: readonly string[];
  readonly runs: Readonly<Record<Way, PaperRun>>;
  readonly steadyMs: number;
  readonly relocations: Readonly<Record<Way, readonly Relocation[]>>;
  readonly wakes: Readonly<Record<Way, readonly number[]>>;
  readonly floors: readonly number[];
  /** Measurements of the rounds, and how many of them began while the machine was busy with something else. */
  readonly calm: { readonly of: number; readonly busy: number };
}

export interface ExperimentOptions {
  readonly cluster: NamespacesCluster;
  readonly floor: Floor;
  readonly name: string;
  readonly spec: ContainerSpec;
  readonly requests: number;
  readonly rounds: number;
  readonly signal: AbortSignal;
  readonly say: (text: string) => void;
}

const firstLimitMs = 120_000;
const requestLimitMs = 60_000;
const settleLimitMs = 30_000;
/** In a round: before the cut, so that everything is as in a steady run, and from it on. */
const requestsBefore = 5;
const requestsAfter = 3;
const idleMs = 300;
/** The proxy moves a container on suspicion six times a minute at most; a seventh move would be refused. */
const movesPerMinute = 5;

export async function experiment(options: ExperimentOptions): Promise<Measured> {
  const { cluster, floor, name, rounds, signal, say } = options;
  const surprises: string[] = [];
  const records = each((way) => variant(options.spec, way));
  const moved = each((): number[] => []);
  let requests = 0;
  let failures = 0;

  const target = (way: Way, timeoutMs = requestLimitMs) => ({
    ...cluster.proxy,
    hostname: records[way].spec.hostnames[0] as string,
    path: "/",
    timeoutMs,
  });
  const count = (sample: Sample, what: string): Sample => {
    requests++;
    if (!failed(sample)) return sample;
    failures++;
    surprises.push(`${what}: ${sample.error ?? `status ${sample.status}`}`);
    return sample;
  };
  const calm = { of: 0, busy: 0 };
  const calmly = async (): Promise<void> => {
    calm.of++;
    if (!(await quiet(signal))) calm.busy++;
  };
  const expected = (way: Way): string => (way === "cold" ? "cold" : "restored");

  /** The report of the relocation after the cut. */
  const moveOf = async (way: Way, since: number): Promise<MoveReport> => {
    const { name: container } = records[way].spec;
    const move = (await cluster.moves()).findLast(
      (report) => report.container === container && report.from !== undefined && Date.parse(report.at) >= since,
    );
    if (move === undefined) throw new HakobuError("UNAVAILABLE", `${container} was not relocated after the cut`);
    moved[way].push(performance.now());
    if (move.how !== expected(way))
      surprises.push(`${container} came up ${move.how ?? "otherwise"}: ${move.note ?? "no reason given"}`);
    return move;
  };
  /** Waits until another move of this container is not taken for flapping. */
  const pace = async (way: Way): Promise<void> => {
    const times = moved[way];
    const due = (times.at(-movesPerMinute) ?? Number.NEGATIVE_INFINITY) + 61_000 - performance.now();
    if (due <= 0) return;
    say(`${name}: waiting ${Math.ceil(due / 1000)} s, so as not to move a container too often`);
    await wait(due, undefined, { signal });
  };
  /** Brings the host back, and waits until it has stopped the copy that it lost. */
  const heal = async (way: Way, host: string): Promise<void> => {
    await cluster.heal(host);
    const { name: container } = records[way].spec;
    await until(`host ${host} has stopped its old copy of ${container}`, signal, async () => {
      const status = await cluster.status(host);
      return status !== undefined && status.containers.every((other) => other.name !== container);
    });
  };

  const paperRun = async (way: Way): Promise<{ run: PaperRun; relocation: Relocation }> => {
    const cutAfter = Math.floor(options.requests / 2);
    const begunMs = performance.now();
    let cutAtMs = 0;
    let since = 0;
    let host = "";
    const samples = await load({
      ...target(way),
      requests: options.requests,
      onSample: async (sample, index) => {
        signal.throwIfAborted();
        count(sample, `request ${index + 1} of the run ${name} ${way}`);
        const state = host === "" ? "" : `, host ${host} cut off`;
        say(
          `${name} ${way}: ${index + 1}/${options.requests} requests, ${sample.ms.toFixed(0)} ms, ${failures} failed${state}`,
        );
        if (index + 1 !== cutAfter) return;
        host = await ownerOf(cluster, records[way]);
        since = Date.now();
        await cluster.cut(host);
        cutAtMs = performance.now() - begunMs;
      },
    });
    const after = samples.slice(cutAfter).map(({ ms }) => ms);
    const slow = cutAfter + after.indexOf(Math.max(...after));
    const move = await moveOf(way, since);
    await heal(way, host);
    return { run: { samples, cutAtMs, slow }, relocation: { ms: (samples[slow] as Sample).ms, move } };
  };

  const relocate = async (way: Way): Promise<Relocation> => {
    await pace(way);
    await calmly();
    for (let index = 0; index < requestsBefore; index++) count(await get(target(way)), `${name} ${way}, before a cut`);
    const host = await ownerOf(cluster, records[way]);
    const since = Date.now();
    await cluster.cut(host);
    const samples: Sample[] = [];
    for (let index = 0; index < requestsAfter; index++)
      samples.push(count(await get(target(way)), `${name} ${way}, after a cut`));
    const move = await moveOf(way, since);
    await heal(way, host);
    return { ms: Math.max(...samples.map(({ ms }) => ms)), move };
  };

  const wake = async (way: Way): Promise<number> => {
    const { spec } = records[way];
    const host = await ownerOf(cluster, records[way]);
    const state = async () => (await cluster.status(host))?.containers.find((other) => other.name === spec.name);
    await cluster.apply([specRecord({ ...spec, idleTimeoutMs: idleMs })]);
    count(await get(target(way)), `${name} ${way}, before an idle stop`);
    await until(`${spec.name} stops when idle`, signal, async () => (await state())?.state === "stopped");
    await calmly();
    const woken = count(await get(target(way)), `${name} ${way}, woken`);
    const how = (await state())?.how;
    if (how !== expected(way)) surprises.push(`${spec.name} was woken ${how ?? "otherwise"}`);
    await cluster.apply([records[way]]);
    return woken.ms;
  };

  for (const way of ways) {
    say(`${name} ${way}: first start`);
    await cluster.apply([records[way]]);
    const first = count(await get(target(way, firstLimitMs)), `${name} ${way}, first request`);
    if (failed(first))
      throw new HakobuError(
        "START_FAILED",
        `${name} ${way} does not answer: ${first.error ?? `status ${first.status}`}`,
      );
  }
  const image = (relocation: Relocation): string => {
    if (relocation.move.image === undefined)
      throw new HakobuError("RESTORE_FAILED", `${name} has no image: ${surprises.at(-1) ?? "no reason given"}`);
    return relocation.move.image;
  };

  const runs: Partial<Record<Way, PaperRun>> = {};
  const relocations = each((): Relocation[] => []);
  for (const way of ways) {
    const { run, relocation } = await paperRun(way);
    runs[way] = run;
    relocations[way].push(relocation);
  }
  const warmed = image(relocations.warmed[0] as Relocation);
  const wakes = each((): number[] => []);
  const floors: number[] = [];
  say(`${name}: bare restore, once without the clock`);
  await floor.restore(records.warmed, warmed);
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < ways.length; turn++) {
      const way = ways[(round + turn) % ways.length] as Way;
      say(`${name} ${way}: round ${round + 1}/${rounds}, relocation`);
      relocations[way].push(await relocate(way));
      say(`${name} ${way}: round ${round + 1}/${rounds}, wake from stopped`);
      wakes[way].push(await wake(way));
    }
    say(`${name}: round ${round + 1}/${rounds}, bare restore`);
    await calmly();
    floors.push(await floor.restore(records.warmed, warmed));
  }
  for (const way of ways) await cluster.delete(records[way].spec.name);
  return {
    name,
    requests,
    failed: failures,
    surprises,
    runs: runs as Record<Way, PaperRun>,
    steadyMs: median(
      Object.values(runs).flatMap(({ samples, slow }) =>
        samples.filter((_, index) => index !== slow).map(({ ms }) => ms),
      ),
    ),
    relocations,
    wakes,
    floors,
    calm,
  };
}

function each<T>(make: (way: Way) => T): Record<Way, T> {
  return { cold: make("cold"), golden: make("golden"), warmed: make("warmed") };
}

async function ownerOf(cluster: NamespacesCluster, { spec }: SpecRecord): Promise<string> {
  const owner = await cluster.owner(spec.name);
  if (owner === undefined) throw new HakobuError("UNAVAILABLE", `${spec.name} has no host`);
  return owner;
}

async function until(what: string, signal: AbortSignal, test: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + settleLimitMs;
  while (!(await test())) {
    if (performance.now() > end) throw new HakobuError("DEADLINE_EXCEEDED", `${what}: not within ${settleLimitMs} ms`);
    await wait(20, undefined, { signal });
  }
}
