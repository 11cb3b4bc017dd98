// CRIU, called directly: runc's own way of restoring costs 150 ms more (docs/decisions). Both command lines, so that what one
// side declares the other one answers.
//
//   K1  Namespaces, control groups and bind mounts are made by us and only handed to CRIU.
//   K2  TCP connections of the image are closed in the copy; listening sockets stay. The network is never locked: the lock runs
//       five programs and drops SYNs, which clients answer a second later.
//   K3  /run is a tmpfs for CRIU (where the machine's is none, in a mount namespace of its own), for it caches there what it
//       has found out about the kernel: 45 to 70 ms a restore.
import { createHash } from "node:crypto";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  statfsSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { type ErrorCode, HakobuError, reasonOf } from "../../../actors/hakobu-error.js";
import { runCommand } from "../command.js";
import { ownDirectory } from "../own-directory.js";
import { checkSizes, criuDirectory, lastErrorsIn, noteSizes, whyNoDump } from "../criu-images.js";
import type { Names } from "./names.js";
import type { Bind } from "./oci-config.js";
import { quote, resolveInside } from "./rootfs.js";

const tmpfsMagic = 0x01021994;
const ghostLimit = "64M";
const common = ["--network-lock", "skip", "--manage-cgroups=ignore", "--tcp-close", "--file-locks"];
/** Where CRIU assembles the mounts of a container. */
const temporary = "/tmp";
const mountPointPrefix = ".criu.mntns.";
const staleAfterMs = 10 * 60_000;
/** A dump that is killed half-way can take the container with it. */
const dumpPatienceMs = 3_000;
/** From "go" on. A restore that takes longer hangs: this, and this much for each MiB of CRIU's files. */
const restoreLimitMs = 15_000;
const restoreLimitMsPerMiB = 20;

export interface Criu {
  readonly binary: string;
  readonly digest: string;
  /** Goes before every command line of it. */
  readonly prefix: readonly string[];
}

/** `paths`: directories that CRIU must see; one below /run cannot be seen where /run has to be replaced. */
export function openCriu(binary: string, paths: readonly string[]): Criu {
  const digest = createHash("sha256").update(readFileSync(binary)).digest("hex").slice(0, 16);
  const replace = statfsSync("/run").type !== tmpfsMagic && !paths.some((path) => path.startsWith("/run/"));
  if (!replace) return { binary, digest, prefix: [] };
  // Two builds of CRIU spoil each other's cache.
  const run = `/dev/shm/hakobu-run-${digest}`;
  ownDirectory(run);
  const script = `mount --bind ${run} /run && exec "$@"`;
  return { binary, digest, prefix: ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh"] };
}

/** Fills the cache of kernel features. @throws HakobuError UNAVAILABLE when CRIU does not work here */
export async function checkCriu(criu: Criu): Promise<void> {
  await runCommand([...criu.prefix, criu.binary, "check"], {
    failure: "UNAVAILABLE",
    title: "criu check",
    timeoutMs: 30_000,
  });
}

/** Empty directories that a killed CRIU left. One in use must not go: it is mounted on in a namespace that we do not see. */
export function removeStaleMountPoints(): void {
  for (const name of readdirSync(temporary).filter((each) => each.startsWith(mountPointPrefix)))
    try {
      const path = join(temporary, name);
      if (Date.now() - statSync(path).mtimeMs > staleAfterMs) rmdirSync(path);
    } catch {
      // Somebody else was quicker, or it is not empty.
    }
}

export interface DumpOptions {
  readonly pid: number;
  readonly directory: string;
  readonly binds: readonly Bind[];
  /** Run by CRIU while the container is frozen, after the dump. */
  readonly whileFrozen: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

/** The container goes on running. @throws HakobuError CHECKPOINT_FAILED */
export async function dump(criu: Criu, names: Names, options: DumpOptions): Promise<void> {
  const { pid, directory, binds, whileFrozen, timeoutMs, signal } = options;
  const images = criuDirectory(directory);
  mkdirSync(images, { mode: 0o700 });
  const network = statSync(`/proc/${pid}/ns/net`).ino;
  const script = join(names.bundle, "while-frozen.sh");
  // CRIU calls it at every step.
  writeFileSync(script, `#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0\n${whileFrozen}\n`, {
    mode: 0o700,
  });
  const external = binds.map(({ target }) => `mnt[${resolveInside(names.root, target)}]:${target}`);
  const argv = [...criu.prefix, criu.binary, "dump", "--tree", String(pid), "--leave-running", ...common].concat(
    ["-D", images, "-W", names.bundle, "-o", "dump.log", "-v1", "--root", names.root],
    [`net[${network}]:extRootNetNS`, ...external].flatMap((each) => ["--external", each]),
    ["--ghost-limit", ghostLimit, "--skip-in-flight", "--action-script", script],
  );
  await logged(
    "CHECKPOINT_FAILED",
    `the checkpoint of ${names.container}`,
    join(names.bundle, "dump.log"),
    signal,
    () =>
      runCommand(argv, {
        failure: "CHECKPOINT_FAILED",
        title: "criu dump",
        timeoutMs,
        signal,
        patienceMs: dumpPatienceMs,
      }),
  );
  noteSizes(directory);
}

export interface RestoreOptions {
  readonly directory: string;
  readonly binds: readonly Bind[];
  /** Directories whose control groups CRIU enters first. They exist already. */
  readonly cgroups: readonly string[];
  /** Resolves when the network namespace and the root file system stand. */
  readonly ready: Promise<unknown>;
  /** Its processes are left stopped (SIGSTOP), before their first instruction. */
  readonly stopped: boolean;
  readonly signal: AbortSignal;
}

/**
 * Begins while the sandbox is being made: to enter a control group takes the kernel 10 ms, most of them asleep.
 * @returns the pid of the first process
 * @throws HakobuError RESTORE_FAILED where CRIU refuses the image; DEADLINE_EXCEEDED where it hangs; UNAVAILABLE where it could not be run
 */
export async function restore(criu: Criu, names: Names, options: RestoreOptions): Promise<number> {
  const { directory, binds, cgroups, ready, stopped, signal } = options;
  const bytes = checkSizes(names.container, directory);
  const enter = cgroups.map((each) => `echo 0 >${quote(join(each, "cgroup.procs"))} || exit\n`).join("");
  // The caller's end, with or without a word, ends it.
  const script = `${enter}read -r go && exec "$@" 3<${quote(names.namespaceFile)} </dev/null`;
  const images = criuDirectory(directory);
  const argv = ["/bin/sh", "-c", script, "sh", ...criu.prefix, criu.binary, "restore", "-d", ...common].concat(
    ["-D", images, "-W", names.bundle, "-o", "restore.log", "-v1", "--pidfile", names.pidFile],
    ["--root", names.root, "--inherit-fd", "fd[3]:extRootNetNS", ...(stopped ? ["--leave-stopped"] : [])],
    binds.flatMap(({ source, target }) => ["--external", `mnt[${target}]:${source}`]),
  );
  rmSync(names.pidFile, { force: true });
  const output = openSync(join(names.bundle, "restore.out"), "w", 0o600);
  try {
    await logged("RESTORE_FAILED", `the restore of ${names.container}`, join(names.bundle, "restore.log"), signal, () =>
      runCommand(argv, {
        failure: "RESTORE_FAILED",
        title: "criu restore",
        timeoutMs: restoreLimitMs + (bytes / 1024 / 1024) * restoreLimitMsPerMiB,
        signal,
        input: ready.then(() => "go\n"),
        output,
      }),
    );
  } finally {
    closeSync(output);
  }
  return Number(readFileSync(names.pidFile, "utf8"));
}

async function logged(
  code: ErrorCode,
  title: string,
  log: string,
  signal: AbortSignal,
  work: () => Promise<unknown>,
): Promise<void> {
  rmSync(log, { force: true });
  try {
    await work();
  } catch (error) {
    if (!(error instanceof HakobuError) || signal.aborted || error.code === "UNAVAILABLE") throw error;
    // CRIU begins its log before it looks at anything: without one it was not CRIU that failed.
    const ofCriu = error.code === code && existsSync(log);
    const as = ofCriu || error.code === "DEADLINE_EXCEEDED" ? error.code : "UNAVAILABLE";
    const why = code === "CHECKPOINT_FAILED" ? whyNoDump(log, error) : `${lastErrorsIn(log)} (${reasonOf(error)})`;
    throw new HakobuError(as, `${title} failed: ${why}`, { cause: error });
  }
}
