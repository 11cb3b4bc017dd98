// One host in etcd: its lease, its record, and its claims.
//
//   E1  A claim is one transaction: if the placement's mod revision is what the claimer read (0: no such key) and this host's
//       record hangs on this membership's lease, put the new placement under that lease. Its revision is the epoch (P1, P2).
//   E2  A transaction without an answer is sent again, at most twice and within 2 x `callTimeoutMs`, or as often as there are
//       members where those are more. That is also how it is read
//       back (P4): if the first one was applied, the comparison fails, and the failure branch returns what stands.
//   E3  What stands under this membership's lease was written by this membership, so a claim that meets it has won.
//   E4  The host record changes only from the revision that this membership wrote last: updates apply in their order, and a
//       restarted agent (same id, same address) that took the record over ends this membership at its next write.
//
// Why a claim that is applied late, after `unavailable` was returned, is safe: it still is a compare-and-swap, so it replaces only
// the very placement that the claimer read, or none; it hangs on the lease and dies with it; and there is one owner in etcd at
// all times. What it can do is make this host the owner of a container that it does not run. The host learns that from
// `follow`, and the next claim that is asked of it returns that placement as won (E3), with the epoch that it has.
import type { ICompare, IKeyValue, IRequestOp, IResponseOp, ITxnResponse } from "etcd3";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import { delay } from "../../actors/ports/clock.js";
import type { ClaimOutcome, ClaimRequest, HostRecord, Membership } from "../../actors/ports/placement-store.js";
import type { EtcdLease, LeaseDeps } from "./etcd-lease.js";
import { decodeHost, decodePlacement, encode, type Keys } from "./etcd-records.js";

const transactionAttempts = 3;
const betweenAttemptsMs = 50;
const recordRounds = 5;

export class EtcdMembership implements Membership {
  readonly lost: Promise<string>;
  readonly #deps: LeaseDeps;
  readonly #keys: Keys;
  readonly #lease: EtcdLease;
  readonly #onOver: () => void;
  #id = "";
  /** Mod revision of the host record as this membership wrote it (E4). */
  #revision = "0";
  #writes: Promise<void> = Promise.resolve();
  #left: Promise<void> | undefined;

  constructor(deps: LeaseDeps, keys: Keys, lease: EtcdLease, onOver: () => void) {
    this.#deps = deps;
    this.#keys = keys;
    this.#lease = lease;
    this.#onOver = onOver;
    this.lost = lease.lost;
    void lease.lost.then(onOver);
  }

  get provenUntil(): number {
    return this.#lease.provenUntil;
  }

  /** The first write of the record. @throws HakobuError HOST_ID_TAKEN, STORE_UNAVAILABLE, STORE_REFUSED */
  async publish(record: HostRecord): Promise<void> {
    this.#id = record.id;
    await this.#putRecord(record, (standing) => {
      if (standing === undefined || standing.lease === "0") return;
      const other = decodeHost(record.id, standing);
      if (other?.address === record.address && other.port === record.port) return;
      const where = other ? `at ${other.address}:${other.port}` : "with a record that cannot be read";
      const wayOut = `give this one another id, or stop that one and wait for its lease`;
      const message = `host id ${record.id} is taken by a live host ${where}; ${wayOut}`;
      throw new HakobuError("HOST_ID_TAKEN", message, { retryable: true });
    });
  }

  async update(record: HostRecord): Promise<void> {
    if (record.id !== this.#id) throw new HakobuError("CONFIG_INVALID", `host ${this.#id} cannot become ${record.id}`);
    const write = this.#writes.then(() => {
      if (!this.#lease.proven) throw leaseLost(this.#id);
      return this.#putRecord(record, (standing) => {
        if (standing?.lease === this.#lease.id) return;
        this.lose(dropped);
        throw leaseLost(this.#id);
      });
    });
    this.#writes = write.catch(() => undefined);
    return write;
  }

  async check(): Promise<void> {
    const key = this.#keys.host(this.#id);
    try {
      const { kvs } = await this.#deps.connection.call("the host record", ({ kv }) => kv.range({ key }));
      if (kvs[0]?.lease !== this.#lease.id) this.lose(dropped);
    } catch (error) {
      this.#deps.log.warn({ host: this.#id, reason: reasonOf(error) }, "cannot ask whether the lease still holds");
    }
  }

  async claim(request: ClaimRequest): Promise<ClaimOutcome> {
    const { container, expected, from, reason } = request;
    const { clock } = this.#deps;
    const placement = { host: this.#id, since: clock.timestamp(), ...(from === undefined ? {} : { from }), reason };
    const key = this.#keys.placement(container);
    const host = this.#keys.host(this.#id);
    const lease = this.#lease.id;
    if (!this.#lease.proven) return unproven;
    let answer: ITxnResponse;
    try {
      answer = await this.#transact(
        `a claim of ${container}`,
        [modRevision(key, String(expected)), { key: host, target: "Lease", result: "Equal", lease }],
        [{ request_put: { key, value: encode(placement), lease } }],
        [{ request_range: { key } }, { request_range: { key: host } }],
      );
    } catch (error) {
      return { kind: "unavailable", reason: reasonOf(error) };
    }
    if (answer.succeeded) {
      const won = { container, epoch: Number(answer.header.revision), ...placement };
      return this.#lease.proven ? { kind: "won", placement: won } : unproven;
    }
    const [standing, record] = answer.responses.map(found);
    if (record?.lease !== lease) {
      this.lose(dropped);
      return unproven;
    }
    const owned = standing && decodePlacement(container, standing);
    if (owned && standing.lease === lease) return this.#lease.proven ? { kind: "won", placement: owned } : unproven; // E3
    return { kind: "lost", ...(owned ? { placement: owned } : {}) };
  }

  /** @throws HakobuError STORE_UNAVAILABLE, STORE_REFUSED */
  async release(container: string, epoch: number): Promise<void> {
    const key = this.#keys.placement(container);
    const removal = { request_delete_range: { key } };
    await this.#transact(`the release of ${container}`, [modRevision(key, String(epoch))], [removal], []);
  }

  leave(): Promise<void> {
    this.#onOver();
    this.#left ??= this.#lease.revoke();
    return this.#left;
  }

  abandon(): void {
    this.#onOver();
    this.#left ??= Promise.resolve();
    this.#lease.stop();
  }

  lose(reason: string): void {
    this.#lease.lose(reason);
  }

  /** E4. `mayReplace` throws where the record that stands is not this membership's to replace. */
  async #putRecord(record: HostRecord, mayReplace: (standing: IKeyValue | undefined) => void): Promise<void> {
    const key = this.#keys.host(record.id);
    const lease = this.#lease.id;
    const value = encode(record);
    for (let round = 1; round <= recordRounds; round++) {
      const compare = [modRevision(key, this.#revision)];
      const put = [{ request_put: { key, value, lease } }];
      const answer = await this.#transact("the host record", compare, put, [{ request_range: { key } }]);
      if (answer.succeeded) {
        this.#revision = answer.header.revision;
        return;
      }
      const [standing] = answer.responses.map(found);
      const written = standing?.lease === lease && standing.value.equals(value);
      if (!written) mayReplace(standing);
      this.#revision = standing?.mod_revision ?? "0";
      if (written) return;
    }
    const message = `the record of host ${record.id} changes all the time; stop the other agent with this id`;
    throw new HakobuError("STORE_UNAVAILABLE", message, { retryable: true });
  }

  /** E2. */
  async #transact(
    what: string,
    compare: ICompare[],
    success: IRequestOp[],
    failure: IRequestOp[],
  ): Promise<ITxnResponse> {
    const { connection, clock, settings } = this.#deps;
    // Enough to come past a member that hangs and the election of a new leader.
    const attempts = Math.max(transactionAttempts, settings.hosts.length + 1);
    const until = clock.now() + (attempts - 1) * settings.callTimeoutMs;
    for (let attempt = 1; ; attempt++) {
      try {
        return await connection.call(what, ({ kv }) => kv.txn({ compare, success, failure }));
      } catch (error) {
        const again = error instanceof HakobuError && error.code === "STORE_UNAVAILABLE";
        if (!again || attempt === attempts || clock.now() >= until) throw error;
        await delay(clock, betweenAttemptsMs);
      }
    }
  }
}

const dropped = "etcd has this host no longer under this lease";
const unproven: ClaimOutcome = { kind: "unavailable", reason: "this host's lease can no longer be proven" };

function modRevision(key: Buffer, revision: string): ICompare {
  return { key, target: "Mod", result: "Equal", mod_revision: revision };
}

function found(response: IResponseOp): IKeyValue | undefined {
  return response.response_range.kvs[0];
}

function leaseLost(id: string): HakobuError {
  return new HakobuError("LEASE_LOST", `host ${id} can no longer prove its lease; stop its containers and join again`);
}
