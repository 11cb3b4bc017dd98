// Moves away from this host on purpose: one container by hand, all of them when the host drains. No request fails: with
// `takeover: fast` the other host brings the container up while this one finishes what it is answering; else this one stops it first.
//
//   V1  Nothing is stopped for a move before a host to which it could go has answered.
//   V2  A host that does not answer a claim in time may have made it: the next one is asked all the same, since only one can win.
import { candidates } from "./candidates.js";
import type { ClusterView } from "./cluster-view.js";
import type { ContainerActor } from "./container.js";
import { HakobuError, reasonOf } from "./hakobu-error.js";
import { type Clock, deadline, within } from "./ports/clock.js";
import type { HostClient } from "./ports/host-client.js";
import type { Log } from "./ports/log.js";
import type { HostRecord, Placement, SpecRecord } from "./ports/placement-store.js";
import type { Prober } from "./ports/prober.js";
import type { TraceContext, Tracer } from "./ports/tracer.js";
import type { Releases } from "./releases.js";

export interface PlannedMovesDeps {
  readonly hostId: string;
  readonly containers: ReadonlyMap<string, ContainerActor>;
  readonly releases: Releases;
  readonly view: ClusterView;
  /** This host asks the next one. */
  readonly hosts: HostClient;
  readonly tracer: Tracer;
  readonly prober: Prober;
  readonly clock: Clock;
  readonly log: Log;
}

/** A planned move, with the drain of what is being answered and the start on the other host. */
export const moveLimitMs = 60_000;
/** Containers that move away at once when the host drains. */
const drainWidth = 4;
/** For the answer to one claim. One that is slow to say so may have won. */
const claimLimitMs = 5_000;
/** How long the stream may lag behind what another host wrote. */
const streamLagMs = 1000;

export class PlannedMoves {
  readonly #deps: PlannedMovesDeps;
  readonly #underWay = new Set<string>();
  #drain: { readonly stop: AbortController; readonly done: Promise<void> } | undefined;

  constructor(deps: PlannedMovesDeps) {
    this.#deps = deps;
  }

  /** A planned move of this container away from here is under way. */
  underWay(name: string): boolean {
    return this.#underWay.has(name);
  }

  /** Containers are on their way out. */
  get moving(): boolean {
    return this.#drain !== undefined || this.#underWay.size > 0;
  }

  /**
   * Moves a container away, to the host that is named or the best one.
   * @throws HakobuError NOT_OWNER, CONFIG_INVALID, UNAVAILABLE with every host's reason
   */
  async relocate(name: string, to: string | undefined, reason: string): Promise<Placement> {
    const { view, tracer, clock, hostId, containers, releases } = this.#deps;
    const container = containers.get(name);
    if (container === undefined)
      throw new HakobuError("NOT_OWNER", `${name} is not on host ${hostId}; see: hakobu get`);
    if (this.#underWay.has(name)) throw new HakobuError("UNAVAILABLE", `${name} is already being moved`);
    const named = this.#targets(container.record, to);
    const span = tracer.span("relocation", {
      attributes: { "hakobu.container": name, "hakobu.from": hostId, "hakobu.reason": reason },
    });
    const limit = deadline(clock, moveLimitMs, `the move of ${name} took longer than ${moveLimitMs} ms`);
    this.#underWay.add(name);
    try {
      const targets = await this.#answering(container.record, named);
      if (container.record.spec.takeover !== "fast" || container.movesWithMemory)
        await within(container.moveOut(reason, limit), limit);
      const placement = await this.#handOver(container, targets, reason, span.context, limit);
      view.learn(placement);
      span.set({ "hakobu.to": placement.host, "hakobu.epoch": placement.epoch });
      span.end();
      return placement;
    } catch (error) {
      span.end(error);
      if (container.left) void releases.giveUp(name, container.epoch);
      throw error;
    } finally {
      this.#underWay.delete(name);
    }
  }

  /** Moves all away, also what comes meanwhile. Those that nobody takes stay. Bounded by each move's limit. */
  drain(): Promise<void> {
    const before = this.#drain;
    if (before?.stop.signal.aborted === false) return before.done;
    const stop = new AbortController();
    const done = (before?.done ?? Promise.resolve())
      .then(() => this.#moveAll(stop.signal))
      .finally(() => {
        if (this.#drain?.stop === stop) this.#drain = undefined;
      });
    this.#drain = { stop, done };
    return done;
  }

  /** Begins no more moves of a drain; those under way end. */
  undrain(): void {
    this.#drain?.stop.abort();
  }

  async #moveAll(stop: AbortSignal): Promise<void> {
    const { containers, hostId, log } = this.#deps;
    const tried = new Set<string>();
    const untried = (): string | undefined =>
      stop.aborted ? undefined : [...containers.keys()].findLast((name) => !tried.has(name));
    const next = async (): Promise<void> => {
      for (let name = untried(); name !== undefined; name = untried())
        try {
          tried.add(name);
          await this.relocate(name, undefined, `host ${hostId} drains`);
          await containers.get(name)?.whenLeft();
        } catch (error) {
          log.warn({ container: name, reason: reasonOf(error) }, "stays: nobody takes it");
        }
    };
    await Promise.all(Array.from({ length: drainWidth }, next));
  }

  #targets(record: SpecRecord, to: string | undefined): readonly HostRecord[] {
    const { view, hostId } = this.#deps;
    if (to === hostId) throw new HakobuError("CONFIG_INVALID", `${record.spec.name} is on host ${hostId} already`);
    if (to === undefined) {
      const all = candidates(view, record, new Set([hostId]), () => false);
      if (all.length === 0) throw new HakobuError("UNAVAILABLE", `no other host can take ${record.spec.name}`);
      return all;
    }
    const host = view.host(to);
    if (host === undefined) throw new HakobuError("CONFIG_INVALID", `no host ${to} has joined; see: hakobu get hosts`);
    // Known before it is stopped for a host that would not have it.
    const unfit = unfitness(host, view.load(to), record.spec.engine);
    if (unfit !== undefined) throw new HakobuError("UNAVAILABLE", `${record.spec.name} stays where it is: ${unfit}`);
    return [host];
  }

  /** V1. @returns them from the first one that answers on. @throws HakobuError UNAVAILABLE where none does */
  async #answering({ spec }: SpecRecord, targets: readonly HostRecord[]): Promise<readonly HostRecord[]> {
    const { prober } = this.#deps;
    const silent: string[] = [];
    for (const [index, target] of targets.entries()) {
      const { kind } = await prober.probe(target, spec.probe.timeoutMs, spec.probe.kind ?? target.probeKind);
      if (kind === "alive") return targets.slice(index);
      silent.push(`${target.id}: ${kind}`);
    }
    throw new HakobuError("UNAVAILABLE", `no host answers to take ${spec.name}: ${silent.join("; ")}`);
  }

  async #handOver(
    container: ContainerActor,
    targets: readonly HostRecord[],
    reason: string,
    trace: TraceContext,
    signal: AbortSignal,
  ): Promise<Placement> {
    const { hosts, view, hostId, clock } = this.#deps;
    const { name, epoch } = container;
    const refusals: string[] = [];
    const unsure = new Map<string, HostRecord>();
    for (const target of targets) {
      const claim = { container: name, expected: epoch, from: hostId, reason, handover: true };
      const late = deadline(clock, claimLimitMs, `no answer to the claim within ${claimLimitMs} ms`);
      const reply = await hosts.claim(target, claim, trace, AbortSignal.any([signal, late]));
      if (reply.kind === "unreachable") unsure.set(target.id, target);
      // V2: it was the one that did not answer.
      const owner = reply.kind === "moved" ? unsure.get(reply.placement?.host ?? "") : target;
      if ((reply.kind !== "won" && reply.kind !== "moved") || owner === undefined || reply.placement === undefined) {
        refusals.push(`${target.id}: ${"reason" in reply ? reply.reason : "another host was first"}`);
        continue;
      }
      view.learn(reply.placement);
      const active = await hosts.activate(owner, reply.placement, trace, signal);
      if (active.kind === "active") return reply.placement;
      const why = "reason" in active ? active.reason : active.kind;
      throw new HakobuError("UNAVAILABLE", `${owner.id} owns ${name} now, but: ${why}`);
    }
    const moved = await this.#takenAfterAll(name, epoch, unsure);
    if (moved !== undefined) return moved;
    throw new HakobuError("UNAVAILABLE", `nobody takes ${name}: ${refusals.join("; ")}`);
  }

  /** V2: one whose answer did not come in time may have taken it all the same, and brings it up. */
  async #takenAfterAll(
    name: string,
    epoch: number,
    unsure: ReadonlyMap<string, HostRecord>,
  ): Promise<Placement | undefined> {
    const { view, clock } = this.#deps;
    if (unsure.size === 0) return undefined;
    const taken = (): Placement | undefined => {
      const placement = view.placement(name);
      return placement !== undefined && placement.epoch > epoch && unsure.has(placement.host) ? placement : undefined;
    };
    await view.until(() => taken() !== undefined, deadline(clock, streamLagMs, "the stream lags")).catch(() => {});
    return taken();
  }
}

function unfitness({ id, draining, capacity, engines }: HostRecord, load: number, engine: string): string | undefined {
  if (draining) return `host ${id} drains; to let it take containers: hakobu undrain ${id}`;
  if (!engines.includes(engine)) return `host ${id} has no engine ${engine}`;
  return load >= capacity ? `host ${id} is full (${capacity} containers)` : undefined;
}
