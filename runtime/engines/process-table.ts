// What /proc tells about a process (proc(5)). A process is a pid and its start time: pids are used again.
import { readdirSync, readFileSync } from "node:fs";
import { HakobuError } from "../../actors/hakobu-error.js";

export interface ProcessId {
  readonly pid: number;
  /** Field 22 of /proc/<pid>/stat. */
  readonly startTime: number;
}

/** @throws HakobuError START_FAILED when it does not run (any more) */
export function identify(pid: number): ProcessId {
  const stat = readStat(pid);
  if (stat === undefined || stat.state === "Z")
    throw new HakobuError("START_FAILED", "its first process ended at once", { retryable: true });
  return { pid, startTime: stat.startTime };
}

/** A zombie does not run. */
export function isRunning({ pid, startTime }: ProcessId): boolean {
  const stat = readStat(pid);
  return stat !== undefined && stat.startTime === startTime && stat.state !== "Z" && stat.state !== "X";
}

/** Whether it has a handler for TERM. The first process of a pid namespace without one never notices a TERM (pid_namespaces(7)). */
export function handlesTerm(pid: number): boolean {
  const caught = readText(`/proc/${pid}/status`)?.match(/^SigCgt:\s*([0-9a-f]+)/m)?.[1];
  return caught !== undefined && (BigInt(`0x${caught}`) >> 14n) % 2n === 1n;
}

/** Sends a signal; false when there is no such process. Negative: to a process group. */
export function signalProcess(pid: number, signal: "SIGTERM" | "SIGKILL" | "SIGCONT"): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false;
  }
}

/** The processes of a process group that were started with this in their environment. Without zombies. */
export function processesOfGroup(group: number, environment: string): number[] {
  if (!exists(-group)) return [];
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      const stat = readStat(pid);
      if (stat === undefined || stat.group !== group || stat.state === "Z") return false;
      return readText(`/proc/${pid}/environ`)?.split("\0").includes(environment) ?? false;
    });
}

/** Asks every 5 ms until it holds. @returns whether it did within the limit */
export async function waitUntil(condition: () => boolean, limitMs: number): Promise<boolean> {
  const end = performance.now() + limitMs;
  while (!condition()) {
    if (performance.now() >= end) return false;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return true;
}

function exists(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

interface Stat {
  readonly state: string;
  readonly group: number;
  readonly startTime: number;
}

function readStat(pid: number): Stat | undefined {
  const text = readText(`/proc/${pid}/stat`);
  if (text === undefined) return undefined;
  // The second field is the program's name in brackets, which may hold anything.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return { state: fields[0] ?? "X", group: Number(fields[2]), startTime: Number(fields[19]) };
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return undefined;
  }
}
