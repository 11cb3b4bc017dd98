// A host agent's life. Effects are given by actors/host.ts.
//
//   H1  Containers are claimed only in `running`.
//   H2  When the lease can no longer be proven the host is `fenced` and joins again by itself.
//   H3  `stopped` is reached only when nothing of it runs any more, or joining was given up.
import { assign, fromPromise, setup } from "xstate";

export type HostEvent =
  | { readonly type: "JOIN" }
  | { readonly type: "LEASE_LOST"; readonly reason: string }
  /** Move everything away, then stop. */
  | { readonly type: "DRAIN" };

export interface HostContext {
  readonly reason: string | undefined;
}

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

export const hostMachine = setup({
  types: { context: {} as HostContext, events: {} as HostEvent },
  actors: {
    /** Lease granted, host published, survivors adopted. Retries by itself while the store is away. */
    join: fromPromise<void>(() => Promise.reject(new Error("not provided: join"))),
    /** Every container stopped or moved, the lease revoked. Bounded. */
    leave: fromPromise<void>(() => Promise.reject(new Error("not provided: leave"))),
  },
  actions: {
    /** Exclusive containers are killed before the lease can have ended. */
    fence: () => {
      throw new Error("not provided: fence");
    },
  },
}).createMachine({
  id: "host",
  context: { reason: undefined },
  initial: "stopped",
  states: {
    stopped: { on: { JOIN: "restoring" } },
    restoring: {
      invoke: {
        id: "join",
        src: "join",
        onDone: { target: "running", actions: assign({ reason: undefined }) },
        onError: { target: "stopped", actions: assign({ reason: ({ event }) => reasonOf(event.error) }) },
      },
      on: { DRAIN: "relocating" },
    },
    running: {
      on: {
        LEASE_LOST: { target: "fenced", actions: assign({ reason: ({ event }) => event.reason }) },
        DRAIN: "relocating",
      },
    },
    fenced: {
      entry: "fence",
      invoke: {
        id: "join",
        src: "join",
        onDone: { target: "running", actions: assign({ reason: undefined }) },
        onError: { target: "fenced", reenter: true, actions: assign({ reason: ({ event }) => reasonOf(event.error) }) },
      },
      on: { DRAIN: "relocating" },
    },
    relocating: {
      invoke: {
        id: "leave",
        src: "leave",
        onDone: "stopped",
        onError: { target: "stopped", actions: assign({ reason: ({ event }) => reasonOf(event.error) }) },
      },
    },
  },
});
