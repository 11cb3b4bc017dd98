// What a host does with the containers that it finds when it joins: survivors of a crash of its agent, and its own after a fence.
//
//   One container, or one engine, keeps no host from joining: what cannot be kept is stopped, given up, and said in the log.
import type { ClusterView } from "./cluster-view.js";
import type { ContainerActor } from "./container.js";
import { HakobuError, reasonOf } from "./hakobu-error.js";
import { type Clock, delay } from "./ports/clock.js";
import type { Engine, Instance } from "./ports/engine.js";
import type { Log } from "./ports/log.js";
import type { Membership, Placement, SpecRecord } from "./ports/placement-store.js";

export interface AdoptionDeps {
  readonly hostId: string;
  readonly view: ClusterView;
  readonly engines: ReadonlyMap<string, Engine>;
  readonly containers: ReadonlyMap<string, ContainerActor>;
  readonly clock: Clock;
  readonly log: Log;
  readonly acquire: (
    record: SpecRecord,
    placement: Placement,
    adopted?: Instance,
  ) => Promise<ContainerActor | undefined>;
  readonly discard: (instance: Instance) => Promise<void>;
  /** Gives a placement up, in the background. */
  readonly release: (container: string, epoch: number) => void;
}

/** Containers that are looked at, and stopped where they are lost, at once. */
const adoptWidth = 16;
const findAttempts = 3;
const findPauseMs = 500;

/**
 * Keeps what is still this host's, renews its claim under the new lease, stops the rest.
 * @throws HakobuError STORE_UNAVAILABLE: to be done again; the signal's reason
 */
export async function adopt(deps: AdoptionDeps, membership: Membership, signal: AbortSignal): Promise<void> {
  const { hostId, view, engines, containers, log, acquire, discard, release } = deps;
  const found = new Map<string, Instance>();
  for (const engine of engines.values())
    for (const instance of await survivors(deps, engine, signal)) found.set(instance.container, instance);
  const names = new Set([...found.keys(), ...containers.keys()]);
  for (const placement of view.placements()) if (placement.host === hostId) names.add(placement.container);
  const exclusiveFirst = [...names].sort((a, b) => Number(isExclusive(view, b)) - Number(isExclusive(view, a)));
  let failure: HakobuError | undefined;
  const next = async (): Promise<void> => {
    for (
      let name = exclusiveFirst.shift();
      name !== undefined && failure === undefined;
      name = exclusiveFirst.shift()
    ) {
      signal.throwIfAborted();
      try {
        await look(name);
      } catch (error) {
        log.error({ container: name, reason: reasonOf(error) }, "could not be looked at: left as it is");
      }
    }
  };
  const keep = (container: string, expected: number) => {
    const reason = "kept by its host, which joined again";
    return membership.claim({ container, expected, from: hostId, reason });
  };
  const look = async (name: string): Promise<void> => {
    const record = view.spec(name);
    const placement = view.placement(name);
    const actor = containers.get(name);
    const instance = actor === undefined ? found.get(name) : undefined;
    // Without a placement others may have had it since. What they wrote is elsewhere, and an exclusive one must not go back.
    const unowned = placement === undefined && !(instance !== undefined && isExclusive(view, name));
    const possible = record !== undefined && engines.has(record.spec.engine);
    const ours = possible && (unowned || placement?.host === hostId);
    let outcome = ours ? await keep(name, placement?.epoch ?? 0) : undefined;
    // The old lease has ended before the stream said so.
    const ended = outcome?.kind === "lost" && outcome.placement === undefined;
    if (ended && !(instance !== undefined && isExclusive(view, name))) outcome = await keep(name, 0);
    if (outcome?.kind === "unavailable") {
      failure ??= new HakobuError("STORE_UNAVAILABLE", outcome.reason, { retryable: true });
      return;
    }
    if (record !== undefined && outcome?.kind === "won") {
      const sameSpec = instance?.specHash === record.hash;
      if (instance !== undefined && !sameSpec) await discard(instance);
      const acquired = acquire(record, outcome.placement, sameSpec ? instance : undefined);
      // Its old copy may take its time to leave.
      if (actor?.leaving !== true) await acquired;
      else acquired.catch((error: unknown) => log.error({ container: name, reason: reasonOf(error) }, "not kept"));
      return;
    }
    if (outcome?.kind === "lost" && outcome.placement !== undefined) view.learn(outcome.placement);
    const impossible = record !== undefined && !possible;
    const why = impossible ? `this host has no engine ${record.spec.engine}` : "not this host's any more";
    log.info({ container: name, owner: view.placement(name)?.host, reason: why }, "stopped here");
    if (instance !== undefined) await discard(instance);
    if (actor !== undefined) actor.loseOwnership(why);
    else if (impossible && placement?.host === hostId) release(name, placement.epoch);
  };
  await Promise.all(Array.from({ length: adoptWidth }, next));
  if (failure !== undefined) throw failure;
}

/** Asked a few times: what it does not name is neither kept nor stopped. */
async function survivors(
  { log, clock }: AdoptionDeps,
  engine: Engine,
  signal: AbortSignal,
): Promise<readonly Instance[]> {
  for (let attempt = 1; ; attempt++)
    try {
      return await engine.find();
    } catch (error) {
      log.error({ engine: engine.name, attempt, reason: reasonOf(error) }, "cannot say what survived");
      if (attempt === findAttempts) return [];
      await delay(clock, findPauseMs, signal);
    }
}

export function isExclusive(view: ClusterView, container: string): boolean {
  return view.spec(container)?.spec.takeover === "exclusive";
}
