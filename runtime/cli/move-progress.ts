// What can be seen of planned moves while they go on: of one, from its owner, the store and its next owner; of a drain, how many are left.
// Only looks: a move does not depend on being watched.
import type { ClusterView } from "../../actors/cluster-view.js";
import { HakobuError } from "../../actors/hakobu-error.js";
import { type Clock, delay } from "../../actors/ports/clock.js";
import type { HostRecord, Placement, PlacementStore } from "../../actors/ports/placement-store.js";
import type { HostStatus } from "../dispatcher/control.js";

export interface MoveProgressDeps {
  readonly store: Pick<PlacementStore, "follow">;
  readonly view: ClusterView;
  readonly clock: Clock;
  readonly ask: (host: HostRecord) => Promise<HostStatus>;
  /** A step that has begun, and what changes while it lasts. */
  readonly step: (step: string, detail: string) => void;
}

const lookEveryMs = 25;
const drainLookEveryMs = 200;

/** Tells the steps of a move away from where it is placed, until the signal aborts. Never rejects. */
export async function tellMove(deps: MoveProgressDeps, before: Placement, signal: AbortSignal): Promise<void> {
  const { store, view, clock, ask, step } = deps;
  const { container: name } = before;
  const follow = async (): Promise<void> => {
    for await (const change of store.follow(signal)) view.apply(change);
  };
  const stop = view.onChange((noticed) => {
    const { placement } = noticed.kind === "placement" && noticed.container === name ? noticed : {};
    if (placement !== undefined && placement.epoch > before.epoch)
      step(`claimed by ${placement.host}`, ` (epoch ${placement.epoch})`);
  });
  const look = async (): Promise<void> => {
    while (!signal.aborted) {
      const placement = view.placement(name) ?? before;
      const host = view.host(placement.host);
      const status = host && (await ask(host).catch(() => undefined));
      const live = status?.containers.find((each) => each.name === name && each.epoch === placement.epoch);
      // It may have been claimed while its owner answered.
      const current = view.placement(name)?.epoch ?? placement.epoch;
      if (live !== undefined && current === placement.epoch && !signal.aborted) tellState(step, placement.host, live);
      await delay(clock, lookEveryMs, signal).catch(() => {});
    }
  };
  await Promise.allSettled([follow(), look()]);
  stop();
}

type Live = HostStatus["containers"][number];

function tellState(step: MoveProgressDeps["step"], host: string, { state, inFlight }: Live): void {
  switch (state) {
    case "relocating.draining":
      return step(`draining requests on ${host}`, ` (${inFlight} in flight)`);
    case "relocating.imaging":
      return step(`taking the last image on ${host}`, "");
    case "stopping":
      return step(`stopping on ${host}`, "");
    case "restoring":
      return step(`restoring on ${host}`, "");
    case "starting":
      return step(`starting cold on ${host}`, "");
  }
}

export interface DrainDeps {
  readonly clock: Clock;
  readonly ask: () => Promise<HostStatus>;
  readonly say: (text: string) => void;
  /** So long without one container that left, and it is not waited for any more. */
  readonly standstillMs: number;
}

/**
 * Waits until a host that drains is empty, or nothing of it moves any more.
 * @returns the containers that stay. @throws HakobuError DEADLINE_EXCEEDED when it still moves them, and none has left for long
 */
export async function untilDrained(deps: DrainDeps, all: number, begun: HostStatus): Promise<readonly string[]> {
  const { clock, ask, say, standstillMs } = deps;
  let status = begun;
  let left = status.containers.length;
  let end = clock.now() + standstillMs;
  while (status.moving) {
    if (status.containers.length < left) end = clock.now() + standstillMs;
    left = status.containers.length;
    say(`${status.id}: ${Math.max(0, all - left)} of ${all} moved`);
    if (clock.now() > end)
      throw new HakobuError(
        "DEADLINE_EXCEEDED",
        `${status.id} is still moving ${namesOf(status).join(", ")}, and goes on; nothing has left for ${Math.round(standstillMs / 1000)} s. To wait on: hakobu drain ${status.id}`,
        { retryable: true },
      );
    await delay(clock, drainLookEveryMs);
    status = await ask();
  }
  return namesOf(status);
}

function namesOf(status: HostStatus): readonly string[] {
  return status.containers.map(({ name }) => name);
}
