// What tests could leave on the machine: named network namespaces, links, mounts, control groups and processes.
//
//   L1  A process counts as left by this run when it has inherited the run's mark in its environment, or is in a control group of
//       Hakobu. Reading the machine needs no root; as another user one sees one's own processes.
//   L2  Everything else carries no mark: while a test run or a Hakobu that is not ours is going on, it is not judged.
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
  /** Pid and command line. */
  readonly processes: readonly string[];
}

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
    processes: [...processes()].filter(isOurs).map(describe),
  };
}

/** What is there after and was not before, one line each. */
export function diff(before: Machine, after: Machine): string[] {
  const kinds = ["namespaces", "links", "mounts", "cgroups", "processes"] as const;
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
export function othersAtWork(): string[] {
  const family = new Set(ancestors());
  const others = [...processes()].filter((it) => !family.has(it.pid) && !isOurs(it));
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

function isOurs({ pid }: Process): boolean {
  const environment = read(`/proc/${pid}/environ`);
  if (environment.split("\0").includes(`${MARK}=${process.pid}`)) return true;
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

function entriesOf(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

/** Empty for what has gone meanwhile or is not ours to read. */
function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
