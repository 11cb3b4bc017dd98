// One image as a directory: `<images>/<container>/<epoch>/`, `<epoch>.1/`, `<epoch>.2/` ... for those that were taken later at the same
// epoch, and what may lie beside it:
//
//   .draft-<epoch>-<random>   being written
//   .bad-<name>               set aside, with reason.txt; no reader opens it
//   .bad-suspended-<epoch>-<random>   one of the suspended tier that was
//   .gone-<name>-<random>     being removed; no reader opens it
//   suspended                 the image of the suspended tier (suspended.ts)
//   .taken-<epoch>-<random>   that one, while it is being restored
//
// What is read here may have been damaged or forged: it comes back as a reason, never as an exception.
import { createHash, randomBytes } from "node:crypto";
import { constants, createReadStream } from "node:fs";
import { open, readdir, readFile, stat } from "node:fs/promises";
import { join, relative } from "node:path";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { Image, Manifest } from "../../actors/ports/image-store.js";
import { cpuDifference } from "./cpu-features.js";
import { isTroubleHere } from "../engines/criu-images.js";
import { parseManifest } from "./manifest.js";
import { codeOf, referencesName } from "./reference.js";

export const manifestName = "manifest.json";
export const reasonName = "reason.txt";
/** Files up to this size are read whole at every find. */
export const alwaysDigestedBytes = 1024 * 1024;

export type Beside = "bad-suspended" | "draft" | "gone" | "taken";

export function nameBeside(kind: Beside, epoch: number | string): string {
  return `.${kind}-${epoch}-${randomBytes(6).toString("hex")}`;
}

/** Which golden image of a container. */
export interface Version {
  readonly epoch: number;
  readonly sequence: number;
}

export interface Place extends Version {
  readonly bad: boolean;
  /** A bad one of the suspended tier. */
  readonly suspended: boolean;
  readonly path: string;
}

export function versionOf({ epoch, sequence = 0 }: Pick<Manifest, "epoch" | "sequence">): Version {
  return { epoch, sequence };
}

/** The name of its directory. */
export function nameOf({ epoch, sequence }: Version): string {
  return sequence === 0 ? String(epoch) : `${epoch}.${sequence}`;
}

/** Of one of the suspended tier that is set aside. None is like another: each is the only copy of what it holds. */
export function badSuspendedName(epoch: number): string {
  return nameBeside("bad-suspended", epoch);
}

/** More than 0 where `a` is newer. */
export function compareVersions(a: Version, b: Version): number {
  return a.epoch - b.epoch || a.sequence - b.sequence;
}

/** Images of a container, the bad ones too, newest first. `home`: its directory. */
export async function placesIn(home: string): Promise<Place[]> {
  const places = (await directoriesIn(home)).flatMap((name) => {
    const path = join(home, name);
    const [, memory] = /^\.bad-suspended-(\d+)-[0-9a-f]+$/.exec(name) ?? [];
    if (memory !== undefined) return [{ epoch: Number(memory), sequence: 0, bad: true, suspended: true, path }];
    const [, bad, epoch, sequence = 0] = /^(\.bad-)?(\d+)(?:\.([1-9]\d*))?$/.exec(name) ?? [];
    if (epoch === undefined) return [];
    const version = { epoch: Number(epoch), sequence: Number(sequence) };
    return [{ ...version, bad: bad !== undefined, suspended: false, path }];
  });
  return places.sort((a, b) => compareVersions(b, a));
}

/** `version`: undefined: any. @returns the image, or why it cannot be used */
export async function readImage(
  directory: string,
  container: string,
  version: Version | undefined,
): Promise<Image | string> {
  let text: string;
  try {
    text = await readFile(join(directory, manifestName), "utf8");
  } catch (error) {
    return `its manifest cannot be read: ${reasonOf(error)}`;
  }
  const manifest = parseManifest(text);
  if (typeof manifest === "string") return manifest;
  const own = versionOf(manifest);
  if (manifest.container !== container || compareVersions(own, version ?? own) !== 0)
    return `its manifest is that of ${manifest.container} at epoch ${nameOf(own)}`;
  return { manifest, directory, bytes: bytesOf(manifest) };
}

export function bytesOf(manifest: Manifest): number {
  return Object.values(manifest.files).reduce((total, { bytes }) => total + bytes, 0);
}

/** What differs between the machine that an image needs and this one, with both values. */
export function difference(
  image: Readonly<Record<string, string>>,
  here: Readonly<Record<string, string>>,
): string | undefined {
  const keys = [...new Set([...Object.keys(image), ...Object.keys(here)])].sort();
  const key = keys.find((each) => image[each] !== here[each]);
  if (key === undefined) return undefined;
  const { [key]: theirs = "none" } = image;
  const { [key]: ours = "none" } = here;
  return `${key} differs: ${key === "cpu" ? cpuDifference(theirs, ours) : `the image has ${theirs}, this host ${ours}`}`;
}

/**
 * `strict`: a file that the manifest does not name is damage too. @returns what is wrong with its files
 * @throws HakobuError UNAVAILABLE where they cannot be read here (EIO, ESTALE, EMFILE): that tells nothing of the image
 */
export async function damage(image: Image, digestBelowBytes: number, strict: boolean): Promise<string | undefined> {
  const { directory, manifest } = image;
  const looks = Object.entries(manifest.files).map(async ([path, { bytes, sha256 }]) => {
    const file = join(directory, path);
    const stats = await stat(file);
    if (!stats.isFile()) return `${path} is missing`;
    if (stats.size !== bytes) return `${path} has ${stats.size} bytes instead of ${bytes}`;
    if (bytes >= digestBelowBytes) return undefined;
    return (await digestOf(file)) === sha256 ? undefined : `${path} has changed: its SHA-256 is another one`;
  });
  const named = Object.keys(manifest.files);
  const results = await Promise.all(
    looks.map((look, at) => look.catch((error: unknown) => absence(`${named[at]} is missing`, error))),
  );
  const found = results.find((result) => result !== undefined);
  if (found !== undefined) return found;
  const opened = stat(join(directory, referencesName)).then(() => undefined);
  const closed = await opened.catch((error: unknown) => absence("it is being removed", error));
  if (closed !== undefined || !strict) return closed;
  const more = await filesIn(directory).catch((error: unknown) => absence("it is being removed", error));
  if (typeof more === "string") return more;
  const foreign = more.find(
    (path) => path !== manifestName && !path.startsWith(`${referencesName}/`) && !Object.hasOwn(manifest.files, path),
  );
  return foreign === undefined ? undefined : `${foreign} does not belong to it`;
}

/** @returns `absent` where that is what the error means. @throws HakobuError UNAVAILABLE */
function absence(absent: string, error: unknown): string {
  if (error instanceof HakobuError) return reasonOf(error);
  if (!isTroubleHere(error)) return absent;
  throw new HakobuError("UNAVAILABLE", `it cannot be read here: ${reasonOf(error)}`, { cause: error, retryable: true });
}

export async function digestOf(file: string): Promise<string> {
  const hash = createHash("sha256");
  const stats = await stat(file);
  if (stats.size < alwaysDigestedBytes) return hash.update(await readFile(file)).digest("hex");
  for await (const chunk of createReadStream(file, { highWaterMark: 1024 * 1024 })) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

/** @throws HakobuError CHECKPOINT_FAILED where there is more than files and directories */
export async function filesIn(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const strange = entries.find((entry) => !entry.isFile() && !entry.isDirectory());
  if (strange !== undefined)
    throw new HakobuError("CHECKPOINT_FAILED", `${strange.name} in the image is neither a file nor a directory`);
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(directory, join(entry.parentPath, entry.name)))
    .sort();
}

/** None where it is not there. */
export async function directoriesIn(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { withFileTypes: true }).catch((error: unknown) => {
    if (codeOf(error) === "ENOENT") return [];
    throw error;
  });
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
}

/** Of a file; of a directory, so that a rename in it is kept. */
export async function sync(path: string): Promise<void> {
  const file = await open(path, constants.O_RDONLY);
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
