// What an image taken on this host needs where it is restored.
import { createHash } from "node:crypto";
import { lstatSync, readFileSync, statSync } from "node:fs";
import { arch, release } from "node:os";
import { join } from "node:path";
import type { Criu } from "./criu.js";

/** The parts that do not depend on the root file system. */
export function machineFingerprint(criu: Criu): Readonly<Record<string, string>> {
  return { arch: arch(), kernel: release(), cpu: cpuFeatures(), criu: criu.digest };
}

/**
 * `host`: digest of the list of installed packages and of the release. A directory: its path with the digest of the same files
 * in it, and of the times at which its top directories changed: a root file system that is exchanged is noticed, a file that
 * is edited deep inside is not (CRIU then compares size and build id of each file that the image maps, and refuses).
 */
export function rootfsFingerprint(rootfs: string): string {
  const parts = lists.map((file) => read(join(rootOf(rootfs), file)));
  return `${rootfs}:${digest([...parts, ...timesOf(rootfs)].join("\0"))}`;
}

/** Changes whenever the fingerprint does, and costs a few stat(2): for those that look often. */
export function rootfsSignature(rootfs: string): string {
  const stats = lists.map((file) => statSync(join(rootOf(rootfs), file), { throwIfNoEntry: false }));
  const written = stats.map((each) => (each === undefined ? "-" : `${each.ino} ${each.size} ${each.mtimeMs}`));
  return [...written, ...timesOf(rootfs)].join("\0");
}

/** Where packages are listed. */
const lists = ["var/lib/dpkg/status", "etc/os-release", "lib/apk/db/installed"];
const topDirectories = ["", "bin", "etc", "lib", "usr", "usr/bin", "usr/lib", "app", "srv"];

function rootOf(rootfs: string): string {
  return rootfs === "host" ? "/" : rootfs;
}

function timesOf(rootfs: string): string[] {
  if (rootfs === "host") return [];
  return topDirectories.map((name) => String(lstatSync(join(rootfs, name), { throwIfNoEntry: false })?.mtimeMs ?? "-"));
}

/** As images/cpu-features.ts reads them. */
function cpuFeatures(): string {
  const cpuinfo = read("/proc/cpuinfo");
  const line = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(cpuinfo)?.[1] ?? "";
  const vendor = /^(?:vendor_id|CPU implementer)\s*:\s*(.*)$/m.exec(cpuinfo)?.[1] ?? "unknown";
  return [vendor, ...line.split(" ").sort()].join(" ").trim();
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
