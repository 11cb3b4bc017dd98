// A container's root file system: an overlay of a layer of its own, on a tmpfs of bounded size, above the lower directory
// that the specification names.
//
//   F1  What the container writes stays in its upper layer; the image of a checkpoint carries that layer with it.
//   F2  With `host` as lower directory the container sees the packages of the machine, and none of its secrets, users' files or
//       state (base-layer.ts).
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { HakobuError } from "../../../actors/hakobu-error.js";
import type { ContainerSpec } from "../../../actors/ports/spec.js";
import { runCommand } from "../command.js";
import type { Names } from "./names.js";

const commandLimitMs = 30_000;

/** Names of an image's parts, beside CRIU's own files. */
export const upperArchive = "upper.tar";
export const shmArchive = "shm.tar";

/** On the path of a relocation: one shell, two `mount`, and a `tar` for each archive of the image. */
export async function mountRootfs(
  names: Names,
  spec: ContainerSpec,
  base: string,
  archives: { readonly upper?: string; readonly shm?: string },
  signal: AbortSignal,
): Promise<void> {
  const lower = spec.rootfs === "host" ? "/" : spec.rootfs;
  if (/[,:\\\s]/.test(`${lower}${names.layer}`))
    throw new HakobuError(
      "START_FAILED",
      `${lower}, ${names.layer}: overlayfs takes no comma, colon, backslash or space`,
    );
  for (const directory of [names.layer, names.root]) mkdirSync(directory, { recursive: true, mode: 0o700 });
  const script = `set -e
mount -t tmpfs -o size="$1"m,mode=755,nosuid hakobu "$2"
mkdir "$2/upper" "$2/work" "$2/shm"
chmod 1777 "$2/shm"
unpack() { tar -xpf "$1" --numeric-owner --xattrs "--xattrs-include=*" -C "$2"; }
[ -z "$5" ] || unpack "$5" "$2/upper"
[ -z "$6" ] || unpack "$6" "$2/shm"
exec mount -t overlay -o lowerdir="$4",upperdir="$2/upper",workdir="$2/work" hakobu "$3"`;
  await runCommand(
    [
      "/bin/sh",
      "-c",
      script,
      "sh",
      String(spec.limits.memoryMiB),
      names.layer,
      names.root,
      `${base}:${lower}`,
      archives.upper ?? "",
      archives.shm ?? "",
    ],
    {
      failure: "START_FAILED",
      title: `the root file system of ${names.container}`,
      timeoutMs: commandLimitMs,
      signal,
    },
  ).catch(async (error: unknown) => {
    for (const archive of Object.values(archives)) await checkArchive(archive);
    throw error;
  });
}

/** @throws HakobuError RESTORE_FAILED: then it is the image that is bad, and not this machine */
async function checkArchive(path: string): Promise<void> {
  await runCommand(["/bin/sh", "-c", 'exec tar -tf "$1" >/dev/null', "sh", path], {
    failure: "RESTORE_FAILED",
    title: `reading ${path}`,
    timeoutMs: commandLimitMs,
  });
}

/**
 * The shell command that writes both archives into `directory`. CRIU runs it while the container is frozen. Where the layer
 * came from is left out: that names files of this machine.
 */
export function archiveCommand(names: Names, directory: string): string {
  const pack = (from: string, name: string): string =>
    `tar -cf ${quote(join(directory, name))} --numeric-owner --xattrs '--xattrs-include=*' ` +
    `'--xattrs-exclude=trusted.overlay.origin' '--xattrs-exclude=trusted.overlay.impure' -C ${quote(from)} .`;
  const shmUsed = `[ -z "$(ls -A ${quote(names.shm)})" ]`;
  return `${pack(names.upper, upperArchive)} && { ${shmUsed} || ${pack(names.shm, shmArchive)}; }`;
}

export function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Idempotent. Processes that still use it would be a mistake of the caller: the unmount is not lazy. */
export async function unmountRootfs(names: Names): Promise<void> {
  const mounted = mountsBelow(names.directory);
  if (mounted.length > 0)
    await runCommand(["umount", "--no-canonicalize", ...mounted.reverse()], {
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
