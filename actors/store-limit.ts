// How long a host waits for the image store: a file server that hangs holds up nothing that can do without it.
import { type Clock, deadline, within } from "./ports/clock.js";
import type { Image, ImageStore, ImageUse } from "./ports/image-store.js";

export const storeLimitMs = 5000;
/** It may have to be decrypted. */
const useLimitMsPerMiB = 20;

/**
 * What a call of the image store comes to. `late`: given what it comes to after that; `limitMs`: where it has more to do than a few
 * small files. @throws what the call throws; HakobuError DEADLINE_EXCEEDED; the signal's reason
 */
export function fromStore<T>(
  clock: Clock,
  call: Promise<T>,
  { signal, late, limitMs = storeLimitMs }: { signal?: AbortSignal; late?: (value: T) => void; limitMs?: number } = {},
): Promise<T> {
  const limit = deadline(clock, limitMs, `the image store did not answer within ${limitMs} ms (host.images)`);
  return within(call, signal === undefined ? limit : AbortSignal.any([signal, limit]), late);
}

/** `images.use` within the time that an image of this size may take. @throws as `fromStore` */
export function useImage(
  { clock, images }: { readonly clock: Clock; readonly images: ImageStore },
  image: Image,
  signal: AbortSignal,
): Promise<ImageUse | undefined> {
  const limitMs = storeLimitMs + Math.ceil((image.bytes / 1024 / 1024) * useLimitMsPerMiB);
  return fromStore(clock, images.use(image, signal), { signal, limitMs, late: (use) => use?.release() });
}
