// One container with everything around it made up: an engine and an image store that work and tell what was asked of them, and time
// that passes when it is told to.
import assert from "node:assert/strict";
import { SimulatedClock } from "xstate";
import { Admission } from "../../actors/admission.js";
import { ContainerActor } from "../../actors/container.js";
import type { Clock } from "../../actors/ports/clock.js";
import type { Engine, Instance } from "../../actors/ports/engine.js";
import type { Image, ImageStore } from "../../actors/ports/image-store.js";
import { noLog } from "../../actors/ports/log.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { noTracing } from "../../actors/ports/tracer.js";
import { ActorRegistry } from "../../actors/registry.js";
import { Standbys } from "../../actors/standbys.js";
import { recordOf } from "./records.js";

const never = new AbortController().signal;

/** A call that never comes to anything. */
export const hangs = (): Promise<never> => new Promise(() => {});

export const imageOfBlog = {
  directory: "/images/blog/1",
  bytes: 1,
  manifest: { container: "blog", epoch: 1 },
} as unknown as Image;

export interface ContainerBenchOptions {
  readonly images?: Partial<ImageStore>;
  readonly engine?: Partial<Engine>;
  readonly spec?: Partial<ContainerSpec>;
}

/** The container `blog`, which has an image where `images` does not say otherwise. */
export function containerBench(options: ContainerBenchOptions) {
  const simulated = new SimulatedClock();
  const clock: Clock = Object.assign(simulated, { timestamp: () => "2026-01-01T00:00:00Z" });
  const done: string[] = [];
  const note = (what: string) => Promise.resolve(void done.push(what));
  const instance = { container: "blog", engine: "runc", epoch: 1 } as Instance;
  const launched = { instance, phases: [] };
  const engine: Engine = {
    name: "runc",
    capabilities: { checkpoint: true },
    fingerprint: () => Promise.resolve({}),
    start: () => note("start").then(() => launched),
    restore: () => note("restore").then(() => launched),
    checkpoint: () => note("checkpoint").then(() => []),
    renew: (renewed) => Promise.resolve(renewed),
    stop: () => note("stop"),
    alive: () => true,
    listening: () => Promise.resolve(true),
    find: () => Promise.resolve([]),
    output: () => Promise.resolve(""),
    boundOutput: () => note("bound"),
    tidy: () => Promise.resolve(),
    ...options.engine,
  };
  const images: ImageStore = {
    takeSuspended: () => note("take").then(() => ({ skipped: [] })),
    find: () => Promise.resolve({ image: imageOfBlog, skipped: [] }),
    warm: () => Promise.resolve(),
    begin: () =>
      Promise.resolve({
        directory: "/draft",
        publish: () => note("publish").then(() => imageOfBlog),
        discard: () => note("discard"),
      }),
    use: ({ directory }) => Promise.resolve({ directory, phases: [], release: () => void done.push("release") }),
    setAside: () => note("set aside"),
    remove: () => note("remove"),
    list: () => Promise.resolve([]),
    ...options.images,
  };
  const admission = new Admission(1);
  const record = recordOf("blog", { engine: "runc", idleTimeoutMs: 60_000, ...options.spec });
  const standbys = new Standbys({ clock, log: noLog, images, engines: new Map([["runc", engine]]), admission });
  const container = new ContainerActor(
    {
      engine,
      images,
      standbys,
      content: { digest: hangs },
      readiness: { get: () => Promise.resolve(200) },
      hooks: { call: () => Promise.resolve() },
      clock,
      tracer: noTracing,
      log: noLog,
      registry: new ActorRegistry(),
      admission,
    },
    record,
    1,
  );
  const turns = async (): Promise<void> => {
    for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
  };
  /** Simulated time from the request until it serves. */
  const served = async (): Promise<number> => {
    const begunMs = clock.now();
    let serves = false;
    const serving = container.whenServing(undefined, never).finally(() => (serves = true));
    serving.catch(() => {});
    for (await turns(); !serves; await turns()) {
      assert.ok(clock.now() - begunMs < 60_000, `it does not serve: ${container.state}; ${done.join()}`);
      simulated.increment(500);
    }
    await serving;
    return clock.now() - begunMs;
  };
  const pass = async (ms: number): Promise<void> => {
    simulated.increment(ms);
    await turns();
  };
  return { container, record, standbys, done, served, pass, turns };
}
