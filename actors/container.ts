// One container on the host that owns it: gives machines/container.ts its engine, its images and its clock.
//
//   A1  `serving` is the running instance exactly while the statechart is in `running.serving`: the dispatcher reads it
//       for every request and sends no event.
//   A2  Requests are counted in and out; nothing is stopped or imaged on purpose while one is being answered.
//   A3  An image that was restored is trusted from the first answer that the restored copy gave; a copy that dies by itself
//       before that takes its image with it (set aside).
//
// How it is restored: restoration.ts. How an image of it is taken: checkpoint.ts.
import { type Actor, createActor, fromPromise } from "xstate";
import {
  type ContainerEvent,
  containerMachine,
  type ContainerTerms,
  type RestoreOutcome,
} from "../machines/container.js";
import type { Admission } from "./admission.js";
import { whenAnswering, whenListening } from "./application.js";
import { checkpoint, contentOf } from "./checkpoint.js";
import { ContainerLimits } from "./container-limits.js";
import { HakobuError, reasonOf } from "./hakobu-error.js";
import { IdleTimer } from "./idle-timer.js";
import { deadline, delay } from "./ports/clock.js";
import type { Content } from "./ports/content.js";
import type { Instance, Launch } from "./ports/engine.js";
import type { Activation } from "./ports/host-client.js";
import type { Image, Taken, Tier } from "./ports/image-store.js";
import type { SpecRecord } from "./ports/placement-store.js";
import type { ContainerSpec } from "./ports/spec.js";
import { addPhases, type Span, type TraceContext, type Tracer } from "./ports/tracer.js";
import type { ActorRegistry } from "./registry.js";
import { fromStore } from "./store-limit.js";
import { named } from "./move-report.js";
import { forgetSuspended, type RestorationDeps, restore } from "./restoration.js";

export interface ContainerDeps extends RestorationDeps {
  readonly content: Content;
  readonly tracer: Tracer;
  readonly registry: ActorRegistry;
  /** Shared by all containers of the host. */
  readonly admission: Admission;
}

/** How long requests that are being answered may hold up a move. */
const drainLimitMs = 10_000;
/** Between idle and the stop: a request that arrives meanwhile keeps it running. */
const idleGraceMs = 50;
/** How often the output of a container that runs is kept from growing. */
const boundEveryMs = 10_000;

export class ContainerActor {
  readonly name: string;
  epoch: number;
  serving: Instance | undefined;
  /** Requests being answered. */
  inFlight = 0;
  activation: Activation | undefined;
  readonly #deps: ContainerDeps;
  readonly #actor: Actor<typeof containerMachine>;
  #record: SpecRecord;
  #instance: Instance | undefined;
  readonly #limits: ContainerLimits;
  #underWay: Promise<unknown> = Promise.resolve();
  #unproven: Image | undefined;
  /** What lay at its watched paths when it was started. */
  #content: Promise<Pick<Taken, "content">> = Promise.resolve({});
  #trigger: TraceContext | undefined;
  readonly #idle: IdleTimer;
  /** When its output is bounded again. */
  #nextBoundMs = 0;
  #stopGraceMs: number | undefined;
  /** Its memory is in an image: it must not notice that it ends. */
  #kept = false;
  #drained: (() => void) | undefined;

  constructor(deps: ContainerDeps, record: SpecRecord, epoch: number, adopted?: Instance) {
    this.name = record.spec.name;
    this.epoch = epoch;
    this.#deps = deps;
    this.#record = record;
    this.#instance = adopted;
    this.#limits = new ContainerLimits(this.name, deps);
    this.#idle = new IdleTimer(
      deps.clock,
      () => this.serving === undefined || this.inFlight > 0,
      () => this.send({ type: "IDLE" }),
    );
    const machine = containerMachine.provide({
      actors: {
        restore: fromPromise(({ signal }) => this.#operate(this.#admitted(signal, () => this.#restore(signal)))),
        start: fromPromise(({ signal }) => this.#operate(this.#admitted(signal, () => this.#start(signal)))),
        checkpoint: fromPromise(({ signal }) => this.#operate(this.#takeImage("golden", signal))),
        suspend: fromPromise(({ signal }) => this.#operate(this.#suspend(signal))),
        lastImage: fromPromise(({ signal }) => this.#operate(this.#takeImage("suspended", signal))),
        drain: fromPromise(({ signal }) => this.#drain(signal)),
        stop: fromPromise(() => this.#stop()),
      },
    });
    this.#actor = createActor(machine, {
      id: `container/${this.name}`,
      clock: deps.clock,
      input: { ...this.#terms, adopted: adopted !== undefined },
    });
    this.#actor.subscribe({
      next: (snapshot) => {
        this.serving = snapshot.matches({ running: "serving" }) ? this.#instance : undefined;
      },
      complete: () => this.#idle.stop(),
      error: (error) => deps.log.error({ container: this.name, error: reasonOf(error) }, "container actor ended"),
    });
    deps.registry.register(`container/${this.name}`, this.#actor.start());
    this.#idle.arm(record.spec.idleTimeoutMs);
    this.#limits.follow(adopted, record.spec.limits);
    this.renew(epoch);
    if (adopted !== undefined) void this.#operate(forgetSuspended(deps, record, epoch));
  }

  get state(): string {
    const { value } = this.#actor.getSnapshot();
    return typeof value === "string" ? value : Object.entries(value).flat().join(".");
  }

  get reason(): string | undefined {
    return this.#actor.getSnapshot().context.reason;
  }

  get record(): SpecRecord {
    return this.#record;
  }

  get instance(): Instance | undefined {
    return this.#instance;
  }

  /** It has left this host for good, or is about to. */
  get leaving(): boolean {
    return this.left || this.#actor.getSnapshot().context.leaving;
  }

  /** It has left this host for good. */
  get left(): boolean {
    return this.#actor.getSnapshot().status !== "active";
  }

  send(event: ContainerEvent): void {
    if (event.type === "FENCE") this.#stopGraceMs = 0;
    this.#actor.send(event);
  }

  /** Another host owns it. An exclusive one is killed: what it is answering must not go on beside the new owner's copy. */
  loseOwnership(reason: string): void {
    this.send({ type: this.#record.spec.takeover === "exclusive" ? "FENCE" : "OWNERSHIP_LOST", reason });
  }

  /** Its host owns it anew, under that epoch. A running copy is told. */
  renew(epoch: number): void {
    this.epoch = epoch;
    const instance = this.#instance;
    if (instance === undefined || instance.epoch === epoch) return;
    this.#deps.engine.renew(instance, epoch).then(
      (renewed) => {
        if (this.#instance !== instance) return;
        this.#instance = renewed;
        if (this.serving !== undefined) this.serving = renewed;
      },
      (error: unknown) =>
        this.#deps.log.warn({ container: this.name, epoch, reason: reasonOf(error) }, "it was not told its epoch"),
    );
  }

  /** A request begins to be answered. */
  enter(): void {
    this.inFlight++;
  }

  /** It has ended; `answered`: the container gave a response. */
  leave(answered: boolean): void {
    this.inFlight--;
    this.#idle.note();
    if (answered) this.#unproven = undefined;
    if (this.inFlight === 0) this.#drained?.();
  }

  /** A changed specification: at once where only routing changes, else by a restart. */
  update(record: SpecRecord): void {
    const restart = record.hash !== this.#record.hash;
    this.#record = record;
    this.send({ type: "SPECIFIED", ...this.#terms });
    this.#idle.arm(record.spec.idleTimeoutMs);
    if (restart) this.send({ type: "RESTART", reason: "its specification changed" });
    else this.#limits.follow(this.#instance, record.spec.limits);
  }

  /** Changes its limits at once, where it runs. @throws HakobuError CONFIG_INVALID when they are refused */
  scale(limits: ContainerSpec["limits"]): Promise<void> {
    return this.#limits.scale(this.#instance, limits);
  }

  /** Looks whether its process still runs; asked by the host every second and when a connection to it failed. */
  check(): void {
    if (this.#instance === undefined || !this.#actor.getSnapshot().matches("running")) return;
    if (!this.#deps.engine.alive(this.#instance)) this.send({ type: "GONE" });
    else this.#boundOutput();
  }

  #boundOutput(): void {
    const { clock, engine, log } = this.#deps;
    if (clock.now() < this.#nextBoundMs) return;
    this.#nextBoundMs = clock.now() + boundEveryMs;
    engine
      .boundOutput(this.name)
      .catch((error: unknown) => log.warn({ container: this.name, reason: reasonOf(error) }, "its output grows"));
  }

  /**
   * Brings it to life where it is not running, and waits until it serves.
   * @throws HakobuError START_FAILED, NOT_OWNER; the signal's reason when that aborts
   */
  whenServing(trace: TraceContext | undefined, signal: AbortSignal): Promise<Instance> {
    if (this.#trigger === undefined) this.#trigger = trace;
    return new Promise((resolve, reject) => {
      const settle = (): boolean => {
        const snapshot = this.#actor.getSnapshot();
        if (this.serving !== undefined) resolve(this.serving);
        else if (snapshot.status !== "active" || snapshot.matches("relocating") || snapshot.context.leaving)
          reject(new HakobuError("NOT_OWNER", `${this.name} has left this host: ${snapshot.context.reason ?? ""}`));
        else if (snapshot.matches("failed"))
          reject(
            new HakobuError("START_FAILED", `${this.name} did not start: ${snapshot.context.reason ?? "unknown"}`, {
              retryable: true,
            }),
          );
        else return false;
        return true;
      };
      if (signal.aborted) return reject(signal.reason as Error);
      if (settle()) return;
      const end = (): void => {
        subscription.unsubscribe();
        signal.removeEventListener("abort", onAbort);
      };
      const look = (): void => {
        if (settle()) return end();
        // A stop that was under way when the request came has ended without it.
        if (this.#actor.getSnapshot().value === "stopped") this.send({ type: "REQUEST" });
      };
      const onAbort = (): void => {
        end();
        reject(signal.reason as Error);
      };
      const subscription = this.#actor.subscribe({ next: look, complete: look, error: look });
      signal.addEventListener("abort", onAbort, { once: true });
      this.send({ type: "REQUEST" });
    });
  }

  /**
   * Planned: drains it, keeps its memory where its specification says so, and stops it for good. One that is coming up does so
   * first, for what it restores is taken out of the store already. Resolves when it has left; never rejects.
   */
  async moveOut(reason: string, signal: AbortSignal): Promise<void> {
    if (this.#keepsMemory && /^(restoring|starting)/.test(this.state))
      await this.whenServing(undefined, signal).catch(() => {});
    this.send({ type: "RELOCATE", reason, keepMemory: this.#keepsMemory });
    await this.whenLeft();
  }

  /** Its memory goes with it in a planned move: it stops here before another host may take it. */
  get movesWithMemory(): boolean {
    return this.#keepsMemory;
  }

  /** Resolves when it has left this host. */
  whenLeft(): Promise<void> {
    return new Promise((resolve) => {
      if (this.left) return resolve();
      this.#actor.subscribe({ complete: resolve, error: () => resolve() });
    });
  }

  /** Ends the actor and touches nothing: what a crash does. */
  abandon(): void {
    this.#idle.stop();
    this.#actor.stop();
  }

  #admitted<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    return this.#deps.admission.run(signal, work);
  }

  /** Remembers what is under way, so that a stop begins only when what it interrupts has cleaned up after itself. */
  #operate<T>(operation: Promise<T>): Promise<T> {
    const before = this.#underWay;
    this.#underWay = Promise.allSettled([before, operation]).then(() => {});
    return operation;
  }

  async #restore(signal: AbortSignal): Promise<RestoreOutcome> {
    if (this.#unproven !== undefined) {
      const image = this.#unproven;
      this.#unproven = undefined;
      const aside = this.#deps.images.setAside(image, "the restored copy died before it answered a request");
      await fromStore(this.#deps.clock, aside, { signal });
    }
    const span = this.#span("restore");
    this.#limits.launched(this.#record.spec.limits);
    try {
      const restoring = {
        record: this.#record,
        epoch: this.epoch,
        span,
        launched: (instance: Instance | undefined): void => {
          this.#instance = instance;
        },
        runs: (instance: Instance, activation: Activation, golden: Image | undefined): void => {
          // A standby has those under which it was made.
          if (activation.phases.some(({ ahead }) => ahead)) this.#limits.launched(undefined);
          this.#running(instance, span, activation);
          this.#unproven = golden;
        },
      };
      const outcome = await restore(this.#deps, restoring, signal);
      if (outcome.kind === "noImage") span.set({ "hakobu.note": outcome.why });
      span.end(outcome.kind === "badImage" ? outcome.why : undefined);
      return outcome;
    } catch (error) {
      span.end(error);
      throw error;
    }
  }

  async #start(signal: AbortSignal): Promise<void> {
    const { engine, clock } = this.#deps;
    const { spec } = this.#record;
    const span = this.#span("cold start");
    const limit = AbortSignal.any([
      signal,
      deadline(
        clock,
        spec.startTimeoutMs,
        `${spec.name} was not ready within ${spec.startTimeoutMs} ms (startTimeout)`,
      ),
    ]);
    this.#content = contentOf(this.#deps.content, spec, limit);
    try {
      const launched = await engine.start(this.#launch(), limit);
      if (this.#keepsMemory) void this.#operate(forgetSuspended(this.#deps, this.#record, this.epoch));
      this.#instance = launched.instance;
      const begunMs = clock.now();
      await whenListening(this.#deps, launched.instance, limit);
      const listensMs = clock.now();
      if (spec.checkpoint.at === "warm") await whenAnswering(this.#deps, spec, launched.instance, limit);
      const phases = [
        ...launched.phases,
        { name: "listen", ms: listensMs - begunMs },
        ...(spec.checkpoint.at === "warm" ? [{ name: "warm up", ms: clock.now() - listensMs }] : []),
      ];
      const note = this.reason;
      span.set({ "hakobu.note": note });
      this.#running(launched.instance, span, {
        how: "cold",
        epoch: this.epoch,
        phases,
        ...(note === undefined ? {} : { note }),
      });
      span.end();
    } catch (error) {
      span.end(error);
      throw error;
    }
  }

  /** Its memory is kept when it is idle and when it is moved. */
  get #keepsMemory(): boolean {
    return this.#record.spec.onIdle === "suspend" && this.#deps.engine.capabilities.checkpoint;
  }

  get #terms(): ContainerTerms {
    const { spec } = this.#record;
    const restorable = this.#deps.engine.capabilities.checkpoint && spec.checkpoint.onReady;
    return { restorable, exclusive: spec.takeover === "exclusive" };
  }

  async #suspend(signal: AbortSignal): Promise<void> {
    if (!this.#keepsMemory) return delay(this.#deps.clock, idleGraceMs, signal);
    try {
      await this.#takeImage("suspended", signal);
    } catch (error) {
      // It goes on: whatever of the image is there is older than its next answer.
      if (!this.leaving) await forgetSuspended(this.#deps, this.#record, this.epoch);
      throw error;
    }
  }

  async #takeImage(tier: Tier, signal: AbortSignal): Promise<void> {
    // One that was cancelled may still be cleaning up.
    await this.#underWay;
    const instance = this.#instance;
    if (instance === undefined) return;
    const span = this.#span("checkpoint");
    // A file server that has not answered yet holds nothing up: then the image is of no known content.
    const content = tier === "golden" ? await Promise.race([this.#content, Promise.resolve({})]) : {};
    await checkpoint(this.#deps, { record: this.#record, epoch: this.epoch, instance, tier, span, ...content }, signal);
    this.#kept = tier === "suspended";
  }

  #drain(signal: AbortSignal): Promise<void> {
    if (this.inFlight === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        this.#drained = undefined;
        this.#deps.clock.clearTimeout(timer);
        signal.removeEventListener("abort", done);
        resolve();
      };
      const timer: unknown = this.#deps.clock.setTimeout(done, drainLimitMs);
      signal.addEventListener("abort", done, { once: true });
      this.#drained = done;
    });
  }

  async #stop(): Promise<void> {
    await this.#underWay;
    const instance = this.#instance;
    this.#trigger = undefined;
    this.activation = undefined;
    if (instance === undefined) return;
    if (this.#deps.engine.alive(instance)) this.#unproven = undefined;
    const graceMs = this.#kept ? 0 : (this.#stopGraceMs ?? this.#record.spec.stopGraceMs);
    try {
      await this.#deps.engine.stop(instance, graceMs);
    } catch (error) {
      this.#deps.log.error({ container: this.name, reason: reasonOf(error) }, "could not be stopped");
      throw error;
    }
    this.#kept = false;
    this.#instance = undefined;
  }

  #launch(): Launch {
    this.#limits.launched(this.#record.spec.limits);
    return { spec: this.#record.spec, specHash: this.#record.hash, epoch: this.epoch };
  }

  #running(instance: Instance, span: Span, activation: Activation): void {
    this.#instance = instance;
    this.#limits.follow(instance, this.#record.spec.limits);
    this.activation = activation;
    this.#idle.note();
    addPhases(span, activation.phases);
    this.#idle.arm(this.#record.spec.idleTimeoutMs);
    this.#deps.log.info(
      {
        container: this.name,
        epoch: this.epoch,
        how: activation.how,
        ...(activation.note === undefined ? {} : { note: activation.note }),
        phases: named(activation.phases.map(({ ms, ...phase }) => ({ ...phase, ms: Math.round(ms * 10) / 10 }))),
      },
      "container runs",
    );
  }

  #span(name: string): Span {
    const attributes = { "hakobu.container": this.name, "hakobu.epoch": this.epoch };
    return this.#deps.tracer.span(name, { ...(this.#trigger ? { parent: this.#trigger } : {}), attributes });
  }
}
