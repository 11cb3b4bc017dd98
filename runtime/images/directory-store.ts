// Checkpoint images on a directory that all hosts share: <directory>/<container>/<epoch>/.
//
//   D1  Readers see a whole image or none: files are written in `.draft-<epoch>-<random>`, synced, the manifest last, then renamed.
//   D2  find() gives back only what was written for that specification and this machine, with every file there in its size; of
//       files below 1 MiB the digest is compared at each find, of the others by verify().
//   D3  A damaged image is skipped with the reason, never thrown about, and never removes a good one.
//   D4  Only the writer of a newer epoch removes an older image, and keeps the newest two good ones.
import { createHash, randomBytes } from "node:crypto";
import { constants, createReadStream } from "node:fs";
import { mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type {
  FoundImage,
  Image,
  ImageDraft,
  ImageStore,
  Manifest,
  SkippedImage,
} from "../../actors/ports/image-store.js";
import type { Log } from "../../actors/ports/log.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import { checkContainerName, isContainerName } from "../engines/instance-file.js";
import { parseManifest } from "./manifest.js";

const manifestName = "manifest.json";
const reasonName = "reason.txt";
/** Files up to this size are read whole at every find. */
const alwaysDigestedBytes = 1024 * 1024;
const keptGood = 2;
const draftLifeMs = 60 * 60 * 1000;

export interface DirectoryImageStoreOptions {
  readonly directory: string;
  readonly log: Log;
}

export class DirectoryImageStore implements ImageStore {
  readonly #directory: string;
  readonly #log: Log;

  constructor({ directory, log }: DirectoryImageStoreOptions) {
    this.#directory = directory;
    this.#log = log;
  }

  async find(record: SpecRecord, fingerprint: Readonly<Record<string, string>>): Promise<FoundImage> {
    const container = record.spec.name;
    const skipped: SkippedImage[] = [];
    for (const epoch of await this.#epochs(container)) {
      const directory = join(this.#of(container), String(epoch));
      const skip = (reason: string): void => void skipped.push({ container, epoch, reason });
      const image = await read(directory, container, epoch);
      if (typeof image === "string") skip(image);
      else if (image.manifest.specHash !== record.hash) skip("it was taken with another specification");
      else {
        const why = difference(image.manifest.fingerprint, fingerprint) ?? (await damage(image, alwaysDigestedBytes));
        if (why === undefined) return { image, skipped };
        skip(why);
      }
    }
    return { skipped };
  }

  async begin(container: string, epoch: number): Promise<ImageDraft> {
    if (!Number.isSafeInteger(epoch) || epoch < 0)
      throw new HakobuError("CONFIG_INVALID", `${epoch} is no epoch: a whole number from 0 on`);
    const home = this.#of(container);
    await mkdir(home, { recursive: true, mode: 0o700 });
    await this.#removeStaleDrafts(home);
    const directory = join(home, `.draft-${epoch}-${randomBytes(6).toString("hex")}`);
    await mkdir(directory, { mode: 0o700 });
    let published = false;
    return {
      directory,
      publish: async (manifest) => {
        if (manifest.container !== container || manifest.epoch !== epoch)
          throw new HakobuError("CONFIG_INVALID", "the manifest names another image than its draft was begun for");
        const image = await this.#publish(home, directory, manifest);
        published = true;
        await this.#removeOlder(container, epoch);
        return image;
      },
      discard: async () => {
        if (!published) await rm(directory, { recursive: true, force: true });
      },
    };
  }

  async setAside(image: Image, reason: string): Promise<void> {
    const { container, epoch } = image.manifest;
    const home = this.#of(container);
    const bad = join(home, `.bad-${epoch}`);
    await rm(bad, { recursive: true, force: true });
    try {
      await rename(join(home, String(epoch)), bad);
    } catch (error) {
      // Another host has set it aside already.
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
      throw error;
    }
    await writeFile(join(bad, reasonName), `${reason}\n`, { mode: 0o600 });
    await syncDirectory(home);
    this.#log.warn({ container, epoch, reason }, "image set aside");
  }

  async list(container?: string): Promise<readonly (Image | SkippedImage)[]> {
    const containers =
      container === undefined ? (await directoriesIn(this.#directory)).filter(isContainerName).sort() : [container];
    const all: (Image | SkippedImage)[] = [];
    for (const each of containers) {
      const home = this.#of(each);
      const entries = (await directoriesIn(home)).flatMap((name) => {
        const [, bad, digits] = /^(\.bad-)?(\d+)$/.exec(name) ?? [];
        return digits === undefined ? [] : [{ epoch: Number(digits), bad: bad !== undefined, path: join(home, name) }];
      });
      for (const { epoch, bad, path } of entries.sort((a, b) => b.epoch - a.epoch)) {
        if (bad) {
          const reason = await readFile(join(path, reasonName), "utf8").catch(() => "set aside, no reason is kept");
          all.push({ container: each, epoch, reason: reason.trim() });
          continue;
        }
        const image = await read(path, each, epoch);
        all.push(typeof image === "string" ? { container: each, epoch, reason: image } : image);
      }
    }
    return all;
  }

  /** Reads every file of it. @returns what is wrong with it; undefined: nothing */
  verify(image: Image): Promise<string | undefined> {
    return damage(image, Number.POSITIVE_INFINITY);
  }

  async #publish(home: string, draft: string, manifest: Omit<Manifest, "format" | "files">): Promise<Image> {
    const files: Record<string, { bytes: number; sha256: string }> = {};
    for (const path of await filesIn(draft)) {
      const file = join(draft, path);
      files[path] = { bytes: (await stat(file)).size, sha256: await digestOf(file) };
      await sync(file);
    }
    const whole: Manifest = { format: 1, ...manifest, files };
    const target = join(draft, manifestName);
    await writeFile(target, `${JSON.stringify(whole, null, 2)}\n`, { mode: 0o600 });
    await sync(target);
    for (const directory of new Set(Object.keys(files).map((path) => join(draft, path, ".."))))
      await syncDirectory(directory);
    await syncDirectory(draft);
    const directory = join(home, String(manifest.epoch));
    try {
      await rename(draft, directory);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== "ENOTEMPTY" && code !== "EEXIST") throw error;
      throw new HakobuError(
        "CHECKPOINT_FAILED",
        `there is an image of ${manifest.container} at epoch ${manifest.epoch}`,
        {
          cause: error,
        },
      );
    }
    await syncDirectory(home);
    return { manifest: whole, directory, bytes: sum(whole) };
  }

  async #removeOlder(container: string, epoch: number): Promise<void> {
    let good = 0;
    for (const each of await this.#epochs(container)) {
      const directory = join(this.#of(container), String(each));
      const image = await read(directory, container, each);
      if (typeof image !== "string" && (await damage(image, alwaysDigestedBytes)) === undefined) good++;
      if (each >= epoch || good <= keptGood) continue;
      // Renamed first, so that no reader meets half of it.
      const doomed = join(this.#of(container), `.draft-${each}-${randomBytes(6).toString("hex")}`);
      await rename(directory, doomed).then(
        () => rm(doomed, { recursive: true, force: true }),
        (error: unknown) =>
          this.#log.debug({ container, epoch: each, reason: reasonOf(error) }, "image already removed"),
      );
    }
  }

  async #removeStaleDrafts(home: string): Promise<void> {
    for (const name of await directoriesIn(home)) {
      if (!name.startsWith(".draft-")) continue;
      const path = join(home, name);
      const stats = await stat(path).catch(() => undefined);
      if (stats !== undefined && Date.now() - stats.mtimeMs > draftLifeMs)
        await rm(path, { recursive: true, force: true });
    }
  }

  /** Newest first. */
  async #epochs(container: string): Promise<number[]> {
    const names = await directoriesIn(this.#of(container));
    return names
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .sort((a, b) => b - a);
  }

  #of(container: string): string {
    checkContainerName(container);
    return join(this.#directory, container);
  }
}

/** @returns the image, or why it cannot be used */
async function read(directory: string, container: string, epoch: number): Promise<Image | string> {
  let text: string;
  try {
    text = await readFile(join(directory, manifestName), "utf8");
  } catch (error) {
    return `its manifest cannot be read: ${reasonOf(error)}`;
  }
  const manifest = parseManifest(text);
  if (typeof manifest === "string") return manifest;
  if (manifest.container !== container || manifest.epoch !== epoch)
    return `its manifest is that of ${manifest.container} at epoch ${manifest.epoch}`;
  return { manifest, directory, bytes: sum(manifest) };
}

function sum(manifest: Manifest): number {
  return Object.values(manifest.files).reduce((total, { bytes }) => total + bytes, 0);
}

function difference(
  image: Readonly<Record<string, string>>,
  here: Readonly<Record<string, string>>,
): string | undefined {
  for (const key of [...new Set([...Object.keys(image), ...Object.keys(here)])].sort())
    if (image[key] !== here[key])
      return `${key} differs: the image has ${image[key] ?? "none"}, this host ${here[key] ?? "none"}`;
  return undefined;
}

async function damage(image: Image, digestBelowBytes: number): Promise<string | undefined> {
  const looks = Object.entries(image.manifest.files).map(async ([path, { bytes, sha256 }]) => {
    const file = join(image.directory, path);
    const stats = await stat(file).catch(() => undefined);
    if (stats === undefined || !stats.isFile()) return `${path} is missing`;
    if (stats.size !== bytes) return `${path} has ${stats.size} bytes instead of ${bytes}`;
    if (bytes >= digestBelowBytes) return undefined;
    return (await digestOf(file)) === sha256 ? undefined : `${path} has changed: its SHA-256 is another one`;
  });
  const results = await Promise.all(looks.map((look) => look.catch(reasonOf)));
  return results.find((result) => result !== undefined);
}

async function digestOf(file: string): Promise<string> {
  const hash = createHash("sha256");
  const stats = await stat(file);
  if (stats.size < alwaysDigestedBytes) return hash.update(await readFile(file)).digest("hex");
  for await (const chunk of createReadStream(file, { highWaterMark: 1024 * 1024 })) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

async function filesIn(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const strange = entries.find((entry) => !entry.isFile() && !entry.isDirectory());
  if (strange !== undefined)
    throw new HakobuError("CHECKPOINT_FAILED", `${strange.name} in the image is neither a file nor a directory`);
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(directory, join(entry.parentPath, entry.name)))
    .sort();
}

async function directoriesIn(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { withFileTypes: true }).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw error;
  });
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
}

async function sync(path: string): Promise<void> {
  const file = await open(path, constants.O_RDONLY);
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** A rename is kept by the sync of the directory in which it happened. */
const syncDirectory = sync;
