// The placement store in one process: for embedding without etcd, and for tests. Leases renew themselves, since whoever can ask
// for one has just reached the store; they end by `leave`, `abandon` + TTL, `revoke`, or `close`. The same contract as over etcd
// (test/contract/placement-store.ts).
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Clock } from "../../actors/ports/clock.js";
import type {
  ClaimOutcome,
  ClaimRequest,
  HostRecord,
  Membership,
  Placement,
  PlacementStore,
  SpecRecord,
  StoreChange,
} from "../../actors/ports/placement-store.js";
import { changesAllTheTime, updateRounds } from "./spec-update.js";

export interface MemoryStoreOptions {
  readonly clock: Clock;
  /** How long hosts and placements outlive `abandon`. */
  readonly ttlMs: number;
  /** How long before the end of its lease a host stops trusting it. Default 20 % of the TTL. */
  readonly stopBudgetMs?: number;
}

/** Changes that a follower may be behind before it is given everything anew (P5). */
const followerBound = 10_000;

interface Owned<T> {
  readonly value: T;
  readonly lease: MemoryMembership;
}

export class MemoryPlacementStore implements PlacementStore {
  readonly #options: Required<MemoryStoreOptions>;
  readonly #specs = new Map<string, SpecRecord>();
  readonly #hosts = new Map<string, Owned<HostRecord>>();
  readonly #placements = new Map<string, Owned<Placement>>();
  readonly #leases = new Set<MemoryMembership>();
  readonly #followers = new Set<Follower>();
  readonly #closing = new AbortController();
  #revision = 0;

  constructor({ clock, ttlMs, stopBudgetMs = ttlMs / 5 }: MemoryStoreOptions) {
    if (!(ttlMs > 0)) throw new HakobuError("CONFIG_INVALID", `ttlMs is ${ttlMs}; use more than 0`);
    if (!(stopBudgetMs > 0 && stopBudgetMs < ttlMs / 2))
      throw new HakobuError(
        "CONFIG_INVALID",
        `stopBudgetMs is ${stopBudgetMs}; use more than 0 and less than ${ttlMs / 2}`,
      );
    this.#options = { clock, ttlMs, stopBudgetMs };
  }

  async *follow(signal: AbortSignal): AsyncGenerator<StoreChange, void, void> {
    const until = AbortSignal.any([signal, this.#closing.signal]);
    const follower = new Follower(until);
    this.#followers.add(follower);
    try {
      while (!until.aborted) {
        for (const change of follower.take(() => this.#everything())) {
          if (until.aborted) return;
          yield change;
        }
        await follower.wake();
      }
    } finally {
      this.#followers.delete(follower);
    }
  }

  async putSpec(record: SpecRecord): Promise<void> {
    this.#open();
    this.#revision++;
    this.#specs.set(record.spec.name, structuredClone(record));
    this.#tell({ kind: "spec", name: record.spec.name, record: structuredClone(record) });
  }

  async updateSpec(
    name: string,
    change: (standing: SpecRecord) => Promise<SpecRecord>,
  ): Promise<SpecRecord | undefined> {
    for (let round = 1; round <= updateRounds; round++) {
      this.#open();
      const standing = this.#specs.get(name);
      if (standing === undefined) return undefined;
      const record = await change(structuredClone(standing));
      // Each write puts a record of its own there.
      if (this.#specs.get(name) !== standing) continue;
      await this.putSpec(record);
      return record;
    }
    throw changesAllTheTime(name);
  }

  async deleteSpec(name: string): Promise<boolean> {
    this.#open();
    if (!this.#specs.delete(name)) return false;
    this.#revision++;
    this.#tell({ kind: "spec", name });
    return true;
  }

  async join(record: HostRecord): Promise<Membership> {
    this.#open();
    const other = this.#hosts.get(record.id)?.value;
    if (other && (other.address !== record.address || other.port !== record.port)) {
      const message = `host id ${record.id} is taken by a live host at ${other.address}:${other.port}; give this one another id`;
      throw new HakobuError("HOST_ID_TAKEN", message, { retryable: true });
    }
    const membership = new MemoryMembership(this.#options, record.id, {
      update: (changed) => this.#putHost(changed, membership),
      claim: (request) => this.#claim(request, membership),
      release: (container, epoch) => this.#release(container, epoch),
      ended: () => this.#drop(membership),
    });
    this.#leases.add(membership);
    this.#putHost(record, membership);
    return membership;
  }

  async read(container: string): Promise<Placement | undefined> {
    this.#open();
    return structuredClone(this.#placements.get(container)?.value);
  }

  async close(): Promise<void> {
    if (this.#closing.signal.aborted) return;
    this.#closing.abort(new Error("the placement store was closed"));
    for (const lease of this.#leases) lease.lose("the placement store was closed");
  }

  /** Ends a host's lease from outside, as `etcdctl lease revoke` does: all that hangs on it disappears, the host learns it. */
  revoke(hostId: string): void {
    this.#hosts.get(hostId)?.lease.lose("the lease was revoked");
  }

  #open(): void {
    if (this.#closing.signal.aborted)
      throw new HakobuError("STORE_UNAVAILABLE", "the placement store was closed by its user");
  }

  #putHost(record: HostRecord, lease: MemoryMembership): void {
    this.#revision++;
    this.#hosts.set(record.id, { value: structuredClone(record), lease });
    this.#tell({ kind: "host", id: record.id, record: structuredClone(record) });
  }

  #claim({ container, expected, from, reason }: ClaimRequest, lease: MemoryMembership): ClaimOutcome {
    if (this.#hosts.get(lease.id)?.lease !== lease) {
      lease.lose("another agent has taken this host's record over");
      return { kind: "unavailable", reason: "this host's lease can no longer be proven" };
    }
    const standing = this.#placements.get(container);
    if (standing?.lease === lease && standing.value.epoch !== expected)
      return { kind: "won", placement: standing.value };
    if ((standing?.value.epoch ?? 0) !== expected)
      return { kind: "lost", ...(standing && { placement: standing.value }) };
    const since = this.#options.clock.timestamp();
    const epoch = ++this.#revision;
    const placement = { container, host: lease.id, epoch, since, ...(from === undefined ? {} : { from }), reason };
    this.#placements.set(container, { value: placement, lease });
    this.#tell({ kind: "placement", container, placement });
    return { kind: "won", placement };
  }

  #release(container: string, epoch: number): void {
    this.#open();
    if (this.#placements.get(container)?.value.epoch !== epoch) return;
    this.#revision++;
    this.#placements.delete(container);
    this.#tell({ kind: "placement", container });
  }

  #drop(lease: MemoryMembership): void {
    this.#leases.delete(lease);
    this.#revision++;
    for (const [container, placement] of this.#placements) {
      if (placement.lease !== lease) continue;
      this.#placements.delete(container);
      this.#tell({ kind: "placement", container });
    }
    if (this.#hosts.get(lease.id)?.lease !== lease) return;
    this.#hosts.delete(lease.id);
    this.#tell({ kind: "host", id: lease.id });
  }

  #tell(change: StoreChange): void {
    for (const follower of this.#followers) follower.push(change);
  }

  #everything(): StoreChange {
    return {
      kind: "reset",
      specs: structuredClone([...this.#specs.values()]),
      hosts: structuredClone([...this.#hosts.values()].map(({ value }) => value)),
      placements: [...this.#placements.values()].map(({ value }) => value),
    };
  }
}

/** One stream of changes, bounded: who falls behind gets everything anew. */
class Follower {
  readonly #until: AbortSignal;
  #queue: StoreChange[] = [];
  #fresh = false;
  #connected = false;
  #wake: (() => void) | undefined;

  constructor(until: AbortSignal) {
    this.#until = until;
    until.addEventListener("abort", () => this.#wake?.(), { once: true });
  }

  push(change: StoreChange): void {
    if (this.#queue.length < followerBound) this.#queue.push(change);
    else {
      this.#queue = [];
      this.#fresh = false;
    }
    this.#wake?.();
  }

  take(everything: () => StoreChange): readonly StoreChange[] {
    const changes = this.#fresh ? this.#queue : [everything()];
    if (!this.#connected) changes.push({ kind: "connected" });
    this.#queue = [];
    this.#fresh = true;
    this.#connected = true;
    return changes;
  }

  async wake(): Promise<void> {
    if (this.#until.aborted || !this.#fresh || this.#queue.length > 0) return;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    this.#wake = undefined;
  }
}

interface StoreSide {
  update(record: HostRecord): void;
  claim(request: ClaimRequest): ClaimOutcome;
  release(container: string, epoch: number): void;
  ended(): void;
}

class MemoryMembership implements Membership {
  readonly id: string;
  readonly lost: Promise<string>;
  readonly #options: Required<MemoryStoreOptions>;
  readonly #store: StoreSide;
  #resolveLost: (reason: string) => void = () => undefined;
  #phase: "alive" | "abandoned" | "over" = "alive";
  /** From when it is over or abandoned. */
  #provenUntil = 0;
  #timer: unknown;

  constructor(options: Required<MemoryStoreOptions>, id: string, store: StoreSide) {
    this.#options = options;
    this.id = id;
    this.#store = store;
    this.lost = new Promise((resolve) => {
      this.#resolveLost = resolve;
    });
  }

  get provenUntil(): number {
    const { clock, ttlMs, stopBudgetMs } = this.#options;
    return this.#phase === "alive" ? clock.now() + ttlMs - stopBudgetMs : this.#provenUntil;
  }

  async update(record: HostRecord): Promise<void> {
    if (record.id !== this.id) throw new HakobuError("CONFIG_INVALID", `host ${this.id} cannot become ${record.id}`);
    if (this.#phase !== "alive")
      throw new HakobuError(
        "LEASE_LOST",
        `host ${this.id} can no longer prove its lease; stop its containers and join again`,
      );
    this.#store.update(record);
  }

  /** This store drops nothing before its time. */
  async check(): Promise<void> {}

  async claim(request: ClaimRequest): Promise<ClaimOutcome> {
    if (this.#phase === "alive") return this.#store.claim(request);
    return { kind: "unavailable", reason: "this host's lease can no longer be proven" };
  }

  async release(container: string, epoch: number): Promise<void> {
    this.#store.release(container, epoch);
  }

  async leave(): Promise<void> {
    if (this.#phase === "alive") this.#end();
  }

  abandon(): void {
    if (this.#phase !== "alive") return;
    this.#provenUntil = this.provenUntil;
    this.#phase = "abandoned";
    this.#timer = this.#options.clock.setTimeout(() => this.#end(), this.#options.ttlMs);
  }

  lose(reason: string): void {
    const abandoned = this.#phase === "abandoned";
    if (this.#phase === "over") return;
    this.#end();
    if (!abandoned) this.#resolveLost(reason);
  }

  #end(): void {
    const { clock } = this.#options;
    clock.clearTimeout(this.#timer);
    this.#provenUntil = Math.min(this.provenUntil, clock.now());
    this.#phase = "over";
    this.#store.ended();
  }
}
