// One move, as a proxy drives it: from "its host may be dead", or "it has no host", to "it serves there".
// Every request for the container waits on the one actor (actors/relocation.ts gives it its I/O).
//
//   M1  Nothing is claimed while the old owner answers the probe.
//   M2  A candidate is tried once, or again where what it was to supersede had been released; at most `attemptLimit` tries.
//   M3  It ends within its deadline: in `done` with an owner, or in `failed` with the reason.
import { assign, fromPromise, setup } from "xstate";

export interface MoveReason {
  /** Stands in the placement, the trace and the log. */
  readonly text: string;
  /** The old owner is already known not to answer: no probe. */
  readonly proven: boolean;
  /** It cannot be a false alarm (refused, left, lease over): not damped. */
  readonly certain: boolean;
}

export interface Owner {
  readonly host: string;
  readonly epoch: number;
}

export type Ended =
  /** The probe was answered: the owner stays. */
  | { readonly kind: "alive"; readonly owner: Owner }
  /** It has moved too often of late: the owner keeps it, however silent it is. */
  | { readonly kind: "damped"; readonly owner: Owner }
  | { readonly kind: "moved"; readonly owner: Owner }
  /** Another proxy was first. */
  | { readonly kind: "taken"; readonly owner: Owner };

export type ChooseOutcome =
  /** `owner`: whom the claim has to supersede, as read now. */
  | { readonly kind: "candidate"; readonly host: string; readonly owner: Owner | undefined }
  /** It has got a new owner while this move waited. */
  | { readonly kind: "taken"; readonly owner: Owner }
  | { readonly kind: "none"; readonly why: string };

export type ClaimOutcome =
  | { readonly kind: "won"; readonly owner: Owner }
  | { readonly kind: "taken"; readonly owner: Owner }
  /** The claim was lost to a release: what was read is no longer true. */
  | { readonly kind: "stale"; readonly why: string }
  /** `soon`: it says that it could within moments. */
  | { readonly kind: "refused"; readonly why: string; readonly soon?: boolean };

export type ActivateOutcome =
  | { readonly kind: "active" }
  /** It has been taken from the new owner meanwhile. */
  | { readonly kind: "taken"; readonly owner: Owner }
  | { readonly kind: "failed"; readonly why: string };

export interface RelocationInput {
  readonly container: string;
  /** Owner at the start; absent: it has none. */
  readonly owner: Owner | undefined;
  readonly reason: MoveReason;
  readonly attemptLimit: number;
  readonly deadlineMs: number;
}

export interface RelocationContext extends RelocationInput {
  readonly candidate: string | undefined;
  readonly tried: readonly string[];
  readonly attempts: number;
  readonly ended: Ended | undefined;
  /** Why each candidate did not do, newest last. */
  readonly refusals: readonly string[];
}

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

export const relocationMachine = setup({
  types: {
    context: {} as RelocationContext,
    input: {} as RelocationInput,
    output: {} as Ended | { readonly kind: "failed"; readonly why: string },
  },
  actors: {
    probe: fromPromise<"alive" | "dead", RelocationContext>(() => Promise.reject(new Error("not provided: probe"))),
    choose: fromPromise<ChooseOutcome, RelocationContext>(() => Promise.reject(new Error("not provided: choose"))),
    claim: fromPromise<ClaimOutcome, RelocationContext>(() => Promise.reject(new Error("not provided: claim"))),
    activate: fromPromise<ActivateOutcome, RelocationContext>(() =>
      Promise.reject(new Error("not provided: activate")),
    ),
  },
  delays: { deadline: ({ context }) => context.deadlineMs },
  guards: {
    nothingToProbe: ({ context }) => context.owner === undefined || context.reason.proven,
    attemptsExhausted: ({ context }) => context.attempts >= context.attemptLimit,
    ends: (_, outcome: { readonly kind: string }) => outcome.kind === "taken" || outcome.kind === "active",
  },
  actions: {
    /** Another proxy was first, or it serves there. */
    end: assign({
      ended: ({ context }, outcome: ChooseOutcome | ClaimOutcome | ActivateOutcome): Ended =>
        outcome.kind === "taken" ? outcome : { kind: "moved", owner: context.owner as Owner },
    }),
    try: assign(({ context }, { host, owner }: { readonly host: string; readonly owner: Owner | undefined }) => ({
      candidate: host,
      owner,
      tried: [...context.tried, host],
      attempts: context.attempts + 1,
    })),
    note: assign({ refusals: ({ context }, why: string) => [...context.refusals, why] }),
    noteCandidate: assign({
      refusals: ({ context }, why: string) => [...context.refusals, `${context.candidate}: ${why}`],
    }),
    /** M2: what it was to supersede had been released. */
    tryAgain: assign({ tried: ({ context }) => context.tried.filter((id) => id !== context.candidate) }),
  },
}).createMachine({
  id: "relocation",
  context: ({ input }) => ({ ...input, candidate: undefined, tried: [], attempts: 0, ended: undefined, refusals: [] }),
  output: ({ context }) => context.ended ?? { kind: "failed", why: context.refusals.join("; ") },
  after: {
    deadline: {
      target: ".failed",
      actions: { type: "note", params: ({ context }) => `not done within ${context.deadlineMs} ms` },
    },
  },
  initial: "probing",
  states: {
    probing: {
      always: { guard: "nothingToProbe", target: "choosing" },
      invoke: {
        id: "probe",
        src: "probe",
        input: ({ context }) => context,
        onDone: [
          {
            guard: ({ event, context }) => event.output === "alive" && context.owner !== undefined,
            target: "done",
            actions: assign({ ended: ({ context }) => ({ kind: "alive", owner: context.owner as Owner }) }),
          },
          { target: "choosing" },
        ],
        onError: "choosing",
      },
    },
    choosing: {
      always: { guard: "attemptsExhausted", target: "failed" },
      invoke: {
        id: "choose",
        src: "choose",
        input: ({ context }) => context,
        onDone: [
          {
            guard: ({ event }) => event.output.kind === "candidate",
            target: "claiming",
            actions: {
              type: "try",
              params: ({ event }) => event.output as Extract<ChooseOutcome, { kind: "candidate" }>,
            },
          },
          {
            guard: { type: "ends", params: ({ event }) => event.output },
            target: "done",
            actions: { type: "end", params: ({ event }) => event.output },
          },
          { target: "failed", actions: { type: "note", params: ({ event }) => whyOf(event.output) } },
        ],
        onError: { target: "failed", actions: { type: "note", params: ({ event }) => reasonOf(event.error) } },
      },
    },
    claiming: {
      invoke: {
        id: "claim",
        src: "claim",
        input: ({ context }) => context,
        onDone: [
          {
            guard: ({ event }) => event.output.kind === "won",
            target: "activating",
            actions: assign({
              owner: ({ event, context }) => (event.output.kind === "won" ? event.output.owner : context.owner),
            }),
          },
          {
            guard: { type: "ends", params: ({ event }) => event.output },
            target: "done",
            actions: { type: "end", params: ({ event }) => event.output },
          },
          {
            guard: ({ event }) => event.output.kind === "stale",
            target: "choosing",
            actions: ["tryAgain", { type: "noteCandidate", params: ({ event }) => whyOf(event.output) }],
          },
          { target: "choosing", actions: { type: "noteCandidate", params: ({ event }) => whyOf(event.output) } },
        ],
        onError: {
          target: "choosing",
          actions: { type: "noteCandidate", params: ({ event }) => reasonOf(event.error) },
        },
      },
    },
    activating: {
      invoke: {
        id: "activate",
        src: "activate",
        input: ({ context }) => context,
        onDone: [
          {
            guard: { type: "ends", params: ({ event }) => event.output },
            target: "done",
            actions: { type: "end", params: ({ event }) => event.output },
          },
          { target: "choosing", actions: { type: "noteCandidate", params: ({ event }) => whyOf(event.output) } },
        ],
        onError: {
          target: "choosing",
          actions: { type: "noteCandidate", params: ({ event }) => reasonOf(event.error) },
        },
      },
    },
    done: { type: "final" },
    failed: { type: "final" },
  },
});

function whyOf(outcome: object): string {
  return "why" in outcome ? String(outcome.why) : "no reason given";
}
