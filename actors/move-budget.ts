// How often a container may move. A host that flaps must not take its containers along each time, nor a container that starts nowhere be
// tried on one host after the other for ever: how often is too often is left open by the paper. A false alarm costs one slow
// answer, a move on each of them costs all of them.
//
//   B1  All proxies count what they see in the store, so that their number does not multiply the budget.
//   B2  What cannot be a false alarm (refused, left, lease over) moves all the same.
import type { MoveReason } from "../machines/relocation.js";
import type { ClusterView } from "./cluster-view.js";
import type { Clock } from "./ports/clock.js";
import type { Log } from "./ports/log.js";
import type { Placement } from "./ports/placement-store.js";

export interface MoveBudgetDeps {
  readonly clock: Clock;
  readonly view: ClusterView;
  readonly log: Log;
  /** Moves of one container in a minute, whoever made them, from which on it does not move on suspicion. */
  readonly movesPerMinute: number;
}

const minuteMs = 60_000;

export class MoveBudget {
  readonly #deps: MoveBudgetDeps;
  /** `clock.now()` of each container's moves in the last minute. */
  readonly #recent = new Map<string, readonly number[]>();

  constructor(deps: MoveBudgetDeps) {
    this.#deps = deps;
    deps.view.onChange((noticed) => {
      if (noticed.kind !== "placement" || noticed.placement === undefined || noticed.before === undefined) return;
      if (noticed.before.host !== noticed.placement.host) this.#count(noticed.container);
    });
  }

  /** Who keeps the container, since it has moved too often to be moved for that reason; undefined: it may move. */
  keeper(container: string, reason: MoveReason): Placement | undefined {
    const { view, clock, movesPerMinute, log } = this.#deps;
    const placement = view.placement(container);
    if (reason.certain || placement === undefined || view.host(placement.host) === undefined) return undefined;
    const since = clock.now() - minuteMs;
    const moves = (this.#recent.get(container) ?? []).filter((at) => at > since).length;
    if (moves < movesPerMinute) return undefined;
    log.warn(
      { container, host: placement.host, moves, reason: reason.text },
      "not moved: it has moved too often in the last minute (movesPerMinute)",
    );
    return placement;
  }

  #count(container: string): void {
    const now = this.#deps.clock.now();
    for (const [name, moves] of this.#recent) if (moves.every((at) => at <= now - minuteMs)) this.#recent.delete(name);
    const recent = (this.#recent.get(container) ?? []).filter((at) => at > now - minuteMs);
    this.#recent.set(container, [...recent, now]);
  }
}
