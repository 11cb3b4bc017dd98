// A container's life on the host that owns it. Effects are placeholders, given by actors/container.ts.
//
//   C1  At most one operation (restore, start, checkpoint, suspend, drain, stop) works on a container at a time:
//       each is invoked by exactly one state, and leaving the state aborts it.
//   C2  A failed restore is followed by one cold start, never by another restore of the same image. (The restore itself begins
//       with the suspended image, where there is one, and goes on with the golden one.)
//   C3  Every way out of a state in which processes may exist leads through `stopping`.
//   C4  After OWNERSHIP_LOST nothing is started again: the machine ends in `left`.
//   C5  Nothing is started, and no exclusive container has left, before a stop has succeeded: a failed one is tried again. One that
//       is not exclusive is given up after some: nobody is to be kept from it because a copy cannot be killed.
import { assign, fromPromise, setup } from "xstate";

export type RestoreOutcome =
  | { readonly kind: "restored" }
  /** There is no image to restore from: `why` tells people. */
  | { readonly kind: "noImage"; readonly why: string }
  /** There was one, and it did not work; it has been set aside. */
  | { readonly kind: "badImage"; readonly why: string };

export type ContainerEvent =
  /** Somebody waits for it. */
  | { readonly type: "REQUEST" }
  /** No request for the idle time. */
  | { readonly type: "IDLE" }
  /** Its process is no longer there. */
  | { readonly type: "GONE" }
  /** Planned move or removal: drain, then stop for good. `keepMemory`: with a last image of its memory in between. */
  | { readonly type: "RELOCATE"; readonly reason: string; readonly keepMemory?: boolean }
  /** Another host owns it now, or the lease cannot be proven: drain, then stop for good. */
  | { readonly type: "OWNERSHIP_LOST"; readonly reason: string }
  /** As OWNERSHIP_LOST, without the drain: an exclusive container whose lease is about to end. */
  | { readonly type: "FENCE"; readonly reason: string }
  /** Its specification changed: stop it; the next request starts what is now asked for. */
  | { readonly type: "RESTART"; readonly reason: string }
  /** What its specification says now of what the machine goes by. */
  | ({ readonly type: "SPECIFIED" } & ContainerTerms);

/** May change while it lives. */
export interface ContainerTerms {
  /** The engine can take and restore images, and the specification wants them. */
  readonly restorable: boolean;
  /** There must never be two of it. */
  readonly exclusive: boolean;
}

export interface ContainerInput extends ContainerTerms {
  /** Found running when the agent came up again. */
  readonly adopted: boolean;
}

export interface ContainerContext extends ContainerTerms {
  readonly adopted: boolean;
  /** It runs without an image, and one is to be taken. */
  readonly imageWanted: boolean;
  /** A request came while it was stopping. */
  readonly wanted: boolean;
  /** It leaves this host for good. */
  readonly leaving: boolean;
  /** A last image of its memory is wanted before it leaves. */
  readonly keepMemory: boolean;
  /** Consecutive failed starts; decides the back-off. */
  readonly failures: number;
  /** Consecutive failed stops; decides the pause before the next. */
  readonly failedStops: number;
  /** Why the last start was cold, or the last operation failed. */
  readonly reason: string | undefined;
}

/** Stops of a container that is not exclusive. */
const stopLimit = 6;

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

export const containerMachine = setup({
  types: {
    context: {} as ContainerContext,
    events: {} as ContainerEvent,
    input: {} as ContainerInput,
  },
  actors: {
    restore: fromPromise<RestoreOutcome>(() => Promise.reject(new Error("not provided: restore"))),
    start: fromPromise<void>(() => Promise.reject(new Error("not provided: start"))),
    checkpoint: fromPromise<void>(() => Promise.reject(new Error("not provided: checkpoint"))),
    /** Idle: keeps its memory in an image where the specification says so, else waits for a moment. Aborted by a request. */
    suspend: fromPromise<void>(() => Promise.reject(new Error("not provided: suspend"))),
    /** The image of its memory with which it moves. */
    lastImage: fromPromise<void>(() => Promise.reject(new Error("not provided: lastImage"))),
    /** Waits for the requests that are being answered; bounded; never fails for being late. */
    drain: fromPromise<void>(() => Promise.reject(new Error("not provided: drain"))),
    stop: fromPromise<void>(() => Promise.reject(new Error("not provided: stop"))),
  },
  delays: {
    /** 250 ms doubled with each failure, at most 30 s. */
    backoff: ({ context }) => Math.min(30_000, 250 * 2 ** Math.max(0, context.failures - 1)),
    /** 250 ms doubled with each failure, at most 10 s. */
    stopAgain: ({ context }) => Math.min(10_000, 250 * 2 ** Math.max(0, context.failedStops - 1)),
  },
  guards: {
    restorable: ({ context }) => context.restorable,
    adopted: ({ context }) => context.adopted,
    imageWanted: ({ context }) => context.imageWanted && context.restorable,
    wanted: ({ context }) => context.wanted,
    leaving: ({ context }) => context.leaving,
    givenUp: ({ context }) => context.leaving && !context.exclusive && context.failedStops >= stopLimit,
    keepMemory: ({ context }) => context.keepMemory,
  },
  actions: {
    want: assign({ wanted: true }),
    leave: assign({ leaving: true, wanted: false }),
    noteMemory: assign({ keepMemory: ({ event }) => event.type === "RELOCATE" && event.keepMemory === true }),
    noteReason: assign({ reason: ({ event }) => ("reason" in event ? event.reason : undefined) }),
    countFailure: assign({ failures: ({ context }) => context.failures + 1 }),
    countFailedStop: assign({ failedStops: ({ context }) => context.failedStops + 1 }),
    noteTerms: assign(({ context, event }) =>
      event.type === "SPECIFIED" ? { restorable: event.restorable, exclusive: event.exclusive } : context,
    ),
  },
}).createMachine({
  id: "container",
  context: ({ input }) => ({
    restorable: input.restorable,
    exclusive: input.exclusive,
    adopted: input.adopted,
    imageWanted: false,
    wanted: false,
    leaving: false,
    keepMemory: false,
    failures: 0,
    failedStops: 0,
    reason: undefined,
  }),
  initial: "stopped",
  on: { SPECIFIED: { actions: "noteTerms" } },
  states: {
    stopped: {
      always: { guard: "adopted", target: "running.serving" },
      on: {
        REQUEST: [{ guard: "restorable", target: "restoring" }, { target: "starting" }],
        RELOCATE: { target: "left", actions: "noteReason" },
        OWNERSHIP_LOST: { target: "left", actions: "noteReason" },
        FENCE: { target: "left", actions: "noteReason" },
      },
    },
    restoring: {
      entry: assign({ wanted: false, imageWanted: false, reason: undefined }),
      invoke: {
        id: "restore",
        src: "restore",
        onDone: [
          {
            guard: ({ event }) => event.output.kind === "restored",
            target: "running.serving",
            actions: assign({ failures: 0 }),
          },
          {
            target: "starting",
            actions: assign({
              imageWanted: true,
              reason: ({ event }) => (event.output.kind === "restored" ? undefined : event.output.why),
            }),
          },
        ],
        onError: {
          target: "starting",
          actions: assign({ imageWanted: true, reason: ({ event }) => reasonOf(event.error) }),
        },
      },
      on: {
        RELOCATE: { target: "stopping", actions: ["leave", "noteReason"] },
        OWNERSHIP_LOST: { target: "stopping", actions: ["leave", "noteReason"] },
        FENCE: { target: "stopping", actions: ["leave", "noteReason"] },
        RESTART: { target: "stopping", actions: ["want", "noteReason"] },
      },
    },
    starting: {
      entry: assign({ wanted: false }),
      invoke: {
        id: "start",
        src: "start",
        onDone: [
          { guard: "imageWanted", target: "running.checkpointing", actions: assign({ failures: 0 }) },
          { target: "running.serving", actions: assign({ failures: 0 }) },
        ],
        onError: {
          target: "stopping",
          actions: ["countFailure", assign({ reason: ({ event }) => reasonOf(event.error) })],
        },
      },
      on: {
        RELOCATE: { target: "stopping", actions: ["leave", "noteReason"] },
        OWNERSHIP_LOST: { target: "stopping", actions: ["leave", "noteReason"] },
        FENCE: { target: "stopping", actions: ["leave", "noteReason"] },
        RESTART: { target: "stopping", actions: ["want", "noteReason"] },
      },
    },
    running: {
      initial: "serving",
      exit: assign({ adopted: false, imageWanted: false }),
      on: {
        GONE: { target: "stopping", actions: assign({ reason: "its process ended" }) },
        RELOCATE: { target: "relocating", actions: ["noteReason", "noteMemory"] },
        OWNERSHIP_LOST: { target: "relocating", actions: ["noteReason", "noteMemory"] },
        FENCE: { target: "stopping", actions: ["leave", "noteReason"] },
        RESTART: { target: ".finishing", actions: "noteReason" },
      },
      states: {
        serving: {
          on: { IDLE: "suspending" },
        },
        /** Requests wait: an image never holds what a user sent. */
        checkpointing: {
          invoke: {
            id: "checkpoint",
            src: "checkpoint",
            onDone: { target: "serving", actions: assign({ imageWanted: false }) },
            onError: {
              target: "serving",
              actions: assign({ imageWanted: false, reason: ({ event }) => reasonOf(event.error) }),
            },
          },
        },
        /** A request that comes meanwhile keeps it running; so does a failure to keep its memory. */
        suspending: {
          invoke: {
            id: "suspend",
            src: "suspend",
            onDone: "#container.stopping",
            onError: { target: "serving", actions: assign({ reason: ({ event }) => reasonOf(event.error) }) },
          },
          on: { REQUEST: "serving" },
        },
        /** What is being answered is finished as it was begun; what comes now waits for what is asked for now. */
        finishing: {
          invoke: { id: "finish", src: "drain", onDone: "#container.stopping", onError: "#container.stopping" },
          on: { REQUEST: { actions: "want" }, RESTART: { actions: "noteReason" } },
        },
      },
    },
    relocating: {
      entry: "leave",
      initial: "draining",
      on: { GONE: "stopping", FENCE: "stopping" },
      states: {
        draining: {
          invoke: {
            id: "drain",
            src: "drain",
            onDone: [{ guard: "keepMemory", target: "imaging" }, { target: "#container.stopping" }],
            onError: "#container.stopping",
          },
          on: { OWNERSHIP_LOST: { actions: ["noteReason", "noteMemory"] } },
        },
        /** Whoever restores what is taken here goes on where this copy ended. */
        imaging: {
          invoke: {
            id: "lastImage",
            src: "lastImage",
            onDone: "#container.stopping",
            onError: {
              target: "#container.stopping",
              actions: assign({ reason: ({ event }) => reasonOf(event.error) }),
            },
          },
          on: { OWNERSHIP_LOST: { target: "#container.stopping", actions: "noteReason" } },
        },
      },
    },
    stopping: {
      invoke: {
        id: "stop",
        src: "stop",
        onDone: { target: "settling", actions: assign({ failedStops: 0 }) },
        onError: {
          target: "stuck",
          actions: ["countFailedStop", assign({ reason: ({ event }) => reasonOf(event.error) })],
        },
      },
      on: {
        REQUEST: { guard: ({ context }) => !context.leaving, actions: "want" },
        RELOCATE: { actions: "leave" },
        OWNERSHIP_LOST: { actions: "leave" },
        FENCE: { actions: "leave" },
      },
    },
    /** It could not be stopped: tried again (C5). */
    stuck: {
      always: { guard: "givenUp", target: "left" },
      after: { stopAgain: "stopping" },
      on: {
        REQUEST: { guard: ({ context }) => !context.leaving, actions: "want" },
        RELOCATE: { actions: "leave" },
        OWNERSHIP_LOST: { actions: "leave" },
        FENCE: { actions: "leave" },
      },
    },
    /** Where to after a stop: decided at once. */
    settling: {
      always: [
        { guard: "leaving", target: "left" },
        { guard: ({ context }) => context.failures > 0, target: "failed" },
        { guard: ({ context }) => context.wanted && context.restorable, target: "restoring" },
        { guard: "wanted", target: "starting" },
        { target: "stopped" },
      ],
    },
    /** The next request after the back-off tries again. */
    failed: {
      after: { backoff: "stopped" },
      on: {
        RESTART: { target: "stopped", actions: assign({ failures: 0 }) },
        RELOCATE: { target: "left", actions: "noteReason" },
        OWNERSHIP_LOST: { target: "left", actions: "noteReason" },
        FENCE: { target: "left", actions: "noteReason" },
      },
    },
    left: { type: "final" },
  },
});
