// An image directory as this engine writes it: CRIU's files in `criu/`, their sizes, and the archive of the container's files.
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { HakobuError, reasonOf } from "../../../actors/hakobu-error.js";
import { layerArchive } from "../runc/rootfs.js";

const sizesName = "sizes.json";

export function criuDirectory(directory: string): string {
  return join(directory, "criu");
}

/** After a dump. @throws HakobuError CHECKPOINT_FAILED when it is not whole */
export function sealImage(container: string, directory: string): void {
  rmSync(join(criuDirectory(directory), "dump.log"), { force: true });
  const sizes = sizesOf(directory);
  if (!existsSync(join(directory, layerArchive)) || sizes["inventory.img"] === undefined)
    throw new HakobuError(
      "CHECKPOINT_FAILED",
      `the checkpoint of ${container} is not whole: criu service must run with the configuration of this engine`,
    );
  writeFileSync(join(directory, sizesName), JSON.stringify(sizes));
}

/** @returns the bytes of CRIU's files. @throws HakobuError RESTORE_FAILED where they differ: CRIU reads for ever from pages cut off */
export function checkImage(container: string, directory: string): number {
  const refuse = (why: string): never => {
    throw new HakobuError("RESTORE_FAILED", `the restore of ${container} failed: its image ${why}`);
  };
  let wanted: Readonly<Record<string, number>> = {};
  let found: Readonly<Record<string, number>> = {};
  try {
    wanted = JSON.parse(readFileSync(join(directory, sizesName), "utf8")) as Record<string, number>;
    found = sizesOf(directory);
  } catch (error) {
    refuse(`cannot be read: ${reasonOf(error)}`);
  }
  for (const [name, bytes] of Object.entries(wanted))
    if (found[name] !== bytes) refuse(`has ${found[name] ?? "no"} bytes of ${name} instead of ${bytes}`);
  return Object.values(wanted).reduce((sum, bytes) => sum + bytes, 0);
}

/** What CRIU says last in a log; a line that it writes on every machine without CAP_SYS_RESOURCE is left out. */
export function lastErrorsIn(log: string): string {
  try {
    const errors = readFileSync(log, "utf8")
      .split("\n")
      .filter((line) => line.includes("Error") && !line.includes("Can't setup RLIMIT_NOFILE"));
    return errors.length === 0 ? "CRIU's log says nothing" : errors.slice(-4).join("\n");
  } catch {
    return "CRIU wrote no log";
  }
}

function sizesOf(directory: string): Record<string, number> {
  const criu = criuDirectory(directory);
  return Object.fromEntries(readdirSync(criu).map((name) => [name, statSync(join(criu, name)).size]));
}
