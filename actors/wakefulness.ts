// Whether this process ran without a pause, and who owns its containers after one.
//
//   W1  After a time in which it did not run (stopped, starved) none of its containers is served before the store has said who owns it.
//   W2  A store that does not answer is asked again, at most every half second; until then the container is not served.
import type { ClusterView } from "./cluster-view.js";
import type { ContainerActor } from "./container.js";
import { reasonOf } from "./hakobu-error.js";
import type { Clock } from "./ports/clock.js";
import type { Log } from "./ports/log.js";
import type { PlacementStore } from "./ports/placement-store.js";

export interface WakefulnessDeps {
  readonly hostId: string;
  readonly containers: ReadonlyMap<string, ContainerActor>;
  readonly store: PlacementStore;
  readonly view: ClusterView;
  readonly clock: Clock;
  readonly log: Log;
}

/** A pause of the event loop from which on this host does not trust what it knows. */
const sleepMs = 2000;
const lookAgainMs = 500;

export class Wakefulness {
  readonly #deps: WakefulnessDeps;
  /** When the event loop was last seen to run. */
  #tickMs: number;
  /** Times at which it had not. */
  #sleeps = 0;
  #unlooked = new Set<ContainerActor>();
  #looking: Promise<void> | undefined;
  #nextLookMs = Number.NEGATIVE_INFINITY;

  constructor(deps: WakefulnessDeps) {
    this.#deps = deps;
    this.#tickMs = deps.clock.now();
  }

  /** To be called often, and before anything is served. It costs one look at the clock. */
  tick(): void {
    const now = this.#deps.clock.now();
    const paused = now - this.#tickMs > sleepMs;
    this.#tickMs = now;
    if (!paused) return;
    this.#sleeps++;
    this.#unlooked = new Set(this.#deps.containers.values());
    this.#nextLookMs = now;
  }

  /** W1. Looks where that has not been done. @returns whether it is known who owns it */
  async knows(container: ContainerActor): Promise<boolean> {
    this.tick();
    if (!this.#unlooked.has(container)) return true;
    const { clock } = this.#deps;
    if (this.#looking === undefined && clock.now() >= this.#nextLookMs) {
      this.#nextLookMs = clock.now() + lookAgainMs;
      this.#looking = this.#look().finally(() => (this.#looking = undefined));
    }
    await this.#looking;
    return !this.#unlooked.has(container);
  }

  async #look(): Promise<void> {
    const { store, view, log, hostId } = this.#deps;
    log.warn({ host: hostId }, "this process did not run for a while: looks who owns its containers");
    const sleeps = this.#sleeps;
    await Promise.all(
      [...this.#unlooked].map(async (container) => {
        try {
          const placement = await store.read(container.name);
          // What was read before another pause says nothing about the time after it.
          if (sleeps !== this.#sleeps) return;
          if (placement !== undefined) view.learn(placement);
          if (placement !== undefined && placement.host !== hostId)
            container.loseOwnership("it was taken while this host did not run");
          this.#unlooked.delete(container);
        } catch (error) {
          log.warn({ container: container.name, reason: reasonOf(error) }, "cannot look who owns it");
        }
      }),
    );
  }
}
