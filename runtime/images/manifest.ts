// The schema of an image's manifest, which another version of Hakobu or a failing disk may have written.
import { z } from "zod";
import { reasonOf } from "../../actors/hakobu-error.js";
import type { Manifest } from "../../actors/ports/image-store.js";

/** Images of another one are taken again, never converted. */
export const format = 1;

const hex32 = z.string().regex(/^[0-9a-f]{64}$/);

const file = z.strictObject({
  bytes: z.int().nonnegative(),
  sha256: hex32,
});

/** Inside the image: no absolute path and no way out of it. */
const path = z.string().regex(/^(?!\/)(?!(.*\/)?\.\.(\/|$))[^\0]+$/s);

const schema = z.strictObject({
  format: z.literal(format),
  container: z.string(),
  epoch: z.int().nonnegative(),
  sequence: z.int().positive().exactOptional(),
  specHash: z.string(),
  engine: z.string(),
  at: z.enum(["listen", "warm"]),
  tier: z.enum(["golden", "suspended"]).exactOptional(),
  fingerprint: z.record(z.string(), z.string()),
  taken: z.string(),
  content: z.string().exactOptional(),
  files: z.record(path, file),
  encryption: z.strictObject({ scheme: z.literal("aes-256-gcm/1MiB"), salt: hex32 }).exactOptional(),
  mac: hex32.exactOptional(),
});

/** @returns the manifest, or what is wrong with it */
export function parseManifest(text: string): Manifest | string {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch (error) {
    return `its manifest is damaged: ${reasonOf(error)}`;
  }
  const given = typeof data === "object" && data !== null && "format" in data ? data.format : undefined;
  if (typeof given === "number" && given !== format)
    return `it is of another version: format ${given}, and this Hakobu reads ${format}`;
  const result = schema.safeParse(data);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  return `its manifest is damaged or of another version: ${issue?.path.join(".") ?? ""}: ${issue?.message ?? ""}`;
}
