// The read-only layer between a container's own and the lower directory: device nodes, mount points and, with the host's own
// root below, empty directories in place of what a container must not see. Made once on a machine, shared by all containers.
//
//   B1  It lies in /dev/shm: overlayfs refuses two layers of which one contains the other, as `/` would.
//   B2  Its name is the digest of all that goes into it. Whoever finds it under that name finds it whole.
import { createHash, randomBytes } from "node:crypto";
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { runCommand } from "../command.js";
import { ownDirectory } from "../own-directory.js";

const home = "/dev/shm/hakobu-layers";
/** Part of the digest: counts changes of this file that no other part of it shows. */
const layout = 1;
const commandLimitMs = 10_000;

/** Of the host's root. They appear empty, with the owner and mode that they have. */
const hiddenDirectories = [
  "/boot",
  "/etc/ssh",
  "/etc/ssl/private",
  "/etc/sudoers.d",
  "/etc/wireguard",
  "/home",
  "/lost+found",
  "/media",
  "/mnt",
  "/root",
  "/run",
  "/tmp",
  "/var/backups",
  "/var/cache/hakobu",
  "/var/lib/containerd",
  "/var/lib/docker",
  "/var/lib/etcd",
  "/var/lib/hakobu",
  "/var/lib/kubelet",
  "/var/lib/mysql",
  "/var/lib/postgresql",
  "/var/lib/private",
  "/var/log",
  "/var/mail",
  "/var/spool",
  "/var/tmp",
];

/** Of those, the ones whose own directories stay, empty: packages expect to find theirs. */
const keptFrame = ["/var/log", "/var/spool"];

const hiddenFiles = [
  "/etc/gshadow",
  "/etc/gshadow-",
  "/etc/krb5.keytab",
  "/etc/shadow",
  "/etc/shadow-",
  "/etc/sudoers",
];

const deviceNodes = ["null c 1 3", "zero c 1 5", "full c 1 7", "random c 1 8", "urandom c 1 9", "tty c 5 0"];

const deviceLinks = {
  fd: "/proc/self/fd",
  stdin: "/proc/self/fd/0",
  stdout: "/proc/self/fd/1",
  stderr: "/proc/self/fd/2",
  ptmx: "pts/ptmx",
};

interface Directory {
  readonly path: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

interface Plan {
  /** Directories of the lower one that lead to something hidden, outermost first. */
  readonly parents: readonly Directory[];
  /** Nothing of the lower one shows through. */
  readonly empty: readonly Directory[];
  /** Inside of those. */
  readonly frame: readonly Directory[];
  readonly absent: readonly string[];
  readonly resolvConf: string | undefined;
}

/**
 * `lower`: `/` or a root file system's directory. `secret`: more that must appear empty, absolute paths; of `/` only.
 * @returns the layer's directory
 */
export async function baseLayer(lower: string, secret: readonly string[]): Promise<string> {
  const plan = planOf(lower, secret);
  const digest = createHash("sha256").update(JSON.stringify({ layout, plan, deviceNodes, deviceLinks })).digest("hex");
  ownDirectory(home);
  const layer = join(home, digest.slice(0, 16));
  if (existsSync(layer)) return layer;

  const draft = join(home, `.draft-${randomBytes(6).toString("hex")}`);
  const made = join(draft, "layer");
  const merged = join(draft, "merged");
  const options = {
    failure: "START_FAILED",
    title: "the base layer of root file systems",
    timeoutMs: commandLimitMs,
  } as const;
  const run = (script: string, args: readonly string[]): Promise<string> =>
    runCommand(["/bin/sh", "-ec", script, "sh", draft, ...args], {
      ...options,
    });
  for (const name of ["layer", "work", "merged"]) mkdirSync(join(draft, name), { recursive: true, mode: 0o755 });
  try {
    for (const each of plan.parents) makeDirectory(made, each);
    const whiteouts = [...plan.empty.map(({ path }) => path), ...plan.absent];
    // A character device 0:0 hides what is below it; a directory made in its place through the overlay is made opaque.
    await run(
      `draft=$1; lower=$2; shift 2
for path; do mknod "$draft/layer$path" c 0 0; done
mount -t overlay -o "lowerdir=$lower,upperdir=$draft/layer,workdir=$draft/work" hakobu "$draft/merged"`,
      [lower, ...whiteouts],
    );
    try {
      for (const each of [...plan.empty, ...plan.frame]) makeDirectory(merged, each);
      for (const path of ["dev/pts", "dev/shm", "proc", "run/hakobu", "run/lock", "sys", "tmp"])
        mkdirSync(join(merged, path), { recursive: true, mode: 0o755 });
      for (const path of ["tmp", "dev/shm", "run/lock"]) chmodSync(join(merged, path), 0o1777);
      if (plan.resolvConf !== undefined && existsSync(join(merged, "etc"))) {
        rmSync(join(merged, "etc/resolv.conf"), { force: true });
        writeFileSync(join(merged, "etc/resolv.conf"), plan.resolvConf, { mode: 0o644 });
      }
      const nodes = deviceNodes.map((node) => `mknod -m 666 ${node}`);
      const links = Object.entries(deviceLinks).map(([name, target]) => `ln -s ${target} ${name}`);
      await run(`cd "$1/merged/dev"\n${[...nodes, ...links].join("\n")}`, []);
    } finally {
      await runCommand(["umount", "--lazy", merged], options);
    }
    try {
      renameSync(made, layer);
    } catch (error) {
      // Another agent was quicker.
      if (!existsSync(layer)) throw error;
    }
    return layer;
  } finally {
    rmSync(draft, { recursive: true, force: true });
  }
}

function planOf(lower: string, secret: readonly string[]): Plan {
  const resolvConf = nameServers();
  const device = { path: "/dev", mode: 0o755, uid: 0, gid: 0 };
  if (lower !== "/") {
    const exists = directoryAt(join(lower, "dev")) !== undefined;
    return { parents: [], empty: exists ? [device] : [], frame: [], absent: [], resolvConf };
  }
  const hidden = [...new Set([...hiddenDirectories, ...secret])].sort();
  const empty = hidden
    // What is inside a hidden directory needs no hiding.
    .filter((path) => !hidden.some((other) => path.startsWith(`${other}/`)))
    .map(directoryAt)
    .filter((each) => each !== undefined);
  const absent = hiddenFiles.filter((path) => lstatSync(path, { throwIfNoEntry: false })?.isFile());
  const parents = [...new Set([...empty.map(({ path }) => path), ...absent].flatMap(ancestors))].sort();
  return {
    parents: parents.map(directoryAt).filter((each) => each !== undefined),
    empty: [device, ...empty],
    frame: keptFrame.flatMap((path) => (directoryAt(path) === undefined ? [] : subdirectories(path))),
    absent,
    resolvConf,
  };
}

/** Without the root itself. */
function ancestors(path: string): string[] {
  const parent = dirname(path);
  return parent === "/" ? [] : [...ancestors(parent), parent];
}

function directoryAt(path: string): Directory | undefined {
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats === undefined || !stats.isDirectory()) return undefined;
  return { path, mode: stats.mode & 0o7777, uid: stats.uid, gid: stats.gid };
}

function subdirectories(path: string): Directory[] {
  return readdirSync(path)
    .sort()
    .map((name) => directoryAt(join(path, name)))
    .filter((each) => each !== undefined);
}

function makeDirectory(root: string, { path, mode, uid, gid }: Directory): void {
  const target = join(root, path);
  mkdirSync(target, { recursive: true });
  chownSync(target, uid, gid);
  chmodSync(target, mode);
}

/** The machine's, where a container can reach them: a resolver on the host's loopback gives way to the ones behind it. */
function nameServers(): string | undefined {
  for (const path of ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]) {
    try {
      const text = readFileSync(path, "utf8");
      if (/^nameserver\s+(?!127\.|::1)/m.test(text)) return text;
    } catch {
      // Not there: the next.
    }
  }
  return undefined;
}
