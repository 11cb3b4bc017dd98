// How a proxy sees a host. Effects are given by actors/reachability.ts.
//
//   R1  One missed probe makes a host suspected: enough for `takeover: fast` (paper, "a false alarm is harmless").
//   R2  A refused connection or an expired lease is proof: unreachable at once.
//   R3  Any answer is proof of life, in every state.
import { assign, fromPromise, setup } from "xstate";

/** `unknown`: the question could not be asked. */
export type Verdict = "alive" | "silent" | "refused" | "unknown";

export type ReachabilityEvent =
  /** Anything that came back from the host. */
  | { readonly type: "ALIVE" }
  /** A probe found no answer within its limit. */
  | { readonly type: "SILENT"; readonly reason: string }
  /** Its machine says that nothing listens. */
  | { readonly type: "REFUSED"; readonly reason: string }
  /** The store dropped the host's lease. */
  | { readonly type: "LEASE_EXPIRED" };

export interface ReachabilityContext {
  /** Probes in a row without an answer. */
  readonly misses: number;
  readonly reason: string | undefined;
  /** R2: it is known to be gone, and not only silent. */
  readonly certain: boolean;
}

/** Missed probes in a row after which a host counts as unreachable. */
const missLimit = 3;

export const reachabilityMachine = setup({
  types: { context: {} as ReachabilityContext, events: {} as ReachabilityEvent },
  actors: {
    /** Probes once more, after a pause; feeds the result back as the output. */
    reprobe: fromPromise<Verdict>(() => Promise.reject(new Error("not provided: reprobe"))),
  },
  actions: {
    clear: assign({ misses: 0, reason: undefined, certain: false }),
    beCertain: assign({ certain: true }),
    miss: assign({
      misses: ({ context }) => context.misses + 1,
      reason: ({ event, context }) => ("reason" in event ? event.reason : context.reason),
    }),
  },
}).createMachine({
  id: "reachability",
  context: { misses: 0, reason: undefined, certain: false },
  initial: "trusted",
  on: {
    LEASE_EXPIRED: { target: ".unreachable", actions: assign({ reason: "its lease expired", certain: true }) },
  },
  states: {
    trusted: {
      entry: "clear",
      on: {
        SILENT: { target: "suspected", actions: "miss" },
        REFUSED: { target: "unreachable", actions: ["miss", "beCertain"] },
      },
    },
    suspected: {
      invoke: {
        id: "reprobe",
        src: "reprobe",
        onDone: [
          { guard: ({ event }) => event.output === "alive", target: "trusted" },
          { guard: ({ event }) => event.output === "unknown", target: "suspected", reenter: true },
          {
            guard: ({ event }) => event.output === "refused",
            target: "unreachable",
            actions: ["miss", "beCertain"],
          },
          { guard: ({ context }) => context.misses + 1 >= missLimit, target: "unreachable", actions: "miss" },
          { target: "suspected", reenter: true, actions: "miss" },
        ],
        onError: { target: "suspected", reenter: true, actions: "miss" },
      },
      on: { ALIVE: "trusted", REFUSED: { target: "unreachable", actions: ["miss", "beCertain"] } },
    },
    unreachable: {
      invoke: {
        id: "reprobe",
        src: "reprobe",
        onDone: [
          { guard: ({ event }) => event.output === "alive", target: "trusted" },
          { target: "unreachable", reenter: true, actions: "miss" },
        ],
        onError: { target: "unreachable", reenter: true, actions: "miss" },
      },
      on: { ALIVE: "trusted" },
    },
  },
});
