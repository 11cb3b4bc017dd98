// Placements that a host gives up: tried until the store has done it. One that stayed would keep everybody else from a container
// that runs nowhere, for as long as this host lives.
//
//   R1  A container that this host has taken again, or is about to, is not given up. Once it has it under another epoch there is
//       nothing left to give up.
//   R2  No claim of this host overtakes a release that is under way: it could win what is then given up (`settled`).
import { reasonOf } from "./hakobu-error.js";
import { type Clock, delay } from "./ports/clock.js";
import type { Log } from "./ports/log.js";
import type { Membership } from "./ports/placement-store.js";

const pauseMs = 500;

export interface ReleaseDeps {
  readonly clock: Clock;
  readonly log: Log;
  /** The host's, as it is now: a release ends with the lease on which the placement hangs. */
  readonly membership: () => Membership | undefined;
  /** R1. */
  readonly wanted: (container: string) => boolean;
  /** Under which this host has the container; undefined: it has it not. */
  readonly heldUnder: (container: string) => number | undefined;
}

export class Releases {
  readonly #deps: ReleaseDeps;
  readonly #underWay = new Map<string, Promise<boolean>>();
  readonly #over = new AbortController();

  constructor(deps: ReleaseDeps) {
    this.#deps = deps;
  }

  /** Resolves when the placement is given up, or need not be any more. Never rejects. */
  async giveUp(container: string, epoch: number): Promise<void> {
    const { clock, membership, wanted, heldUnder } = this.#deps;
    const held = membership();
    while (held !== undefined && membership() === held && !this.#over.signal.aborted) {
      if ((heldUnder(container) ?? epoch) !== epoch) return;
      if (!wanted(container) && (await this.#attempt(held, container, epoch))) return;
      await delay(clock, pauseMs, this.#over.signal).catch(() => {});
    }
  }

  /** R2: resolves when no attempt is under way. */
  async settled(container: string): Promise<void> {
    await this.#underWay.get(container);
  }

  close(): void {
    this.#over.abort(new Error("the host agent ends"));
  }

  async #attempt(held: Membership, container: string, epoch: number): Promise<boolean> {
    const attempt = held.release(container, epoch).then(
      () => true,
      (error: unknown) => {
        this.#deps.log.warn({ container, epoch, reason: reasonOf(error) }, "not given up yet: tried again");
        return false;
      },
    );
    this.#underWay.set(container, attempt);
    try {
      return await attempt;
    } finally {
      this.#underWay.delete(container);
    }
  }
}
