// Examines this machine: what Hakobu needs, what was found, and the command that mends what is missing.
//
// 1. `examine` never throws and prints nothing: whatever goes wrong is what that check found.
// 2. It leaves nothing behind: namespaces and mounts are tried inside processes that end, made folders are removed.
// 3. Every command it runs has a deadline.

import { execFile } from "node:child_process";
import { access, mkdir, mkdtemp, readFile, rm, rmdir } from "node:fs/promises";
import { machine, release, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { findCriu, findProgram } from "./criu-binary.js";

export interface Check {
  /** What was examined, for example `runc` or `network namespaces`. */
  name: string;
  ok: boolean;
  /** One line: a version, or what is wrong. */
  found: string;
  /** What to do about it: always there when `ok` is false. */
  mend?: string;
}

export interface ExamineOptions {
  /** The environment whose PATH and HAKOBU_CRIU count. Default: this process's. */
  env?: NodeJS.ProcessEnv;
  /** How long one command may take, in milliseconds. Default: 10,000. */
  commandDeadlineMs?: number;
}

/** The checks without which no container can be carried from host to host by CRIU. */
const NEEDED_TO_RESTORE = [
  "kernel",
  "privileges",
  "CRIU",
  "runc",
  "ip",
  "cgroups",
  "network namespaces",
  "overlayfs",
] as const;

/** Bits of capabilities(7). */
const NEEDED_CAPABILITIES = { CAP_NET_ADMIN: 12, CAP_SYS_PTRACE: 19, CAP_SYS_ADMIN: 21 };
const USEFUL_CAPABILITIES = { CAP_SYS_RESOURCE: 24, CAP_CHECKPOINT_RESTORE: 40 };

/** The controllers that runc uses to limit and to freeze a container, where cgroups v1 are mounted. */
const V1_CONTROLLERS = ["cpu", "memory", "freezer", "devices", "pids"];

const AS_ROOT = "run as root: sudo npm start";

const OLDEST_NODE = { major: 20, minor: 11 };
const OLDEST_KERNEL = { major: 5, minor: 4 };

/** Examines this machine; the checks come in the order in which they are worth mending. Takes less than a second. */
export async function examine(options: ExamineOptions = {}): Promise<Check[]> {
  const commands = new Commands(options.env ?? process.env, options.commandDeadlineMs ?? 10_000);
  return Promise.all([
    check("Node.js", examineNode),
    check("kernel", examineKernel),
    check("privileges", examinePrivileges),
    check("CRIU", () => examineCriu(commands)),
    check("runc", () => examineProgram(commands, "runc", "runc", ["--version"])),
    check("etcd", () => examineProgram(commands, "etcd", "etcd-server", ["--version"])),
    check("ip", () => examineProgram(commands, "ip", "iproute2", ["-V"])),
    check("nft", () => examineProgram(commands, "nft", "nftables", ["--version"])),
    check("cgroups", examineCgroups),
    check("network namespaces", () => examineNetworkNamespaces(commands)),
    check("overlayfs", () => examineOverlayfs(commands)),
    check("time namespaces", () => examineTimeNamespaces()),
  ]);
}

/** Whether containers of the runc engine can be restored from CRIU images on this machine. */
export function canRestore(checks: readonly Check[]): boolean {
  return missingToRestore(checks).length === 0;
}

/** The names of the checks that stand between this machine and a restore; one that was not made counts as missing. */
export function missingToRestore(checks: readonly Check[]): string[] {
  return NEEDED_TO_RESTORE.filter((name) => !checks.some((found) => found.name === name && found.ok));
}

type Finding = Omit<Check, "name">;

async function check(name: string, look: () => Finding | Promise<Finding>): Promise<Check> {
  try {
    return { name, ...(await look()) };
  } catch (error) {
    return { name, ok: false, found: `could not be examined: ${firstLine(String(error))}`, mend: mendBySetup() };
  }
}

function examineNode(): Finding {
  const found = process.versions.node;
  if (isAtLeast(found, OLDEST_NODE)) return { ok: true, found };
  return { ok: false, found: `${found} is too old`, mend: `install Node.js ${version(OLDEST_NODE)} or newer` };
}

async function examineKernel(): Promise<Finding> {
  const found = `${release()}, ${machine()}`;
  if (process.platform !== "linux") {
    return { ok: false, found: `${process.platform} ${found}`, mend: "run Hakobu on Linux" };
  }
  if (!isAtLeast(release(), OLDEST_KERNEL)) {
    return { ok: false, found: `${found} is too old`, mend: `boot a kernel from ${version(OLDEST_KERNEL)} on` };
  }
  // This file is there only in kernels that were built for CRIU (fs/proc/base.c).
  if (!(await exists("/proc/self/timers"))) {
    const mend = "boot a kernel built with CONFIG_CHECKPOINT_RESTORE";
    return { ok: false, found: `${found}, built without CONFIG_CHECKPOINT_RESTORE`, mend };
  }
  return { ok: true, found };
}

async function examinePrivileges(): Promise<Finding> {
  const status = await readFile("/proc/self/status", "utf8");
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`);
  const lacks = (set: Record<string, number>) =>
    Object.keys(set).filter((name) => (effective & (1n << BigInt(set[name] ?? 0))) === 0n);

  if (!isRoot()) return { ok: false, found: "not root", mend: AS_ROOT };
  const missing = lacks(NEEDED_CAPABILITIES);
  if (missing.length > 0) {
    const mend = "start this container or service with these capabilities; in Docker: --privileged";
    return { ok: false, found: `root without ${missing.join(", ")}`, mend };
  }
  const unused = lacks(USEFUL_CAPABILITIES);
  const without = unused.length > 0 ? `; without ${unused.join(", ")}, which is not needed` : "";
  return { ok: true, found: `root with ${Object.keys(NEEDED_CAPABILITIES).join(", ")}${without}` };
}

async function examineCriu(commands: Commands): Promise<Finding> {
  const path = findCriu(commands.env);
  if (path === undefined) {
    const chosen = commands.env.HAKOBU_CRIU;
    if (!chosen) return { ok: false, found: "not installed", mend: mendBySetup() };
    const mend = `set HAKOBU_CRIU to a CRIU binary, or unset it and run: ${mendBySetup()}`;
    return { ok: false, found: `HAKOBU_CRIU=${chosen} is not an executable file`, mend };
  }
  const shown = await commands.run(path, ["--version"]);
  const found = `${firstLine(shown.output).replace(/^Version:\s*/, "")} (${path})`;
  const checked = await commands.run(path, ["check"]);
  if (shown.ok && checked.ok) return { ok: true, found };
  const why = checked.ok ? shown.output : checked.output;
  const error = why.split("\n").find((line) => line.includes("Error")) ?? firstLine(why);
  return { ok: false, found: `${found}: criu check failed: ${error.trim()}`, mend: mendAsRoot(mendBySetup()) };
}

async function examineProgram(commands: Commands, name: string, debian: string, show: string[]): Promise<Finding> {
  const path = findProgram(name, commands.env);
  if (path === undefined) return { ok: false, found: "not installed", mend: mendByPackage(commands.env, debian) };
  const shown = await commands.run(path, show);
  const found = `${/\d+(\.\d+)+\S*/.exec(shown.output)?.[0].replace(/,$/, "") ?? firstLine(shown.output)} (${path})`;
  if (shown.ok) return { ok: true, found };
  return { ok: false, found: `${path}: ${firstLine(shown.output)}`, mend: mendByPackage(commands.env, debian) };
}

async function examineCgroups(): Promise<Finding> {
  const top = "/sys/fs/cgroup";
  const unified = await exists(join(top, "cgroup.controllers"));
  const mounted = unified ? [""] : V1_CONTROLLERS;
  const trial = `hakobu-doctor-${process.pid}`;
  for (const controller of mounted) {
    const folder = join(top, controller);
    if (!(await exists(folder))) {
      return { ok: false, found: `${folder} is not mounted`, mend: "mount cgroups: systemd does, or cgroupfs-mount" };
    }
    try {
      await mkdir(join(folder, trial));
      await rmdir(join(folder, trial));
    } catch (error) {
      const mend = mendAsRoot("mount /sys/fs/cgroup for writing; in Docker: --privileged --cgroupns=host");
      return { ok: false, found: `no cgroup can be made in ${folder}: ${errorCode(error)}`, mend };
    }
  }
  return { ok: true, found: unified ? "v2, writable" : `v1 (${V1_CONTROLLERS.join(", ")}), writable` };
}

/** A veth pair in a network namespace of its own, both gone when the command ends. */
async function examineNetworkNamespaces(commands: Commands): Promise<Finding> {
  const ip = findProgram("ip", commands.env);
  if (ip === undefined) return { ok: false, found: "no ip command", mend: mendByPackage(commands.env, "iproute2") };
  const tried = await commands.run("unshare", [
    "--net",
    ip,
    "link",
    "add",
    "name",
    "hakobu0",
    "type",
    "veth",
    "peer",
    "name",
    "hakobu1",
  ]);
  if (tried.ok) return { ok: true, found: "can be made, with veth pairs" };
  const mend = mendAsRoot("boot a kernel with CONFIG_NET_NS and CONFIG_VETH (modprobe veth); in Docker: --privileged");
  return { ok: false, found: firstLine(tried.output), mend };
}

/** A writable overlay in a mount namespace of its own. Its folders lie in TMPDIR, whose file system is tried with it. */
async function examineOverlayfs(commands: Commands): Promise<Finding> {
  const work = await mkdtemp(join(tmpdir(), "hakobu-doctor-"));
  try {
    await Promise.all(["lower", "upper", "work", "merged"].map((name) => mkdir(join(work, name))));
    const script = 'mount -t overlay overlay -o lowerdir="$1/lower,upperdir=$1/upper,workdir=$1/work" "$1/merged"';
    const tried = await commands.run("unshare", ["--mount", "sh", "-c", script, "sh", work]);
    if (tried.ok) return { ok: true, found: "can be mounted" };
    const mend = mendAsRoot(`modprobe overlay; set TMPDIR to a folder on ext4, xfs, btrfs or tmpfs (now ${tmpdir()})`);
    return { ok: false, found: firstLine(tried.output), mend };
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** Restores work without them. */
export async function examineTimeNamespaces(file = "/proc/self/ns/time"): Promise<Finding> {
  if (await exists(file))
    return { ok: true, found: "are there: the clocks of restored containers go on where they were" };
  const mend =
    "boot a kernel from 5.6 on with CONFIG_TIME_NS; without, the monotonic clocks of restored containers jump (docs/guide/hooks.md)";
  return { ok: false, found: "the kernel has none", mend };
}

interface Outcome {
  ok: boolean;
  /** Standard output and error, or why there is none. */
  output: string;
}

class Commands {
  constructor(
    readonly env: NodeJS.ProcessEnv,
    readonly deadlineMs: number,
  ) {}

  run(file: string, args: string[]): Promise<Outcome> {
    const options = {
      env: this.env,
      timeout: this.deadlineMs,
      killSignal: "SIGKILL" as const,
      encoding: "utf8" as const,
    };
    return new Promise((done) => {
      execFile(file, args, options, (error, stdout, stderr) => {
        const output = `${stdout}${stderr}`.trim();
        if (error === null) done({ ok: true, output });
        else if (error.killed) done({ ok: false, output: `no answer within ${this.deadlineMs} ms` });
        else done({ ok: false, output: output || error.message });
      }).stdin?.end();
    });
  }
}

function mendBySetup(): string {
  return `${sudo()}bash ${fileURLToPath(new URL("../../../etc/setup.sh", import.meta.url))}`;
}

function mendByPackage(env: NodeJS.ProcessEnv, debian: string): string {
  if (findProgram("apt-get", env) === undefined) return `install ${debian} with this system's package manager`;
  return `${sudo()}apt-get install ${debian}`;
}

/** What only root may do says nothing about the machine while an ordinary user tries it. */
function mendAsRoot(mendForRoot: string): string {
  return isRoot() ? mendForRoot : AS_ROOT;
}

function sudo(): string {
  return isRoot() ? "" : "sudo ";
}

function isRoot(): boolean {
  return process.geteuid?.() === 0;
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

function isAtLeast(found: string, oldest: { major: number; minor: number }): boolean {
  const [major = 0, minor = 0] = found.split(".").map((part) => Number.parseInt(part, 10));
  return major > oldest.major || (major === oldest.major && minor >= oldest.minor);
}

function version({ major, minor }: { major: number; minor: number }): string {
  return `${major}.${minor}`;
}

function firstLine(text: string): string {
  return text.split("\n", 1)[0]?.trim() ?? "";
}

function errorCode(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : firstLine(String(error));
}
