// A host actor over the store in memory, engines that run nothing, and a clock that the test drives.
import { SimulatedClock } from "xstate";
import { ClusterView } from "../../actors/cluster-view.js";
import { HostActor, type HostDeps } from "../../actors/host.js";
import type { Clock } from "../../actors/ports/clock.js";
import type { Claim, HostClient } from "../../actors/ports/host-client.js";
import type { ImageStore } from "../../actors/ports/image-store.js";
import type { Log } from "../../actors/ports/log.js";
import type { HostRecord, Membership, Placement, SpecRecord } from "../../actors/ports/placement-store.js";
import type { Prober } from "../../actors/ports/prober.js";
import { noTracing } from "../../actors/ports/tracer.js";
import { ActorRegistry } from "../../actors/registry.js";
import { MemoryPlacementStore } from "../../runtime/placement/memory.js";
import { FakeEngine } from "./fake-engine.js";
import { hostOf } from "./records.js";

export interface SimulatedTime {
  readonly clock: Clock;
  /** In small steps, between which everything goes on. */
  readonly pass: (ms: number) => Promise<void>;
  /** At once: nothing has gone on meanwhile. */
  readonly sleep: (ms: number) => void;
}

/** Time that stands still until the test says how much of it goes by. */
export function simulatedClock(): SimulatedTime {
  const simulated = new SimulatedClock();
  const clock: Clock = {
    now: () => simulated.now(),
    timestamp: () => "2026-01-01T00:00:00Z",
    setTimeout: (fn, ms) => simulated.setTimeout(fn, ms),
    clearTimeout: (id) => simulated.clearTimeout(id as number),
  };
  return {
    clock,
    sleep: (ms) => simulated.increment(ms),
    pass: async (ms) => {
      await turns();
      for (let restMs = ms; restMs > 0; restMs -= stepMs) {
        simulated.increment(Math.min(stepMs, restMs));
        await turns();
      }
    },
  };
}

/** Short enough that nobody takes it for a sleep of the process. */
const stepMs = 50;

/** Everything that can go on without time going by goes on. */
export async function turns(count = 20): Promise<void> {
  for (let n = 0; n < count; n++) await new Promise(setImmediate);
}

/** A store in memory whose answers to one kind of call wait, after it has acted. */
class HeldStore extends MemoryPlacementStore {
  #held: Promise<void> = Promise.resolve();
  #kind: "claim" | "join" | "read" | undefined;
  release = (): void => {};
  /** Hosts' records cannot be changed. */
  updateError: Error | undefined;
  readError: Error | undefined;

  hold(kind: "claim" | "join" | "read"): void {
    this.#kind = kind;
    this.#held = new Promise((resolve) => (this.release = resolve));
  }

  override async join(record: HostRecord): Promise<Membership> {
    const membership = await super.join(record);
    const claim = membership.claim.bind(membership);
    membership.claim = async (request) => {
      const outcome = await claim(request);
      if (this.#kind === "claim") await this.#held;
      return outcome;
    };
    const update = membership.update.bind(membership);
    membership.update = (changed) => (this.updateError ? Promise.reject(this.updateError) : update(changed));
    if (this.#kind === "join") await this.#held;
    return membership;
  }

  override async read(container: string): Promise<Placement | undefined> {
    if (this.#kind === "read") await this.#held;
    if (this.readError !== undefined) throw this.readError;
    return super.read(container);
  }
}

/** Another member's calls: each is answered as the test says. */
export class FakeHosts implements HostClient {
  claim: HostClient["claim"] = () => Promise.resolve({ kind: "unreachable", reason: "planted" });
  activate: HostClient["activate"] = (_host, { epoch }) =>
    Promise.resolve({ kind: "active", activation: { how: "cold", epoch, phases: [] } });
  prepare = (): Promise<void> => Promise.resolve();
}

export interface BenchOptions {
  readonly specs?: readonly SpecRecord[];
  readonly engines?: readonly FakeEngine[];
  readonly record?: Partial<HostRecord>;
}

export function hostBench({ specs = [], engines = [new FakeEngine()], record = {} }: BenchOptions = {}) {
  const { clock, pass, sleep } = simulatedClock();
  const store = new HeldStore({ clock, ttlMs: 10_000 });
  const agent = (): { readonly host: HostActor; readonly view: ClusterView } => {
    const view = new ClusterView();
    const host = new HostActor({ ...shared, view, registry: new ActorRegistry() }, own);
    return { host, view };
  };
  const warnings: string[] = [];
  const say = (details: object, message: string): void =>
    void warnings.push(`${message}: ${(details as { reason?: string }).reason ?? ""}`);
  const log: Log = { debug() {}, info() {}, warn: say, error: say };
  const hosts = new FakeHosts();
  const probed: string[] = [];
  const prober: Prober = {
    probe: ({ address, port }) => {
      probed.push(`${address}:${port}`);
      return bench.probe(port);
    },
  };
  const images: Partial<ImageStore> = {
    find: () => Promise.resolve({ skipped: [] }),
    takeSuspended: () => Promise.resolve({ skipped: [] }),
  };
  const own = hostOf("a", { engines: engines.map(({ name }) => name), ...record });
  const shared: Omit<HostDeps, "view" | "registry"> = {
    engines: new Map(engines.map((engine) => [engine.name, engine])),
    store,
    images: images as ImageStore,
    warmBytes: 0,
    startsAtOnce: 2,
    prober,
    hosts,
    content: { digest: () => Promise.resolve("") },
    readiness: { get: () => Promise.resolve(200) },
    hooks: { call: () => Promise.resolve() },
    clock,
    tracer: noTracing,
    log,
  };
  const { host, view } = agent();
  const bench = {
    host,
    store,
    view,
    clock,
    pass,
    sleep,
    warnings,
    hosts,
    probed,
    engine: engines[0] as FakeEngine,
    probe: (_port: number): ReturnType<Prober["probe"]> => Promise.resolve({ kind: "alive", rttMs: 1 }),
    /** With the specifications in the store; resolves when it is `running`. */
    join: async (): Promise<void> => {
      for (const each of specs) await store.putSpec(each);
      await bench.going(host.join(new AbortController().signal));
    },
    claim: (container: string, more: Partial<Claim> = {}) =>
      host.claim({ container, expected: 0, reason: "planted", ...more }, undefined),
    /** Lets time go by until the promise has settled, at most two minutes. */
    going: async <T>(promise: Promise<T>): Promise<T> => {
      let settled = false;
      const over = (): void => void (settled = true);
      promise.then(over, over);
      for (let n = 0; n < 2400 && !settled; n++) await pass(stepMs);
      if (!settled) throw new Error("not within two minutes");
      return promise;
    },
    /** Its agent crashes, and another one is made over what that left. */
    restarted: () => {
      host.abandon();
      return agent();
    },
    /** Another host of the cluster, which only has a lease. */
    other: (id: string, more: Partial<HostRecord> = {}): Promise<Membership> =>
      store.join(hostOf(id, { port: 2, ...more })),
  };
  return bench;
}
