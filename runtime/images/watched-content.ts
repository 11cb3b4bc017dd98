// Watched content, by looking at it: other hosts change it through a file server, of which no kernel tells.
//
//   W1  The digest is the same on every host that sees the same files: names, kinds, sizes, modification times of files, where
//       links lead. Not the times of directories, which change where nothing of interest does.
//   W2  At most so many entries are looked at, in the order of their names. What comes after is not watched, and the log says so.
import { createHash, type Hash } from "node:crypto";
import type { Stats } from "node:fs";
import { lstat, readdir, readlink, realpath } from "node:fs/promises";
import { join } from "node:path";
import { within } from "../../actors/ports/clock.js";
import type { Content } from "../../actors/ports/content.js";
import type { Log } from "../../actors/ports/log.js";
import { codeOf } from "./reference.js";

const defaultEntriesAtMost = 10_000;
/** Looked at together: each is a round trip to the file server. */
const width = 32;

interface Walk {
  readonly hash: Hash;
  readonly signal: AbortSignal;
  left: number;
}

export class WatchedContent implements Content {
  readonly #log: Log;
  readonly #entriesAtMost: number;
  /** Those of which the log has said that they are too much. */
  readonly #said = new Set<string>();

  /** `entriesAtMost`: of all paths of one application together. */
  constructor(log: Log, entriesAtMost = defaultEntriesAtMost) {
    this.#log = log;
    this.#entriesAtMost = entriesAtMost;
  }

  digest(paths: readonly string[], signal: AbortSignal): Promise<string> {
    return within(this.#digest(paths, signal), signal);
  }

  async #digest(paths: readonly string[], signal: AbortSignal): Promise<string> {
    const walk: Walk = { hash: createHash("sha256"), signal, left: this.#entriesAtMost };
    for (const path of paths) {
      // A path that is switched to another release by its link leads elsewhere then.
      const real = await realpath(path).catch(absent);
      const stats = real === undefined ? undefined : await lstat(real).catch(absent);
      note(walk, path, real ?? "absent");
      if (real !== undefined && stats !== undefined) await visit(walk, real, stats);
    }
    const all = paths.join(" ");
    if (walk.left <= 0 && !this.#said.has(all)) {
      this.#said.add(all);
      this.#log.warn(
        { paths, entriesAtMost: this.#entriesAtMost },
        "too much is watched: what comes after so many entries is not; name less in checkpoint.refresh.paths",
      );
    }
    return walk.hash.digest("hex");
  }
}

async function visit(walk: Walk, path: string, stats: Stats): Promise<void> {
  if (stats.isFile()) return note(walk, "file", stats.size, stats.mtimeMs);
  if (stats.isSymbolicLink()) return note(walk, "link", (await readlink(path).catch(absent)) ?? "absent");
  if (!stats.isDirectory()) return note(walk, "other");
  const names = ((await readdir(path).catch(absent)) ?? []).sort();
  const seen = names.slice(0, Math.max(0, walk.left));
  walk.left -= names.length;
  note(walk, "directory", seen.length);
  for (let index = 0; index < seen.length; index += width) {
    walk.signal.throwIfAborted();
    const some = seen.slice(index, index + width);
    const found = await Promise.all(some.map((name) => lstat(join(path, name)).catch(absent)));
    for (const [at, name] of some.entries()) {
      const each = found[at];
      note(walk, name);
      if (each !== undefined) await visit(walk, join(path, name), each);
    }
  }
}

/** A part can hold anything but a NUL. */
function note({ hash }: Walk, ...parts: readonly (string | number)[]): void {
  hash.update(`${parts.join("\0")}\0\0`);
}

/** Of what somebody removes at this moment. */
function absent(error: unknown): undefined {
  const code = codeOf(error);
  if (code === "ENOENT" || code === "ENOTDIR") return undefined;
  throw error;
}
