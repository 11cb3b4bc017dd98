// The schema of an image's manifest, which another version of Hakobu or a failing disk may have written.
import { z } from "zod";
import { reasonOf } from "../../actors/hakobu-error.js";
import type { Manifest } from "../../actors/ports/image-store.js";

const file = z.strictObject({
  bytes: z.int().nonnegative(),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
});

/** Inside the image: no absolute path and no way out of it. */
const path = z.string().regex(/^(?!\/)(?!(.*\/)?\.\.(\/|$))[^\0]+$/);

const schema = z.strictObject({
  format: z.literal(1),
  container: z.string(),
  epoch: z.int().nonnegative(),
  specHash: z.string(),
  engine: z.string(),
  at: z.enum(["listen", "warm"]),
  fingerprint: z.record(z.string(), z.string()),
  taken: z.string(),
  files: z.record(path, file),
});

/** @returns the manifest, or what is wrong with it */
export function parseManifest(text: string): Manifest | string {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch (error) {
    return `its manifest is damaged: ${reasonOf(error)}`;
  }
  const result = schema.safeParse(data);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  return `its manifest is damaged or of another version: ${issue?.path.join(".") ?? ""}: ${issue?.message ?? ""}`;
}
