// Where decrypted images lie while they are needed: a directory in memory of this host's agent alone.
//
//   V1  It lies on a file system that is memory (tmpfs, ramfs), or is refused. Mode 0700. (Swap is the machine's: docs/reference/images.md.)
//   V2  What a crash left in it goes when the agent starts again.
import { createHash, randomBytes } from "node:crypto";
import { mkdir, rm, statfs } from "node:fs/promises";
import { join } from "node:path";
import { HakobuError } from "../../actors/hakobu-error.js";
import { ownDirectory } from "../engines/own-directory.js";

const memory: ReadonlySet<number> = new Set([0x01021994 /* tmpfs */, 0x858458f6 /* ramfs */]);

export class PrivateMemory {
  readonly #directory: string;
  #ready: Promise<void> | undefined;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** That of the host with this state directory. */
  static of(stateDir: string): PrivateMemory {
    return new PrivateMemory(
      `/dev/shm/hakobu-images-${createHash("sha256").update(stateDir).digest("hex").slice(0, 16)}`,
    );
  }

  /** An empty directory, to be removed by who asked. @throws HakobuError CONFIG_INVALID */
  async make(): Promise<string> {
    await this.prepare();
    const path = join(this.#directory, randomBytes(8).toString("hex"));
    await mkdir(path, { mode: 0o700 });
    return path;
  }

  /** Empties it, once. @throws HakobuError CONFIG_INVALID */
  prepare(): Promise<void> {
    return (this.#ready ??= this.#prepare());
  }

  async #prepare(): Promise<void> {
    await rm(this.#directory, { recursive: true, force: true });
    ownDirectory(this.#directory);
    if (!memory.has((await statfs(this.#directory)).type))
      throw new HakobuError("CONFIG_INVALID", `${this.#directory} is on a disk: images are decrypted on a tmpfs only`);
  }

  /** Removes all of it. Idempotent. */
  async close(): Promise<void> {
    this.#ready = undefined;
    await rm(this.#directory, { recursive: true, force: true });
  }
}
