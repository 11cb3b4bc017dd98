// One lease in etcd, kept alive, and the proof that it still holds. etcd3's own lease reports its loss only after twice
// the TTL, long after etcd has given the keys away.
//
//   L1  `provenUntil` = send time of the last answered request + TTL - stop budget, on the monotonic clock. etcd counts the TTL
//       from when the request reached it, which is later, so it drops the keys at least the stop budget after that.
//   L2  Past `provenUntil` nothing extends it again. A process that was suspended finds it in the past when it wakes, whichever
//       runs first: the timer, or an answer that had been waiting in the socket. (A whole machine that was suspended is another
//       matter: its monotonic clock stood still, clock_gettime(2). Do not suspend or snapshot machines that run a host.)
//   L3  It ends once: lost (deadline, or etcd dropped it), stopped, or revoked. Only the first resolves `lost`.
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import { type Clock, delay } from "../../actors/ports/clock.js";
import type { Log } from "../../actors/ports/log.js";
import type { EtcdConnection, EtcdSettings } from "./etcd-client.js";

const reopenAfterMs = 50;

export interface LeaseDeps {
  readonly connection: EtcdConnection;
  readonly settings: EtcdSettings;
  readonly clock: Clock;
  readonly log: Log;
}

export class EtcdLease {
  /** int64 in decimal. */
  readonly id: string;
  /** Resolves once with the reason (L3). */
  readonly lost: Promise<string>;
  readonly #deps: LeaseDeps;
  readonly #over = new AbortController();
  readonly #resolveLost: (reason: string) => void;
  #provenUntil: number;
  #timer: unknown;

  /** @throws HakobuError STORE_UNAVAILABLE, STORE_REFUSED */
  static async grant(deps: LeaseDeps): Promise<EtcdLease> {
    const sentAt = deps.clock.now();
    const request = { TTL: deps.settings.ttlMs / 1000 };
    const { ID, TTL } = await deps.connection.call("a lease", ({ leaseClient }) => leaseClient.leaseGrant(request));
    return new EtcdLease(deps, ID, deadlineOf(deps.settings, sentAt, TTL));
  }

  private constructor(deps: LeaseDeps, id: string, provenUntil: number) {
    this.#deps = deps;
    this.id = id;
    this.#provenUntil = provenUntil;
    const { promise, resolve } = promiseOf<string>();
    this.lost = promise;
    this.#resolveLost = resolve;
    this.#watchDeadline();
    void this.#keep();
  }

  get provenUntil(): number {
    return this.#provenUntil;
  }

  get proven(): boolean {
    return !this.#over.signal.aborted && this.#deps.clock.now() < this.#provenUntil;
  }

  /** For whoever learns that the lease does not hold any more. */
  lose(reason: string): void {
    if (this.#over.signal.aborted) return;
    this.#end();
    this.#provenUntil = Math.min(this.#provenUntil, this.#deps.clock.now());
    this.#resolveLost(reason);
  }

  /** Stops keeping it alive; what hangs on it stays until the TTL is over. Idempotent. */
  stop(): void {
    this.#end();
  }

  /** Drops it and all that hangs on it. Where etcd does not answer, the TTL does. Idempotent. */
  async revoke(): Promise<void> {
    this.#end();
    this.#provenUntil = Math.min(this.#provenUntil, this.#deps.clock.now());
    const { connection, log } = this.#deps;
    try {
      await connection.call("the end of a lease", ({ leaseClient }) => leaseClient.leaseRevoke({ ID: this.id }));
    } catch (error) {
      const gone = error instanceof HakobuError && error.code === "STORE_REFUSED";
      if (!gone) log.warn({ lease: this.id, reason: reasonOf(error) }, "lease not revoked: it ends by its TTL");
    }
  }

  #end(): void {
    if (this.#over.signal.aborted) return;
    this.#deps.clock.clearTimeout(this.#timer);
    this.#over.abort(new Error("the lease is over"));
  }

  #watchDeadline(): void {
    const { clock, settings } = this.#deps;
    clock.clearTimeout(this.#timer);
    this.#timer = clock.setTimeout(
      () => {
        if (clock.now() < this.#provenUntil) this.#watchDeadline();
        else this.lose(`no answer to a keep-alive in time to prove the lease of ${settings.ttlMs} ms`);
      },
      Math.max(0, this.#provenUntil - clock.now()),
    );
  }

  async #keep(): Promise<void> {
    const { connection, clock, log } = this.#deps;
    const over = this.#over.signal;
    while (!over.aborted) {
      const { client } = connection;
      try {
        await this.#keepOver(await client.leaseClient.leaseKeepAlive());
      } catch (error) {
        connection.failed(client);
        if (!over.aborted) log.warn({ lease: this.id, reason: reasonOf(error) }, "keep-alive interrupted");
      }
      await delay(clock, reopenAfterMs, over).catch(() => undefined);
    }
  }

  /** Renews over one stream, one request at a time, until it fails (rejects) or the lease is over (resolves). */
  #keepOver(stream: KeepAliveStream): Promise<void> {
    const { clock, settings } = this.#deps;
    const over = this.#over.signal;
    const answerTimeoutMs = Math.min(settings.callTimeoutMs, settings.ttlMs / 5);
    let timer: unknown;
    let onOver: (() => void) | undefined;
    return new Promise<void>((resolve, reject) => {
      let sentAt = 0;
      let answered = true;
      const send = (): void => {
        answered = false;
        sentAt = clock.now();
        stream.write({ ID: this.id });
        timer = clock.setTimeout(() => {
          // After a stall of this process the answer may be in the socket: let it be read before the verdict.
          setImmediate(() => {
            if (!answered) reject(new Error(`no answer to a keep-alive within ${answerTimeoutMs} ms`));
          });
        }, answerTimeoutMs);
      };
      stream.on("data", ({ TTL }) => {
        if (answered) return;
        answered = true;
        clock.clearTimeout(timer);
        if (over.aborted) return;
        if (Number(TTL) <= 0) return this.lose("etcd has dropped the lease");
        if (!this.#extend(sentAt, TTL)) return;
        timer = clock.setTimeout(send, Math.max(0, sentAt + settings.renewEveryMs - clock.now()));
      });
      stream.on("error", reject);
      stream.on("end", () => reject(new Error("etcd ended the keep-alive stream")));
      onOver = resolve;
      over.addEventListener("abort", onOver, { once: true });
      if (over.aborted) resolve();
      else send();
    }).finally(() => {
      clock.clearTimeout(timer);
      if (onOver) over.removeEventListener("abort", onOver);
      // Ended only when all is well: etcd3 opens a new connection for a stream that is cancelled before its end.
      if (over.aborted) stream.end();
      stream.cancel();
    });
  }

  /** L1, L2. */
  #extend(sentAt: number, ttlSeconds: string): boolean {
    const { clock, settings } = this.#deps;
    if (clock.now() >= this.#provenUntil) {
      this.lose("the answer to a keep-alive came too late to prove the lease");
      return false;
    }
    this.#provenUntil = Math.max(this.#provenUntil, deadlineOf(settings, sentAt, ttlSeconds));
    this.#watchDeadline();
    return true;
  }
}

type KeepAliveStream = Awaited<ReturnType<EtcdConnection["client"]["leaseClient"]["leaseKeepAlive"]>>;

/** etcd may grant more than was asked for; the smaller is the safe one. */
function deadlineOf(settings: EtcdSettings, sentAt: number, ttlSeconds: string): number {
  return sentAt + Math.min(settings.ttlMs, Number(ttlSeconds) * 1000) - settings.stopBudgetMs;
}

function promiseOf<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve: (value: T) => void = () => undefined;
  const promise = new Promise<T>((fulfil) => {
    resolve = fulfil;
  });
  return { promise, resolve };
}
