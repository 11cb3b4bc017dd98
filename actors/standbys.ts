// Restored copies that do not run yet, on the host that may be about to own their containers: the restore overlaps the proxy's
// probe and this host's own claim. What is not claimed in time is discarded.
//
//   S1  Nothing of a standby runs before `run`, so there is still one copy at most; of an image that holds what users did none is made.
//   S2  At most one of a container, and none of one that this host owns. Whoever takes it is the only one to have it; whoever starts
//       the container otherwise waits until nothing of it is left (`take`).
//   S3  It uses a free place of the admission or is not made: it never keeps a container waiting that somebody waits for.
import type { Admission } from "./admission.js";
import { HakobuError, reasonOf } from "./hakobu-error.js";
import type { Clock } from "./ports/clock.js";
import type { Engine, Phases, Standby } from "./ports/engine.js";
import type { Image, ImageStore, SkippedImage } from "./ports/image-store.js";
import type { Log } from "./ports/log.js";
import type { SpecRecord } from "./ports/placement-store.js";
import { fromStore, useImage } from "./store-limit.js";

export interface StandbysDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly images: ImageStore;
  readonly engines: ReadonlyMap<string, Engine>;
  readonly admission: Admission;
}

/** An image, and the newer ones that were not used. */
interface Found {
  readonly image: Image;
  readonly skipped: readonly SkippedImage[];
}

export type Taken =
  | (Found & {
      readonly kind: "ready";
      readonly standby: Standby;
      /** Of the restore, which took from `begunMs` to `endedMs` (`Clock.now()`). */
      readonly phases: Phases;
      readonly begunMs: number;
      readonly endedMs: number;
    })
  /** There was an image, and it did not work. */
  | (Found & { readonly kind: "failed"; readonly error: unknown })
  | { readonly kind: "none" };

interface Entry {
  readonly hash: string;
  readonly outcome: Promise<Taken>;
  readonly abort: AbortController;
  timer: unknown;
}

/** From the end of the restore: a claim that comes at all comes by then. */
const lifeMs = 2000;
const none: Taken = { kind: "none" };

export class Standbys {
  readonly #deps: StandbysDeps;
  readonly #entries = new Map<string, Entry>();
  readonly #discarding = new Map<string, Promise<void>>();

  constructor(deps: StandbysDeps) {
    this.#deps = deps;
  }

  /** Begins one where that is possible and there is room. @returns whether there is one now */
  begin(record: SpecRecord): boolean {
    const { spec, hash } = record;
    const known = this.#entries.get(spec.name);
    if (known?.hash === hash) return true;
    const engine = this.#deps.engines.get(spec.engine);
    const restorable = engine?.capabilities.checkpoint === true && spec.checkpoint.onReady && spec.onIdle !== "suspend";
    if (engine?.standby === undefined || !restorable) return false;
    if (known !== undefined || this.#discarding.has(spec.name)) return false;
    const abort = new AbortController();
    const make = engine.standby.bind(engine);
    const work = this.#deps.admission.runNow(() => this.#restore(record, engine, make, abort.signal));
    if (work === undefined) return false;
    const entry: Entry = { hash, outcome: work, abort, timer: undefined };
    this.#entries.set(spec.name, entry);
    void work.then(() => {
      if (this.#entries.get(spec.name) !== entry) return;
      entry.timer = this.#deps.clock.setTimeout(() => this.discard(spec.name, "nobody claimed it in time"), lifeMs);
    });
    return true;
  }

  /** The standby of the container, for its start. Waits until it is restored, or until nothing of it is left. */
  async take({ spec, hash }: SpecRecord, signal: AbortSignal): Promise<Taken> {
    const entry = this.#entries.get(spec.name);
    if (entry !== undefined && entry.hash !== hash) this.discard(spec.name, "its specification changed");
    await this.#discarding.get(spec.name);
    if (entry === undefined || entry.hash !== hash || this.#entries.get(spec.name) !== entry) return none;
    this.#entries.delete(spec.name);
    this.#deps.clock.clearTimeout(entry.timer);
    const cut = (): void => entry.abort.abort(signal.reason);
    signal.addEventListener("abort", cut, { once: true });
    if (signal.aborted) cut();
    const taken = await entry.outcome;
    signal.removeEventListener("abort", cut);
    if (!signal.aborted) return taken;
    if (taken.kind === "ready") await taken.standby.discard();
    throw signal.reason;
  }

  /** In the background; `take` waits for it. */
  discard(container: string, reason: string): void {
    const entry = this.#entries.get(container);
    if (entry === undefined) return;
    this.#entries.delete(container);
    this.#deps.clock.clearTimeout(entry.timer);
    entry.abort.abort(new HakobuError("ABORTED", reason));
    const gone = this.#gone(container, entry, reason).finally(() => this.#discarding.delete(container));
    this.#discarding.set(container, gone);
  }

  /** Nothing of any is left when it resolves. */
  async clear(reason: string): Promise<void> {
    for (const container of this.#entries.keys()) this.discard(container, reason);
    await Promise.all(this.#discarding.values());
  }

  async #gone(container: string, entry: Entry, reason: string): Promise<void> {
    const { log } = this.#deps;
    const taken = await entry.outcome;
    log.info({ container, reason }, "standby discarded");
    if (taken.kind !== "ready") return;
    await taken.standby
      .discard()
      .catch((error: unknown) => log.error({ container, reason: reasonOf(error) }, "a standby could not be removed"));
  }

  async #restore(
    record: SpecRecord,
    engine: Engine,
    make: NonNullable<Engine["standby"]>,
    signal: AbortSignal,
  ): Promise<Taken> {
    const { clock, images, log } = this.#deps;
    const begunMs = clock.now();
    let found: Found | undefined;
    try {
      const finding = images.find(record, await engine.fingerprint(record.spec));
      const { image, skipped } = await fromStore(clock, finding, { signal });
      if (image === undefined) return none;
      found = { image, skipped };
      signal.throwIfAborted();
      const foundMs = clock.now() - begunMs;
      const use = await useImage(this.#deps, image, signal);
      if (use === undefined) return none;
      const launch = { spec: record.spec, specHash: record.hash };
      const standby = await make(launch, use.directory, signal).finally(() => use.release());
      const phases = [{ name: "find image", ms: foundMs }, ...use.phases, ...standby.phases];
      return { kind: "ready", ...found, standby, phases, begunMs, endedMs: clock.now() };
    } catch (error) {
      if (!signal.aborted) log.warn({ container: record.spec.name, reason: reasonOf(error) }, "no standby");
      if (found === undefined || signal.aborted) return none;
      return { kind: "failed", ...found, error };
    }
  }
}
