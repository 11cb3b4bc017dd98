// Golden images stay fresh: takes those of this host's containers again, from shadows, when they are old or what they were made of
// has changed. The image that is there serves until the new one is published.
//
//   F1  Only the owner refreshes, one container at a time, behind what requests ask for (admission.ts, A1). What may not go on
//       (`mayRefresh`) is aborted by the next check.
//   F2  Whether an image is fresh is read from its manifest, not remembered: so another owner, or the next agent, goes on where this
//       one ended.
//   F3  A failure is logged, told by `trouble`, and tried again after a pause that doubles; after a success there is a pause too, so
//       that content that never rests costs one image a minute.
//   F4  A container whose specification changed goes on with the old one until the image of the new one is there, or the first attempt
//       has failed: then it is restarted as without a refresh.
import type { Admission } from "./admission.js";
import type { CheckpointDeps } from "./checkpoint.js";
import { reasonOf } from "./hakobu-error.js";
import { deadline } from "./ports/clock.js";
import type { Content } from "./ports/content.js";
import type { Engine } from "./ports/engine.js";
import type { FoundImage, Manifest } from "./ports/image-store.js";
import type { SpecRecord } from "./ports/placement-store.js";
import type { Tracer } from "./ports/tracer.js";
import { takeShadowImage } from "./shadow-image.js";
import { fromStore } from "./store-limit.js";

/** A container of this host, as the refresher sees it. */
export interface Refreshed {
  readonly name: string;
  readonly epoch: number;
  readonly record: SpecRecord;
  readonly state: string;
  update(record: SpecRecord): void;
}

export interface RefresherDeps extends Omit<CheckpointDeps, "engine"> {
  readonly engines: ReadonlyMap<string, Engine>;
  readonly content: Content;
  readonly admission: Admission;
  readonly tracer: Tracer;
  readonly containers: () => Iterable<Refreshed>;
  /** This host is its owner beyond doubt, and neither of the two is on its way out. */
  readonly mayRefresh: (container: Refreshed) => boolean;
}

/** From the end of one look at everything to the next. */
export const lookEveryMs = 10_000;
/** Others may remove images, or set them aside. */
const knownForMs = 5 * 60_000;
/** Content that changed is left to settle from one look to the next; for no longer than this. */
const settleLimitMs = 5 * 60_000;
/** A file server that does not answer holds up the others no longer. */
const contentLimitMs = 30_000;
const leastPauseMs = 60_000;
const mostPauseMs = 60 * 60_000;

/** What is known of one container. It goes with the container. */
interface Book {
  /** Its new specification, which waits for an image (F4). */
  next?: SpecRecord;
  newest?: { readonly manifest: Manifest; readonly hash: string; readonly lookedMs: number };
  changing?: { readonly digest: string; readonly sinceMs: number };
  failures: number;
  notBeforeMs: number;
  trouble?: string;
}

interface Job {
  readonly container: Refreshed;
  readonly abort: AbortController;
}

interface Due {
  readonly reason: string;
  readonly record: SpecRecord;
  readonly engine: Engine;
  readonly fingerprint: Manifest["fingerprint"];
  readonly content: string | undefined;
}

export class ImageRefresher {
  readonly #deps: RefresherDeps;
  readonly #books = new WeakMap<Refreshed, Book>();
  #looking: Promise<void> | undefined;
  #nextLookMs = Number.NEGATIVE_INFINITY;
  /** Something changed that is not to wait for the next look. */
  #soon = false;
  #job: Job | undefined;
  #closed = false;

  constructor(deps: RefresherDeps) {
    this.#deps = deps;
  }

  /** To be called often: aborts what may not go on, and looks at everything when it is time. Never waits. */
  check(): void {
    const { clock, mayRefresh } = this.#deps;
    if (this.#job !== undefined && !mayRefresh(this.#job.container))
      this.#job.abort.abort(new Error("its host is not to refresh it any more"));
    if (this.#closed || this.#looking !== undefined || (!this.#soon && clock.now() < this.#nextLookMs)) return;
    this.#soon = false;
    this.#looking = this.#lookAtAll().finally(() => {
      this.#looking = undefined;
      this.#nextLookMs = clock.now() + lookEveryMs;
    });
  }

  /**
   * F4. @returns whether it brings the container to its new specification itself, when the image is there; else the caller does at once
   */
  prepares(container: Refreshed, record: SpecRecord): boolean {
    const { mayRefresh } = this.#deps;
    const book = this.#bookOf(container);
    const changes = record.hash !== container.record.hash;
    if (
      changes &&
      this.#engineOf(record) !== undefined &&
      container.state === "running.serving" &&
      mayRefresh(container)
    )
      book.next = record;
    else delete book.next;
    this.#soon = true;
    return book.next !== undefined;
  }

  /** Why the last refresh of it failed, for people; undefined: it did not. */
  trouble(container: Refreshed): string | undefined {
    return this.#books.get(container)?.trouble;
  }

  /** Aborts what is under way and resolves when nothing of it is left. Idempotent. */
  async close(reason: string): Promise<void> {
    this.#closed = true;
    this.#job?.abort.abort(new Error(reason));
    await this.#looking;
  }

  async #lookAtAll(): Promise<void> {
    const waiting = new Set(this.#deps.containers());
    while (waiting.size > 0 && !this.#closed) {
      // A changed specification may come while others are refreshed.
      const container = [...waiting].find((each) => this.#books.get(each)?.next !== undefined) ?? first(waiting);
      waiting.delete(container);
      await this.#lookAt(container);
    }
  }

  /** Never rejects. */
  async #lookAt(container: Refreshed): Promise<void> {
    const { log, mayRefresh, clock } = this.#deps;
    const record = this.#bookOf(container).next ?? container.record;
    const engine = this.#engineOf(record);
    if (engine === undefined || !mayRefresh(container)) return;
    const job: Job = { container, abort: new AbortController() };
    this.#job = job;
    const book = this.#bookOf(container);
    const { signal } = job.abort;
    try {
      const due = await this.#due(container, book, record, engine, signal);
      if (due !== undefined) await this.#refresh(container, book, due, signal);
      if (book.next === record) this.#apply(container, book);
    } catch (error) {
      if (signal.aborted) return log.info({ container: container.name, reason: reasonOf(error) }, "refresh given up");
      book.failures++;
      const pauseMs = Math.min(mostPauseMs, leastPauseMs * 2 ** (book.failures - 1));
      book.notBeforeMs = clock.now() + pauseMs;
      book.trouble = `its image could not be refreshed (${book.failures}): ${reasonOf(error)}`;
      log.warn(
        { container: container.name, failures: book.failures, pauseMs, reason: reasonOf(error) },
        "refresh failed",
      );
      if (book.next === record) this.#apply(container, book);
    } finally {
      this.#job = undefined;
    }
  }

  #apply(container: Refreshed, book: Book): void {
    const { next } = book;
    delete book.next;
    if (next !== undefined) container.update(next);
  }

  /** F2. @returns undefined: its image is fresh, or it is not the time */
  async #due(
    container: Refreshed,
    book: Book,
    record: SpecRecord,
    engine: Engine,
    signal: AbortSignal,
  ): Promise<Due | undefined> {
    const { clock, content } = this.#deps;
    // One that comes up takes an image itself.
    if (!/^(stopped|running\.(serving|suspending))$/.test(container.state)) return undefined;
    if (clock.now() < book.notBeforeMs && book.next === undefined) return undefined;
    const { spec } = record;
    const paths = spec.checkpoint.refresh?.paths ?? [];
    const fingerprint = await engine.fingerprint(spec, true);
    const late = deadline(clock, contentLimitMs, `its watched paths were not looked at within ${contentLimitMs} ms`);
    const digest = paths.length === 0 ? undefined : await content.digest(paths, AbortSignal.any([signal, late]));
    const look = async (): Promise<string | undefined> => {
      const manifest = await this.#newest(book, record, engine, fingerprint, signal);
      return manifest === undefined
        ? "there is no image that can be used"
        : this.#staleness(book, manifest, record, fingerprint, digest);
    };
    let reason = await look();
    if (reason !== undefined && book.newest !== undefined) {
      delete book.newest;
      reason = await look();
    }
    signal.throwIfAborted();
    return reason === undefined ? undefined : { reason, record, engine, fingerprint, content: digest };
  }

  /** The newest image that can be used, as it is known or looked for. */
  async #newest(
    book: Book,
    record: SpecRecord,
    engine: Engine,
    fingerprint: Manifest["fingerprint"],
    signal: AbortSignal,
  ): Promise<Manifest | undefined> {
    const { clock, images } = this.#deps;
    const find = (of: Manifest["fingerprint"]): Promise<FoundImage> =>
      fromStore(clock, images.find(record, of), { signal });
    const { newest } = book;
    if (newest?.hash === record.hash && clock.now() - newest.lookedMs < knownForMs) return newest.manifest;
    delete book.newest;
    let { image } = await find(fingerprint);
    if (image === undefined) ({ image } = await find(await engine.fingerprint(record.spec)));
    // Another host has refreshed it after what this one remembers had changed.
    else engine.remember?.(record.spec, fingerprint);
    if (image !== undefined) book.newest = { manifest: image.manifest, hash: record.hash, lookedMs: clock.now() };
    return image?.manifest;
  }

  #staleness(
    book: Book,
    manifest: Manifest,
    { spec }: SpecRecord,
    fingerprint: Manifest["fingerprint"],
    digest: string | undefined,
  ): string | undefined {
    const { clock } = this.#deps;
    const changed = Object.keys(fingerprint).find((key) => fingerprint[key] !== manifest.fingerprint[key]);
    if (changed !== undefined) return `${changed} changed`;
    const everyMs = spec.checkpoint.refresh?.everyMs;
    const ageMs = Date.parse(clock.timestamp()) - Date.parse(manifest.taken);
    if (everyMs !== undefined && ageMs >= everyMs) return `it was taken ${Math.round(ageMs / 1000)} s ago`;
    if (digest === undefined || digest === manifest.content) {
      delete book.changing;
      return undefined;
    }
    const { changing } = book;
    const sinceMs = changing?.sinceMs ?? clock.now();
    book.changing = { digest, sinceMs };
    const settled = changing?.digest === digest || clock.now() - sinceMs >= settleLimitMs;
    return settled ? "what lies at its watched paths changed" : undefined;
  }

  async #refresh(
    container: Refreshed,
    book: Book,
    { reason, record, engine, fingerprint, content }: Due,
    signal: AbortSignal,
  ): Promise<void> {
    const { admission, clock, tracer, log } = this.#deps;
    const { name, epoch } = container;
    const span = tracer.span("image refresh", {
      attributes: { "hakobu.container": name, "hakobu.epoch": epoch, "hakobu.reason": reason },
    });
    const wanted = { record, epoch, span, fingerprint, ...(content === undefined ? {} : { content }) };
    try {
      const begunMs = clock.now();
      const image = await admission.runBehind(signal, () => takeShadowImage({ ...this.#deps, engine }, wanted, signal));
      engine.remember?.(record.spec, fingerprint);
      book.newest = { manifest: image.manifest, hash: record.hash, lookedMs: clock.now() };
      book.failures = 0;
      book.notBeforeMs = clock.now() + leastPauseMs;
      delete book.trouble;
      delete book.changing;
      const ms = Math.round(clock.now() - begunMs);
      span.set({ image: image.directory, bytes: image.bytes });
      log.info({ container: name, reason, image: image.directory, bytes: image.bytes, ms }, "image refreshed");
      span.end();
    } catch (error) {
      span.end(error);
      throw error;
    }
  }

  /** Of what is to be refreshed, where that is possible. A second copy of an exclusive one is none. */
  #engineOf({ spec }: SpecRecord): Engine | undefined {
    const { refresh, onReady } = spec.checkpoint;
    if (refresh === undefined || !onReady || spec.takeover === "exclusive") return undefined;
    const engine = this.#deps.engines.get(spec.engine);
    return engine?.shadow !== undefined && engine.capabilities.checkpoint ? engine : undefined;
  }

  #bookOf(container: Refreshed): Book {
    const known = this.#books.get(container);
    if (known !== undefined) return known;
    const book: Book = { failures: 0, notBeforeMs: Number.NEGATIVE_INFINITY };
    this.#books.set(container, book);
    return book;
  }
}

function first<T>(set: ReadonlySet<T>): T {
  const [each] = set;
  return each as T;
}
