// A container's root file system: an overlay of a layer of its own, on a tmpfs of bounded size, above the lower directory
// that the specification names.
//
//   F1  What the container writes stays in its upper layer; the image of a checkpoint carries that layer with it.
//   F2  With `host` as lower directory the container sees the packages of the machine, and none of its secrets, users' files or
//       state (base-layer.ts).
import {
  createReadStream,
  lstatSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statfsSync,
  statSync,
} from "node:fs";
import { join } from "node:path";
import { Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { HakobuError, reasonOf } from "../../../actors/hakobu-error.js";
import type { ContainerSpec } from "../../../actors/ports/spec.js";
import { runCommand } from "../command.js";
import { isTroubleHere } from "../criu-images.js";
import type { Names } from "./names.js";

const commandLimitMs = 30_000;
const unpackLimitMsPerMiB = 20;
/** Without them CRIU cannot image an inotify watch: it asks for the watched inode's file handle. */
const overlayOptions = "index=on,nfs_export=on";
/** As path_resolution(7). */
const maximumLinks = 40;

/** The part of an image that holds what the container wrote: its upper layer and its /dev/shm. */
export const layerArchive = "layer.tar";

/** On the path of a relocation: one shell, two `mount` and a `tar`. `archive`: from the image; absent: an empty layer. */
export async function mountRootfs(
  names: Names,
  spec: ContainerSpec,
  base: string,
  archive: string | undefined,
  signal: AbortSignal,
): Promise<void> {
  const lower = spec.rootfs === "host" ? "/" : spec.rootfs;
  if (/[,:\\\s]/.test(`${lower}${names.layer}`))
    throw new HakobuError(
      "START_FAILED",
      `${lower}, ${names.layer}: overlayfs takes no comma, colon, backslash or space in these paths`,
    );
  for (const directory of [names.layer, names.root]) mkdirSync(directory, { recursive: true, mode: 0o700 });
  const script = `set -e
mount -t tmpfs -o "size=$1m,mode=755,nosuid" hakobu "$2"
if [ -n "$5" ]; then
  tar -xpf "$5" --numeric-owner --xattrs "--xattrs-include=*" -C "$2"
else
  mkdir "$2/upper" "$2/work"
  mkdir -m 1777 "$2/shm"
fi
exec mount -t overlay -o "$6,lowerdir=$4,upperdir=$2/upper,workdir=$2/work" hakobu "$3"`;
  const size = String(spec.limits.memoryMiB);
  const args = [size, names.layer, names.root, `${base}:${lower}`, archive ?? "", overlayOptions];
  try {
    await runCommand(["/bin/sh", "-c", script, "sh", ...args], {
      failure: "START_FAILED",
      title: `the root file system of ${names.container}`,
      timeoutMs: commandLimitMs + (archive === undefined ? 0 : mebibytesOf(archive) * unpackLimitMsPerMiB),
      signal,
    });
  } catch (error) {
    const failed = error instanceof HakobuError && error.code === "START_FAILED";
    if (archive !== undefined && failed) await checkArchive(archive);
    throw error;
  }
}

function mebibytesOf(archive: string): number {
  return (statSync(archive, { throwIfNoEntry: false })?.size ?? 0) / 1024 / 1024;
}

/** @throws HakobuError RESTORE_FAILED: then it is the image that is bad, and not this machine, which has read all of it */
async function checkArchive(path: string): Promise<void> {
  try {
    await pipeline(createReadStream(path), new Writable({ write: (_chunk, _encoding, next) => next() }));
  } catch (error) {
    if (isTroubleHere(error))
      throw new HakobuError("UNAVAILABLE", `reading ${path}: ${reasonOf(error)}`, { cause: error });
  }
  await runCommand(["/bin/sh", "-c", 'exec tar -tf "$1" >/dev/null', "sh", path], {
    failure: "RESTORE_FAILED",
    title: `reading ${path}`,
    timeoutMs: commandLimitMs,
  });
}

/**
 * The shell command that writes the archive into `directory`. CRIU runs it while the container is frozen. What overlayfs notes
 * about where files came from is left out: it names inodes of this machine, and a later mount elsewhere would refuse it.
 */
export function archiveCommand(names: Names, directory: string): string {
  const overlay = ["impure", "nlink", "origin", "upper", "uuid"]
    .map((name) => `'--xattrs-exclude=trusted.overlay.${name}'`)
    .join(" ");
  return (
    `exec tar -cf ${quote(join(directory, layerArchive))} --numeric-owner --xattrs '--xattrs-include=*' ${overlay} ` +
    `-C ${quote(names.layer)} '--exclude=work/*' upper work shm`
  );
}

export function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Lets the writable layer grow with the memory that it is charged to; it never shrinks, for it may be full. */
export async function growRootfs(names: Names, limits: ContainerSpec["limits"]): Promise<void> {
  const { blocks, bsize } = statfsSync(names.layer);
  if (blocks * bsize >= limits.memoryMiB * 1024 * 1024) return;
  await runCommand(["mount", "-o", `remount,size=${limits.memoryMiB}m`, names.layer], {
    failure: "CONFIG_INVALID",
    title: `the writable layer of ${names.container}`,
    timeoutMs: commandLimitMs,
  });
}

/**
 * Idempotent. Lazily: no process of the container is left, and whoever else is looking in (a search, a backup) neither holds its end
 * up nor loses what is open.
 */
export async function unmountRootfs(names: Names): Promise<void> {
  const mounted = mountsBelow(names.directory);
  if (mounted.length > 0)
    await runCommand(["umount", "--lazy", "--no-canonicalize", ...mounted.toReversed()], {
      failure: "STOP_FAILED",
      title: `unmounting the root file system of ${names.container}`,
      timeoutMs: commandLimitMs,
    });
  for (const directory of [names.root, names.layer]) rmSync(directory, { recursive: true, force: true });
}

/** In the order in which they were mounted. */
export function mountsBelow(directory: string): string[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) =>
      (line.split(" ", 5)[4] ?? "").replace(/\\([0-7]{3})/g, (_, octal: string) =>
        String.fromCharCode(Number.parseInt(octal, 8)),
      ),
    )
    .filter((point) => point.startsWith(`${directory}/`));
}

/** Where a path leads in a root file system: symbolic links are followed as its own processes would. Links without end: the path. */
export function resolveInside(root: string, path: string): string {
  const rest = path.split("/").filter(Boolean);
  let resolved = "";
  for (let links = 0; rest.length > 0; ) {
    const part = rest.shift() as string;
    if (part === "." || part === "..") {
      if (part === "..") resolved = resolved.slice(0, Math.max(0, resolved.lastIndexOf("/")));
      continue;
    }
    const stats = lstatSync(join(root, resolved, part), { throwIfNoEntry: false });
    if (stats === undefined || !stats.isSymbolicLink()) {
      resolved += `/${part}`;
      continue;
    }
    if (++links > maximumLinks) return path;
    const target = readlinkSync(join(root, resolved, part));
    if (target.startsWith("/")) resolved = "";
    rest.unshift(...target.split("/").filter(Boolean));
  }
  return resolved === "" ? "/" : resolved;
}
