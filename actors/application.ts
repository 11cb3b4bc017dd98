// What is asked of an application itself while its container comes up or is imaged: whether it listens, whether it answers, and
// its hooks.
import { HakobuError, reasonOf } from "./hakobu-error.js";
import { type Clock, deadline, delay } from "./ports/clock.js";
import type { Engine, Instance, Phases } from "./ports/engine.js";
import type { Hook, Hooks } from "./ports/hooks.js";
import type { Readiness } from "./ports/readiness.js";
import type { ContainerSpec } from "./ports/spec.js";

export interface ApplicationDeps {
  readonly engine: Engine;
  readonly readiness: Readiness;
  readonly hooks: Hooks;
  readonly clock: Clock;
}

/** How often a starting application is asked whether it listens or answers. */
const readyPollMs = 20;

/** @throws HakobuError START_FAILED when its process ends; the signal's reason */
export async function whenListening(deps: ApplicationDeps, instance: Instance, signal: AbortSignal): Promise<void> {
  const { engine, clock } = deps;
  while (!(await engine.listening(instance))) {
    if (!engine.alive(instance)) throw await died(engine, instance);
    await delay(clock, readyPollMs, signal);
  }
}

/** Until each of its warm-up requests, in their order, is answered below 500. @throws HakobuError START_FAILED when its process ends; the signal's reason */
export async function whenAnswering(
  deps: ApplicationDeps,
  spec: ContainerSpec,
  instance: Instance,
  signal: AbortSignal,
): Promise<void> {
  const { readiness, engine, clock } = deps;
  const hostname = hostnameOf(spec);
  for (const path of [spec.checkpoint.warmup].flat())
    for (;;) {
      const outcome = await readiness.get(instance, hostname, path, signal).catch(reasonOf);
      if (typeof outcome === "number" && outcome < 500) break;
      signal.throwIfAborted();
      if (!engine.alive(instance)) throw await died(engine, instance);
      await delay(clock, readyPollMs, signal);
    }
}

/** Nothing where the specification does not name it. Rejects when the application did not say that it has done it. */
export async function callHook(
  { hooks, clock }: ApplicationDeps,
  spec: ContainerSpec,
  instance: Instance,
  hook: Omit<Hook, "path">,
  signal: AbortSignal,
): Promise<Phases> {
  const path = spec.hooks?.[hook.name];
  if (spec.hooks === undefined || path === undefined) return [];
  const { timeoutMs } = spec.hooks;
  const late = deadline(clock, timeoutMs, `hook ${hook.name} did not answer within ${timeoutMs} ms (hooks.timeout)`);
  const begunMs = clock.now();
  await hooks.call(instance, hostnameOf(spec), { ...hook, path }, AbortSignal.any([signal, late]));
  return [{ name: `${hook.name} hook`, ms: clock.now() - begunMs }];
}

async function died(engine: Engine, instance: Instance): Promise<HakobuError> {
  const output = await engine.output(instance.container, 5).catch(() => "");
  const said = output === "" ? "it wrote nothing" : `its last output: ${output.trim()}`;
  return new HakobuError("START_FAILED", `its process ended before it listened on port ${instance.port}; ${said}`);
}

/** What requests of Hakobu's own carry as their host name. */
function hostnameOf({ hostnames }: ContainerSpec): string {
  return hostnames.find((each) => !each.includes("*")) ?? "localhost";
}
