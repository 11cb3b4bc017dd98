// Checkpoint images on a directory that all hosts share. Implemented in runtime/images/.
import type { Phases } from "./engine.js";
import type { SpecRecord } from "./placement-store.js";

/**
 * `golden`: as the container was when it was ready; any number of copies start from it, on any host. `suspended`: its memory when it
 * was stopped, which holds what users did; at most one, restored at most once, by the next run of the container.
 */
export type Tier = "golden" | "suspended";

export interface Manifest {
  readonly format: 1;
  readonly container: string;
  readonly epoch: number;
  /** Among the golden images of one epoch, which are refreshed ones: a greater one is newer. Absent: 0. */
  readonly sequence?: number;
  readonly specHash: string;
  readonly engine: string;
  readonly at: "listen" | "warm";
  /** Absent: golden. */
  readonly tier?: Tier;
  /** Engine.fingerprint() where it was taken. */
  readonly fingerprint: Readonly<Record<string, string>>;
  /** ISO 8601. */
  readonly taken: string;
  /** What lay at the watched paths before the copy that it is of was started (Content.digest). Absent: not looked at. */
  readonly content?: string;
  /** Every file of the image with its size in bytes, and its SHA-256 in hex. */
  readonly files: Readonly<Record<string, { readonly bytes: number; readonly sha256: string }>>;
  /** Of an encrypted image, whose `files` are as they lie there: encrypted. The salt in hex. */
  readonly encryption?: { readonly scheme: "aes-256-gcm/1MiB"; readonly salt: string };
  /** HMAC-SHA256 with the cluster's key over all the rest, in hex. */
  readonly mac?: string;
}

/** What the taker of an image knows of it; the store adds the rest. */
export type Taken = Omit<Manifest, "format" | "sequence" | "files" | "encryption" | "mac">;

export interface Image {
  readonly manifest: Manifest;
  readonly directory: string;
  readonly bytes: number;
}

/** An image that exists and is not used, and why. */
export interface SkippedImage {
  readonly container: string;
  readonly epoch: number;
  readonly sequence?: number;
  readonly tier?: Tier;
  readonly reason: string;
}

export interface FoundImage {
  readonly image?: Image;
  readonly skipped: readonly SkippedImage[];
}

/** An image being written: readers see nothing of it before `publish`. */
export interface ImageDraft {
  /** Empty when handed out. */
  readonly directory: string;
  /**
   * Syncs the files, writes the manifest, renames. Readers see the whole image or none; none when `signal` aborts before the rename.
   * A golden one stands beside those that are there, which serve until then, and is newer than all of its epoch.
   */
  publish(manifest: Taken, signal?: AbortSignal): Promise<Image>;
  /** Idempotent; nothing after `publish`. */
  discard(): Promise<void>;
}

/** An image that is being restored: nobody removes it until it is given back. */
export interface ImageUse {
  /** Where its files can be read as they were taken: the image's own directory, or a private copy that is decrypted. */
  readonly directory: string;
  readonly phases: Phases;
  /** Never fails, takes no time of the caller's. The store may look deeper into the image later, and set it aside. */
  release(): void;
}

export interface ImageStore {
  /** The newest image of that specification that matches the fingerprint and is whole. */
  find(record: SpecRecord, fingerprint: Readonly<Record<string, string>>): Promise<FoundImage>;
  /** Reads its files, so that a restore finds them in memory. Nothing where it has been removed. @throws the signal's reason */
  warm(image: Image, signal: AbortSignal): Promise<void>;
  /** @returns undefined when it has been removed meanwhile. @throws HakobuError RESTORE_FAILED where it is damaged; the signal's reason */
  use(image: Image, signal: AbortSignal): Promise<ImageUse | undefined>;
  begin(container: string, epoch: number): Promise<ImageDraft>;
  /**
   * To be called before every run of a container that may have been suspended: takes its suspended image out of the store, so that
   * nobody else restores it, and remembers that the container has run at `epoch`. An image that cannot be used, or is older than
   * the last run, is set aside with the reason.
   */
  takeSuspended(record: SpecRecord, fingerprint: Readonly<Record<string, string>>, epoch: number): Promise<FoundImage>;
  /** For good: a suspended image that was restored, or is not wanted any more. Idempotent. */
  remove(image: Image): Promise<void>;
  /** Keeps a bad image for people to look at, and out of every later `find`. */
  setAside(image: Image, reason: string): Promise<void>;
  /** All images of a container: the suspended one, then golden ones, newest first, the bad ones with their reason. */
  list(container?: string): Promise<readonly (Image | SkippedImage)[]>;
}
