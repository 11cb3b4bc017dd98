// Since when a host knows that a container has no owner. An exclusive container is taken over only a moment after that.
//
//   A store keeps a placement for as long as its lease is proven (P3), or should: an etcd with a defect can drop a lease that was
//   renewed (docs/reference/faults.md). The owner hears of that as soon as everybody else, and kills the container; the moment
//   is what it gets for that.
import type { ClusterView } from "./cluster-view.js";
import { type Clock, delay } from "./ports/clock.js";

/** From the notice of the end of a placement to the end of its container, on the owner. */
export const noticeMs = 500;

export class Vacancies {
  readonly #clock: Clock;
  readonly #view: ClusterView;
  readonly #since = new Map<string, number>();
  /** What had no placement in the first listing may have lost it just before. */
  #listedMs: number;
  readonly #stop: () => void;

  /** @param listed resolves when the view has had its first listing */
  constructor(clock: Clock, view: ClusterView, listed: Promise<void>) {
    this.#clock = clock;
    this.#view = view;
    this.#listedMs = clock.now();
    void listed.then(() => {
      this.#listedMs = clock.now();
    });
    this.#stop = view.onChange((noticed) => {
      if (noticed.kind === "placement")
        if (noticed.placement === undefined) this.#note(noticed.container);
        else this.#since.delete(noticed.container);
    });
  }

  /** Nobody waits any more for what was vacated long enough ago. */
  #note(container: string): void {
    const now = this.#clock.now();
    for (const [each, sinceMs] of this.#since) if (now - sinceMs >= noticeMs) this.#since.delete(each);
    this.#since.set(container, now);
  }

  /** Resolves `noticeMs` after the container was seen to lose its owner; at once when it has one. */
  async settled(container: string): Promise<void> {
    if (this.#view.placement(container) !== undefined) return;
    const sinceMs = this.#since.get(container) ?? this.#listedMs;
    const restMs = sinceMs + noticeMs - this.#clock.now();
    if (restMs > 0) await delay(this.#clock, restMs);
  }

  close(): void {
    this.#stop();
  }
}
