// The key that all hosts of a cluster share: what makes an image one of this cluster's, and what hides its content.
//
//   K1  No derived key serves two ends: the MAC has its own, and each encrypted file one of its own, by HKDF-SHA256 (RFC 5869)
//       from the salt of its image and its path.
//   K2  A key that others can read, or that is shorter than 32 bytes, is refused.
import { createHmac, hkdfSync, randomBytes, timingSafeEqual } from "node:crypto";
import { open } from "node:fs/promises";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { Manifest } from "../../actors/ports/image-store.js";

const leastBytes = 32;
const mostBytes = 4096;
const derivedBytes = 32;

export class ClusterKey {
  readonly #material: Buffer;
  readonly #macKey: Buffer;

  /** @throws HakobuError CONFIG_INVALID */
  constructor(material: Buffer) {
    if (material.length < leastBytes) refuse(`has ${material.length} bytes instead of ${leastBytes} or more`);
    this.#material = Buffer.from(material);
    this.#macKey = this.#derive("", "hakobu image manifest");
  }

  /** @throws HakobuError CONFIG_INVALID */
  static async read(path: string): Promise<ClusterKey> {
    const file = await open(path, "r").catch((cause: unknown) =>
      refuse(`${path} cannot be read: ${reasonOf(cause)}`, cause),
    );
    try {
      const stats = await file.stat();
      if (!stats.isFile()) refuse(`${path} is not a file`);
      if ((stats.mode & 0o077) !== 0) refuse(`${path} can be read by others: chmod 600 ${path}`);
      if (stats.size > mostBytes) refuse(`${path} has ${stats.size} bytes: is it a key?`);
      return new ClusterKey(await file.readFile());
    } finally {
      await file.close();
    }
  }

  /** HMAC-SHA256 in hex over all of the manifest but the MAC itself, keys sorted. It holds the digest of every file. */
  mac(manifest: Manifest): string {
    return createHmac("sha256", this.#macKey).update(canonical(manifest)).digest("hex");
  }

  /** Whether the manifest carries this key's MAC. */
  signed(manifest: Manifest): boolean {
    const given = Buffer.from(manifest.mac ?? "", "hex");
    const own = Buffer.from(this.mac(manifest), "hex");
    return given.length === own.length && timingSafeEqual(given, own);
  }

  /** For one file of one image; `salt` in hex. */
  fileKey(salt: string, path: string): Buffer {
    return this.#derive(salt, `hakobu image file\0${path}`);
  }

  #derive(salt: string, purpose: string): Buffer {
    return Buffer.from(hkdfSync("sha256", this.#material, Buffer.from(salt, "hex"), purpose, derivedBytes));
  }
}

/** For one image, in hex. */
export function newSalt(): string {
  return randomBytes(32).toString("hex");
}

function canonical(manifest: Manifest): string {
  return JSON.stringify({ ...manifest, mac: undefined }, (_key, value: unknown) =>
    typeof value === "object" && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
      : value,
  );
}

function refuse(problem: string, cause?: unknown): never {
  throw new HakobuError("CONFIG_INVALID", `images.keyFile: ${problem}. A new one: head -c 32 /dev/urandom`, { cause });
}
