// Where the CRIU binary of this machine is. The engine and `hakobu doctor` both ask here, so that they never judge one
// binary and run another.

import { accessSync, constants, statSync } from "node:fs";
import { delimiter, join, resolve } from "node:path";

/** The one that etc/setup.sh builds where the distribution's does not work. */
const BUILT_BY_SETUP = "/usr/local/lib/hakobu/criu";

/** System programs (runc, nft, criu) live here, and the PATH of an ordinary Debian user leaves these folders out. */
const SYSTEM_FOLDERS = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/**
 * The first of: `HAKOBU_CRIU`, the one that setup built, `criu` on the PATH. A `HAKOBU_CRIU` that cannot be executed gives
 * undefined, not the next one: who names a binary wants that one.
 */
export function findCriu(env: NodeJS.ProcessEnv = process.env): string | undefined {
  if (env.HAKOBU_CRIU) return findProgram(env.HAKOBU_CRIU, env);
  return findProgram(BUILT_BY_SETUP, env) ?? findProgram("criu", env);
}

/** The full path of a program: a name is looked up on the PATH and in the system folders, a path is taken as it is. */
export function findProgram(name: string, env: NodeJS.ProcessEnv = process.env): string | undefined {
  if (name.includes("/")) return isExecutable(name) ? resolve(name) : undefined;
  const folders = (env.PATH ?? "").split(delimiter).filter((folder) => folder !== "");
  return [...folders, ...SYSTEM_FOLDERS].map((folder) => join(folder, name)).find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}
