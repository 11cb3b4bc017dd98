// From a draft to an image that readers see.
//
//   U1  The rename is the only step that readers notice, and it takes nothing away: a golden image gets a name that none of its epoch
//       has, so that those that are in use, or serve until then, stay as they are. The collector takes the older ones later.
//   U2  A crash before the rename leaves a draft, which is removed when nobody has touched it for an hour; after it, the image.
import { mkdir, rename, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { Image, Manifest, Taken } from "../../actors/ports/image-store.js";
import { type ClusterKey, newSalt } from "./cluster-key.js";
import { bytesOf, digestOf, filesIn, manifestName, nameOf, placesIn, sync } from "./image-directory.js";
import { format } from "./manifest.js";
import { codeOf, openToReaders } from "./reference.js";
import { sealFile } from "./sealed-file.js";
import { lastRun, putSuspended } from "./suspended.js";

/** Two writers of one epoch: the owner's shadow and its own cold start. */
const attempts = 10;

type Content = Omit<Manifest, "sequence" | "mac">;

export interface Draft {
  /** Where the files were written: `directory` itself, or a place in memory from which they are encrypted into it. */
  readonly from: string;
  /** In the container's own directory. */
  readonly directory: string;
  readonly key: ClusterKey | undefined;
}

/** @throws HakobuError CHECKPOINT_FAILED; the signal's reason when that aborts before the rename */
export async function publishDraft(draft: Draft, taken: Taken, signal: AbortSignal | undefined): Promise<Image> {
  const { directory } = draft;
  const home = dirname(directory);
  const content = await contentOf(draft, taken, signal);
  await openToReaders(directory);
  for (const each of new Set(Object.keys(content.files).map((path) => dirname(join(directory, path)))))
    await sync(each);
  return taken.tier === "suspended"
    ? publishSuspended(draft, home, content, signal)
    : publishGolden(draft, home, content, signal);
}

async function publishSuspended(
  draft: Draft,
  home: string,
  content: Content,
  signal: AbortSignal | undefined,
): Promise<Image> {
  const { container, epoch } = content;
  const manifest = await writeManifest(draft, content, 0);
  signal?.throwIfAborted();
  const before = await lastRun(home);
  if (before > epoch)
    throw new HakobuError("CHECKPOINT_FAILED", `${container} has run elsewhere since, at epoch ${before}`);
  return { manifest, directory: await putSuspended(home, draft.directory, epoch), bytes: bytesOf(manifest) };
}

/** U1. */
async function publishGolden(
  draft: Draft,
  home: string,
  content: Content,
  signal: AbortSignal | undefined,
): Promise<Image> {
  const { container, epoch } = content;
  for (let attempt = 1; attempt <= attempts; attempt++) {
    const taken = (await placesIn(home)).filter((place) => place.epoch === epoch).map(({ sequence }) => sequence);
    const sequence = taken.length === 0 ? 0 : Math.max(...taken) + 1;
    const manifest = await writeManifest(draft, content, sequence);
    signal?.throwIfAborted();
    const directory = join(home, nameOf({ epoch, sequence }));
    try {
      await rename(draft.directory, directory);
    } catch (error) {
      // Another one of this epoch has this name since.
      if (codeOf(error) === "ENOTEMPTY" || codeOf(error) === "EEXIST") continue;
      throw error;
    }
    await sync(home);
    return { manifest, directory, bytes: bytesOf(manifest) };
  }
  throw new HakobuError("CHECKPOINT_FAILED", `${container}: too many images of epoch ${epoch} are published at once`);
}

async function contentOf(
  { from, directory, key }: Draft,
  taken: Taken,
  signal: AbortSignal | undefined,
): Promise<Content> {
  const salt = from === directory ? undefined : newSalt();
  const files: Record<string, { bytes: number; sha256: string }> = {};
  for (const path of await filesIn(from)) {
    signal?.throwIfAborted();
    const file = join(directory, path);
    if (salt !== undefined && key !== undefined) {
      await mkdir(dirname(file), { recursive: true, mode: 0o700 });
      files[path] = await sealFile(join(from, path), file, key.fileKey(salt, path));
    } else {
      files[path] = { bytes: (await stat(file)).size, sha256: await digestOf(file) };
      await sync(file);
    }
  }
  const { tier, ...rest } = taken;
  return {
    ...rest,
    format,
    ...(tier === "suspended" ? { tier } : {}),
    files,
    ...(salt === undefined ? {} : { encryption: { scheme: "aes-256-gcm/1MiB", salt } }),
  };
}

async function writeManifest({ directory, key }: Draft, content: Content, sequence: number): Promise<Manifest> {
  const unsigned: Manifest = sequence === 0 ? content : { ...content, sequence };
  const manifest: Manifest = key === undefined ? unsigned : { ...unsigned, mac: key.mac(unsigned) };
  const target = join(directory, manifestName);
  await writeFile(target, `${JSON.stringify(manifest, null, 2)}\n`, { mode: 0o600 });
  await sync(target);
  await sync(directory);
  return manifest;
}

/** What goes wrong on the disk while an image is written, as what it means for people. */
export async function explained<T>(container: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    const code = codeOf(cause);
    if (cause instanceof HakobuError || code === undefined) throw cause;
    const full = code === "ENOSPC" || code === "EDQUOT";
    const next = full ? "no room is left: free some, or set images.quota" : reasonOf(cause);
    throw new HakobuError("CHECKPOINT_FAILED", `no image of ${container} was written: ${next}`, {
      cause,
      retryable: full,
    });
  }
}
