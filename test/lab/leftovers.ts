// What tests could leave on the machine: named network namespaces, links, mounts, control groups and processes.
//
//   L1  A process was left by this run when it has inherited the run's mark in its environment. Reading the machine needs no root;
//       as another user one sees one's own processes.
//   L2  Everything else carries no mark, and neither do processes in Hakobu's control groups: while a test run or a Hakobu that is not
//       ours is going on, they are not judged.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const CGROUPS = "/sys/fs/cgroup";
const MARK = "HAKOBU_TEST_RUN";

export interface Machine {
  readonly namespaces: readonly string[];
  readonly links: readonly string[];
  /** Mount points with their file system's type. */
  readonly mounts: readonly string[];
  /** Control groups with `hakobu` in their path. */
  readonly cgroups: readonly string[];
  /** Those with the mark: pid and command line. */
  readonly processes: readonly string[];
  /** Others in control groups of Hakobu. */
  readonly contained: readonly string[];
}

/** The kernel takes namespaces and links apart, and processes end, a moment after they were told to. */
const graceMs = 5_000;
const pollMs = 100;

/** Gives all processes that this one starts from now on the mark of this run. */
export function markChildren(): void {
  process.env[MARK] = String(process.pid);
}

export function snapshotMachine(): Machine {
  return {
    namespaces: entriesOf("/run/netns"),
    links: entriesOf("/sys/class/net"),
    mounts: mounts(),
    cgroups: cgroupsBelow(CGROUPS),
    processes: [...processes()].filter(isMarked).map(describe),
    contained: [...processes()].filter((it) => !isMarked(it) && isContained(it)).map(describe),
  };
}

export interface Leftovers {
  /** One line each. */
  readonly left: readonly string[];
  /** L2: whose presence leaves only marked processes to be judged. */
  readonly others: readonly string[];
}

/** What this run has left on the machine since `before`, after a moment for what is on its way out. */
export async function leftoversSince(before: Machine): Promise<Leftovers> {
  const end = performance.now() + graceMs;
  for (;;) {
    const left = diff(before, snapshotMachine());
    if (left.length === 0) return { left, others: [] };
    if (performance.now() > end) {
      const others = othersAtWork();
      return { left: others.length === 0 ? left : left.filter((line) => line.startsWith("processes: ")), others };
    }
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}

/** What is there after and was not before, one line each. */
export function diff(before: Machine, after: Machine): string[] {
  const kinds = ["namespaces", "links", "mounts", "cgroups", "processes", "contained"] as const;
  return kinds.flatMap((kind) => {
    const known = [...before[kind]];
    return after[kind].flatMap((entry) => {
      const index = known.indexOf(entry);
      if (index < 0) return [`${kind}: ${entry}`];
      // Two mounts on one point are two entries.
      known.splice(index, 1);
      return [];
    });
  });
}

/** Command lines of test runs and of Hakobu's own processes that are not of this run (L2). */
function othersAtWork(): string[] {
  const family = new Set(ancestors());
  const others = [...processes()].filter((it) => !family.has(it.pid) && !isMarked(it));
  return others.filter((it) => /\/mocha(\.js)?\0|\/dist\/runtime\/cli\/main\.js\0/.test(it.command)).map(describe);
}

interface Process {
  readonly pid: number;
  /** Arguments, each ended by NUL. */
  readonly command: string;
}

function* processes(): Generator<Process> {
  for (const entry of readdirSync("/proc")) {
    // A zombie and a kernel thread have no command line.
    const command = /^\d+$/.test(entry) ? read(`/proc/${entry}/cmdline`) : "";
    if (command !== "" && Number(entry) !== process.pid) yield { pid: Number(entry), command };
  }
}

function isMarked({ pid }: Process): boolean {
  const environment = read(`/proc/${pid}/environ`);
  return environment.split("\0").includes(`${MARK}=${process.pid}`);
}

function isContained({ pid }: Process): boolean {
  return read(`/proc/${pid}/cgroup`).includes("hakobu");
}

function describe({ pid, command }: Process): string {
  return `${pid} ${command.replaceAll("\0", " ").trim()}`;
}

function ancestors(): number[] {
  const line: number[] = [];
  for (let pid = process.pid; pid > 0; ) {
    line.push(pid);
    pid = Number(/^PPid:\s*(\d+)/m.exec(read(`/proc/${pid}/status`))?.[1] ?? 0);
  }
  return line;
}

function mounts(): string[] {
  const lines = read("/proc/self/mountinfo").trimEnd().split("\n");
  const found = lines.map((line) => {
    const [place = "", origin = ""] = line.split(" - ");
    return `${place.split(" ")[4]} (${origin.split(" ")[0]})`;
  });
  // `ip netns` mounts this directory on itself when it is first used, for good.
  return found.filter((mount) => !mount.startsWith("/run/netns ("));
}

function cgroupsBelow(directory: string, depth = 6): string[] {
  if (depth === 0 || !existsSync(directory)) return [];
  return directoriesIn(directory).flatMap((name) => {
    const path = join(directory, name);
    return [...(path.includes("hakobu") ? [path] : []), ...cgroupsBelow(path, depth - 1)];
  });
}

function directoriesIn(directory: string): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name);
  } catch {
    return [];
  }
}

/** Empty where it is not there. */
export function entriesOf(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

/** Empty for what has gone meanwhile or is not ours to read. */
export function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
