// Where specifications, hosts and placements live, and how ownership changes hands. Implemented over etcd and in memory
// (runtime/placement/), both held to test/contract/placement-store.ts.
//
// Invariants every implementation keeps:
//   P1  A placement changes only by a compare-and-swap on the revision that the claimer read.
//   P2  The revision of the claim is the epoch. Epochs of one container only grow.
//   P3  hosts and placements disappear with their owner's lease; never before `Membership.provenUntil` has passed.
//   P4  An answer that was lost is read back, never guessed.
//   P5  `follow` misses nothing: after a gap it delivers a `reset`.
import type { ProbeKind } from "./prober.js";
import type { ContainerSpec } from "./spec.js";

export interface SpecRecord {
  readonly spec: ContainerSpec;
  /** Changes exactly when what runs changes (`specHash` in runtime/config/spec.ts). */
  readonly hash: string;
}

/** What a host publishes of itself. */
export interface HostRecord {
  readonly id: string;
  /** IP address and port of the agent: dispatcher, control calls and probes. */
  readonly address: string;
  readonly port: number;
  /** New for each start of the agent. */
  readonly incarnation: string;
  /** How it is to be probed, where a container does not say. Absent: as the prober's own configuration says. */
  readonly probeKind?: ProbeKind;
  /** Containers it may own at once. */
  readonly capacity: number;
  readonly engines: readonly string[];
  /** What an image must match to be restored here, for example kernel, CRIU version, CPU features. */
  readonly fingerprint: Readonly<Record<string, string>>;
  readonly draining: boolean;
}

export interface Placement {
  readonly container: string;
  readonly host: string;
  /** Fencing token: the store's revision of the claim. */
  readonly epoch: number;
  /** ISO 8601. */
  readonly since: string;
  /** The previous owner, where there was one. */
  readonly from?: string;
  /** Why it moved, in the words of whoever asked for the move. */
  readonly reason: string;
}

export type StoreChange =
  | {
      readonly kind: "reset";
      readonly specs: readonly SpecRecord[];
      readonly hosts: readonly HostRecord[];
      readonly placements: readonly Placement[];
    }
  | { readonly kind: "spec"; readonly name: string; readonly record?: SpecRecord }
  | { readonly kind: "host"; readonly id: string; readonly record?: HostRecord }
  | { readonly kind: "placement"; readonly container: string; readonly placement?: Placement }
  | { readonly kind: "connected" }
  | { readonly kind: "disconnected"; readonly reason: string };

export interface ClaimRequest {
  readonly container: string;
  /** Epoch of the placement that was read; 0 where there was none. */
  readonly expected: number;
  readonly from?: string;
  readonly reason: string;
}

export type ClaimOutcome =
  | { readonly kind: "won"; readonly placement: Placement }
  /** Somebody else was first; `placement` is what stands now (absent: it was released meanwhile). */
  | { readonly kind: "lost"; readonly placement?: Placement }
  /** The store did not answer; whether the claim was written is not known and was not acted upon. */
  | { readonly kind: "unavailable"; readonly reason: string };

/** One host's lease and all that hangs on it. */
export interface Membership {
  /** `Clock.now()` until which the lease is proven: send time of the last answered keep-alive + TTL - stop budget. */
  readonly provenUntil: number;
  /** Resolves once, with the reason, when the lease can no longer be proven; never after `leave`. */
  readonly lost: Promise<string>;
  update(record: HostRecord): Promise<void>;
  /**
   * Asks the store whether it still has this host under this membership, which ends (`lost`) where not: for who was told that the
   * store has dropped it before its time. Never rejects.
   */
  check(): Promise<void>;
  claim(request: ClaimRequest): Promise<ClaimOutcome>;
  /** Gives the placement up if it still has this epoch. */
  release(container: string, epoch: number): Promise<void>;
  /** Revokes the lease; hosts and placements under it disappear at once. Idempotent. */
  leave(): Promise<void>;
  /** Stops the keep-alive and touches nothing: what a crash does. Idempotent. */
  abandon(): void;
}

export interface PlacementStore {
  /** Everything there is, then every change, until the signal aborts. Each caller has a stream of its own. */
  follow(signal: AbortSignal): AsyncIterable<StoreChange>;
  /** @throws HakobuError STORE_UNAVAILABLE, STORE_REFUSED */
  putSpec(record: SpecRecord): Promise<void>;
  /**
   * Replaces the specification that stands by what `change` makes of it, and by nothing that somebody else has written since: then
   * `change` is asked again. @returns what was written; undefined: there is none
   * @throws HakobuError STORE_UNAVAILABLE, STORE_REFUSED; what `change` throws, and nothing has been written then
   */
  updateSpec(name: string, change: (standing: SpecRecord) => Promise<SpecRecord>): Promise<SpecRecord | undefined>;
  /** @returns whether there was one. @throws HakobuError STORE_UNAVAILABLE */
  deleteSpec(name: string): Promise<boolean>;
  /**
   * Grants the lease and publishes the host under it.
   * @throws HakobuError HOST_ID_TAKEN when a host of that id but with another address is alive; STORE_UNAVAILABLE
   */
  join(record: HostRecord): Promise<Membership>;
  /** What stands at this moment, whoever has heard of it. @throws HakobuError STORE_UNAVAILABLE, STORE_REFUSED */
  read(container: string): Promise<Placement | undefined>;
  /** Idempotent. Ends every `follow`. */
  close(): Promise<void>;
}
