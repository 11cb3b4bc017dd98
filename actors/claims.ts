// Claims that this host makes when a proxy, or the owner in a planned move, asks it to take a container over.
//
//   O1  It claims only for itself, in `running`, with a lease that is proven now; of an exclusive container only when nobody owns it.
//   Q1  Claims of one container run one after the other, in the order in which they came.
//   Q2  Those that are under way count towards the capacity.
import type { ClusterView } from "./cluster-view.js";
import type { ContainerActor } from "./container.js";
import { type Clock, deadline } from "./ports/clock.js";
import type { Engine } from "./ports/engine.js";
import type { Claim, ClaimReply } from "./ports/host-client.js";
import type { HostRecord, Membership, Placement, PlacementStore, SpecRecord } from "./ports/placement-store.js";
import type { Prober } from "./ports/prober.js";
import type { TraceContext } from "./ports/tracer.js";
import type { Releases } from "./releases.js";
import type { Standbys } from "./standbys.js";
import type { Vacancies } from "./vacancies.js";

export interface ClaimsDeps {
  /** `reason`: why it is not `running`, where it once was. */
  readonly host: {
    readonly record: HostRecord;
    readonly state: string;
    readonly reason: string | undefined;
    readonly proven: boolean;
  };
  /** The containers that it has. */
  readonly held: ReadonlyMap<string, ContainerActor>;
  readonly membership: () => Membership | undefined;
  readonly store: PlacementStore;
  readonly view: ClusterView;
  readonly engines: ReadonlyMap<string, Engine>;
  readonly prober: Prober;
  readonly clock: Clock;
  readonly vacancies: Vacancies;
  readonly releases: Releases;
  readonly standbys: Standbys;
  /** @returns undefined where another host has it by now */
  readonly acquire: (record: SpecRecord, placement: Placement) => Promise<ContainerActor | undefined>;
}

/** How long a claim may wait for a specification that its proxy knows and this host does not yet. */
const specWaitMs = 1000;

export class Claims {
  readonly #deps: ClaimsDeps;
  /** The last one of each container. */
  readonly #underWay = new Map<string, Promise<unknown>>();
  /** Q2: what they are going to hold. */
  readonly #reserved = new Set<string>();

  constructor(deps: ClaimsDeps) {
    this.#deps = deps;
  }

  underWay(container: string): boolean {
    return this.#underWay.has(container);
  }

  /**
   * Takes a container over, if the placement is still what the proxy saw; on success it is already coming up.
   * Never rejects.
   */
  claim(claim: Claim, trace: TraceContext | undefined): Promise<ClaimReply> {
    return this.inTurn(claim.container, () =>
      this.#claim(claim, trace).finally(() => this.#reserved.delete(claim.container)),
    );
  }

  /** Q1: what else makes the container this host's takes its turn among the claims. */
  inTurn<T>(container: string, work: () => Promise<T>): Promise<T> {
    const before = this.#underWay.get(container);
    const turn = before === undefined ? work() : before.then(work, work);
    const entry = turn.finally(() => {
      if (this.#underWay.get(container) === entry) this.#underWay.delete(container);
    });
    entry.catch(() => {});
    this.#underWay.set(container, entry);
    return turn;
  }

  /** Resolves when none of those that are under way now is any more; undefined: there is none. */
  get allSettled(): Promise<unknown> | undefined {
    return this.#underWay.size === 0 ? undefined : Promise.allSettled(this.#underWay.values());
  }

  /**
   * Waits for a claim of that container that is under way: others may see in the store that it was won before this host has its answer,
   * and send requests under the new epoch.
   */
  async settled(name: string): Promise<void> {
    await this.#underWay.get(name)?.catch(() => {});
  }

  /**
   * A proxy suspects the owner and would ask this host next: restores the container without letting it run. @returns whether it does;
   * what is not claimed soon is discarded
   */
  prepare(name: string): boolean {
    const { host, held, view, standbys } = this.#deps;
    const record = view.spec(name);
    if (record === undefined || record.spec.takeover === "exclusive" || held.has(name)) return false;
    if (host.state !== "running" || !host.proven || host.record.draining) return false;
    return held.size < host.record.capacity && standbys.begin(record);
  }

  async #claim(claim: Claim, trace: TraceContext | undefined): Promise<ClaimReply> {
    const { host, held, view, clock, releases, standbys, membership, acquire } = this.#deps;
    const refusal = await this.#refusal(claim);
    if (refusal !== undefined) return refusal;
    const record = view.spec(claim.container) as SpecRecord;
    await releases.settled(claim.container);
    // It has waited since it asked.
    const late = this.#notNow();
    if (late !== undefined) return late;
    if (!held.has(claim.container)) standbys.begin(record);
    const outcome = await (membership() as Membership).claim(claim);
    switch (outcome.kind) {
      case "won": {
        const container = await acquire(record, outcome.placement);
        if (container === undefined) return moved(view.placement(claim.container));
        const limit = deadline(clock, record.spec.startTimeoutMs, "nobody waited longer for it");
        container.whenServing(trace, limit).catch(() => {});
        return outcome;
      }
      case "lost":
        if (outcome.placement?.host === host.record.id && held.has(claim.container))
          return { kind: "won", placement: outcome.placement };
        standbys.discard(claim.container, "another host was first");
        if (outcome.placement !== undefined) view.learn(outcome.placement);
        return moved(outcome.placement);
      case "unavailable":
        standbys.discard(claim.container, "the placement store does not answer");
        return {
          kind: "refused",
          reason: `the placement store does not answer: ${outcome.reason}`,
          retryAfterMs: 1000,
        };
    }
  }

  /** O1: why this host claims nothing at this moment. */
  #notNow(): ClaimReply | undefined {
    const { host, membership } = this.#deps;
    if (host.record.draining) return refuse(`host ${host.record.id} drains`);
    if (host.state !== "running" || membership() === undefined)
      return refuse([`host ${host.record.id} is ${host.state}`, host.reason ?? []].flat().join(": "), 1000);
    if (!host.proven) return refuse(`host ${host.record.id} cannot prove its lease`, 1000);
    return undefined;
  }

  /** The view may lag behind what the proxy saw: then the store is asked. @returns whether the view can be gone by */
  async #upToDate({ container, expected }: Claim): Promise<boolean> {
    const { view, store } = this.#deps;
    const known = view.placement(container)?.epoch ?? 0;
    if (known === expected) return true;
    try {
      const standing = await store.read(container);
      if (standing !== undefined) view.learn(standing);
      else view.forget(container, known);
      return true;
    } catch {
      return false;
    }
  }

  /** Q2. @returns whether there is room for it, which it has then */
  #reserve(container: string): boolean {
    const { host, held } = this.#deps;
    const coming = [...this.#reserved].filter((name) => !held.has(name)).length;
    if (!held.has(container) && held.size + coming >= host.record.capacity) return false;
    this.#reserved.add(container);
    return true;
  }

  async #refusal(claim: Claim): Promise<ClaimReply | undefined> {
    const { host, view, engines, prober, clock, vacancies } = this.#deps;
    const refusal = this.#notNow();
    if (refusal !== undefined) return refusal;
    await view
      .until(() => view.spec(claim.container) !== undefined, deadline(clock, specWaitMs, "no specification"))
      .catch(() => {});
    const record = view.spec(claim.container);
    if (record === undefined) return refuse(`no specification of ${claim.container} is known here`, 1000);
    const engine = engines.get(record.spec.engine);
    if (engine === undefined) return refuse(`no engine ${record.spec.engine} on host ${host.record.id}`);
    if (!this.#reserve(claim.container))
      return refuse(`host ${host.record.id} is full (${host.record.capacity} containers)`);
    if (record.spec.takeover !== "fast" && !(await this.#upToDate(claim)))
      return refuse(`the placement store does not say who owns ${claim.container}`, 1000);
    if (record.spec.takeover === "exclusive") await vacancies.settled(claim.container);
    const owner = view.placement(claim.container);
    if (claim.expected === 0 || owner === undefined || owner.host === host.record.id) return undefined;
    if (claim.handover === true && claim.from === owner.host) return undefined;
    switch (record.spec.takeover) {
      case "fast":
        return undefined;
      case "confirmed": {
        const theirs = view.host(owner.host);
        if (theirs === undefined) return undefined;
        const { timeoutMs, kind = theirs.probeKind } = record.spec.probe;
        const result = await prober.probe(theirs, timeoutMs, kind);
        if (result.kind === "alive") return moved(owner);
        if (result.kind === "unknown")
          return refuse(`host ${host.record.id} cannot ask ${owner.host}: ${result.code}`, 1000);
        return undefined;
      }
      case "exclusive":
        return refuse(`${claim.container} is exclusive, and the lease of ${owner.host} has not ended`, 1000);
    }
  }
}

function refuse(reason: string, retryAfterMs?: number): ClaimReply {
  return { kind: "refused", reason, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) };
}

function moved(placement: Placement | undefined): ClaimReply {
  return { kind: "moved", ...(placement === undefined ? {} : { placement }) };
}
