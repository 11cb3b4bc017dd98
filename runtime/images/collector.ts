// Retention: which images go, and how they go while other hosts read, publish and collect. No locks: whoever comes second finds
// nothing to do.
//
//   C1  The newest good images of a container stay (`keep` of them), and whatever is newer; what cannot be used does not count. So do,
//       for a week, as many of the same specification for each other kind of machine: hosts of a mixed cluster do not take each other's.
//   C2  An image in use stays, however old (reference.ts). Others are closed, renamed aside, then removed: nobody meets half of one.
//   C3  The quota never takes the newest good image of a container; it takes the oldest of all others first.
//   C4  A container without a specification loses its images a day after that was first seen, by any host; where the
//       specifications are not known, nothing is concluded.
//   C5  A failure of a collection is logged, and fails nobody's publish or restore.
//   C6  A suspended image is no older image. It counts for the quota, which never takes it: it goes with its container (C4), or when
//       it was taken aside an hour ago by a host that died.
import { mkdir, readdir, rename, rm, rmdir, stat, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { reasonOf } from "../../actors/hakobu-error.js";
import type { Image } from "../../actors/ports/image-store.js";
import type { Log } from "../../actors/ports/log.js";
import { isContainerName } from "../engines/instance-file.js";
import {
  bytesOf,
  compareVersions,
  directoriesIn,
  manifestName,
  nameBeside,
  type Place,
  placesIn,
  readImage,
  reasonName,
  type Version,
} from "./image-directory.js";
import { closeToReaders, codeOf, uniqueName } from "./reference.js";
import { ranName, suspendedName, takeAside } from "./suspended.js";

const hourMs = 60 * 60 * 1000;
const draftLifeMs = hourMs;
const unclaimedLifeMs = 24 * hourMs;
/** Of an image that hosts of another kind than that of the newest can use. */
const otherMachineLifeMs = 7 * 24 * hourMs;
/** Bad images of one container, for people to look at. */
const keptBad = 3;
/** In a container's directory since it was first seen without a specification. */
const unclaimedName = ".unclaimed";

export interface Retention {
  /** Good images of each container. */
  readonly keep: number;
  readonly keepBadMs: number;
  /** For the whole directory; absent: none. */
  readonly quotaBytes?: number;
}

export const defaultRetention: Retention = { keep: 2, keepBadMs: 24 * hourMs };

export interface CollectorOptions extends Retention {
  readonly directory: string;
  readonly log: Log;
  /** Whether this host could trust it: whole, and with the cluster's MAC. */
  readonly good: (image: Image) => Promise<boolean>;
}

interface Weighed extends Place {
  readonly container: string;
  readonly bytes: number;
  readonly writtenMs: number;
}

export class ImageCollector {
  readonly #options: CollectorOptions;

  constructor(options: CollectorOptions) {
    this.#options = options;
  }

  /** Everything. `wanted`: the containers that have a specification; undefined: not known. */
  async collect(wanted: ReadonlySet<string> | undefined): Promise<void> {
    await this.#quietly(async () => {
      const nowMs = await this.#now();
      for (const container of (await directoriesIn(this.#options.directory)).filter(isContainerName))
        await this.#quietly(async () => {
          const home = this.#of(container);
          await this.#leftovers(home, nowMs);
          if (wanted !== undefined && (await this.#unclaimed(container, wanted, nowMs))) return;
          await this.#older(container, nowMs);
          await this.#bad(home, nowMs);
        });
      await this.#quota(nowMs);
    });
  }

  /** After an image was published: what it supersedes, never itself or what is newer. */
  async superseded(container: string, version: Version): Promise<void> {
    await this.#quietly(async () => {
      const nowMs = await this.#now();
      await this.#leftovers(this.#of(container), nowMs);
      await this.#older(container, nowMs, version);
      await this.#bad(this.#of(container), nowMs);
      await this.#quota(nowMs);
    });
  }

  /** Removes what collectors and writers of that container left when they died. */
  async leftovers(container: string): Promise<void> {
    await this.#quietly(async () => this.#leftovers(this.#of(container), await this.#now()));
  }

  async #leftovers(home: string, nowMs: number): Promise<void> {
    // Not all are directories: the draft of `.ran` is a file.
    const names = await readdir(home).catch((error: unknown) => {
      if (codeOf(error) === "ENOENT") return [];
      throw error;
    });
    for (const name of names) {
      const path = join(home, name);
      if (name.startsWith(".gone-")) await discard(path);
      // A rename dates the directory itself.
      if (
        name.startsWith(".taken-") &&
        nowMs - ((await stat(path).catch(() => undefined))?.ctimeMs ?? nowMs) > draftLifeMs
      )
        await discard(path);
      if (name.startsWith(".draft-") && nowMs - (await writtenMs(path, ".")) > draftLifeMs) await discard(path);
    }
  }

  async #older(container: string, nowMs: number, before?: Version): Promise<void> {
    const { keep, good } = this.#options;
    const kept = new Map<string, number>();
    let newest: { readonly specHash: string; readonly machine: string } | undefined;
    for (const place of await placesIn(this.#of(container))) {
      if (place.bad) continue;
      const image = await readImage(place.path, container, place);
      const specHash = typeof image === "string" ? undefined : image.manifest.specHash;
      const machine = typeof image === "string" ? "" : machineOf(image);
      const all = [...kept.values()].reduce((sum, count) => sum + count, 0);
      const other = newest !== undefined && newest.machine !== machine;
      const own = newest === undefined || newest.specHash === specHash;
      const old = other && nowMs - (await writtenMs(place.path, manifestName)) > otherMachineLifeMs;
      if (own && !old ? (kept.get(machine) ?? 0) >= keep : all >= keep) {
        if (before === undefined || compareVersions(place, before) < 0)
          await this.#remove(container, place, nowMs, "newer ones are there");
      } else if (typeof image !== "string" && (await good(image))) {
        kept.set(machine, (kept.get(machine) ?? 0) + 1);
        newest ??= { specHash: image.manifest.specHash, machine };
      }
    }
  }

  async #bad(home: string, nowMs: number): Promise<void> {
    const bad = (await placesIn(home)).filter((place) => place.bad);
    // Each of the suspended tier is the only copy of what it holds: other bad ones crowd none of them out.
    const counted = bad.filter(({ suspended }) => !suspended);
    for (const { path } of bad)
      if (
        counted.findIndex((each) => each.path === path) >= keptBad ||
        nowMs - (await writtenMs(path, reasonName)) > this.#options.keepBadMs
      )
        await discard(path);
  }

  /** @returns whether its images are nobody's, and were so for long enough that they went */
  async #unclaimed(container: string, wanted: ReadonlySet<string>, nowMs: number): Promise<boolean> {
    const home = this.#of(container);
    const note = join(home, unclaimedName);
    const noted = await stat(note).catch(() => undefined);
    if (wanted.has(container)) {
      if (noted !== undefined) await rm(note, { force: true });
      return false;
    }
    const places = await placesIn(home);
    const suspended = (await directoriesIn(home)).includes(suspendedName);
    if (noted === undefined) {
      // A directory that holds no image may be somebody else's.
      if (places.length > 0 || suspended)
        await writeFile(note, "there is no specification of this container\n", { mode: 0o600 });
      return false;
    }
    if (nowMs - noted.mtimeMs <= unclaimedLifeMs) return false;
    for (const place of places)
      if (place.bad) await discard(place.path);
      else await this.#remove(container, place, nowMs, "its specification was deleted");
    const taken = suspended ? await takeAside(home, 0) : undefined;
    if (taken !== undefined) await discard(taken);
    if ((await readdir(home)).every((name) => name === unclaimedName || name === ranName)) {
      for (const name of [ranName, unclaimedName]) await rm(join(home, name), { force: true });
      // A draft that was begun meanwhile keeps it.
      await rmdir(home).catch(() => {});
    }
    return true;
  }

  async #quota(nowMs: number): Promise<void> {
    const { quotaBytes, directory, log } = this.#options;
    if (quotaBytes === undefined) return;
    const all: Weighed[] = [];
    let bytes = 0;
    for (const container of (await directoriesIn(directory)).filter(isContainerName)) {
      const home = this.#of(container);
      for (const place of await placesIn(home)) all.push(await this.#weigh(container, place));
      bytes += await bytesIn(join(home, suspendedName)).catch(() => 0);
    }
    bytes += all.reduce((total, each) => total + each.bytes, 0);
    if (bytes <= quotaBytes) return;
    const kept = new Map<string, string>();
    for (const { container, ...place } of all)
      if (!place.bad && !kept.has(container) && (await this.#good(container, place))) kept.set(container, place.path);
    const candidates = all.filter((each) => each.bad || kept.get(each.container) !== each.path);
    for (const each of candidates.sort((a, b) => a.writtenMs - b.writtenMs)) {
      if (bytes <= quotaBytes) return;
      if (each.bad) await discard(each.path);
      else if (!(await this.#remove(each.container, each, nowMs, "the quota is exceeded"))) continue;
      bytes -= each.bytes;
    }
    if (bytes > quotaBytes)
      log.warn(
        { directory, bytes, quotaBytes },
        "images exceed their quota: each that is left is in use, suspended or the newest",
      );
  }

  async #weigh(container: string, place: Place): Promise<Weighed> {
    const image = place.bad ? "set aside" : await readImage(place.path, container, place);
    const bytes = typeof image === "string" ? await bytesIn(place.path) : bytesOf(image.manifest);
    return { ...place, container, bytes, writtenMs: await writtenMs(place.path, manifestName) };
  }

  async #good(container: string, place: Place): Promise<boolean> {
    const image = await readImage(place.path, container, place);
    return typeof image !== "string" && (await this.#options.good(image));
  }

  /** @returns whether it is gone */
  async #remove(container: string, { path, epoch, sequence }: Place, nowMs: number, reason: string): Promise<boolean> {
    if (!(await closeToReaders(path, nowMs))) return false;
    const gone = join(path, "..", nameBeside("gone", basename(path)));
    try {
      await rename(path, gone);
    } catch (error) {
      if (codeOf(error) === "ENOENT") return true;
      throw error;
    }
    await discard(gone);
    this.#options.log.debug({ container, epoch, sequence, reason }, "image removed");
    return true;
  }

  /** By the clock of the file server, which also dates the files. Where that cannot be known nothing is old. */
  async #now(): Promise<number> {
    const path = join(this.#options.directory, `.clock-${uniqueName()}`);
    try {
      await mkdir(this.#options.directory, { recursive: true, mode: 0o700 });
      // A name that is not there yet: a file that is opened again keeps its time where nothing is written.
      await writeFile(path, "", { mode: 0o600 });
      return (await stat(path)).mtimeMs;
    } catch {
      // A full disk is one of the reasons to collect: what has no age goes all the same.
      return Number.NEGATIVE_INFINITY;
    } finally {
      await rm(path, { force: true }).catch(() => {});
    }
  }

  async #quietly(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      // Another host's collector removes at the same time.
      const gone = codeOf(error) === "ENOENT";
      this.#options.log[gone ? "debug" : "warn"]({ reason: reasonOf(error) }, "collection of old images: cut short");
    }
  }

  #of(container: string): string {
    return join(this.#options.directory, container);
  }
}

/**
 * Collects now and every hour. `wanted`: names of all containers that have a specification.
 * @returns what ends it, after the collection that is under way
 */
export function collectHourly(
  collect: (wanted: ReadonlySet<string> | undefined) => Promise<void>,
  wanted: () => Promise<ReadonlySet<string>>,
): () => Promise<void> {
  let underWay: Promise<void> | undefined;
  const run = (): void => {
    underWay ??= wanted()
      .catch(() => undefined)
      .then(collect)
      .finally(() => (underWay = undefined));
  };
  run();
  const timer = setInterval(run, hourMs).unref();
  return async () => {
    clearInterval(timer);
    await underWay;
  };
}

/** Which hosts can use it. */
function machineOf({ manifest }: Image): string {
  return JSON.stringify(Object.entries(manifest.fingerprint).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** When `name` in the directory was written; where that is missing, the directory itself. */
async function writtenMs(directory: string, name: string): Promise<number> {
  const stats = await stat(join(directory, name)).catch(() => stat(directory));
  return stats.mtimeMs;
}

async function bytesIn(directory: string): Promise<number> {
  let bytes = 0;
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true }))
    if (entry.isFile()) bytes += (await stat(join(entry.parentPath, entry.name)).catch(() => undefined))?.size ?? 0;
  return bytes;
}

/** Two hosts may remove one directory at once: what is left is for the next collection. */
async function discard(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true }).catch(() => {});
}
