// One host as one proxy sees it. The request path reads two plain fields; the statechart hears only of what changes its state.
//
//   L1  `lastHeardMs` moves only on an answer from the host itself.
//   L2  While requests wait for an answer, the host is probed every `freshMs` in which nothing was heard from it, so a host
//       that dies under a request is noticed within freshMs + the probe's time-out.
//   L3  At most one probe of a given kind and time-out is under way.
//   L4  After a refusal only the agent can make the host trusted again: an ICMP echo is answered by its kernel, agent or not.
//   L5  A probe of a request waits no longer than this host's round trips make likely (round-trips.ts): the time-out that is
//       asked for is the most. A suspected host is asked again with all of it.
import { type Actor, createActor, fromPromise } from "xstate";
import { reachabilityMachine, type Verdict } from "../machines/reachability.js";
import { type Clock, delay } from "./ports/clock.js";
import type { ProbeKind, Prober, ProbeResult, Target } from "./ports/prober.js";
import type { ActorRegistry } from "./registry.js";
import { RoundTrips } from "./round-trips.js";

/** A request that waits for the host's answer. */
export interface Waiting {
  readonly probeTimeoutMs: number;
  readonly probeKind?: ProbeKind | undefined;
  /** A probe is not answered in the time that is usual for this host: it may be dead. At most once for each probe. */
  hostLate?(): void;
  /** The host does not answer probes: `suspected` after one miss, `unreachable` when proven. */
  hostSilent(state: "suspected" | "unreachable", reason: string): void;
}

export interface ReachabilityDeps {
  readonly clock: Clock;
  readonly prober: Prober;
  readonly registry: ActorRegistry;
}

/** Pauses before a suspected and an unreachable host is asked again. */
const suspectedPauseMs = 25;
const unreachablePauseMs = 1000;

export class ReachabilityActor {
  readonly host: string;
  /** `clock.now()` at which the host was last heard. */
  lastHeardMs = Number.NEGATIVE_INFINITY;
  /** How long the last probe took that was answered or given up. */
  lastProbeMs = 0;
  state: "trusted" | "suspected" | "unreachable" = "trusted";
  readonly #deps: ReachabilityDeps;
  readonly #target: Target;
  readonly #freshMs: number;
  readonly #probeFloorMs: number;
  readonly #trips: Readonly<Record<ProbeKind, RoundTrips>> = { tcp: new RoundTrips(), icmp: new RoundTrips() };
  readonly #defaultKind: ProbeKind;
  readonly #actor: Actor<typeof reachabilityMachine>;
  readonly #probes = new Map<string, Promise<ProbeResult>>();
  readonly #waiting = new Set<Waiting>();
  #timer: unknown;
  #probeTimeoutMs: number;
  #probeKind: ProbeKind;
  /** L4: refused, and nothing heard from the agent since. */
  #agentGone = false;

  constructor(
    deps: ReachabilityDeps,
    host: string,
    target: Target,
    options: {
      readonly freshMs: number;
      readonly probeTimeoutMs: number;
      /** L5: the least that a probe waits. */
      readonly probeFloorMs: number;
      readonly probeKind?: ProbeKind;
    },
  ) {
    this.host = host;
    this.#deps = deps;
    this.#target = target;
    this.#freshMs = options.freshMs;
    this.#probeFloorMs = options.probeFloorMs;
    this.#probeTimeoutMs = options.probeTimeoutMs;
    this.#defaultKind = options.probeKind ?? "tcp";
    this.#probeKind = this.#defaultKind;
    this.#actor = createActor(
      reachabilityMachine.provide({
        actors: { reprobe: fromPromise(({ signal }) => this.#reprobe(signal)) },
      }),
      { clock: deps.clock, id: `reachability/${host}` },
    );
    this.#actor.subscribe({
      next: (snapshot) => {
        const before = this.state;
        this.state = snapshot.value;
        if (snapshot.value === "trusted" || snapshot.value === before) return;
        for (const waiting of this.#waiting) waiting.hostSilent(snapshot.value, snapshot.context.reason ?? "no answer");
      },
      error: () => {},
    });
    deps.registry.register(`reachability/${host}`, this.#actor.start());
  }

  /** It cannot be a false alarm: its machine refused, or the store dropped its lease. */
  get certain(): boolean {
    return this.#actor.getSnapshot().context.certain;
  }

  get reason(): string {
    return this.#actor.getSnapshot().context.reason ?? "no answer";
  }

  /** Heard within the last `freshMs`. */
  get fresh(): boolean {
    return this.#deps.clock.now() - this.lastHeardMs <= this.#freshMs;
  }

  /** Something came back from the agent. */
  heard(): void {
    this.#agentGone = false;
    this.lastHeardMs = this.#deps.clock.now();
    if (this.state !== "trusted") this.#actor.send({ type: "ALIVE" });
  }

  /** A connection was refused: its machine says that the agent is gone. */
  refused(reason: string): void {
    this.#agentGone = true;
    this.#actor.send({ type: "REFUSED", reason });
  }

  leaseExpired(): void {
    this.#actor.send({ type: "LEASE_EXPIRED" });
  }

  /** It broke a connection: what was heard before proves nothing any more. Whether it is gone, the next probe tells. */
  interrupted(): void {
    this.lastHeardMs = Number.NEGATIVE_INFINITY;
  }

  /** Asks the host; joins a probe of the same kind and time-out that is under way. */
  probe(timeoutMs: number, kind = this.#defaultKind): Promise<ProbeResult> {
    this.#probeTimeoutMs = timeoutMs;
    this.#probeKind = kind;
    return this.#ask(kind, timeoutMs, this.#probeFloorMs);
  }

  /** Watches over a request until the returned function is called (its answer has begun, or it has ended). */
  watch(waiting: Waiting): () => void {
    this.#waiting.add(waiting);
    this.#arm();
    return () => this.#waiting.delete(waiting);
  }

  stop(): void {
    this.#deps.clock.clearTimeout(this.#timer);
    this.#waiting.clear();
    this.#actor.stop();
  }

  #arm(): void {
    if (this.#timer !== undefined) return;
    this.#timer = this.#deps.clock.setTimeout(() => {
      this.#timer = undefined;
      const first = this.#waiting.values().next().value;
      if (first === undefined) return;
      if (!this.fresh) void this.probe(first.probeTimeoutMs, first.probeKind);
      this.#arm();
    }, this.#freshMs);
  }

  #ask(kind: ProbeKind, timeoutMs: number, floorMs: number): Promise<ProbeResult> {
    const key = `${kind}/${timeoutMs}/${floorMs}`;
    const underWay = this.#probes.get(key);
    if (underWay !== undefined) return underWay;
    const { clock, prober } = this.#deps;
    const begunMs = clock.now();
    const limitMs = this.#trips[kind].timeoutMs(floorMs, timeoutMs);
    const late = clock.setTimeout(
      // After a stall of this process the answer may be in the socket: it is read first.
      () => clock.setTimeout(() => this.#probes.get(key) === probe && this.#late(), 0),
      Math.min(limitMs, this.#trips[kind].lateMs(timeoutMs)),
    );
    const probe = prober.probe(this.#target, limitMs, kind).then((result) => {
      clock.clearTimeout(late);
      if (result.kind === "alive") this.#trips[kind].note(result.rttMs);
      this.#probes.delete(key);
      this.lastProbeMs = clock.now() - begunMs;
      this.#take(result, kind);
      return result;
    });
    this.#probes.set(key, probe);
    return probe;
  }

  #late(): void {
    for (const waiting of this.#waiting) waiting.hostLate?.();
  }

  #take(result: ProbeResult, kind: ProbeKind): void {
    switch (result.kind) {
      case "alive":
        if (this.#agentGone && kind === "icmp") return;
        return this.heard();
      case "refused":
        return this.refused(describe(result));
      case "timeout":
      case "unreachable":
        return this.#actor.send({ type: "SILENT", reason: describe(result) });
      case "unknown":
        return;
    }
  }

  async #reprobe(signal: AbortSignal): Promise<Verdict> {
    const pauseMs = this.state === "unreachable" ? unreachablePauseMs : suspectedPauseMs;
    await delay(this.#deps.clock, pauseMs, signal);
    const kind = this.#agentGone ? "tcp" : this.#probeKind;
    const result = await this.#ask(kind, this.#probeTimeoutMs, this.#probeTimeoutMs);
    if (result.kind === "alive" && this.#agentGone) return "silent";
    return result.kind === "timeout" || result.kind === "unreachable" ? "silent" : result.kind;
  }
}

/** A probe's result in words. */
export function describe(result: ProbeResult): string {
  switch (result.kind) {
    case "alive":
      return `answered in ${result.rttMs.toFixed(1)} ms`;
    case "refused":
      return "connection refused";
    case "timeout":
      return `no answer within ${result.afterMs} ms`;
    case "unreachable":
      return `network unreachable (${result.code})`;
    case "unknown":
      return `could not be asked (${result.code})`;
  }
}
