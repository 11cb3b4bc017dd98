// One golden image from a shadow: a copy of the application that no client reaches, started only to be imaged.
//
//   S1  The image holds no user's request: the shadow is asked for its warm-up and its hook and for nothing else.
//   S2  However it ends, no shadow is left. The image is published whole or not at all, and not once the signal has aborted.
import { whenAnswering, whenListening } from "./application.js";
import { checkpoint, type CheckpointDeps } from "./checkpoint.js";
import { HakobuError } from "./hakobu-error.js";
import { deadline } from "./ports/clock.js";
import type { Image, Taken } from "./ports/image-store.js";
import type { SpecRecord } from "./ports/placement-store.js";
import { addPhases, type Span } from "./ports/tracer.js";

export interface Wanted {
  readonly record: SpecRecord;
  /** Of the owner, under whose epoch it is published. */
  readonly epoch: number;
  /** As both were before the shadow is started. */
  readonly fingerprint: Taken["fingerprint"];
  readonly content?: string;
  readonly span: Span;
}

/** @throws HakobuError START_FAILED, CHECKPOINT_FAILED, DEADLINE_EXCEEDED (startTimeout, checkpoint.timeout); the signal's reason */
export async function takeShadowImage(
  deps: CheckpointDeps,
  { record, epoch, span, ...was }: Wanted,
  signal: AbortSignal,
): Promise<Image> {
  const { engine, clock } = deps;
  const { spec, hash } = record;
  const late = `its shadow was not ready within ${spec.startTimeoutMs} ms (startTimeout)`;
  const starting = AbortSignal.any([signal, deadline(clock, spec.startTimeoutMs, late)]);
  if (engine.shadow === undefined)
    throw new HakobuError("START_FAILED", `the ${engine.name} engine cannot start a copy that no client reaches`);
  const { instance, phases } = await engine.shadow({ spec, specHash: hash, epoch }, starting);
  try {
    const begunMs = clock.now();
    await whenListening(deps, instance, starting);
    if (spec.checkpoint.at === "warm") await whenAnswering(deps, spec, instance, starting);
    const readyMs = clock.now() - begunMs;
    addPhases(span, [...phases, { name: "ready", ms: readyMs }]);
    const what = { record, epoch, instance, tier: "golden", span: span.child("checkpoint"), ...was } as const;
    return await checkpoint(deps, what, signal);
  } finally {
    // It has nothing to say and nothing to save.
    await engine.stop(instance, 0);
  }
}
