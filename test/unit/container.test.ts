// One container on its host: what it does with its images and its requests, over an engine that runs nothing.
import assert from "node:assert/strict";
import { Admission } from "../../actors/admission.js";
import { ContainerActor } from "../../actors/container.js";
import type { Image, ImageStore } from "../../actors/ports/image-store.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { noTracing } from "../../actors/ports/tracer.js";
import { ActorRegistry } from "../../actors/registry.js";
import { Standbys } from "../../actors/standbys.js";
import { FakeEngine } from "../lab/fake-engine.js";
import { simulatedClock } from "../lab/host-bench.js";
import { recordOf } from "../lab/records.js";

const idleTimeoutMs = 60_000;

/** A container of an engine with images, of which there is a golden one. */
function opened(more: Partial<ContainerSpec> = {}) {
  const { clock, pass } = simulatedClock();
  const engine = new FakeEngine("runc", { checkpoint: true });
  const record = recordOf("blog", { engine: "runc", idleTimeoutMs, ...more });
  const setAside: string[] = [];
  const errors: string[] = [];
  const golden: Image = {
    directory: "golden",
    bytes: 1,
    manifest: {
      format: 1,
      container: "blog",
      epoch: 1,
      specHash: record.hash,
      engine: "runc",
      at: "warm",
      fingerprint: {},
      taken: clock.timestamp(),
      files: {},
    },
  };
  const images: Partial<ImageStore> = {
    find: async () => ({ image: golden, skipped: [] }),
    takeSuspended: async () => ({ skipped: [] }),
    use: async ({ directory }) => ({ directory, phases: [], release() {} }),
    setAside: async (_, reason) => void setAside.push(reason),
    begin: async () => ({ directory: "draft", publish: async () => golden, discard: async () => {} }),
    remove: async () => {},
  };
  const admission = new Admission(1);
  const log = { debug() {}, info() {}, warn() {}, error: (_: object, message: string) => void errors.push(message) };
  const shared = { clock, log, images: images as ImageStore, admission };
  const standbys = new Standbys({ ...shared, engines: new Map([["runc", engine]]) });
  const container = new ContainerActor(
    {
      ...shared,
      engine,
      standbys,
      content: { digest: async () => "" },
      readiness: { get: async () => 200 },
      hooks: { call: async () => {} },
      tracer: noTracing,
      registry: new ActorRegistry(),
    },
    record,
    1,
  );
  const wake = async () => {
    const instance = container.whenServing(undefined, new AbortController().signal);
    await pass(0);
    return instance;
  };
  const changed = (change: Partial<ContainerSpec>, hash = record.hash): SpecRecord =>
    recordOf("blog", { ...record.spec, ...change }, hash);
  return { container, engine, setAside, errors, pass, wake, changed };
}

describe("the image of a container (A3)", () => {
  it("is kept when the copy that was restored from it is stopped without having been asked", async () => {
    const { container, engine, setAside, pass, wake } = opened();
    await wake();
    await pass(idleTimeoutMs + 1000);
    assert.equal(container.state, "stopped");
    await wake();
    assert.deepEqual(setAside, []);
    assert.deepEqual(engine.events, ["restore blog", "stop blog 1000", "restore blog"]);
  });

  it("is set aside when that copy ended by itself before it answered", async () => {
    const { container, engine, setAside, pass, wake } = opened();
    const { pid } = await wake();
    engine.die(pid);
    container.check();
    await pass(0);
    await wake();
    assert.deepEqual(setAside, ["the restored copy died before it answered a request"]);
  });

  it("is kept when that copy ended by itself after it had answered", async () => {
    const { container, engine, setAside, pass, wake } = opened();
    const { pid } = await wake();
    container.enter();
    container.leave(true);
    engine.die(pid);
    container.check();
    await pass(0);
    await wake();
    assert.deepEqual(setAside, []);
  });
});

describe("a changed specification", () => {
  it("lets a request that is being answered end before the container is stopped (A2)", async () => {
    const { container, engine, pass, wake, changed } = opened();
    await wake();
    container.enter();
    container.update(changed({ command: ["other"] }, "2"));
    await pass(5000);
    assert.equal(container.serving, undefined, "what comes now waits");
    assert.equal(engine.running.size, 1);
    const next = container.whenServing(undefined, new AbortController().signal);
    container.leave(true);
    await pass(100);
    assert.equal((await next).specHash, "2");
    assert.deepEqual(engine.events, ["restore blog", "stop blog 1000", "restore blog"]);
  });

  it("lets images be used from now on where it asks for them, also without a restart", async () => {
    const { container, engine, pass, wake, changed } = opened({
      checkpoint: { onReady: false, at: "warm", warmup: "/", timeoutMs: 1000 },
    });
    await wake();
    container.update(changed({ checkpoint: { onReady: true, at: "warm", warmup: "/", timeoutMs: 1000 } }));
    await pass(idleTimeoutMs + 1000);
    await wake();
    assert.deepEqual(engine.events, ["start blog", "stop blog 1000", "restore blog"]);
  });
});

describe("a container that cannot be stopped", () => {
  it("is not started a second time: who asks for it waits until it has been stopped, and each attempt is in the log", async () => {
    const { container, engine, errors, pass, wake } = opened();
    await wake();
    engine.failingStops = 3;
    await pass(idleTimeoutMs + 500);
    assert.equal(container.state, "stuck");
    const next = container.whenServing(undefined, new AbortController().signal);
    await pass(5000);
    await next;
    assert.deepEqual(
      errors,
      Array.from({ length: 3 }, () => "could not be stopped"),
    );
    assert.equal(engine.running.size, 1);
    assert.equal(engine.events.at(-1), "restore blog");
  });
});
