// Keeps the images of the containers that this host would be asked to take next in the machine's memory: a restore from a disk that
// has to be read costs as much again (bench/README.md).
//
//   N1  One image at a time, in the background, the container that was placed last first, up to `limitBytes` in all.
//   N2  Nothing is held: the files are read, and the kernel keeps them while it has memory to spare. They are read again now and then.
//   N3  However many changes come while a round goes on, one more follows it.
import { candidates } from "./candidates.js";
import type { ClusterView } from "./cluster-view.js";
import { HakobuError, reasonOf } from "./hakobu-error.js";
import { type Clock, delay } from "./ports/clock.js";
import type { Engine } from "./ports/engine.js";
import type { ImageStore } from "./ports/image-store.js";
import type { Log } from "./ports/log.js";
import type { SpecRecord } from "./ports/placement-store.js";
import { fromStore } from "./store-limit.js";

export interface NextInLineDeps {
  readonly hostId: string;
  readonly view: ClusterView;
  readonly engines: ReadonlyMap<string, Engine>;
  readonly images: ImageStore;
  readonly clock: Clock;
  readonly log: Log;
  /** 0: nothing is read. */
  readonly limitBytes: number;
}

/** From a change in the cluster to the look at it: many come together. */
const settleMs = 1000;
/** What was read may have been dropped by then. */
const againMs = 10 * 60_000;

export class NextInLine {
  readonly #deps: NextInLineDeps;
  readonly #over = new AbortController();
  /** Directory of the image that was read for each container, and `clock.now()` of it. */
  readonly #read = new Map<string, { readonly directory: string; readonly atMs: number }>();
  readonly #stopNoticing: () => void = () => {};
  #timer: unknown;
  #reading: Promise<void> | undefined;
  /** Something changed since the round that goes on began. */
  #again = false;

  /** Begins at once. */
  constructor(deps: NextInLineDeps) {
    this.#deps = deps;
    if (deps.limitBytes === 0) return;
    this.#stopNoticing = deps.view.onChange(() => this.#arm(settleMs));
    this.#arm(settleMs);
  }

  /** Containers of other hosts whose best candidate this host is, the one that was placed last first. */
  wanted(): readonly SpecRecord[] {
    const { view, hostId } = this.#deps;
    const found: { readonly record: SpecRecord; readonly epoch: number }[] = [];
    for (const placement of view.placements()) {
      const record = view.spec(placement.container);
      if (record === undefined || placement.host === hostId) continue;
      const [best] = candidates(view, record, new Set([placement.host]), () => false);
      if (best?.id === hostId) found.push({ record, epoch: placement.epoch });
    }
    return found.sort((a, b) => b.epoch - a.epoch).map(({ record }) => record);
  }

  /** Ends what is being read. Idempotent. */
  async close(): Promise<void> {
    this.#stopNoticing();
    this.#deps.clock.clearTimeout(this.#timer);
    this.#over.abort(new HakobuError("ABORTED", "the host agent ends"));
    await this.#reading;
  }

  #arm(ms: number): void {
    const { clock } = this.#deps;
    clock.clearTimeout(this.#timer);
    this.#timer = clock.setTimeout(() => {
      this.#again = true;
      this.#reading ??= this.#rounds().finally(() => (this.#reading = undefined));
      this.#arm(againMs);
    }, ms);
  }

  /** N3. */
  async #rounds(): Promise<void> {
    while (this.#again && !this.#over.signal.aborted) {
      this.#again = false;
      await this.#round();
    }
  }

  async #round(): Promise<void> {
    const { engines, images, clock, log, limitBytes } = this.#deps;
    const wanted = this.wanted();
    const names = new Set(wanted.map(({ spec }) => spec.name));
    for (const name of this.#read.keys()) if (!names.has(name)) this.#read.delete(name);
    let bytes = 0;
    for (const record of wanted) {
      if (this.#over.signal.aborted) return;
      const { name } = record.spec;
      try {
        const engine = engines.get(record.spec.engine);
        if (engine?.capabilities.checkpoint !== true) continue;
        const finding = images.find(record, await engine.fingerprint(record.spec));
        const { image } = await fromStore(clock, finding, { signal: this.#over.signal });
        if (image === undefined || bytes + image.bytes > limitBytes) continue;
        bytes += image.bytes;
        const before = this.#read.get(name);
        if (before?.directory === image.directory && clock.now() - before.atMs < againMs) continue;
        await images.warm(image, this.#over.signal);
        this.#read.set(name, { directory: image.directory, atMs: clock.now() });
        // Between two, who has requests to answer comes first.
        await delay(clock, 1, this.#over.signal);
      } catch (error) {
        if (this.#over.signal.aborted) return;
        log.warn({ container: name, reason: reasonOf(error) }, "its image could not be read ahead");
      }
    }
  }
}
