// Haconiwa's pid file: the supervisor's pid and a NUL. It is empty when `kill` or `checkpoint -R` made it, and comes late after
// a restore: it says something only while it names a live process.
import { readFileSync } from "node:fs";
import { identify } from "../process-table.js";

/** The live supervisor that it names. */
export function supervisorIn(pidFile: string): number | undefined {
  const digits = /^\d+(?=[\0\s]*$)/.exec(read(pidFile))?.[0];
  return digits !== undefined && runs(Number(digits)) ? Number(digits) : undefined;
}

/** The container's first process: the supervisor's first child. Undefined while there is none yet. */
export function containerOf(supervisor: number): number | undefined {
  const [first] = read(`/proc/${supervisor}/task/${supervisor}/children`).split(" ", 1);
  return first === undefined || first === "" || !runs(Number(first)) ? undefined : Number(first);
}

function runs(pid: number): boolean {
  try {
    return pid > 0 && identify(pid).pid === pid;
  } catch {
    return false;
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}
