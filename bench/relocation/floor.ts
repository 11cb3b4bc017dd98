// The floor: what CRIU and the application need by themselves. The image that Hakobu took is restored by hand, with a command
// line written here: network namespace, control group and root file system stand already, a shell waits inside the control
// group, and the clock runs from the word to it until the last byte of the first HTTP 200. No proxy, no claim, no agent.
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, mkdirSync, openSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Launch } from "../../actors/ports/engine.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import { findCriu } from "../../runtime/doctor/criu-binary.js";
import { baseLayer } from "../../runtime/engines/runc/base-layer.js";
import { findCgroups } from "../../runtime/engines/runc/cgroup.js";
import { type Names, namesOf } from "../../runtime/engines/runc/names.js";
import { bindsOf } from "../../runtime/engines/runc/oci-config.js";
import {
  fillSandbox,
  hasSandbox,
  openSandbox,
  removeSandbox,
  type SandboxContext,
} from "../../runtime/engines/runc/sandbox.js";
import { failed, get } from "../../runtime/experiment/load.js";

export interface Floor {
  /** One restore of the image in `directory`. Milliseconds until the first response was whole. */
  restore(record: SpecRecord, directory: string): Promise<number>;
  /** Removes what an interrupted one left. */
  close(): Promise<void>;
}

const answerLimitMs = 30_000;
/** CRIU keeps there what it found out about the kernel; on a disk it would find it out each time. */
const run = "/dev/shm/hakobu-bench-run";
const hostId = "floor";

/** `hidden`: directories that containers must not see, as for the hosts' own engines. */
export function openFloor(directory: string, hidden: readonly string[]): Floor {
  const criu = findCriu();
  if (criu === undefined) throw new HakobuError("UNAVAILABLE", "CRIU is not installed; etc/setup.sh installs it");
  const context: SandboxContext = {
    hostId,
    cgroups: findCgroups(),
    baseLayer: (rootfs) => baseLayer(rootfs === "host" ? "/" : rootfs, [directory, ...hidden]),
    runcRoot: join(directory, ".runc"),
  };
  mkdirSync(run, { recursive: true, mode: 0o700 });
  const used = new Set<string>();
  const namesFor = (container: string): Names => namesOf(hostId, directory, container);
  const remove = (names: Names): Promise<void> => removeSandbox(names, context.runcRoot);
  return {
    restore: async (record, image) => {
      const { spec, hash: specHash } = record;
      const names = namesFor(spec.name);
      used.add(spec.name);
      if (hasSandbox(names, context.runcRoot)) await remove(names);
      const launch: Launch = { spec, specHash, epoch: 0 };
      try {
        openSandbox(context, names, launch);
        await fillSandbox(context, names, launch, image, AbortSignal.timeout(answerLimitMs));
        const argv = [criu, "restore", "-v0", "-d", "-D", join(image, "criu"), "-W", names.bundle].concat(
          ["-o", "restore.log", "--pidfile", names.pidFile],
          ["--root", names.root, "--inherit-fd", "fd[3]:extRootNetNS"],
          bindsOf(names, spec).flatMap(({ source, target }) => ["--external", `mnt[${target}]:${source}`]),
          ["--network-lock", "skip", "--manage-cgroups=ignore", "--tcp-close", "--file-locks"],
        );
        return await timed(names, context.cgroups.of(names), argv, {
          address: names.address,
          port: spec.port,
          hostname: spec.hostnames[0] as string,
          path: "/",
        });
      } finally {
        await remove(names);
      }
    },
    close: async () => {
      for (const container of used) await remove(namesFor(container));
      await rm(directory, { recursive: true, force: true });
      await rm(run, { recursive: true, force: true });
    },
  };
}

interface Where {
  readonly address: string;
  readonly port: number;
  readonly hostname: string;
  readonly path: string;
}

async function timed(names: Names, cgroups: readonly string[], argv: readonly string[], where: Where): Promise<number> {
  const script = `exec 3<"$1"; shift
${cgroups.map((each) => `echo 0 >${each}/cgroup.procs || exit`).join("\n")}
mount --bind ${run} /run && echo ready && read -r go && exec "$@" </dev/null >&2`;
  const output = openSync(join(names.bundle, "restore.out"), "w", 0o600);
  const shell = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", names.namespaceFile];
  const [program = "", ...args] = [...shell, ...argv];
  const child = spawn(program, args, { stdio: ["pipe", "pipe", output] });
  closeSync(output);
  const ended = end(child);
  try {
    await Promise.race([ready(child), ended.then((status) => refuse(names, status))]);
    const begunMs = performance.now();
    child.stdin?.write("go\n");
    // CRIU ends when the copy runs and its port listens. To ask before that costs the restore more than it gains.
    const status = await ended;
    if (status !== 0) refuse(names, status);
    const sample = await get({ ...where, timeoutMs: answerLimitMs });
    const ms = performance.now() - begunMs;
    if (failed(sample)) throw refusal(names, `no answer from the restored copy (${sample.error ?? sample.status})`);
    return ms;
  } finally {
    child.kill("SIGKILL");
    await ended.catch(() => {});
  }
}

function ready(child: ChildProcess): Promise<void> {
  return new Promise((resolve) => child.stdout?.once("data", () => resolve()));
}

function end(child: ChildProcess): Promise<number> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code) => resolve(code ?? -1));
  });
}

function refuse(names: Names, status: number): never {
  throw refusal(names, `exit status ${status}`);
}

function refusal(names: Names, why: string): HakobuError {
  const said = readFileSync(join(names.bundle, "restore.out"), "utf8").trim().split("\n").slice(-5).join("\n");
  return new HakobuError("RESTORE_FAILED", `the restore of ${names.container} by hand: ${why}: ${said}`);
}
