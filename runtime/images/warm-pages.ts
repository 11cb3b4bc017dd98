// Reads an image so that its pages are in the machine's memory when it is restored. Reading is all that is asked: the kernel keeps
// what it has read, as long as it has memory to spare.
import { open } from "node:fs/promises";
import { join } from "node:path";
import type { Image } from "../../actors/ports/image-store.js";
import { codeOf } from "./reference.js";

const chunkBytes = 1024 * 1024;

/** One file after the other, a chunk at a time. A file that is gone is left out: the image has been removed. @throws the signal's reason */
export async function warmPages({ directory, manifest }: Image, signal: AbortSignal): Promise<void> {
  const buffer = Buffer.allocUnsafe(chunkBytes);
  for (const path of Object.keys(manifest.files)) {
    const file = await open(join(directory, path)).catch((error: unknown) => {
      if (codeOf(error) === "ENOENT") return undefined;
      throw error;
    });
    if (file === undefined) continue;
    try {
      for (let bytes = 1; bytes > 0; ) {
        signal.throwIfAborted();
        bytes = (await file.read(buffer, 0, chunkBytes)).bytesRead;
      }
    } finally {
      await file.close();
    }
  }
}
