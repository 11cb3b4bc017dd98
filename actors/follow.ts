// Keeps a view of the cluster up to date from the store's stream, until the signal aborts.
import type { ClusterView } from "./cluster-view.js";
import { reasonOf } from "./hakobu-error.js";
import type { Log } from "./ports/log.js";
import type { PlacementStore } from "./ports/placement-store.js";

/** Resolves when the view holds everything there is, and goes on by itself. Waits for a store that is away: that is said in the log. */
export function follow(store: PlacementStore, view: ClusterView, log: Log, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    void (async () => {
      try {
        for await (const change of store.follow(signal)) {
          if (change.kind === "disconnected") log.warn({ reason: change.reason }, "placement store: interrupted");
          view.apply(change);
          if (change.kind === "reset") resolve();
        }
      } catch (error) {
        if (!signal.aborted) log.error({ error: reasonOf(error) }, "placement store: stream ended");
      }
    })();
  });
}
