// Moves, as one proxy drives them: gives machines/relocation.ts its I/O, one actor per container that moves, and all
// requests for that container wait on it. One trace each, linked both ways with the request that set it off.
import { createActor, fromPromise } from "xstate";
import {
  type ActivateOutcome,
  type ChooseOutcome,
  type ClaimOutcome,
  type Ended,
  type MoveReason,
  type Owner,
  type RelocationContext,
  relocationMachine,
} from "../machines/relocation.js";
import { candidates } from "./candidates.js";
import type { ClusterView } from "./cluster-view.js";
import { HakobuError, reasonOf } from "./hakobu-error.js";
import { type Clock, deadline, delay } from "./ports/clock.js";
import type { Activation, HostClient } from "./ports/host-client.js";
import type { Log } from "./ports/log.js";
import type { HostRecord, Placement, SpecRecord } from "./ports/placement-store.js";
import type { Span, TraceContext, Tracer } from "./ports/tracer.js";
import { MoveBudget, type MoveBudgetDeps } from "./move-budget.js";
import { type MoveReport, named, untilFirstResponse } from "./move-report.js";
import type { ReachabilityActor } from "./reachability.js";
import type { ActorRegistry } from "./registry.js";

export interface RelocationDeps extends MoveBudgetDeps {
  readonly clock: Clock;
  readonly view: ClusterView;
  readonly hosts: HostClient;
  readonly reachability: (host: HostRecord) => ReachabilityActor;
  readonly tracer: Tracer;
  readonly log: Log;
  readonly registry: ActorRegistry;
  /** A move that takes longer has failed. */
  readonly deadlineMs: number;
}

export interface Move {
  readonly ended: Ended;
  /** Of its span, to be linked from the requests that waited for it. */
  readonly context: TraceContext;
  /** The first request to get an answer from the new owner says so; later calls do nothing. */
  answered(): void;
}

export interface Trigger {
  readonly reason: MoveReason;
  /** Of the placement that the reason speaks of (0: there was none). A newer one is not moved for it. */
  readonly epoch: number;
  /** How long the probe took that proved it. */
  readonly probedMs: number;
  readonly request: TraceContext | undefined;
}

const attemptLimit = 4;
const reportLimit = 100;
const prepareEveryMs = 5000;
const prepareLimitMs = 1000;
/** How often a move that waits for the end of a lease looks whether the owner is heard again. */
const leaseLookMs = 50;
/** A store that is away for so long tells no end of a lease to whoever waits for it. */
const streamLostMs = 3000;
/** Where hosts that could take it say that they can within moments (they join again, prove their lease again), a move is tried again. */
const soonPauseMs = 250;
const soonLimitMs = 3000;
/** Of a reason, as hosts take it (runtime/dispatcher/protocol.ts). */
const reasonLimit = 500;
/** How long the stream may lag behind what a host says. */
const streamLagMs = 1000;

export class Relocations {
  readonly #deps: RelocationDeps;
  readonly #budget: MoveBudget;
  readonly #underWay = new Map<string, Promise<Move>>();
  /** `clock.now()` at which a host was last told to prepare for a container. */
  readonly #prepared = new Map<string, number>();
  /** The last moves, newest last. */
  readonly reports: MoveReport[] = [];

  constructor(deps: RelocationDeps) {
    this.#deps = deps;
    this.#budget = new MoveBudget(deps);
  }

  /** The move that is under way for a container, if one is. */
  underWay(container: string): Promise<Move> | undefined {
    return this.#underWay.get(container);
  }

  /**
   * Its owner is late to answer: the host that would be asked next may prepare. At once; nothing is moved, and a container is
   * prepared for at most once in `prepareEveryMs`, so that a host which stutters costs the others little.
   */
  anticipate(record: SpecRecord, owner: HostRecord): void {
    const { view, clock, hosts } = this.#deps;
    const { name, takeover } = record.spec;
    if (takeover === "exclusive" || this.#underWay.has(name)) return;
    const now = clock.now();
    if (now - (this.#prepared.get(name) ?? Number.NEGATIVE_INFINITY) < prepareEveryMs) return;
    const [next] = this.#candidates(record, new Set([owner.id]));
    if (next === undefined || view.placement(name)?.host !== owner.id) return;
    for (const [known, at] of this.#prepared) if (now - at >= prepareEveryMs) this.#prepared.delete(known);
    this.#prepared.set(name, now);
    void hosts.prepare(next, name, deadline(clock, prepareLimitMs, "a hint takes no longer"));
  }

  /**
   * Moves a container to a host where it serves, or joins the move that is under way.
   * @throws HakobuError UNAVAILABLE with every host's reason
   */
  move(record: SpecRecord, trigger: Trigger): Promise<Move> {
    const { name } = record.spec;
    const running = this.#underWay.get(name);
    if (running !== undefined) return running;
    const moved = this.#movedSince(name, trigger);
    if (moved !== undefined) return Promise.resolve(moved);
    const keeper = this.#budget.keeper(name, trigger.reason);
    if (keeper !== undefined)
      return Promise.resolve({
        ended: { kind: "damped", owner: ownerOf(keeper) },
        context: noContext,
        answered() {},
      });
    const move = this.#patiently(record, trigger).finally(() => this.#underWay.delete(name));
    this.#underWay.set(name, move);
    return move;
  }

  /** Nothing is known against the owner that the container has got since. */
  #movedSince(container: string, { epoch }: Trigger): Move | undefined {
    const placement = this.#deps.view.placement(container);
    if (placement === undefined || placement.epoch <= epoch) return undefined;
    return { ended: { kind: "taken", owner: ownerOf(placement) }, context: noContext, answered() {} };
  }

  async #patiently(record: SpecRecord, trigger: Trigger): Promise<Move> {
    const { clock, view } = this.#deps;
    const endMs = clock.now() + soonLimitMs;
    for (;;) {
      const outcome = await this.#run(record, trigger);
      if (!("failure" in outcome)) return outcome;
      if (!outcome.soon || !view.connected || clock.now() >= endMs) throw outcome.failure;
      await delay(clock, soonPauseMs);
      // What the reason speaks of may be over.
      const moved = this.#movedSince(record.spec.name, trigger);
      if (moved !== undefined) return moved;
    }
  }

  async #run(
    record: SpecRecord,
    trigger: Trigger,
  ): Promise<Move | { readonly failure: HakobuError; readonly soon: boolean }> {
    const { clock, tracer, view, registry, log } = this.#deps;
    const { name } = record.spec;
    let soon = false;
    /** Hosts that took it, live, and said that it does not start there. */
    const cannot = new Set<string>();
    const placement = view.placement(name);
    const owner = placement === undefined ? undefined : ownerOf(placement);
    const span = tracer.span("relocation", {
      ...(trigger.request === undefined ? {} : { links: [trigger.request] }),
      begunMsAgo: trigger.probedMs,
      attributes: {
        "hakobu.container": name,
        "hakobu.from": owner?.host,
        "hakobu.reason": trigger.reason.text,
      },
    });
    if (trigger.probedMs > 0) span.record("probe", trigger.probedMs, trigger.probedMs, { "hakobu.host": owner?.host });
    const timing = { probe: trigger.probedMs, claim: 0, activate: 0 };
    let activation: Activation | undefined;
    const timed = async <T>(part: keyof typeof timing, act: (child: Span) => Promise<T>): Promise<T> => {
      const begunMs = clock.now();
      const child = span.child(part);
      try {
        return await act(child);
      } catch (error) {
        child.end(error);
        throw error;
      } finally {
        timing[part] += clock.now() - begunMs;
        child.end();
      }
    };
    const actor = createActor(
      relocationMachine.provide({
        actors: {
          probe: fromPromise(({ input }) => timed("probe", () => this.#probe(input, record))),
          choose: fromPromise(async ({ input, signal }) => {
            const child = span.child("choose");
            const outcome = await this.#choose(input, record, cannot, signal);
            child.end(outcome.kind === "none" ? outcome.why : undefined);
            return outcome;
          }),
          claim: fromPromise(({ input, signal }) =>
            timed("claim", async (child) => {
              const outcome = await this.#claim(input, child, signal, trigger.reason.text);
              soon ||= outcome.kind === "refused" && outcome.soon === true;
              return outcome;
            }),
          ),
          activate: fromPromise(({ input, signal }) =>
            timed("activate", async (child) => {
              const outcome = await this.#activate(input, record, child, cannot, signal);
              activation = outcome.activation;
              return outcome;
            }),
          ),
        },
      }),
      {
        id: `relocation/${name}`,
        clock,
        input: {
          container: name,
          owner,
          reason: trigger.reason,
          attemptLimit,
          deadlineMs: this.#deps.deadlineMs,
        },
      },
    );
    const ended = await new Promise<Ended | { kind: "failed"; why: string }>((resolve) => {
      actor.subscribe({
        complete: () => resolve(actor.getSnapshot().output ?? { kind: "failed", why: "it ended without a result" }),
        error: (error) => resolve({ kind: "failed", why: reasonOf(error) }),
      });
      actor.start();
      registry.register(`relocation/${name}`, actor);
    });
    if (ended.kind === "failed") {
      span.end(ended.why);
      log.warn({ container: name, from: owner?.host, reason: trigger.reason.text, why: ended.why }, "not relocated");
      const text = `${name} cannot be served now: ${ended.why}`;
      return { failure: new HakobuError("UNAVAILABLE", text, { retryable: true }), soon };
    }
    span.set({ "hakobu.to": ended.owner.host, "hakobu.epoch": ended.owner.epoch, "hakobu.outcome": ended.kind });
    if (ended.kind !== "moved") {
      span.end();
      return { ended, context: span.context, answered() {} };
    }
    const report: MoveReport = {
      container: name,
      from: owner?.host,
      to: ended.owner.host,
      epoch: ended.owner.epoch,
      reason: trigger.reason.text,
      at: clock.timestamp(),
      traceId: span.context.traceId,
      how: activation?.how,
      note: activation?.note,
      image: activation?.image,
      bytes: activation?.bytes,
      probeMs: timing.probe,
      claimMs: timing.claim,
      activateMs: timing.activate,
      phases: named(activation?.phases ?? []),
      firstResponseMs: undefined,
    };
    this.reports.push(report);
    if (this.reports.length > reportLimit) this.reports.shift();
    const answered = untilFirstResponse({ clock, log, limitMs: this.#deps.deadlineMs }, report, span);
    return { ended, context: span.context, answered };
  }

  async #probe(context: RelocationContext, record: SpecRecord): Promise<"alive" | "dead"> {
    const host = context.owner === undefined ? undefined : this.#deps.view.host(context.owner.host);
    if (host === undefined) return "dead";
    const { timeoutMs, kind } = record.spec.probe;
    const result = await this.#deps.reachability(host).probe(timeoutMs, kind);
    return result.kind === "alive" || result.kind === "unknown" ? "alive" : "dead";
  }

  async #choose(
    context: RelocationContext,
    record: SpecRecord,
    cannot: ReadonlySet<string>,
    signal: AbortSignal,
  ): Promise<ChooseOutcome> {
    const { view, reachability, clock } = this.#deps;
    const { name, takeover } = record.spec;
    const known = context.owner;
    const newer = (): ChooseOutcome | undefined => {
      const read = view.placement(name);
      if (read === undefined || read.epoch <= (known?.epoch ?? 0)) return undefined;
      // Somebody else has moved it meanwhile: nothing is known against the new owner.
      return { kind: "taken", owner: ownerOf(read) };
    };
    const before = view.placement(name);
    if (takeover === "exclusive" && before !== undefined && newer() === undefined) {
      const limit = AbortSignal.any([signal, deadline(clock, context.deadlineMs, "the old lease did not end in time")]);
      const host = view.host(before.host);
      const silent = host !== undefined && reachability(host).state !== "trusted";
      if (cannot.has(before.host)) return { kind: "none", why: `${before.host} keeps it: it is exclusive` };
      // It ends with the lease, or with an owner that is heard again: a false alarm.
      let heardMs = clock.now();
      while (view.placement(name)?.epoch === before.epoch) {
        if (silent && reachability(host).state === "trusted") return { kind: "taken", owner: ownerOf(before) };
        if (view.connected) heardMs = clock.now();
        if (clock.now() - heardMs > streamLostMs)
          return {
            kind: "none",
            why: `it is exclusive, and the placement store does not say whether the lease of ${before.host} has ended: ${view.disconnectedReason}`,
          };
        await delay(clock, leaseLookMs, limit);
      }
    }
    const taken = newer();
    if (taken !== undefined) return taken;
    const read = view.placement(name);
    const owner = read === undefined ? undefined : known;
    const excluded = new Set(context.tried);
    // The old owner is not asked to take over from itself, unless it has come back with a new lease.
    if (owner !== undefined && context.reason.proven) excluded.add(owner.host);
    const [best] = this.#candidates(record, excluded);
    if (best !== undefined) return { kind: "candidate", host: best.id, owner };
    const hosts = [...view.hosts()];
    const none =
      hosts.length === 0
        ? "no host has joined"
        : `no ${context.tried.length === 0 ? "" : "other "}host can take it (${hosts.length} joined, engine ${record.spec.engine})`;
    return { kind: "none", why: view.connected ? none : `${none}; the placement store: ${view.disconnectedReason}` };
  }

  #candidates(record: SpecRecord, excluded: ReadonlySet<string>): HostRecord[] {
    const { view, reachability } = this.#deps;
    return candidates(view, record, excluded, (id) => {
      const host = view.host(id);
      return host !== undefined && reachability(host).state !== "trusted";
    });
  }

  async #claim(context: RelocationContext, span: Span, signal: AbortSignal, reason: string): Promise<ClaimOutcome> {
    const { view, hosts, reachability } = this.#deps;
    const host = view.host(context.candidate as string);
    if (host === undefined) return { kind: "refused", why: "it has left" };
    span.set({ "hakobu.host": host.id });
    const from = context.owner?.host;
    const claim = {
      container: context.container,
      expected: context.owner?.epoch ?? 0,
      reason: reason.slice(0, reasonLimit),
      ...(from === undefined ? {} : { from }),
    };
    const reply = await this.#while(host, signal, (limit) => hosts.claim(host, claim, span.context, limit));
    if (reply.kind !== "unreachable") reachability(host).heard();
    switch (reply.kind) {
      case "won":
        view.learn(reply.placement);
        return { kind: "won", owner: ownerOf(reply.placement) };
      case "moved":
        if (reply.placement === undefined) {
          view.forget(context.container, claim.expected);
          return { kind: "stale", why: "it was released meanwhile" };
        }
        view.learn(reply.placement);
        return { kind: "taken", owner: ownerOf(reply.placement) };
      case "refused":
        return { kind: "refused", why: reply.reason, soon: reply.retryAfterMs !== undefined };
      case "unreachable":
        return { kind: "refused", why: reply.reason };
    }
  }

  async #activate(
    context: RelocationContext,
    record: SpecRecord,
    span: Span,
    cannot: Set<string>,
    signal: AbortSignal,
  ): Promise<ActivateOutcome & { activation?: Activation }> {
    const { view, hosts, reachability } = this.#deps;
    const owner = context.owner as Owner;
    const host = view.host(owner.host);
    if (host === undefined) return { kind: "failed", why: "it has left" };
    span.set({ "hakobu.host": host.id });
    const placement: Placement = {
      container: record.spec.name,
      host: owner.host,
      epoch: owner.epoch,
      since: "",
      reason: context.reason.text,
    };
    const reply = await this.#while(host, signal, (limit) => hosts.activate(host, placement, span.context, limit));
    if (reply.kind !== "unreachable") reachability(host).heard();
    switch (reply.kind) {
      case "active":
        return { kind: "active", activation: reply.activation };
      case "moved":
        if (reply.placement !== undefined) view.learn(reply.placement);
        return this.#lostAgain(record.spec.name, owner, signal);
      case "failed":
        cannot.add(owner.host);
        return { kind: "failed", why: reply.reason };
      case "unreachable":
        return { kind: "failed", why: reply.reason };
    }
  }

  /** The new owner does not own it any more: whoever does, as soon as the stream tells. */
  async #lostAgain(container: string, { epoch }: Owner, signal: AbortSignal): Promise<ActivateOutcome> {
    const { view, clock } = this.#deps;
    const limit = AbortSignal.any([signal, deadline(clock, streamLagMs, "the stream lags")]);
    await view.until(() => view.placement(container)?.epoch !== epoch, limit).catch(() => {});
    const now = view.placement(container);
    if (now !== undefined && now.epoch > epoch) return { kind: "taken", owner: ownerOf(now) };
    return { kind: "failed", why: "it lost the container again" };
  }

  /** Makes a call to a host, and gives it up as soon as the host no longer answers probes. */
  async #while<T>(host: HostRecord, signal: AbortSignal, call: (limit: AbortSignal) => Promise<T>): Promise<T> {
    const gone = new AbortController();
    const stop = this.#deps.reachability(host).watch({
      probeTimeoutMs: 100,
      hostSilent: (_state, reason) => gone.abort(new HakobuError("UNAVAILABLE", `${host.id}: ${reason}`)),
    });
    try {
      return await call(AbortSignal.any([signal, gone.signal]));
    } finally {
      stop();
    }
  }
}

const noContext: TraceContext = { traceId: "0".repeat(32), spanId: "0".repeat(16) };

function ownerOf({ host, epoch }: Placement): Owner {
  return { host, epoch };
}
