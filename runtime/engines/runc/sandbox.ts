// All of a container but its processes: network namespace, control group, root file system. A step of its own, so that it can
// be made ahead of time.
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Launch, Phases } from "../../../actors/ports/engine.js";
import { runCommand } from "../command.js";
import { removeInstance } from "../instance-file.js";
import { openOutputLog } from "../output-log.js";
import { fillRunDirectory } from "../run-directory.js";
import { type Cgroups, createCgroup, hasCgroup, removeCgroup } from "./cgroup.js";
import type { Names } from "./names.js";
import { createNetwork, hasNetwork, removeNetwork } from "./network.js";
import { layerArchive, mountRootfs, mountsBelow, unmountRootfs } from "./rootfs.js";

const deleteLimitMs = 10_000;

export interface SandboxContext {
  readonly hostId: string;
  readonly cgroups: Cgroups;
  /** Directory of the base layer for a root file system. */
  baseLayer(rootfs: string): Promise<string>;
  /** Where runc keeps what it knows. */
  readonly runcRoot: string;
}

/**
 * The first half, at once: directories, and the control group that a process may enter already.
 * @returns what could not be limited and why
 */
export function openSandbox(context: SandboxContext, names: Names, launch: Launch): readonly string[] {
  mkdirSync(names.bundle, { recursive: true, mode: 0o755 });
  fillRunDirectory(names.run, context.hostId, launch);
  return createCgroup(context.cgroups, names, launch.spec.limits);
}

/** The second half. `image`: the directory of the image that it is for. */
export async function fillSandbox(
  context: SandboxContext,
  names: Names,
  { spec }: Launch,
  image: string | undefined,
  signal: AbortSignal,
): Promise<Phases> {
  const phases: { name: string; ms: number; beside?: true }[] = [];
  const timed = async (name: string, work: () => Promise<void>): Promise<void> => {
    const begunMs = performance.now();
    await work();
    phases.push({ name, ms: performance.now() - begunMs, ...(phases.length === 0 ? {} : { beside: true }) });
  };
  const archive = image === undefined ? undefined : join(image, layerArchive);
  const results = await Promise.allSettled([
    timed("network", () => createNetwork(names, signal)),
    timed("root file system", async () =>
      mountRootfs(names, spec, await context.baseLayer(spec.rootfs), archive, signal),
    ),
    openOutputLog(names.outputLog, spec.user),
  ]);
  // Only when all have ended: what one left behind its caller's back could not be cleaned up.
  const failed = results.find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  return phases;
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

/** Also of a half-made one; of a shadow the log too. Kills what runs in it. Idempotent. @throws HakobuError STOP_FAILED with what is left */
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
  rmSync(names.outlet === undefined ? names.bundle : names.directory, { recursive: true, force: true });
}
