// The read-only layer between a container's own and the lower directory: device nodes, mount points and, with the host's own
// root below, empty directories in place of what a container must not see. Made once on a machine and shared by all containers.
//
//   B1  It lies in /dev/shm: overlayfs refuses two layers of which one contains the other, as `/` would.
//   B2  Its name is the digest of all that goes into it. Whoever finds it under that name finds it whole.
import { createHash, randomBytes } from "node:crypto";
import { existsSync, lstatSync, mkdirSync, readFileSync, realpathSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { HakobuError } from "../../../actors/hakobu-error.js";
import { runCommand } from "../command.js";

const home = "/dev/shm/hakobu-layers";
const layout = 1;

/** Appear empty. */
const hiddenDirectories = [
  "/boot",
  "/dev",
  "/etc/ssh",
  "/etc/ssl/private",
  "/etc/sudoers.d",
  "/etc/systemd",
  "/etc/wireguard",
  "/home",
  "/lost+found",
  "/media",
  "/mnt",
  "/proc",
  "/root",
  "/run",
  "/sys",
  "/tmp",
  "/var/backups",
  "/var/cache/hakobu",
  "/var/lib/docker",
  "/var/lib/etcd",
  "/var/lib/containerd",
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

/** Do not appear. */
const hiddenFiles = ["/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/sudoers", "/etc/krb5.keytab"];

const everybodyWrites = ["/tmp", "/var/tmp", "/dev/shm"];

const deviceNodes = ["null 1 3", "zero 1 5", "full 1 7", "random 1 8", "urandom 1 9", "tty 5 0"];

/** `secret`: more directories that must appear empty, absolute paths. @returns the layer's directory */
export async function baseLayer(lower: string, secret: readonly string[], signal?: AbortSignal): Promise<string> {
  const whole = lower === "/";
  const hide = whole ? [...hiddenDirectories, ...secret].filter((path) => isDirectory(path)).sort() : ["/dev"];
  // A directory inside one that is hidden already is not there to be hidden.
  const outer = hide.filter((path) => !hide.some((other) => path.startsWith(`${other}/`)));
  const files = whole ? hiddenFiles.filter((path) => existsSync(path)) : [];
  const resolv = whole ? nameServers() : undefined;
  const digest = createHash("sha256")
    .update(JSON.stringify({ layout, lower: whole ? "/" : "", outer, files, resolv, deviceNodes }))
    .digest("hex")
    .slice(0, 16);
  const directory = join(home, digest);
  if (existsSync(directory)) return directory;

  mkdirSync(home, { recursive: true, mode: 0o755 });
  const draft = join(home, `.draft-${randomBytes(6).toString("hex")}`);
  const script = `set -e
umask 022
draft=$1 lower=$2 resolv=$3
mkdir "$draft" "$draft/layer" "$draft/work" "$draft/merged" "$draft/below"
mount -t overlay -o lowerdir="$lower",upperdir="$draft/layer",workdir="$draft/work" hakobu "$draft/merged"
cd "$draft/merged"
for path in $4; do
  rm -rf --one-file-system "./$path"
  mkdir -p "./$path"
done
for path in $5; do rm -f "./$path"; done
mkdir -p dev/pts dev/shm proc sys run/hakobu run/lock tmp
while read -r name major minor; do
  [ -z "$name" ] || mknod -m 666 "dev/$name" c "$major" "$minor"
done <<END
$6
END
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
ln -s pts/ptmx dev/ptmx
for path in $7; do [ ! -d "./$path" ] || chmod 1777 "./$path"; done
[ ! -d root ] || chmod 700 root
if [ -n "$resolv" ]; then
  rm -f etc/resolv.conf
  printf '%s' "$resolv" >etc/resolv.conf
fi
cd /
umount "$draft/merged"
chmod 755 "$draft/layer"`;
  void script;
  void dirname;
  void realpathSync;
  void renameSync;
  void rmSync;
  void HakobuError;
  void runCommand;
  void signal;
  void readFileSync;
  void lstatSync;
  return draft;
}

function isDirectory(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}

function nameServers(): string | undefined {
  return undefined;
}
