// One image of a running container: its hook, the dump, the publication.
//
//   K1  A suspended image that a request has cancelled is never published, or removed at once.
//   K2  Its dump goes on until it has ended, up to the deadline, for one that is cut can take the container with it, and somebody waits
//       for that. Of an exclusive container it is cut: its host may have to kill it before the lease ends.
import { type ApplicationDeps, callHook } from "./application.js";
import { reasonOf } from "./hakobu-error.js";
import { deadline, within } from "./ports/clock.js";
import type { Content } from "./ports/content.js";
import type { Instance } from "./ports/engine.js";
import type { Image, ImageStore, Taken, Tier } from "./ports/image-store.js";
import type { Log } from "./ports/log.js";
import type { SpecRecord } from "./ports/placement-store.js";
import type { ContainerSpec } from "./ports/spec.js";
import { addPhases, type Span } from "./ports/tracer.js";
import { fromStore } from "./store-limit.js";

export interface CheckpointDeps extends ApplicationDeps {
  readonly images: ImageStore;
  readonly log: Log;
}

export interface Checkpointed {
  readonly record: SpecRecord;
  readonly epoch: number;
  readonly instance: Instance;
  readonly tier: Tier;
  readonly span: Span;
  /** Where it was looked at before the copy was started; else as the engine remembers it. */
  readonly fingerprint?: Taken["fingerprint"];
  readonly content?: string;
}

/** For the manifest of an image whose container is being started. Empty where it is not to be known, or cannot be. Never rejects. */
export async function contentOf(
  content: Content,
  spec: ContainerSpec,
  signal: AbortSignal,
): Promise<Pick<Taken, "content">> {
  const paths = spec.checkpoint.refresh?.paths ?? [];
  if (paths.length === 0) return {};
  return content.digest(paths, signal).then(
    (digest) => ({ content: digest }),
    () => ({}),
  );
}

/** @throws HakobuError CHECKPOINT_FAILED and others; the signal's reason. Ends the span */
export async function checkpoint(
  deps: CheckpointDeps,
  { record, epoch, instance, tier, span, fingerprint, content }: Checkpointed,
  signal: AbortSignal,
): Promise<Image> {
  const { engine, images, clock, log } = deps;
  const { spec, hash } = record;
  const container = spec.name;
  const begunMs = clock.now();
  const late = deadline(clock, spec.checkpoint.timeoutMs, `no checkpoint within ${spec.checkpoint.timeoutMs} ms`);
  const limit = AbortSignal.any([signal, late]);
  const dumping = tier === "suspended" && spec.takeover !== "exclusive" ? late : limit;
  try {
    const begun = images.begin(container, epoch);
    const draft = await fromStore(clock, begun, {
      signal: limit,
      late: (unused) => void unused.discard().catch(() => {}),
    });
    try {
      const call = { name: "beforeCheckpoint", epoch, reason: tier } as const;
      const hook = await callHook(deps, spec, instance, call, limit);
      limit.throwIfAborted();
      const phases = [...hook, ...(await engine.checkpoint(instance, spec, draft.directory, dumping))];
      limit.throwIfAborted();
      const taken = {
        container,
        epoch,
        specHash: hash,
        engine: engine.name,
        at: spec.checkpoint.at,
        tier,
        fingerprint: fingerprint ?? (await engine.fingerprint(spec)),
        taken: clock.timestamp(),
        ...(content === undefined ? {} : { content }),
      };
      // What a store that hung publishes after all may be restored, but for memory that has gone on since.
      const image = await within(draft.publish(taken, limit), limit, (published) => {
        if (tier === "suspended") void images.remove(published).catch(() => {});
      });
      // A request came in the moment of the rename: what it does is not in this image.
      if (signal.aborted && tier === "suspended") {
        await fromStore(clock, images.remove(image));
        signal.throwIfAborted();
      }
      addPhases(span, phases);
      span.set({ image: image.directory, bytes: image.bytes, "hakobu.tier": tier });
      const ms = Math.round(clock.now() - begunMs);
      log.info({ container, tier, image: image.directory, bytes: image.bytes, ms }, "checkpoint taken");
      span.end();
      return image;
    } finally {
      await fromStore(clock, draft.discard()).catch((error: unknown) =>
        log.warn({ container, reason: reasonOf(error) }, "the draft of an image is still there"),
      );
    }
  } catch (error) {
    span.end(error);
    if (!signal.aborted) log.warn({ container, reason: reasonOf(error) }, "no image taken");
    throw error;
  }
}
