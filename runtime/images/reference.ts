// Who reads an image: `<image>/.in-use/<host>-<pid>-<random>`, one small file for each restore that is under way, on any host.
//
//   R1  To take a reference is to make a file in `.in-use`; to close an image is to remove the empty directory `.in-use`. The file
//       server does each as one step, so that of a reader and a collector exactly one has its way, without a lock.
//   R2  A closed image is never opened again. The collector that closed it, or the next one, removes it.
//   R3  A reference that nobody has refreshed for 10 minutes is one of a dead host and does not count. Ages are measured by the
//       clock of the file server, since hosts write the file to refresh it.
import { randomBytes } from "node:crypto";
import { mkdir, readdir, rmdir, rm, stat, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";

export const referencesName = ".in-use";
const refreshEveryMs = 2 * 60 * 1000;
const staleAfterMs = 10 * 60 * 1000;

/** In a draft, before it is published. */
export async function openToReaders(image: string): Promise<void> {
  await mkdir(join(image, referencesName), { mode: 0o700 });
}

/** @returns what gives the reference back; undefined: the image is closed or gone. A full or read-only disk does not hinder a reader. */
export async function takeReference(image: string): Promise<(() => Promise<void>) | undefined> {
  const path = join(image, referencesName, uniqueName());
  const write = (): Promise<void> => writeFile(path, "restore\n", { mode: 0o600 });
  try {
    await write();
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
  }
  const timer = setInterval(() => void write().catch(() => {}), refreshEveryMs).unref();
  return async () => {
    clearInterval(timer);
    // What is left of it turns stale.
    await rm(path, { force: true }).catch(() => {});
  };
}

/** Cloned hosts have the same name, and programs in containers the same pid. */
export function uniqueName(): string {
  return `${hostname().replaceAll("/", "_")}-${process.pid}-${randomBytes(6).toString("hex")}`;
}

/** @returns whether no reader has it or can open it any more (R1). Idempotent, also between hosts. */
export async function closeToReaders(image: string, nowMs: number): Promise<boolean> {
  const references = join(image, referencesName);
  try {
    for (const name of await readdir(references)) {
      const path = join(references, name);
      const stats = await stat(path).catch(() => undefined);
      if (stats !== undefined && nowMs - stats.mtimeMs > staleAfterMs) await rm(path, { force: true });
    }
    await rmdir(references);
    return true;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return true;
    if (codeOf(error) === "ENOTEMPTY" || codeOf(error) === "EEXIST") return false;
    throw error;
  }
}

export function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code;
}
