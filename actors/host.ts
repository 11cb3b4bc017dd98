// The host agent: joins the cluster with one lease, claims containers and owns an actor for each that it holds.
//
//   O1  It claims only for itself, in `running`, with a lease that is proven now (claims.ts).
//   O2  A container is served only under a claim that this host won and has not seen superseded.
//   O3  A placement that changed hands (watch, or a request with a newer epoch) makes the container leave.
//   O4  Containers found running after a crash of the agent are kept if their placement is still this host's, else stopped.
//   O5  After a time in which this process did not run (stopped, starved), nothing is served before it has looked who owns it
//       (wakefulness.ts).
//       An exclusive container is served only while the lease is proven; others also while nobody has taken them.
import { type Actor, createActor, fromPromise } from "xstate";
import { hostMachine } from "../machines/host.js";
import { Admission } from "./admission.js";
import { adopt, isExclusive } from "./adoption.js";
import { Claims } from "./claims.js";
import type { ClusterView, Noticed } from "./cluster-view.js";
import { ContainerActor, type ContainerDeps } from "./container.js";
import { follow } from "./follow.js";
import { HakobuError, reasonOf } from "./hakobu-error.js";
import { ImageRefresher } from "./image-refresher.js";
import { deadline, delay, within } from "./ports/clock.js";
import type { Engine, Instance } from "./ports/engine.js";
import type { Claim, ClaimReply, HostClient } from "./ports/host-client.js";
import type { Guard } from "./ports/guard.js";
import type { HostRecord, Membership, Placement, PlacementStore, SpecRecord } from "./ports/placement-store.js";
import type { Prober } from "./ports/prober.js";
import type { ContainerSpec } from "./ports/spec.js";
import type { TraceContext } from "./ports/tracer.js";
import { NextInLine } from "./next-in-line.js";
import { moveLimitMs, PlannedMoves } from "./planned-moves.js";
import { Releases } from "./releases.js";
import { Standbys } from "./standbys.js";
import { Vacancies } from "./vacancies.js";
import { Wakefulness } from "./wakefulness.js";

export interface HostDeps extends Omit<ContainerDeps, "engine" | "admission" | "standbys"> {
  /** Containers that may come up at the same time; more only make each other late. */
  readonly startsAtOnce: number;
  /** Of images that are kept in memory for containers that this host would take next. 0: none. */
  readonly warmBytes: number;
  readonly engines: ReadonlyMap<string, Engine>;
  readonly store: PlacementStore;
  readonly view: ClusterView;
  readonly prober: Prober;
  /** Absent: exclusive containers outlive a killed agent until it is started again. */
  readonly guard?: Guard;
  /** For planned moves: this host asks the next one. */
  readonly hosts: HostClient;
}

/** How often processes are looked after. */
const checkEveryMs = 500;
/** For a container that has another owner: it has nothing to lose but what it is writing. */
const discardGraceMs = 1000;
const joinPauseMs = 250;
const joinPauseLimitMs = 5000;

export class HostActor {
  readonly #deps: HostDeps;
  readonly #containers = new Map<string, ContainerActor>();
  readonly #actor: Actor<typeof hostMachine>;
  readonly #following = new AbortController();
  readonly #admission: Admission;
  readonly #refresher: ImageRefresher;
  #record: HostRecord;
  #membership: Membership | undefined;
  /** Ends some time after it was aborted: what it found by then leaves with the host. */
  #joining: Promise<void> = Promise.resolve();
  #checkTimer: unknown;
  #stopNoticing: () => void;
  readonly #viewReady: Promise<void>;
  readonly #vacancies: Vacancies;
  readonly #wakefulness: Wakefulness;
  readonly #releases: Releases;
  readonly #moves: PlannedMoves;
  readonly #standbys: Standbys;
  readonly #claims: Claims;
  readonly #nextInLine: NextInLine;

  constructor(deps: HostDeps, record: HostRecord) {
    this.#deps = deps;
    this.#record = record;
    this.#admission = new Admission(deps.startsAtOnce);
    this.#refresher = new ImageRefresher({
      ...deps,
      admission: this.#admission,
      containers: () => this.#containers.values(),
      mayRefresh: (container) => {
        const { name } = container;
        if (this.state !== "running" || !this.proven || this.#record.draining || this.handingOver(name)) return false;
        const own = this.#containers.get(name);
        return own === container && !own.left;
      },
    });
    this.#wakefulness = new Wakefulness({ ...deps, hostId: record.id, containers: this.#containers });
    this.#actor = createActor(
      hostMachine.provide({
        actors: {
          join: fromPromise(({ signal }) => (this.#joining = this.#join(signal, this.#joining))),
          leave: fromPromise(() => this.#leave()),
        },
        actions: { fence: () => this.#fence() },
      }),
      { id: `host/${record.id}`, clock: deps.clock },
    );
    this.#actor.subscribe({
      next: ({ value, context }) => deps.log.debug({ host: record.id, state: value, reason: context.reason }, "host"),
      error: (error) => deps.log.error({ host: record.id, error: reasonOf(error) }, "host actor ended"),
    });
    deps.registry.register(`host/${record.id}`, this.#actor.start());
    this.#stopNoticing = deps.view.onChange((noticed) => this.#notice(noticed));
    this.#viewReady = follow(deps.store, deps.view, deps.log, this.#following.signal);
    this.#vacancies = new Vacancies(deps.clock, deps.view, this.#viewReady);
    this.#releases = new Releases({
      clock: deps.clock,
      log: deps.log,
      membership: () => this.#membership,
      wanted: (container) => this.#containers.has(container) || this.#claims.underWay(container),
      heldUnder: (container) => this.#containers.get(container)?.epoch,
    });
    this.#standbys = new Standbys({ ...deps, admission: this.#admission });
    this.#claims = new Claims({
      ...deps,
      host: this,
      held: this.#containers,
      membership: () => this.#membership,
      vacancies: this.#vacancies,
      releases: this.#releases,
      standbys: this.#standbys,
      acquire: (owned, placement) => this.#acquire(owned, placement),
    });
    this.#nextInLine = new NextInLine({ ...deps, hostId: record.id, limitBytes: deps.warmBytes });
    this.#moves = new PlannedMoves({
      ...deps,
      hostId: record.id,
      containers: this.#containers,
      releases: this.#releases,
    });
  }

  get record(): HostRecord {
    return this.#record;
  }

  get state(): string {
    return this.#actor.getSnapshot().value;
  }

  /** Why it is not `running`, where it once was. */
  get reason(): string | undefined {
    return this.#actor.getSnapshot().context.reason;
  }

  get containers(): Iterable<ContainerActor> {
    return this.#containers.values();
  }

  container(name: string): ContainerActor | undefined {
    return this.#containers.get(name);
  }

  /** Why the image of a container could not be refreshed lately, for people. */
  imageTrouble(container: ContainerActor): string | undefined {
    return this.#refresher.trouble(container);
  }

  /** O5: whether requests for a container may be answered now. The request path asks; it costs one look at the clock. */
  async mayServe(container: ContainerActor): Promise<boolean> {
    if (!(await this.#wakefulness.knows(container))) return false;
    return !container.left && (container.record.spec.takeover !== "exclusive" || this.proven);
  }

  /** The lease is proven at this moment. */
  get proven(): boolean {
    return this.#membership !== undefined && this.#deps.clock.now() < this.#membership.provenUntil;
  }

  /** Joins; resolves when it is `running`. @throws HakobuError HOST_ID_TAKEN; the signal's reason */
  join(signal: AbortSignal): Promise<void> {
    this.#checkTimer ??= this.#armCheck();
    this.#actor.send({ type: "JOIN" });
    return this.#reaches("running", signal);
  }

  /** A planned move of this container away from here is under way. */
  handingOver(name: string): boolean {
    return this.#moves.underWay(name);
  }

  /** Containers are on their way out. */
  get moving(): boolean {
    return this.#moves.moving;
  }

  /** Moves one container away on purpose. @throws as PlannedMoves.relocate */
  relocate(name: string, to: string | undefined, reason: string): Promise<Placement> {
    return this.#moves.relocate(name, to, reason);
  }

  /** Announces the drain and begins it; `moving` tells when it is over. */
  async startDrain(): Promise<void> {
    await this.#announce(true);
    void this.#moves.drain();
  }

  /** Takes no more containers and moves away those that it has. */
  async drain(): Promise<void> {
    if (!this.#record.draining) await this.#announce(true);
    await this.#moves.drain();
  }

  async undrain(): Promise<void> {
    this.#moves.undrain();
    await this.#announce(false);
  }

  /** Moves every container away where `drain` says so and that is possible, stops what is left, revokes the lease. Idempotent. */
  async close(drain = false): Promise<void> {
    const { log } = this.#deps;
    if (drain && this.state === "running")
      await this.drain().catch((error: unknown) =>
        log.warn({ host: this.#record.id, reason: reasonOf(error) }, "nothing is moved away: all is stopped here"),
      );
    this.#actor.send({ type: "DRAIN" });
    await this.#reaches("stopped", new AbortController().signal);
    this.abandon();
  }

  /** Ends the actors and leaves containers and lease as they are: what a crash does. */
  abandon(): void {
    this.#deps.clock.clearTimeout(this.#checkTimer);
    this.#following.abort(new HakobuError("ABORTED", "the host agent ends"));
    this.#stopNoticing();
    this.#vacancies.close();
    this.#releases.close();
    void this.#nextInLine.close();
    this.#membership?.abandon();
    void this.#refresher.close("the host agent ends");
    for (const container of this.#containers.values()) container.abandon();
    this.#containers.clear();
    this.#actor.stop();
  }

  /** Takes a container over, if the placement is still what the proxy saw; on success it is already coming up. Never rejects. */
  claim(claim: Claim, trace: TraceContext | undefined): Promise<ClaimReply> {
    return this.#claims.claim(claim, trace);
  }

  /** Waits for a claim of that container that is under way. */
  claimed(name: string): Promise<void> {
    return this.#claims.settled(name);
  }

  /** A proxy suspects the owner and would ask this host next. @returns whether the container is being restored, without running */
  prepare(name: string): boolean {
    return this.#claims.prepare(name);
  }

  /** A request carried an epoch newer than this host's: it has been superseded and did not know. */
  supersede(container: ContainerActor, epoch: number): void {
    container.loseOwnership(`a request named epoch ${epoch}, newer than ${container.epoch}`);
  }

  /**
   * Changes the limits of a container that is here, without a restart, and in its specification.
   * @throws HakobuError NOT_OWNER, CONFIG_INVALID (refused, nothing has changed), STORE_UNAVAILABLE, STORE_REFUSED
   */
  async scale(name: string, change: Partial<ContainerSpec["limits"]>): Promise<SpecRecord> {
    const container = this.#containers.get(name);
    if (container === undefined)
      throw new HakobuError("NOT_OWNER", `${name} is not on host ${this.#record.id}; see: hakobu get`);
    const before = container.record.spec.limits;
    try {
      const written = await this.#deps.store.updateSpec(name, async ({ spec, hash }) => {
        const limits = { ...spec.limits, ...change };
        await container.scale(limits);
        return { spec: { ...spec, limits }, hash };
      });
      if (written !== undefined) return written;
      throw new HakobuError("NOT_OWNER", `the specification of ${name} has been deleted`);
    } catch (error) {
      await container.scale(before).catch(() => {});
      throw error;
    }
  }

  async #announce(draining: boolean): Promise<void> {
    this.#record = { ...this.#record, draining };
    await this.#membership?.update(this.#record);
  }

  /** @returns undefined where another host took it while its old copy here had not left yet */
  async #acquire(record: SpecRecord, placement: Placement, adopted?: Instance): Promise<ContainerActor | undefined> {
    const { engines, registry, view, log } = this.#deps;
    view.learn(placement);
    const { name } = record.spec;
    for (let before = this.#containers.get(name); before !== undefined; before = this.#containers.get(name)) {
      if (!before.leaving) {
        if (placement.epoch > before.epoch) before.renew(placement.epoch);
        return before;
      }
      await before.whenLeft();
    }
    const standing = view.placement(name);
    if (standing !== undefined && standing.epoch > placement.epoch && standing.host !== this.#record.id)
      return undefined;
    const engine = engines.get(record.spec.engine) as Engine;
    const container = new ContainerActor(
      { ...this.#deps, engine, registry, admission: this.#admission, standbys: this.#standbys },
      record,
      placement.epoch,
      adopted,
    );
    this.#containers.set(name, container);
    log.info({ container: name, epoch: placement.epoch, from: placement.from, reason: placement.reason }, "owned");
    void container.whenLeft().then(() => this.#forget(container));
    return container;
  }

  /** Of containers whose specification is gone nothing is kept. */
  #tidy(): void {
    const { engines, view, log } = this.#deps;
    const wanted = (name: string): boolean => this.#containers.has(name) || view.spec(name) !== undefined;
    for (const engine of engines.values())
      engine.tidy(wanted).catch((error: unknown) => log.warn({ reason: reasonOf(error) }, "old output is still there"));
  }

  /** A claim whose answer was lost has been applied after all. */
  #discovered(placement: Placement): void {
    const record = this.#deps.view.spec(placement.container);
    if (this.state !== "running" || record === undefined || this.#containers.has(placement.container)) return;
    this.#claims
      .inTurn(placement.container, async () => {
        if (this.#deps.view.placement(placement.container)?.epoch === placement.epoch)
          await this.#acquire(record, placement);
      })
      .catch((error: unknown) =>
        this.#deps.log.error({ container: placement.container, reason: reasonOf(error) }, "owned, and not brought up"),
      );
  }

  async #forget(container: ContainerActor): Promise<void> {
    if (this.#containers.get(container.name) !== container) return;
    this.#containers.delete(container.name);
    if (this.#deps.view.spec(container.name) === undefined) this.#tidy();
    if (this.#moves.underWay(container.name)) return;
    await this.#releases.giveUp(container.name, container.epoch);
  }

  #notice(noticed: Noticed): void {
    switch (noticed.kind) {
      case "placement": {
        const container = this.#containers.get(noticed.container);
        const placement = noticed.placement;
        if (placement === undefined) return;
        if (placement.host === this.#record.id) return this.#discovered(placement);
        if (container === undefined || placement.epoch <= container.epoch) return;
        container.loseOwnership(`${placement.host} owns it: ${placement.reason}`);
        return;
      }
      case "spec": {
        const container = this.#containers.get(noticed.name);
        if (container === undefined) return noticed.record === undefined ? this.#tidy() : undefined;
        if (noticed.record === undefined) container.send({ type: "RELOCATE", reason: "its specification was deleted" });
        else if (noticed.record.spec.engine !== container.record.spec.engine)
          container.send({ type: "RELOCATE", reason: "its specification names another engine: claimed anew" });
        else if (!this.#refresher.prepares(container, noticed.record)) container.update(noticed.record);
        return;
      }
      case "host":
        if (noticed.id === this.#record.id && noticed.record === undefined) void this.#membership?.check();
        return;
    }
  }

  async #join(signal: AbortSignal, before: Promise<void>): Promise<void> {
    const { store, clock, log, engines } = this.#deps;
    await before.catch(() => {});
    for (let pauseMs = joinPauseMs; ; pauseMs = Math.min(joinPauseLimitMs, pauseMs * 2)) {
      try {
        const ready = Promise.all([this.#viewReady, ...[...engines.values()].map((engine) => engine.prepare?.())]);
        await within(ready, signal);
        this.#membership?.abandon();
        // Engines remove what no agent knows of: no standby may be in the making.
        await this.#standbys.clear("the host joins");
        signal.throwIfAborted();
        const membership = await store.join(this.#record);
        this.#membership = membership;
        void membership.lost.then((reason) => {
          if (this.#membership === membership) this.#actor.send({ type: "LEASE_LOST", reason });
        });
        await adopt(
          {
            ...this.#deps,
            hostId: this.#record.id,
            containers: this.#containers,
            acquire: (...args) => this.#acquire(...args),
            discard: (instance) => this.#discard(instance),
            release: (name, epoch) => void this.#releases.giveUp(name, epoch),
          },
          membership,
          this.#following.signal,
        );
        signal.throwIfAborted();
        if (!this.proven)
          throw new HakobuError("LEASE_LOST", "the lease was lost before all was adopted", { retryable: true });
        this.#tidy();
        log.info({ host: this.#record.id, address: `${this.#record.address}:${this.#record.port}` }, "host joined");
        return;
      } catch (error) {
        if (this.#following.signal.aborted) this.#membership?.abandon();
        signal.throwIfAborted();
        // A host that was a member finds its own record until that lease has ended, or for as long as a twin has it.
        const given = error instanceof HakobuError && ["HOST_ID_TAKEN", "CONFIG_INVALID"].includes(error.code);
        if (given && this.state === "restoring") throw error;
        log.warn({ host: this.#record.id, reason: reasonOf(error) }, `cannot join: again in ${pauseMs} ms`);
        await delay(clock, pauseMs, signal);
      }
    }
  }

  async #discard(instance: Instance): Promise<void> {
    const engine = this.#deps.engines.get(instance.engine);
    const graceMs = isExclusive(this.#deps.view, instance.container) ? 0 : discardGraceMs;
    await engine?.stop(instance, graceMs).catch((error: unknown) => {
      this.#deps.log.error({ container: instance.container, reason: reasonOf(error) }, "could not be stopped");
    });
  }

  #fence(): void {
    void this.#standbys.clear("the host's lease can no longer be proven");
    for (const container of this.#containers.values())
      if (container.record.spec.takeover === "exclusive")
        container.send({ type: "FENCE", reason: "the host's lease can no longer be proven" });
  }

  async #leave(): Promise<void> {
    await this.#joining.catch(() => {});
    await this.#refresher.close("its host shuts down");
    const limit = deadline(this.#deps.clock, moveLimitMs, "the host shuts down");
    for (let under = this.#claims.allSettled; this.#containers.size > 0 || under; under = this.#claims.allSettled) {
      const leaving = [...this.#containers.values()].map((container) =>
        container.moveOut("its host shuts down", limit),
      );
      await Promise.all([...leaving, under]);
    }
    await this.#standbys.clear("the host shuts down");
    await this.#membership?.leave();
  }

  /** What must not outlive the lease, should this process be killed or stand still from now on. */
  #tellGuard(): void {
    const { guard, clock } = this.#deps;
    const exclusive = [...this.#containers.values()].filter(({ record }) => record.spec.takeover === "exclusive");
    const instances = exclusive.flatMap(({ instance }) => instance ?? []);
    guard?.watch((this.#membership?.provenUntil ?? 0) - clock.now(), instances);
  }

  #armCheck(): unknown {
    return this.#deps.clock.setTimeout(() => {
      this.#wakefulness.tick();
      for (const container of this.#containers.values()) container.check();
      this.#refresher.check();
      this.#tellGuard();
      this.#checkTimer = this.#armCheck();
    }, checkEveryMs);
  }

  #reaches(state: "running" | "stopped", signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const end = (): void => {
        subscription.unsubscribe();
        signal.removeEventListener("abort", onAbort);
      };
      const onAbort = (): void => {
        end();
        reject(signal.reason as Error);
      };
      const look = (value: string, reason: string | undefined): void => {
        if (value !== state && !(value === "stopped" && reason !== undefined)) return;
        end();
        if (value === state) resolve();
        else reject(new HakobuError("HOST_ID_TAKEN", reason ?? "the host stopped"));
      };
      const subscription = this.#actor.subscribe(({ value, context }) => look(value, context.reason));
      signal.addEventListener("abort", onAbort, { once: true });
      const { value, context } = this.#actor.getSnapshot();
      look(value, context.reason);
    });
  }
}
