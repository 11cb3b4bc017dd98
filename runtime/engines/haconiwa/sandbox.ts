// All of a container but its processes: control group, root file system, directories. No network namespace: Haconiwa does not
// make one again at a restore.
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Launch } from "../../../actors/ports/engine.js";
import { removeInstance } from "../instance-file.js";
import { openOutputLog } from "../output-log.js";
import { fillRunDirectory } from "../run-directory.js";
import { type Cgroups, createCgroup, hasCgroup, removeCgroup } from "../runc/cgroup.js";
import { type Bind, bindsOf } from "../runc/oci-config.js";
import { layerArchive, mountRootfs, mountsBelow, resolveInside, unmountRootfs } from "../runc/rootfs.js";
import type { HaconiwaNames } from "./names.js";

export interface SandboxContext {
  readonly hostId: string;
  readonly cgroups: Cgroups;
  readonly baseLayer: (rootfs: string) => Promise<string>;
}

export interface Sandbox {
  /** With the targets as they are called inside. */
  readonly binds: readonly Bind[];
  /** What could not be limited and why. */
  readonly unlimited: readonly string[];
}

/** `image`: the directory of the image that it is for. */
export async function makeSandbox(
  { hostId, cgroups, baseLayer }: SandboxContext,
  names: HaconiwaNames,
  launch: Launch,
  image: string | undefined,
  signal: AbortSignal,
): Promise<Sandbox> {
  const { spec } = launch;
  mkdirSync(names.bundle, { recursive: true, mode: 0o755 });
  fillRunDirectory(names.run, hostId, launch);
  await openOutputLog(names.outputLog, spec.user);
  const binds = bindsOf(names, spec);
  const unlimited = createCgroup(cgroups, names, spec.limits);
  const archive = image === undefined ? undefined : join(image, layerArchive);
  await mountRootfs(names, spec, await baseLayer(spec.rootfs), archive, signal);
  return { unlimited, binds: binds.map((bind) => withPlace(names, bind)) };
}

/** Haconiwa makes no mount points. */
function withPlace(names: HaconiwaNames, bind: Bind): Bind {
  const target = resolveInside(names.root, bind.target);
  const place = join(names.root, target);
  if (!existsSync(place)) {
    const directory = statSync(bind.source).isDirectory();
    mkdirSync(directory ? place : dirname(place), { recursive: true, mode: 0o755 });
    if (!directory) writeFileSync(place, "");
  }
  return { ...bind, target };
}

/** Whether anything of it but the log is there. */
export function hasSandbox(names: HaconiwaNames): boolean {
  return hasCgroup(names) || existsSync(names.bundle) || mountsBelow(names.directory).length > 0;
}

/** Whether any process of it is left, Haconiwa's own ones among them. */
export function hasProcesses(cgroups: Cgroups, names: HaconiwaNames): boolean {
  return cgroups.of(names).some((directory) => {
    try {
      return readFileSync(join(directory, "cgroup.procs"), "latin1") !== "";
    } catch {
      return false;
    }
  });
}

/** Also of a half-made one. Kills what runs in it. Idempotent. @throws HakobuError STOP_FAILED with what is left */
export async function removeSandbox(names: HaconiwaNames): Promise<void> {
  await removeCgroup(names);
  await unmountRootfs(names);
  removeInstance(names.directory);
  for (const file of names.strayFiles) rmSync(file, { force: true });
  // The pid file with it, which may be an empty one.
  rmSync(names.bundle, { recursive: true, force: true });
}
