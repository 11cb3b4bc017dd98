// All of a container but its processes: network namespace, control group, root file system. A step of its own, so that it can
// be made ahead of time.
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Launch, Phases } from "../../../actors/ports/engine.js";
import { runCommand } from "../command.js";
import { removeInstance } from "../instance-file.js";
import { openOutputLog } from "../output-log.js";
import { type Cgroups, createCgroup, hasCgroup, removeCgroup } from "./cgroup.js";
import type { Names } from "./names.js";
import { createNetwork, hasNetwork, removeNetwork } from "./network.js";
import { mountRootfs, mountsBelow, shmArchive, unmountRootfs, upperArchive } from "./rootfs.js";

const deleteLimitMs = 10_000;

export interface SandboxContext {
  readonly hostId: string;
  readonly cgroups: Cgroups;
  /** Directory of the base layer for a root file system. */
  baseLayer(rootfs: string): Promise<string>;
  /** Where runc keeps what it knows. */
  readonly runcRoot: string;
}

/** `image`: the directory of the image that it is for. @returns the phases, and what limits are not in force and why */
export async function prepareSandbox(
  context: SandboxContext,
  names: Names,
  { spec, epoch }: Launch,
  image: string | undefined,
  signal: AbortSignal,
): Promise<{ readonly phases: Phases; readonly unlimited: readonly string[] }> {
  const phases: { name: string; ms: number }[] = [];
  const timed = async <T>(name: string, work: () => Promise<T> | T): Promise<T> => {
    const begunMs = performance.now();
    const result = await work();
    phases.push({ name, ms: performance.now() - begunMs });
    return result;
  };
  for (const directory of [names.run, names.bundle]) mkdirSync(directory, { recursive: true, mode: 0o755 });
  writeFileSync(join(names.run, "epoch"), `${epoch}\n`);
  writeFileSync(join(names.run, "host"), `${context.hostId}\n`);
  const archive = (name: string): string | undefined => {
    const file = image === undefined ? "" : join(image, name);
    return existsSync(file) ? file : undefined;
  };
  const upper = archive(upperArchive);
  const shm = archive(shmArchive);
  // One failure must not leave the other one at work behind the caller's back.
  const results = await Promise.allSettled([
    timed("network", () => createNetwork(names, signal)),
    timed("root file system", async () => {
      const base = await context.baseLayer(spec.rootfs);
      await mountRootfs(names, spec, base, { ...(upper ? { upper } : {}), ...(shm ? { shm } : {}) }, signal);
    }),
    timed("control group", async () => {
      await openOutputLog(names.outputLog, spec.user);
      return createCgroup(context.cgroups, names, spec.limits);
    }),
  ]);
  const failed = results.find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  const [, , unlimited] = results;
  return { phases, unlimited: unlimited.status === "fulfilled" ? unlimited.value : [] };
}

/** Whether anything of it but the log is there. */
export function hasSandbox(names: Names, runcRoot: string): boolean {
  return (
    hasNetwork(names) ||
    hasCgroup(names) ||
    existsSync(join(runcRoot, names.container)) ||
    existsSync(names.bundle) ||
    mountsBelow(names.directory).length > 0
  );
}

/** Also of a half-made one. Kills what runs in it. Idempotent. @throws HakobuError STOP_FAILED with what is left */
export async function removeSandbox(names: Names, runcRoot: string): Promise<void> {
  await removeCgroup(names);
  if (existsSync(join(runcRoot, names.container)))
    await runCommand(["runc", "--root", runcRoot, "delete", "--force", names.container], {
      failure: "STOP_FAILED",
      title: `runc delete ${names.container}`,
      timeoutMs: deleteLimitMs,
    });
  await removeNetwork(names);
  await unmountRootfs(names);
  removeInstance(names.directory);
  rmSync(names.bundle, { recursive: true, force: true });
}
