// Directories of the agent's own at well-known places where anybody may write (/dev/shm): whoever was there first could put what
// he likes into containers, or read what they hold.
import { chmodSync, lstatSync, mkdirSync } from "node:fs";
import { HakobuError } from "../../actors/hakobu-error.js";

/** For this user alone; made where it is not there. @throws HakobuError CONFIG_INVALID where others made it, or could write into it */
export function ownDirectory(path: string): void {
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
  const stats = lstatSync(path);
  const trouble = !stats.isDirectory()
    ? "is no directory"
    : stats.uid !== (process.getuid?.() ?? stats.uid)
      ? `belongs to user ${stats.uid}`
      : (stats.mode & 0o022) !== 0
        ? `can be written by others (mode ${(stats.mode & 0o777).toString(8)})`
        : undefined;
  if (trouble !== undefined)
    throw new HakobuError(
      "CONFIG_INVALID",
      `${path} ${trouble}: look who made it, remove it, and start the agent again`,
    );
  chmodSync(path, 0o700);
}
