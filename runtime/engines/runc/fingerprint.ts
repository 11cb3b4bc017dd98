// What an image taken on this host needs where it is restored.
import { createHash } from "node:crypto";
import { lstatSync, readFileSync } from "node:fs";
import { arch, release } from "node:os";
import { join } from "node:path";
import type { Criu } from "./criu.js";

/** The parts that do not depend on the root file system. */
export function machineFingerprint(criu: Criu): Readonly<Record<string, string>> {
  return { arch: arch(), kernel: release(), cpu: digest(cpuFlags()), criu: criu.digest };
}

/**
 * `host`: digest of the list of installed packages and of the release. A directory: its path with the digest of the same files
 * in it, and of the times at which its top directories changed: a root file system that is exchanged is noticed, a file that
 * is edited deep inside is not (CRIU then compares size and build id of each file that the image maps, and refuses).
 */
export function rootfsFingerprint(rootfs: string): string {
  const root = rootfs === "host" ? "/" : rootfs;
  const parts = ["var/lib/dpkg/status", "etc/os-release", "lib/apk/db/installed"].map((file) => read(join(root, file)));
  if (rootfs !== "host")
    for (const name of ["", "bin", "etc", "lib", "usr", "usr/bin", "usr/lib", "app", "srv"])
      parts.push(String(lstatSync(join(root, name), { throwIfNoEntry: false })?.mtimeMs ?? "-"));
  return `${rootfs}:${digest(parts.join("\0"))}`;
}

function cpuFlags(): string {
  const cpuinfo = read("/proc/cpuinfo");
  const line = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(cpuinfo)?.[1] ?? "";
  const vendor = /^(?:vendor_id|CPU implementer)\s*:\s*(.*)$/m.exec(cpuinfo)?.[1] ?? "";
  return `${vendor} ${line.split(" ").sort().join(" ")}`;
}

function read(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}

function digest(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 16);
}
