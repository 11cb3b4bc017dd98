// A container whose image store does not answer, as a file server that hangs: it starts cold after a while and serves, and what the
// store comes to later does no harm.
import assert from "node:assert/strict";
import { SimulatedClock } from "xstate";
import { Admission } from "../../actors/admission.js";
import { ContainerActor } from "../../actors/container.js";
import { HakobuError } from "../../actors/hakobu-error.js";
import { type Clock, within } from "../../actors/ports/clock.js";
import type { Engine, Instance } from "../../actors/ports/engine.js";
import type { FoundImage, Image, ImageStore } from "../../actors/ports/image-store.js";
import { noLog } from "../../actors/ports/log.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { noTracing } from "../../actors/ports/tracer.js";
import { ActorRegistry } from "../../actors/registry.js";
import { Standbys } from "../../actors/standbys.js";
import { storeLimitMs } from "../../actors/store-limit.js";
import { recordOf } from "../lab/records.js";

const never = new AbortController().signal;
const hangs = (): Promise<never> => new Promise(() => {});

describe("an image store that hangs", () => {
  const image = {
    directory: "/images/blog/1",
    bytes: 1,
    manifest: { container: "blog", epoch: 1 },
  } as unknown as Image;

  /** A store that works but for `broken`; what was done, in order. */
  function opened(broken: Partial<ImageStore>, more: Partial<ContainerSpec> = {}, restore?: Engine["restore"]) {
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
      restore: restore ?? (() => note("restore").then(() => launched)),
      checkpoint: () => note("checkpoint").then(() => []),
      renew: (renewed) => Promise.resolve(renewed),
      stop: () => note("stop"),
      alive: () => true,
      listening: () => Promise.resolve(true),
      find: () => Promise.resolve([]),
      output: () => Promise.resolve(""),
      boundOutput: () => note("bound"),
      tidy: () => Promise.resolve(),
    };
    const images: ImageStore = {
      takeSuspended: () => note("take").then(() => ({ skipped: [] })),
      find: () => Promise.resolve({ image, skipped: [] }),
      warm: () => Promise.resolve(),
      begin: () =>
        Promise.resolve({
          directory: "/draft",
          publish: () => note("publish").then(() => image),
          discard: () => note("discard"),
        }),
      use: ({ directory }) => Promise.resolve({ directory, phases: [], release: () => void done.push("release") }),
      setAside: () => note("set aside"),
      remove: () => note("remove"),
      list: () => Promise.resolve([]),
      ...broken,
    };
    const admission = new Admission(1);
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
      recordOf("blog", { engine: "runc", idleTimeoutMs: 60_000, ...more }),
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
    return { container, done, served, pass, turns };
  }

  for (const call of ["takeSuspended", "find", "use", "begin"] as const)
    it(`holds a start up for no more than a few seconds when it hangs in ${call}`, async () => {
      const works = call === "begin" ? { find: () => Promise.resolve({ skipped: [] }) } : {};
      const { served, done, container } = opened({ ...works, [call]: hangs });
      assert.ok((await served()) <= storeLimitMs + 1000);
      assert.equal(done.includes("start"), true);
      assert.equal(container.activation?.how, "cold");
      if (call !== "begin") assert.match(container.activation?.note ?? "", /image store did not answer/);
      container.abandon();
    });

  it("holds no answer up when it hangs in what is written, or in what lies at watched paths", async () => {
    const refresh = { paths: ["/shared"] };
    const draft = { directory: "/draft", publish: hangs, discard: hangs };
    const { checkpoint } = recordOf("blog", {}).spec;
    const { served, container } = opened(
      { find: () => Promise.resolve({ skipped: [] }), begin: () => Promise.resolve(draft) },
      { checkpoint: { ...checkpoint, refresh, timeoutMs: 3000 } },
    );
    assert.ok((await served()) <= 3000 + storeLimitMs + 1000);
    container.abandon();
  });

  it("sets aside what it gives back of a suspended image when the container runs without it", async () => {
    let answer: (found: FoundImage) => void = () => {};
    const takeSuspended = (): Promise<FoundImage> => new Promise((resolve) => (answer = resolve));
    const { served, done, turns, container } = opened({ takeSuspended });
    await served();
    answer({ image, skipped: [] });
    await turns();
    assert.deepEqual(
      done.filter((each) => each === "set aside" || each === "restore"),
      ["set aside"],
    );
    container.abandon();
  });

  it("does not stop an image that failed to be restored from being followed by a cold start", async () => {
    const bad = (): Promise<never> => Promise.reject(new HakobuError("RESTORE_FAILED", "planted"));
    const { served, container } = opened({ setAside: hangs }, {}, bad);
    assert.ok((await served()) <= storeLimitMs + 1000);
    assert.equal(container.activation?.how, "cold");
    container.abandon();
  });

  it("keeps an image that a host could not restore for a reason of its own", async () => {
    for (const code of ["START_FAILED", "UNAVAILABLE", "DEADLINE_EXCEEDED"] as const) {
      const here = (): Promise<never> => Promise.reject(new HakobuError(code, "planted"));
      const { served, done, container } = opened({}, {}, here);
      await served();
      assert.equal(done.includes("set aside"), false, code);
      container.abandon();
    }
  });

  it("leaves no kept image behind a suspend that failed after all, nor behind a cold start", async () => {
    const refuses = (): Promise<never> => Promise.reject(new Error("the disk failed after the rename"));
    const draft = { directory: "/draft", publish: refuses, discard: () => Promise.resolve() };
    const { served, done, pass, container } = opened(
      { find: () => Promise.resolve({ skipped: [] }), begin: () => Promise.resolve(draft) },
      { onIdle: "suspend", idleTimeoutMs: 60_000 },
    );
    await served();
    assert.deepEqual(
      done.slice(done.indexOf("start")).filter((each) => each === "take"),
      ["take"],
    );
    done.length = 0;
    await pass(60_000);
    await pass(1);
    assert.equal(container.state, "running.serving");
    assert.deepEqual(done, ["checkpoint", "take"]);
    container.abandon();
  });

  it("has the output of a container that runs bounded now and then", async () => {
    const { served, done, pass, container } = opened({});
    await served();
    const bounds = (): number => done.filter((each) => each === "bound").length;
    container.check();
    const before = bounds();
    container.check();
    assert.equal(bounds(), before);
    await pass(10_000);
    container.check();
    assert.equal(bounds(), before + 1);
    container.abandon();
  });
});

describe("a wait within a signal", () => {
  it("gives what comes in time to its caller, and what comes later to somebody else", async () => {
    const late: number[] = [];
    const abort = new AbortController();
    assert.equal(await within(Promise.resolve(1), abort.signal, (value) => void late.push(value)), 1);
    let resolve: (value: number) => void = () => {};
    const slow = new Promise<number>((fulfil) => (resolve = fulfil));
    const waiting = within(slow, abort.signal, (value) => void late.push(value));
    abort.abort(new Error("too late"));
    await assert.rejects(waiting, /too late/);
    await assert.rejects(within(slow, abort.signal), /too late/);
    resolve(2);
    await slow;
    await new Promise(setImmediate);
    assert.deepEqual(late, [2]);
  });
});
