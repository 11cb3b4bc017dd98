// How a container comes back from an image: from a standby where this host has one, else from its suspended image, else from the
// newest golden one.
//
//   R1  No request reaches a restored copy before its afterRestore hook has succeeded; a copy whose hook failed is stopped, for
//       it may hold another copy's secrets.
//   R2  A suspended image leaves the store before a copy of it begins, and is removed once it runs, or set aside.
import type { RestoreOutcome } from "../machines/container.js";
import { type ApplicationDeps, callHook } from "./application.js";
import { HakobuError, reasonOf } from "./hakobu-error.js";
import type { Instance, Launched, Phases } from "./ports/engine.js";
import type { Activation } from "./ports/host-client.js";
import type { FoundImage, Image, ImageStore, SkippedImage, Tier } from "./ports/image-store.js";
import type { Log } from "./ports/log.js";
import type { SpecRecord } from "./ports/placement-store.js";
import { addPhases, type Span } from "./ports/tracer.js";
import type { Standbys, Taken } from "./standbys.js";
import { fromStore, useImage } from "./store-limit.js";

export interface RestorationDeps extends ApplicationDeps {
  readonly images: ImageStore;
  readonly log: Log;
  readonly standbys: Standbys;
}

/** The container that is restored. */
export interface Restoring {
  readonly record: SpecRecord;
  readonly epoch: number;
  readonly span: Span;
  /** Told as soon as there is a copy, and when it is stopped again. */
  launched(instance: Instance | undefined): void;
  /** It may be asked. `golden`: where it is not proven yet that its image is good. */
  runs(instance: Instance, activation: Activation, golden: Image | undefined): void;
}

/** @throws HakobuError; the signal's reason */
export async function restore(deps: RestorationDeps, it: Restoring, signal: AbortSignal): Promise<RestoreOutcome> {
  const { engine, images, standbys, clock } = deps;
  const { record, epoch } = it;
  const waitedFromMs = clock.now();
  const held = await standbys.take(record, signal);
  if (held.kind !== "none") {
    const outcome = await runStandby(deps, it, held, clock.now() - waitedFromMs, signal);
    void forgetSuspended(deps, record, epoch);
    return outcome;
  }
  const fingerprint = await engine.fingerprint(record.spec);
  let own: FoundImage;
  try {
    own = await takeSuspended(deps, record, fingerprint, epoch, signal);
  } catch (error) {
    return unanswered(error, signal);
  }
  const outcome = await restoreFrom(deps, it, own, "suspended", signal);
  if (outcome.kind === "restored") return outcome;
  const findingMs = clock.now();
  let found: FoundImage;
  try {
    found = await fromStore(clock, images.find(record, fingerprint), { signal });
  } catch (error) {
    return unanswered(error, signal);
  }
  const finding = { name: "find image", ms: clock.now() - findingMs };
  return restoreFrom(deps, it, found, "golden", signal, [finding]);
}

/** A store that fails or does not answer holds no start up: it is as if there were no image. @throws the signal's reason */
function unanswered(error: unknown, signal: AbortSignal): RestoreOutcome {
  if (signal.aborted) throw error;
  return { kind: "noImage", why: reasonOf(error) };
}

/** What is taken too late is set aside: the container runs without it. */
function takeSuspended(
  deps: Forgetting,
  record: SpecRecord,
  fingerprint: Readonly<Record<string, string>>,
  epoch: number,
  signal?: AbortSignal,
): Promise<FoundImage> {
  const { images, clock } = deps;
  const late = ({ image }: FoundImage): void => {
    if (image !== undefined) void setAside(deps, image, "the image store gave it back too late");
  };
  const call = images.takeSuspended(record, fingerprint, epoch);
  return fromStore(clock, call, { late, ...(signal === undefined ? {} : { signal }) });
}

/** Never rejects. */
async function setAside({ images, clock, log }: Forgetting, image: Image, reason: string): Promise<void> {
  try {
    await fromStore(clock, images.setAside(image, reason));
  } catch (error) {
    log.warn({ image: image.directory, reason: reasonOf(error) }, "a bad image could not be set aside");
  }
}

type Forgetting = Pick<RestorationDeps, "clock" | "engine" | "images" | "log">;

/** The copy runs, so what was kept of an earlier run counts no more. Never rejects. */
export async function forgetSuspended(deps: Forgetting, record: SpecRecord, epoch: number): Promise<void> {
  const { engine, images, log } = deps;
  if (!engine.capabilities.checkpoint) return;
  try {
    const { image } = await takeSuspended(deps, record, await engine.fingerprint(record.spec), epoch);
    if (image !== undefined) await fromStore(deps.clock, images.remove(image));
  } catch (error) {
    log.warn({ container: record.spec.name, reason: reasonOf(error) }, "could not look for a suspended image");
  }
}

async function runStandby(
  deps: RestorationDeps,
  it: Restoring,
  taken: Exclude<Taken, { kind: "none" }>,
  waitedMs: number,
  signal: AbortSignal,
): Promise<RestoreOutcome> {
  const { image } = taken;
  tellSkipped(deps, it, taken.skipped, "golden");
  it.span.set({ image: image.directory, bytes: image.bytes, "hakobu.tier": "golden", "hakobu.standby": true });
  try {
    if (taken.kind === "failed") throw taken.error;
    const { begunMs, endedMs } = taken;
    const nowMs = deps.clock.now();
    addPhases(it.span.record("standby", nowMs - begunMs, endedMs - begunMs), taken.phases, nowMs - endedMs);
    const launched = await taken.standby.run(it.epoch);
    const ahead = taken.phases.map((phase) => ({ ...phase, ahead: true as const }));
    const phases = [...ahead, { name: "wait for standby", ms: waitedMs }];
    await serve(deps, it, launched, image, "golden", phases, signal);
    return { kind: "restored" };
  } catch (error) {
    return failed(deps, it, image, "golden", error, signal);
  }
}

async function restoreFrom(
  deps: RestorationDeps,
  it: Restoring,
  { image, skipped }: FoundImage,
  tier: Tier,
  signal: AbortSignal,
  before: Phases = [],
): Promise<RestoreOutcome> {
  const { engine } = deps;
  const { record, epoch, span } = it;
  tellSkipped(deps, it, skipped, tier);
  if (image === undefined) return { kind: "noImage", why: skipped[0]?.reason ?? "there is no image yet" };
  span.set({ image: image.directory, bytes: image.bytes, "hakobu.tier": tier });
  try {
    signal.throwIfAborted();
    const use = await useImage(deps, image, signal);
    if (use === undefined) return { kind: "noImage", why: "its image has been removed meanwhile" };
    const launch = { spec: record.spec, specHash: record.hash, epoch };
    const launched = await engine.restore(launch, use.directory, signal).finally(() => use.release());
    await serve(deps, it, launched, image, tier, [...before, ...use.phases], signal);
    if (tier === "suspended") removeImage(deps, image);
    return { kind: "restored" };
  } catch (error) {
    return failed(deps, it, image, tier, error, signal);
  }
}

function tellSkipped(
  { log }: RestorationDeps,
  { span }: Restoring,
  skipped: readonly SkippedImage[],
  tier: Tier,
): void {
  for (const each of skipped) {
    log.warn({ ...each, tier }, "image not used");
    const { epoch, sequence, reason } = each;
    span.event("image not used", {
      "hakobu.image.epoch": epoch,
      "hakobu.image.sequence": sequence,
      "hakobu.tier": tier,
      "hakobu.reason": reason,
    });
  }
}

/** R1. */
async function serve(
  deps: RestorationDeps,
  it: Restoring,
  { instance, phases }: Launched,
  image: Image,
  tier: Tier,
  before: Phases,
  signal: AbortSignal,
): Promise<void> {
  it.launched(instance);
  const hook = await afterRestore(deps, it, instance, tier, signal);
  const activation: Activation = {
    how: "restored",
    epoch: it.epoch,
    image: image.directory,
    bytes: image.bytes,
    phases: [...before, ...phases, ...hook],
  };
  it.runs(instance, activation, tier === "golden" ? image : undefined);
}

/** @throws HakobuError RESTORE_FAILED when the application did not answer with success: then the copy is stopped */
async function afterRestore(
  deps: RestorationDeps,
  it: Restoring,
  instance: Instance,
  reason: Tier,
  signal: AbortSignal,
): Promise<Phases> {
  try {
    const call = { name: "afterRestore", epoch: it.epoch, reason } as const;
    return await callHook(deps, it.record.spec, instance, call, signal);
  } catch (error) {
    // Whoever aborted stops it.
    if (signal.aborted) throw error;
    await deps.engine.stop(instance, 0);
    it.launched(undefined);
    throw new HakobuError("RESTORE_FAILED", reasonOf(error), { cause: error });
  }
}

/** @throws the error, where it is not the image's fault */
async function failed(
  deps: RestorationDeps,
  { record }: Restoring,
  image: Image,
  tier: Tier,
  error: unknown,
  signal: AbortSignal,
): Promise<RestoreOutcome> {
  const bad = !signal.aborted && error instanceof HakobuError && error.code === "RESTORE_FAILED";
  if (bad)
    deps.log.warn(
      { container: record.spec.name, image: image.directory, tier, reason: error.message },
      "restore failed",
    );
  // A suspended one has been taken out of the store: what came of it may have run.
  if (bad || tier === "suspended") await setAside(deps, image, reasonOf(error));
  if (!bad) throw error;
  return { kind: "badImage", why: error.message };
}

/** In the background: nobody waits for it, and nobody finds it. */
function removeImage({ images, log }: RestorationDeps, image: Image): void {
  images
    .remove(image)
    .catch((error: unknown) =>
      log.warn({ image: image.directory, reason: reasonOf(error) }, "a used image could not be removed"),
    );
}
