// A file of an encrypted image: AES-256-GCM over chunks of 1 MiB, each with its tag behind it, after the STREAM construction
// (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, CRYPTO 2015).
//
//   S1  The nonce is the number of the chunk and whether it is the last: a chunk that was moved, repeated, left out or cut off
//       does not open. A key serves one file (cluster-key.ts), so no nonce serves two chunks.
//   S2  Nothing is written that was not authenticated.
import { createCipheriv, createDecipheriv, createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";

const cipher = "aes-256-gcm";
export const chunkBytes = 1024 * 1024;
export const tagBytes = 16;

/** Encrypts `source` into the new file `target`, synced. @returns size and SHA-256 (hex) of what was written */
export async function sealFile(
  source: string,
  target: string,
  key: Buffer,
): Promise<{ readonly bytes: number; readonly sha256: string }> {
  const hash = createHash("sha256");
  let bytes = 0;
  await between(source, target, async (from, to) => {
    const { size } = await from.stat();
    const count = Math.max(1, Math.ceil(size / chunkBytes));
    const buffer = Buffer.alloc(Math.min(size, chunkBytes));
    for (let index = 0; index < count; index++) {
      const chunk = await fill(from, buffer);
      const sealing = createCipheriv(cipher, key, nonce(index, index === count - 1), { authTagLength: tagBytes });
      for (const part of [sealing.update(chunk), sealing.final(), sealing.getAuthTag()]) {
        hash.update(part);
        bytes += part.length;
        await writeAll(to, part);
      }
    }
    await to.sync();
  });
  return { bytes, sha256: hash.digest("hex") };
}

/**
 * Decrypts `source` into the new file `target`.
 * @throws HakobuError RESTORE_FAILED where `source` is not what was written with this key; what reading and writing throw
 */
export async function openSealedFile(source: string, target: string, key: Buffer, signal: AbortSignal): Promise<void> {
  await between(source, target, async (from, to) => {
    const { size } = await from.stat();
    const count = Math.max(1, Math.ceil(size / (chunkBytes + tagBytes)));
    const buffer = Buffer.alloc(Math.min(size, chunkBytes + tagBytes));
    for (let index = 0; index < count; index++) {
      signal.throwIfAborted();
      await writeAll(to, unseal(await fill(from, buffer), key, nonce(index, index === count - 1)));
    }
  });
}

function unseal(chunk: Buffer, key: Buffer, iv: Buffer): Buffer {
  try {
    const opening = createDecipheriv(cipher, key, iv, { authTagLength: tagBytes });
    opening.setAuthTag(chunk.subarray(Math.max(0, chunk.length - tagBytes)));
    const plain = opening.update(chunk.subarray(0, Math.max(0, chunk.length - tagBytes)));
    opening.final();
    return plain;
  } catch (cause) {
    throw new HakobuError("RESTORE_FAILED", `does not decrypt: ${reasonOf(cause)}`, { cause });
  }
}

/** 96 bits: seven of zero, the number of the chunk, whether it is the last. */
function nonce(index: number, last: boolean): Buffer {
  const bytes = Buffer.alloc(12);
  bytes.writeUInt32BE(index, 7);
  bytes[11] = last ? 1 : 0;
  return bytes;
}

async function between(
  source: string,
  target: string,
  work: (from: FileHandle, to: FileHandle) => Promise<void>,
): Promise<void> {
  const from = await open(source, "r");
  try {
    const to = await open(target, "wx", 0o600);
    try {
      await work(from, to);
    } finally {
      await to.close();
    }
  } finally {
    await from.close();
  }
}

/** The next bytes of the file: as many as fit into the buffer, fewer only at its end. */
async function fill(file: FileHandle, buffer: Buffer): Promise<Buffer> {
  let length = 0;
  while (length < buffer.length) {
    const { bytesRead } = await file.read(buffer, length, buffer.length - length, null);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return buffer.subarray(0, length);
}

async function writeAll(file: FileHandle, bytes: Buffer): Promise<void> {
  for (let written = 0; written < bytes.length; )
    written += (await file.write(bytes, written, bytes.length - written, null)).bytesWritten;
}
