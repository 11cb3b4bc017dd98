// How often a live host is taken for dead, by probes of both kinds, and what follows from it under each takeover policy. Run with
// `npm run bench:probes` (two minutes, as root) or with `-- --quick` (20 s, writes no results). bench/README.md says what is and is not measured.
import { type ChildProcess, spawn } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { cpus, loadavg, release, totalmem } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import Table from "cli-table3";
import { reasonOf } from "../actors/hakobu-error.js";
import type { ProbeKind, Prober, ProbeResult, Target } from "../actors/ports/prober.js";
import { createNetwork, type LocalHost, type LocalNetwork } from "../runtime/local/network.js";
import { packageRoot } from "../runtime/package-root.js";
import { IcmpProber } from "../runtime/probes/icmp.js";
import { TcpProber } from "../runtime/probes/tcp.js";
import { agentPort, type FromPeer, type ToPeer } from "./probe-peer.js";
import { strain, type Strain } from "./strain.js";

const quick = process.argv.includes("--quick");
/** The least that a proxy waits by default (`proxy.probe.floor`): more would give fewer false alarms. */
const timeoutMs = 50;
/** A candidate has no history of the host: it waits the whole time-out of the container. */
const candidateTimeoutMs = 100;
const atOnce = 64;
/** Kinds take turns of this length, so that whatever else the machine does meets both. */
const sliceMs = 700;
const kinds: readonly ProbeKind[] = ["tcp", "icmp"];

interface Scenario {
  readonly name: string;
  readonly strain: Strain;
  /** Of the packets to the target and of those from it. */
  readonly lossPercent: number;
  /** Processes that take a whole CPU each. */
  readonly hogs: number;
  /** Turns of each kind; more where there are few probes in one. */
  readonly slices: number;
}

const scenarios: readonly Scenario[] = [
  { name: "idle", strain: "none", lossPercent: 0, hogs: 0, slices: 10 },
  { name: "event loops 70 % busy, CPUs taken", strain: "load", lossPercent: 0, hogs: cpus().length, slices: 16 },
  { name: "event loops stall 150 ms of 400", strain: "stalls", lossPercent: 0, hogs: 0, slices: 12 },
  { name: "0.1 % of packets lost each way", strain: "none", lossPercent: 0.1, hogs: 0, slices: 12 },
  { name: "1 % of packets lost each way", strain: "none", lossPercent: 1, hogs: 0, slices: 12 },
];

/** Of a live host. `fast` moves a container at each miss, `confirmed` where the candidate's own probe missed too. */
interface Alarms {
  probes: number;
  missed: number;
  bothMissed: number;
}

interface RoundTrip {
  readonly probes: number;
  readonly p50Us: number;
  readonly p99Us: number;
  /** User and system time of the probing process. */
  readonly cpuUs: number;
}

const children: ChildProcess[] = [];

function start(command: readonly string[], ipc: boolean): ChildProcess {
  const [file = "", ...args] = command;
  const child = spawn(file, args, { stdio: ["ignore", "inherit", "inherit", ...(ipc ? ["ipc" as const] : [])] });
  children.push(child);
  return child;
}

async function end(these: readonly ChildProcess[]): Promise<void> {
  await Promise.all(
    these.map(async (child) => {
      const ended = new Promise((resolve) => child.once("exit", resolve));
      if (child.exitCode === null && child.signalCode === null && child.kill("SIGKILL")) await ended;
    }),
  );
}

/** @throws when it is not ready within 10 s */
async function peer(host: LocalHost, role: "agent" | "candidate"): Promise<ChildProcess> {
  const file = fileURLToPath(new URL("probe-peer.js", import.meta.url));
  const child = start(host.wrap([process.execPath, file, role]), true);
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`the ${role} is not ready after 10 s`)), 10_000);
    child.once("error", reject).once("exit", () => reject(new Error(`the ${role} ended`)));
    child.once("message", () => {
      clearTimeout(timer);
      resolve();
    });
  });
  return child;
}

/** Asks the candidate, in its own process and network, whether it sees the target. */
class Candidate {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, (result: ProbeResult) => void>();
  #id = 0;

  constructor(child: ChildProcess) {
    this.#child = child;
    child.on("message", (message: FromPeer) => {
      if (!("id" in message)) return;
      this.#waiting.get(message.id)?.(message.result);
      this.#waiting.delete(message.id);
    });
  }

  probe(target: Target, kind: ProbeKind): Promise<ProbeResult> {
    const id = this.#id++;
    this.#send({ do: "probe", id, target, timeoutMs: candidateTimeoutMs, kind });
    return new Promise((resolve) => this.#waiting.set(id, resolve));
  }

  strain(how: Strain): void {
    this.#send({ do: "strain", how });
  }

  #send(message: ToPeer): void {
    this.#child.send(message);
  }
}

async function count(
  prober: Prober,
  kind: ProbeKind,
  target: Target,
  candidate: Candidate,
  into: Alarms,
): Promise<void> {
  const until = performance.now() + sliceMs;
  const one = async (): Promise<void> => {
    while (performance.now() < until) {
      const result = await prober.probe(target, timeoutMs);
      into.probes++;
      if (result.kind === "alive") continue;
      into.missed++;
      if ((await candidate.probe(target, kind)).kind !== "alive") into.bothMissed++;
    }
  };
  await Promise.all(Array.from({ length: atOnce }, one));
}

async function measureAlarms(
  scenario: Scenario,
  network: LocalNetwork,
  probers: Readonly<Record<ProbeKind, Prober>>,
  target: Target,
  candidate: Candidate,
): Promise<Record<ProbeKind, Alarms>> {
  const alarms = {
    tcp: { probes: 0, missed: 0, bothMissed: 0 },
    icmp: { probes: 0, missed: 0, bothMissed: 0 },
  };
  await network.loss("target", scenario.lossPercent);
  const hogs = Array.from({ length: scenario.hogs }, () => start([process.execPath, "-e", "for (;;);"], false));
  candidate.strain(scenario.strain);
  const relieve = strain(scenario.strain);
  try {
    for (let slice = 0; slice < (quick ? 2 : scenario.slices); slice++)
      for (const kind of kinds) await count(probers[kind], kind, target, candidate, alarms[kind]);
  } finally {
    relieve();
    candidate.strain("none");
    await end(hogs);
    await network.heal("target");
  }
  return alarms;
}

/** One probe after the other, by turns of each kind. */
async function measureRoundTrips(
  probers: Readonly<Record<ProbeKind, Prober>>,
  target: Target,
): Promise<Record<ProbeKind, RoundTrip>> {
  const perTurn = 500;
  const trips: Record<ProbeKind, number[]> = { tcp: [], icmp: [] };
  const cpu: Record<ProbeKind, number[]> = { tcp: [], icmp: [] };
  for (let turn = 0; turn < (quick ? 4 : 20); turn++)
    for (const kind of kinds) {
      const before = process.cpuUsage();
      for (let i = 0; i < perTurn; i++) {
        const result = await probers[kind].probe(target, timeoutMs);
        if (result.kind === "alive") trips[kind].push(result.rttMs * 1000);
      }
      const { user, system } = process.cpuUsage(before);
      // The first turn is compiled on the way.
      if (turn > 0) cpu[kind].push((user + system) / perTurn);
      else trips[kind] = [];
    }
  const of = (kind: ProbeKind): RoundTrip => ({
    probes: trips[kind].length,
    p50Us: rounded(quantile(trips[kind], 0.5)),
    p99Us: rounded(quantile(trips[kind], 0.99)),
    cpuUs: rounded(quantile(cpu[kind], 0.5)),
  });
  return { tcp: of("tcp"), icmp: of("icmp") };
}

function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}

const style = { head: [], border: [] };
const rounded = (value: number): number => Math.round(value * 10) / 10;
const perMillion = (events: number, probes: number): number => rounded((events / probes) * 1e6);

/** One-sided 95 % limit of a Poisson count's mean (Wilson and Hilferty's approximation); for none seen it is 3. */
function mostLikely(events: number): number {
  const next = events + 1;
  return next * (1 - 1 / (9 * next) + 1.645 / (3 * Math.sqrt(next))) ** 3;
}

function rates({ probes, missed, bothMissed }: Alarms): object {
  const rate = (events: number): object => ({
    takeovers: events,
    perMillion: perMillion(events, probes),
    atMostPerMillion: perMillion(mostLikely(events), probes),
  });
  return { probes, fast: rate(missed), confirmed: rate(bothMissed) };
}

function shown(events: number, probes: number): string {
  const most = Math.ceil(perMillion(mostLikely(events), probes));
  return events === 0 ? `0 seen, < ${most}` : `${Math.round(perMillion(events, probes))} (< ${most})`;
}

async function main(): Promise<void> {
  let icmp: IcmpProber;
  try {
    icmp = new IcmpProber();
  } catch (error) {
    console.error(reasonOf(error));
    process.exitCode = 1;
    return;
  }
  const probers = { tcp: new TcpProber(), icmp };
  let network: LocalNetwork | undefined;
  const interrupted = new AbortController();
  const whenInterrupted = new Promise<never>((_resolve, reject) => {
    interrupted.signal.addEventListener("abort", () => reject(new Error("interrupted: nothing is written")));
  });
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => interrupted.abort());
  try {
    network = await createNetwork({ name: `probes${process.pid}`, hosts: ["target", "candidate"] });
    await Promise.race([run(network, probers), whenInterrupted]);
  } finally {
    icmp.close();
    await end(children);
    await network?.close();
  }
}

async function run(network: LocalNetwork, probers: Readonly<Record<ProbeKind, Prober>>): Promise<void> {
  await peer(network.host("target"), "agent");
  const candidate = new Candidate(await peer(network.host("candidate"), "candidate"));
  const target = { address: network.host("target").address, port: agentPort };
  const began = performance.now();
  const [loadBefore] = loadavg();

  const trips = await measureRoundTrips(probers, target);
  const tripTable = new Table({ head: ["probe", "p50 us", "p99 us", "CPU us a probe"], style });
  for (const kind of kinds) tripTable.push([kind, trips[kind].p50Us, trips[kind].p99Us, trips[kind].cpuUs]);
  console.log(`Round trip, one probe at a time, idle\n${tripTable.toString()}\n`);

  const table = new Table({
    head: [`live host, limit ${timeoutMs} ms`, "probe", "probes", "fast: false takeovers/million", "confirmed"],
    style,
  });
  const measured = [];
  for (const scenario of scenarios) {
    const alarms = await measureAlarms(scenario, network, probers, target, candidate);
    measured.push({ ...scenario, tcp: rates(alarms.tcp), icmp: rates(alarms.icmp) });
    for (const kind of kinds) {
      const { probes, missed, bothMissed } = alarms[kind];
      table.push([scenario.name, kind, probes, shown(missed, probes), shown(bothMissed, probes)]);
    }
  }
  console.log(`${table.toString()}\n(< n): with 95 % confidence, at most n of a million`);

  if (quick) return;
  const results = {
    date: new Date().toISOString().slice(0, 10),
    machine: {
      cpus: cpus().length,
      model: cpus()[0]?.model ?? "unknown",
      memoryGiB: Math.round(totalmem() / 2 ** 30),
      kernel: release(),
      node: process.version,
    },
    loadAverageBefore: loadBefore,
    tookSeconds: Math.round((performance.now() - began) / 1000),
    timeoutMs,
    candidateTimeoutMs,
    atOnce,
    roundTrip: trips,
    falseAlarms: measured,
  };
  const directory = join(packageRoot(), "bench/results");
  await mkdir(directory, { recursive: true });
  const file = join(directory, "probes.json");
  await writeFile(file, `${JSON.stringify(results, undefined, 2)}\n`);
  console.log(`written: ${file}`);
}

await main();
