// The suspended tier: `<images>/<container>/suspended/`, the one image that keeps the memory of a container that was stopped.
//
//   S1  It is restored at most once: whoever wants it renames it aside first, and of two exactly one finds it. A host that dies
//       between that and the restore loses it: the container then begins from its golden image.
//   S2  It is of the last run or is not used: whoever starts the container takes it out of the way first, and `.ran` holds the epoch
//       of the newest run, so that a host that was superseded and did not know publishes nothing that counts.
//   S3  It holds what users did. Retention never keeps two, and it goes with its container's specification.
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Image, SkippedImage } from "../../actors/ports/image-store.js";
import { directoriesIn, nameBeside, readImage, sync } from "./image-directory.js";
import { codeOf } from "./reference.js";

export const suspendedName = "suspended";
export const ranName = ".ran";

/** The epoch of the newest run that is known. */
export async function lastRun(home: string): Promise<number> {
  const text = await readFile(join(home, ranName), "utf8").catch((error: unknown) => {
    if (codeOf(error) === "ENOENT") return "0";
    throw error;
  });
  return Number.parseInt(text, 10) || 0;
}

/** It stays where it is. @returns undefined: there is none */
export async function readSuspended(home: string, container: string): Promise<Image | SkippedImage | undefined> {
  if (!(await directoriesIn(home)).includes(suspendedName)) return undefined;
  const image = await readImage(join(home, suspendedName), container, undefined);
  const epoch = await lastRun(home);
  if (typeof image === "string") return { container, epoch, tier: "suspended", reason: image };
  if (image.manifest.epoch >= epoch) return image;
  const reason = `the container has run since, at epoch ${epoch}`;
  return { container, epoch: image.manifest.epoch, tier: "suspended", reason };
}

/** On the way to a run: it costs one small file, which is not synced, since what it guards against is another host. */
export async function noteRun(home: string, epoch: number): Promise<void> {
  await mkdir(home, { recursive: true, mode: 0o700 });
  const draft = join(home, `${nameBeside("draft", epoch)}.ran`);
  try {
    await writeFile(draft, `${epoch}\n`, { mode: 0o600 });
    await rename(draft, join(home, ranName));
  } catch (error) {
    await rm(draft, { force: true }).catch(() => {});
    throw error;
  }
}

/** S1. @returns where it is now; undefined: there is none */
export async function takeAside(home: string, epoch: number): Promise<string | undefined> {
  const taken = join(home, nameBeside("taken", epoch));
  try {
    await rename(join(home, suspendedName), taken);
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
  return taken;
}

/** In the place of one that nobody took. @returns its directory */
export async function putSuspended(home: string, draft: string, epoch: number): Promise<string> {
  const old = await takeAside(home, epoch);
  const directory = join(home, suspendedName);
  await rename(draft, directory);
  await sync(home);
  if (old !== undefined) await rm(old, { recursive: true, force: true });
  return directory;
}
