// Checkpoint images on a directory that all hosts share: <directory>/<container>/<epoch>/ (image-directory.ts), written by publish.ts.
//
//   D1  Readers see a whole image or none: files are written in `.draft-<epoch>-<random>`, synced, the manifest last, then renamed.
//       Whatever fails before the rename (a full disk) leaves every other image as it was.
//   D2  find() gives back only what was written for that specification and this machine, with every file there in its size; of
//       files below 1 MiB the digest is compared at each find, of the others by verify(), which runs after the first restore too.
//   D3  A damaged image is skipped with the reason, never thrown about, and never removes a good one.
//   D4  The writer of a newer epoch removes no image that is newer; what goes, and what stays, says collector.ts.
//   D5  With a key, only an image with this key's MAC is used, and nothing that lies in it unnamed. With encryption, only an
//       encrypted one, and its content is never on the shared directory in clear: not in a draft, not for a restore.
//   D6  The suspended tier (suspended.ts) is no image for find() and retention; list() tells of it.
import { hostname } from "node:os";
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type {
  FoundImage,
  Image,
  ImageDraft,
  ImageStore,
  ImageUse,
  Manifest,
  SkippedImage,
} from "../../actors/ports/image-store.js";
import type { Log } from "../../actors/ports/log.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import { checkContainerName, isContainerName } from "../engines/instance-file.js";
import { isTroubleHere } from "../engines/criu-images.js";
import { type ClusterKey } from "./cluster-key.js";
import { defaultRetention, ImageCollector, type Retention } from "./collector.js";
import {
  alwaysDigestedBytes,
  badSuspendedName,
  damage,
  difference,
  directoriesIn,
  nameBeside,
  nameOf,
  placesIn,
  readImage,
  reasonName,
  sync,
  type Version,
  versionOf,
} from "./image-directory.js";
import type { PrivateMemory } from "./private-memory.js";
import { explained, publishDraft } from "./publish.js";
import { codeOf, takeReference } from "./reference.js";
import { openSealedFile } from "./sealed-file.js";
import { lastRun, noteRun, readSuspended, takeAside } from "./suspended.js";
import { warmPages } from "./warm-pages.js";

/** After a restore the machine has better things to do than to read the image again. */
const verifyAfterMs = 10_000;

export interface DirectoryImageStoreOptions extends Partial<Retention> {
  readonly directory: string;
  readonly log: Log;
  /** What makes images this cluster's. Absent: any image is taken. */
  readonly key?: ClusterKey;
  /** Needs `key` and `memory`. */
  readonly encrypt?: boolean;
  /** Where images are decrypted. Absent: encrypted images are not used. */
  readonly memory?: PrivateMemory;
  /** From the first restore of an image to its verification. Default: 10 s. */
  readonly verifyAfterMs?: number;
}

/** What an image must fit; what is left out is not looked at. */
export interface Fit {
  readonly specHash?: string;
  readonly fingerprint?: Readonly<Record<string, string>>;
}

export class DirectoryImageStore implements ImageStore {
  readonly #options: DirectoryImageStoreOptions;
  readonly #directory: string;
  readonly #log: Log;
  readonly #collector: ImageCollector;
  /** Directories of images that were looked at after a restore. */
  readonly #looked = new Set<string>();
  readonly #timers = new Set<NodeJS.Timeout>();
  #verifying: Promise<void> = Promise.resolve();
  /** Newest published images by container, whose older ones are to be looked at. */
  readonly #supersedes = new Map<string, Version>();
  #collecting: Promise<void> | undefined;

  /** @throws HakobuError CONFIG_INVALID */
  constructor(options: DirectoryImageStoreOptions) {
    const { directory, log, encrypt, key, memory } = options;
    if (encrypt === true && (key === undefined || memory === undefined))
      throw new HakobuError("CONFIG_INVALID", "encrypted images need a key, and a place in memory to decrypt them");
    this.#options = options;
    this.#directory = directory;
    this.#log = log;
    const { keep = defaultRetention.keep, keepBadMs = defaultRetention.keepBadMs, quotaBytes } = options;
    this.#collector = new ImageCollector({
      directory,
      log,
      keep,
      keepBadMs,
      ...(quotaBytes === undefined ? {} : { quotaBytes }),
      good: async (image) => (await this.unusable(image)) === undefined,
    });
  }

  async find(record: SpecRecord, fingerprint: Readonly<Record<string, string>>): Promise<FoundImage> {
    const container = record.spec.name;
    const skipped: SkippedImage[] = [];
    for (const { bad, path, epoch, sequence } of await placesIn(this.#of(container))) {
      if (bad) continue;
      const version = { epoch, sequence };
      const image = await readImage(path, container, version);
      const reason =
        typeof image === "string" ? image : await this.unusable(image, { specHash: record.hash, fingerprint });
      if (reason === undefined) return { image: image as Image, skipped };
      skipped.push({ container, ...version, reason });
    }
    return { skipped };
  }

  /** Why an image is not used here; undefined: it is. Large files are compared by their size only. */
  async unusable(image: Image, { specHash, fingerprint }: Fit = {}): Promise<string | undefined> {
    const { manifest } = image;
    const foreign = this.#foreign(manifest);
    if (foreign !== undefined) return foreign;
    if (specHash !== undefined && manifest.specHash !== specHash) return "it was taken with another specification";
    const differs = fingerprint === undefined ? undefined : difference(manifest.fingerprint, fingerprint);
    return differs ?? damage(image, alwaysDigestedBytes, this.#options.key !== undefined).catch(reasonOf);
  }

  warm(image: Image, signal: AbortSignal): Promise<void> {
    return warmPages(image, signal);
  }

  async use(image: Image, signal: AbortSignal): Promise<ImageUse | undefined> {
    const giveBack = await takeReference(image.directory);
    if (giveBack === undefined) return undefined;
    const { encryption } = image.manifest;
    if (encryption === undefined)
      return {
        directory: image.directory,
        phases: [],
        release: () => {
          void giveBack();
          this.#verifyLater(image);
        },
      };
    try {
      const begunMs = performance.now();
      // Decryption has proven every byte: nothing is left to verify.
      const directory = await this.#decrypt(image, encryption.salt, signal);
      const release = (): void => {
        void giveBack();
        void rm(directory, { recursive: true, force: true }).catch((error: unknown) =>
          this.#log.error({ directory, reason: reasonOf(error) }, "a decrypted image could not be removed"),
        );
      };
      return { directory, phases: [{ name: "decrypt", ms: performance.now() - begunMs }], release };
    } catch (error) {
      void giveBack();
      throw error;
    }
  }

  async begin(container: string, epoch: number): Promise<ImageDraft> {
    if (!Number.isSafeInteger(epoch) || epoch < 0)
      throw new HakobuError("CONFIG_INVALID", `${epoch} is no epoch: a whole number from 0 on`);
    const { encrypt, memory } = this.#options;
    const home = this.#of(container);
    const draft = join(home, nameBeside("draft", epoch));
    let directory = draft;
    await this.#collector.leftovers(container);
    await explained(container, async () => {
      // Makes the container's directory too, which a collector may have removed just now.
      await mkdir(draft, { recursive: true, mode: 0o700 });
      if (encrypt === true && memory !== undefined) directory = await memory.make();
    });
    let published = false;
    return {
      directory,
      publish: async (taken, signal) => {
        if (taken.container !== container || taken.epoch !== epoch)
          throw new HakobuError("CONFIG_INVALID", "the manifest names another image than its draft was begun for");
        const { key } = this.#options;
        const image = await explained(container, () =>
          publishDraft({ from: directory, directory: draft, key }, taken, signal),
        );
        published = true;
        this.#looked.delete(image.directory);
        if (directory !== draft) await rm(directory, { recursive: true, force: true });
        this.#supersedes.set(container, versionOf(image.manifest));
        this.#collecting ??= this.#collectSuperseded();
        return image;
      },
      discard: async () => {
        if (published) return;
        for (const each of new Set([directory, draft])) await rm(each, { recursive: true, force: true });
      },
    };
  }

  async takeSuspended(
    record: SpecRecord,
    fingerprint: Readonly<Record<string, string>>,
    epoch: number,
  ): Promise<FoundImage> {
    const container = record.spec.name;
    const home = this.#of(container);
    const before = record.spec.onIdle === "suspend" ? await lastRun(home) : 0;
    const skipped = (reason: string): FoundImage => ({ skipped: [{ container, epoch, reason }] });
    if (before > epoch) return skipped(`the container has run since, at epoch ${before}`);
    // First, for a full disk hinders no rename: what is out of the way is restored by nobody, noted or not.
    let directory: string | undefined;
    try {
      directory = await takeAside(home, epoch);
    } finally {
      // Written where it changes something only: the path of a wake-up.
      if (record.spec.onIdle === "suspend" && before < epoch)
        await noteRun(home, epoch).catch((error: unknown) =>
          this.#log.warn(
            { container, epoch, reason: reasonOf(error) },
            "it could not be noted that the container runs",
          ),
        );
    }
    if (directory === undefined) return { skipped: [] };
    const image = await readImage(directory, container, undefined);
    if (typeof image === "string") {
      // It may be good, and is the only copy of what users did.
      await this.#moveAside(container, directory, badSuspendedName(epoch), image);
      return skipped(image);
    }
    const { manifest } = image;
    const reason =
      manifest.tier !== "suspended"
        ? "it is no suspended image"
        : manifest.epoch < before
          ? `the container has run since, at epoch ${before}`
          : await this.unusable(image, { specHash: record.hash, fingerprint });
    if (reason === undefined) return { image, skipped: [] };
    await this.setAside(image, reason);
    return skipped(reason);
  }

  async remove({ directory, manifest }: Image): Promise<void> {
    const gone = join(this.#of(manifest.container), nameBeside("gone", manifest.epoch));
    try {
      await rename(directory, gone);
    } catch (error) {
      if (codeOf(error) === "ENOENT") return;
      throw error;
    }
    await rm(gone, { recursive: true, force: true });
  }

  async setAside({ directory, manifest }: Image, reason: string): Promise<void> {
    const suspended = manifest.tier === "suspended";
    const name = suspended ? badSuspendedName(manifest.epoch) : `.bad-${nameOf(versionOf(manifest))}`;
    await this.#moveAside(manifest.container, directory, name, reason);
  }

  async #moveAside(container: string, directory: string, name: string, reason: string): Promise<void> {
    const home = this.#of(container);
    const bad = join(home, name);
    try {
      await rm(bad, { recursive: true, force: true });
      await rename(directory, bad);
    } catch (error) {
      // Another host has set it aside or removed it already.
      if (codeOf(error) === "ENOENT") return;
      throw error;
    }
    this.#log.warn({ container, image: bad, reason }, "image set aside");
    // Without its reason, where the disk is full, it is out of the way all the same.
    await writeFile(join(bad, reasonName), `${reason}\n`, { mode: 0o600 }).catch(() => {});
    await sync(home);
  }

  async list(container?: string): Promise<readonly (Image | SkippedImage)[]> {
    const containers =
      container === undefined ? (await directoriesIn(this.#directory)).filter(isContainerName).sort() : [container];
    const all: (Image | SkippedImage)[] = [];
    for (const each of containers) {
      const home = this.#of(each);
      const suspended = await readSuspended(home, each);
      if (suspended !== undefined) all.push(suspended);
      for (const { bad, suspended: memory, path, ...version } of await placesIn(home)) {
        if (bad) {
          const reason = await readFile(join(path, reasonName), "utf8").catch(() => "set aside, no reason is kept");
          const tier = memory ? ({ tier: "suspended" } as const) : {};
          all.push({ container: each, ...version, ...tier, reason: reason.trim() });
          continue;
        }
        const image = await readImage(path, each, version);
        all.push(typeof image === "string" ? { container: each, ...version, reason: image } : image);
      }
    }
    return all;
  }

  /** Reads every file of it. @returns what is wrong with it; undefined: nothing */
  verify(image: Image): Promise<string | undefined> {
    return this.#damage(image).catch(reasonOf);
  }

  /** @throws HakobuError UNAVAILABLE where it cannot be known here */
  async #damage(image: Image): Promise<string | undefined> {
    const strict = this.#options.key !== undefined;
    return this.#foreign(image.manifest) ?? damage(image, Number.POSITIVE_INFINITY, strict);
  }

  /** Removes what retention and quota do not keep. `wanted`: containers that have a specification; undefined: not known. */
  collect(wanted?: ReadonlySet<string>): Promise<void> {
    return this.#collector.collect(wanted);
  }

  /** Once before it is used by a host: removes what a crash left decrypted. @throws HakobuError CONFIG_INVALID */
  async prepare(): Promise<void> {
    await this.#options.memory?.prepare();
  }

  /** In the background: requests wait for an image that is published, and for nothing that goes because of it. Never rejects. */
  async #collectSuperseded(): Promise<void> {
    for (const [container, version] of this.#supersedes) {
      this.#supersedes.delete(container);
      await this.#collector.superseded(container, version);
    }
    this.#collecting = undefined;
  }

  /** Ends verifications, waits for what is being collected, removes what is decrypted. Idempotent. */
  async close(): Promise<void> {
    await this.#collecting;
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    await this.#verifying;
    await this.#options.memory?.close();
  }

  /** Why an image is not this cluster's, or cannot be read by this host. */
  #foreign(manifest: Manifest): string | undefined {
    const { key, encrypt, memory } = this.#options;
    if (key !== undefined && manifest.mac === undefined)
      return "the image was not made with this cluster's key: it carries no MAC";
    if (key !== undefined && !key.signed(manifest))
      return "the image was not made with this cluster's key, or its manifest was changed since";
    if (encrypt === true && manifest.encryption === undefined)
      return "it is not encrypted, and images.encrypt asks for it";
    if (manifest.encryption !== undefined && (key === undefined || memory === undefined))
      return "it is encrypted, and this host has no key (images.keyFile)";
    return undefined;
  }

  async #decrypt({ directory, manifest }: Image, salt: string, signal: AbortSignal): Promise<string> {
    const { key, memory } = this.#options;
    if (key === undefined || memory === undefined)
      throw new HakobuError("RESTORE_FAILED", "it is encrypted, and this host has no key (images.keyFile)");
    const clear = await memory.make();
    try {
      for (const path of Object.keys(manifest.files)) {
        const target = join(clear, path);
        await mkdir(dirname(target), { recursive: true, mode: 0o700 });
        await openSealedFile(join(directory, path), target, key.fileKey(salt, path), signal).catch((cause: unknown) => {
          if (signal.aborted) throw signal.reason as Error;
          const full = codeOf(cause) === "ENOSPC";
          // No fault of the image: it stays.
          if (full) throw new HakobuError("OVERLOADED", "no memory is left to decrypt an image", { cause });
          const code = isTroubleHere(cause) ? "UNAVAILABLE" : "RESTORE_FAILED";
          throw new HakobuError(code, `${path}: ${reasonOf(cause)}`, { cause });
        });
      }
      return clear;
    } catch (error) {
      await rm(clear, { recursive: true, force: true });
      throw error;
    }
  }

  /** Once for each image, one after the other, when the restore is some time ago. */
  #verifyLater(image: Image): void {
    // A suspended one is used once.
    if (image.manifest.tier === "suspended" || this.#looked.has(image.directory)) return;
    this.#looked.add(image.directory);
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      this.#verifying = this.#verifying
        .then(() => this.#verifyNow(image))
        .catch((error: unknown) => {
          this.#log.warn({ image: image.directory, reason: reasonOf(error) }, "image could not be verified");
        });
    }, this.#options.verifyAfterMs ?? verifyAfterMs);
    this.#timers.add(timer.unref());
  }

  async #verifyNow(image: Image): Promise<void> {
    const giveBack = await takeReference(image.directory);
    if (giveBack === undefined) return;
    try {
      // Another image may have taken its place meanwhile: it is not judged by this one's manifest.
      const same = async (): Promise<boolean> => isDeepStrictEqual(await this.#reread(image), image);
      const reason = (await same()) ? await this.#damage(image) : undefined;
      if (reason !== undefined && (await same()))
        await this.setAside(image, `${reason} (seen by ${hostname()} after a restore)`);
    } finally {
      await giveBack();
    }
  }

  #reread({ directory, manifest }: Image): Promise<Image | string> {
    return readImage(directory, manifest.container, versionOf(manifest));
  }

  #of(container: string): string {
    checkContainerName(container);
    return join(this.#directory, container);
  }
}
