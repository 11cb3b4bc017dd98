// What both engines that use CRIU do with its files: where they lie in an image, their sizes, and what its logs say.
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import { lastLines } from "./command.js";

/** The sizes of CRIU's files: it reads for ever from a file of pages that was cut off. */
const sizesName = "sizes.json";

/** The part of an image's directory that is CRIU's. */
export function criuDirectory(directory: string): string {
  return join(directory, "criu");
}

export function sizesOf(directory: string): Readonly<Record<string, number>> {
  const criu = criuDirectory(directory);
  return Object.fromEntries(readdirSync(criu).map((name) => [name, statSync(join(criu, name)).size]));
}

/** After a dump. */
export function noteSizes(directory: string): void {
  writeFileSync(join(directory, sizesName), JSON.stringify(sizesOf(directory)));
}

/**
 * Before a restore. @returns the bytes of CRIU's files
 * @throws HakobuError RESTORE_FAILED where they are not those that the dump wrote; UNAVAILABLE where that cannot be known here
 */
export function checkSizes(container: string, directory: string): number {
  const refuse = (why: string): never => {
    throw new HakobuError("RESTORE_FAILED", `the restore of ${container} failed: its image ${why}`);
  };
  let wanted: Readonly<Record<string, number>> = {};
  let found: Readonly<Record<string, number>> = {};
  try {
    wanted = JSON.parse(readFileSync(join(directory, sizesName), "utf8")) as Record<string, number>;
    found = sizesOf(directory);
  } catch (error) {
    const why = `the restore of ${container} failed: its image cannot be read: ${reasonOf(error)}`;
    throw new HakobuError(isTroubleHere(error) ? "UNAVAILABLE" : "RESTORE_FAILED", why, { cause: error });
  }
  for (const [name, bytes] of Object.entries(wanted))
    if (found[name] !== bytes) refuse(`has ${found[name] ?? "no"} bytes of ${name} instead of ${bytes}`);
  return Object.values(wanted).reduce((sum, bytes) => sum + bytes, 0);
}

/** Why a dump failed, in CRIU's words and those of who called it; first what to do, where no room is left. */
export function whyNoDump(log: string, error: unknown): string {
  const said = `${lastErrorsIn(log)} (${reasonOf(error)})`;
  const full = /No space left on device|Disk quota exceeded/.test(said);
  return full ? `no room is left: free some, or set images.quota: ${said}` : said;
}

/** Whether what reading an image threw tells of this host or its file server (EIO, ESTALE, EMFILE), and not of the image. */
export function isTroubleHere(error: unknown): boolean {
  if (error instanceof HakobuError) return false;
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return typeof code === "string" && code !== "ENOENT" && code !== "ENOTDIR" && code !== "EISDIR";
}

/** What CRIU says last in a log; a line that it writes on every machine without CAP_SYS_RESOURCE is left out. */
export function lastErrorsIn(log: string): string {
  try {
    const errors = readFileSync(log, "utf8")
      .split("\n")
      .filter((line) => line.includes("Error") && !line.includes("Can't setup RLIMIT_NOFILE"));
    return errors.length === 0 ? "CRIU's log says nothing" : lastLines(errors.join("\n"), 4);
  } catch {
    return "CRIU wrote no log";
  }
}
