// A container's control group: limits, and the way to reach every process of it. Hierarchies of version 1 (also beside an
// empty version 2, "hybrid") and of version 2.
//
//   G1  Cold started and restored containers have the same limits, written here.
//   G2  After removeCgroup() no process of the container is left: it throws otherwise.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { HakobuError, reasonOf } from "../../../actors/hakobu-error.js";
import type { ContainerSpec } from "../../../actors/ports/spec.js";
import { signalProcess, waitUntil } from "../process-table.js";
import type { Names } from "./names.js";

const mountPoint = "/sys/fs/cgroup";
const periodUs = 100_000;
const killLimitMs = 5_000;

/** What a container gets of /dev; without CAP_MKNOD it cannot make more. null zero full random urandom tty ptmx pts. */
const devices = ["c 1:3", "c 1:5", "c 1:7", "c 1:8", "c 1:9", "c 5:0", "c 5:2", "c 136:*"];

export interface Cgroups {
  readonly version: 1 | 2;
  /** Controllers that are not mounted, so that their limits cannot be set. */
  readonly missing: readonly string[];
  /** Directories that a process enters to be limited: one for each hierarchy used, for version 2 one. */
  of(names: Names): readonly string[];
}

export function findCgroups(): Cgroups {
  if (existsSync(join(mountPoint, "cgroup.controllers")))
    return { version: 2, missing: [], of: (names) => [join(mountPoint, names.cgroup)] };
  const wanted = ["cpu", "memory", "pids", "devices"];
  const used = wanted.filter((each) => existsSync(join(mountPoint, each, "cgroup.procs")));
  return {
    version: 1,
    missing: wanted.filter((each) => !used.includes(each)),
    of: (names) => used.map((each) => join(mountPoint, each, names.cgroup)),
  };
}

/** Makes it and sets its limits. @returns what could not be limited and why, for the log */
export function createCgroup(cgroups: Cgroups, names: Names, limits: ContainerSpec["limits"]): string[] {
  const unlimited = cgroups.missing.map((controller) => `${controller}: no such controller here`);
  const settings = cgroups.version === 2 ? unified(limits) : separate(limits);
  for (const directory of cgroups.of(names)) {
    if (cgroups.version === 2) delegate(directory);
    makeGroup(directory);
    for (const [file, value] of settings) {
      const path = join(directory, file);
      // Each file belongs to one controller, and swap need not be accounted.
      if ((cgroups.version === 1 || file === "memory.swap.max") && !existsSync(path)) continue;
      try {
        writeFileSync(path, value);
      } catch (error) {
        unlimited.push(`${file}: ${reasonOf(error)}`);
      }
    }
  }
  return unlimited;
}

/**
 * Changes CPU, memory and pids of one that is in use.
 * @throws HakobuError CONFIG_INVALID where one cannot be set; those before it, memory first, are set then
 */
export function scaleCgroup(cgroups: Cgroups, names: Names, limits: ContainerSpec["limits"]): void {
  const directories = cgroups.of(names);
  const find = (file: string): string | undefined =>
    directories.map((directory) => join(directory, file)).find((path) => existsSync(path));
  if (cgroups.version === 2) refuseTooLittle(find("memory.stat"), limits);
  const settings = scalable(cgroups.version === 2 ? unified(limits) : separate(limits));
  // Swap and memory together are never less than memory alone.
  const growing = settings.some(([file, value]) => {
    const path = file === "memory.limit_in_bytes" ? find(file) : undefined;
    return path !== undefined && BigInt(readFileSync(path, "latin1").trim()) < BigInt(value);
  });
  for (const [file, value] of growing ? settings.toSorted(([a], [b]) => rank(a) - rank(b)) : settings) {
    const path = find(file);
    if (path === undefined) {
      if (isSwap(file)) continue;
      throw new HakobuError("CONFIG_INVALID", `${file} cannot be changed: this machine has no such controller`);
    }
    try {
      writeFileSync(path, value);
    } catch (error) {
      const why = (error as NodeJS.ErrnoException).code === "EBUSY" ? "it uses more than that now" : reasonOf(error);
      throw new HakobuError("CONFIG_INVALID", `${names.container}: the kernel refuses ${file} = ${value}: ${why}`, {
        cause: error,
      });
    }
  }
}

const isSwap = (file: string): boolean => file === "memory.swap.max" || file === "memory.memsw.limit_in_bytes";
const rank = (file: string): number => (isSwap(file) ? 0 : file.startsWith("memory") ? 1 : 2);

/** Memory first: it is the one that can be refused. */
function scalable(settings: Settings): Settings {
  const some = settings.filter(([file]) => !file.startsWith("devices"));
  return some.toSorted(([a], [b]) => Number(b.startsWith("memory")) - Number(a.startsWith("memory")));
}

/** Version 2 does not refuse: it kills. */
function refuseTooLittle(stat: string | undefined, limits: ContainerSpec["limits"]): void {
  if (stat === undefined) return;
  const used = [...readFileSync(stat, "latin1").matchAll(/^(?:anon|shmem|kernel) (\d+)$/gm)];
  const bytesUsed = used.reduce((sum, [, count]) => sum + Number(count), 0);
  if (bytesUsed > Number(bytes(limits)))
    throw new HakobuError("CONFIG_INVALID", `memory ${limits.memoryMiB}MiB is less than it uses: ${bytesUsed} bytes`);
}

type Settings = readonly (readonly [file: string, value: string])[];

function unified(limits: ContainerSpec["limits"]): Settings {
  return [
    ["cpu.max", `${quotaUs(limits)} ${periodUs}`],
    ["memory.max", bytes(limits)],
    ["memory.swap.max", "0"],
    ["pids.max", String(limits.pids)],
  ];
}

function separate(limits: ContainerSpec["limits"]): Settings {
  return [
    ["cpu.cfs_quota_us", quotaUs(limits)],
    ["memory.limit_in_bytes", bytes(limits)],
    ["memory.memsw.limit_in_bytes", bytes(limits)],
    ["pids.max", String(limits.pids)],
    ["devices.deny", "a"],
    ...devices.map((device) => ["devices.allow", `${device} rwm`] as const),
  ];
}

function quotaUs({ cpus }: ContainerSpec["limits"]): string {
  return String(Math.max(1_000, Math.round(cpus * periodUs)));
}

function bytes({ memoryMiB }: ContainerSpec["limits"]): string {
  return String(memoryMiB * 1024 * 1024);
}

/** Another container's end may remove the parents in between. */
function makeGroup(directory: string): void {
  for (let attempt = 1; ; attempt++)
    try {
      mkdirSync(directory, { recursive: true });
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT" || attempt === 5) throw error;
    }
}

export function hasCgroup(names: Names): boolean {
  return hierarchies().some((hierarchy) => existsSync(join(hierarchy, names.cgroup)));
}

/** To every process inside. @throws HakobuError STOP_FAILED where there is none */
export function signalCgroup(names: Names, signal: "SIGCONT"): void {
  const inside = new Set(hierarchies().flatMap((hierarchy) => processesIn(join(hierarchy, names.cgroup))));
  if (inside.size === 0) throw new HakobuError("STOP_FAILED", `no process of ${names.container} is left`);
  for (const pid of inside) signalProcess(pid, signal);
}

/** Kills whatever is inside, and removes it from every hierarchy (runc enters all of them). Idempotent. */
export async function removeCgroup(names: Names): Promise<void> {
  const directories = hierarchies().map((hierarchy) => join(hierarchy, names.cgroup));
  const inside = (): number[] => [...new Set(directories.flatMap(processesIn))];
  const emptied = await waitUntil(() => {
    const pids = inside();
    for (const pid of pids) signalProcess(pid, "SIGKILL");
    return pids.length === 0;
  }, killLimitMs);
  if (!emptied)
    throw new HakobuError(
      "STOP_FAILED",
      `processes of ${names.container} are left after KILL: ${inside().join(" ")}; they hang in the kernel (ps -o wchan)`,
    );
  for (const directory of directories) {
    if (!(await waitUntil(() => removeTree(directory), killLimitMs)))
      throw new HakobuError("STOP_FAILED", `cannot remove the control group ${directory}: it is in use`);
    // The parents go with the last container.
    if (remove(dirname(directory))) remove(dirname(dirname(directory)));
  }
}

function removeTree(directory: string): boolean {
  for (const child of subdirectories(directory)) removeTree(join(directory, child));
  return remove(directory);
}

/** False while it is in use. */
function remove(directory: string): boolean {
  try {
    rmdirSync(directory);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT";
  }
}

function hierarchies(): string[] {
  if (existsSync(join(mountPoint, "cgroup.controllers"))) return [mountPoint];
  return subdirectories(mountPoint).map((name) => join(mountPoint, name));
}

function processesIn(directory: string): number[] {
  const own = ((): string => {
    try {
      return readFileSync(join(directory, "cgroup.procs"), "latin1");
    } catch {
      return "";
    }
  })();
  const below = subdirectories(directory).flatMap((name) => processesIn(join(directory, name)));
  return [...own.split("\n").filter(Boolean).map(Number), ...below];
}

function subdirectories(directory: string): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name);
  } catch {
    return [];
  }
}

/** Version 2: controllers are handed down from each ancestor. What is refused shows when the limit is set. */
function delegate(directory: string): void {
  mkdirSync(dirname(directory), { recursive: true });
  for (const ancestor of [dirname(dirname(dirname(directory))), dirname(dirname(directory)), dirname(directory)])
    for (const controller of ["cpu", "memory", "pids"])
      try {
        writeFileSync(join(ancestor, "cgroup.subtree_control"), `+${controller}`);
      } catch {
        // Not there, or the group has processes of its own (cgroups(7), "no internal processes").
      }
}
