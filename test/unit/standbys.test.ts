// Copies that are restored ahead of their claim: how many, for how long, and who gets them.
import assert from "node:assert/strict";
import { SimulatedClock } from "xstate";
import { Admission } from "../../actors/admission.js";
import type { Clock } from "../../actors/ports/clock.js";
import type { Engine, Standby } from "../../actors/ports/engine.js";
import type { Image, ImageStore } from "../../actors/ports/image-store.js";
import { noLog } from "../../actors/ports/log.js";
import { Standbys } from "../../actors/standbys.js";
import { specOf } from "../lab/records.js";

describe("standbys", () => {
  const never = new AbortController().signal;
  const record = (name: string, more: Parameters<typeof specOf>[1] = {}, hash = "1") => ({
    spec: specOf(name, { engine: "runc", ...more }),
    hash,
  });

  function opened({ places = 2, damaged = false } = {}) {
    const simulated = new SimulatedClock();
    const clock: Clock = Object.assign(simulated, { timestamp: () => "" });
    const done: string[] = [];
    let restored: () => void = () => {};
    const held = new Promise<void>((resolve) => (restored = resolve));
    const engine: Partial<Engine> = {
      name: "runc",
      capabilities: { checkpoint: true },
      fingerprint: () => Promise.resolve({}),
      standby: async ({ spec }, _directory, signal) => {
        done.push(`restore ${spec.name}`);
        await Promise.race([
          held,
          new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason as Error))),
        ]);
        if (damaged) throw new Error("planted");
        const standby: Standby = {
          phases: [],
          run: () => Promise.reject(new Error("not asked here")),
          discard: () => Promise.resolve(void done.push(`discard ${spec.name}`)),
        };
        return standby;
      },
    };
    const images: Partial<ImageStore> = {
      find: ({ spec }) => Promise.resolve({ image: { directory: spec.name } as Image, skipped: [] }),
      use: ({ directory }) =>
        Promise.resolve({ directory, phases: [], release: () => done.push(`release ${directory}`) }),
    };
    const admission = new Admission(places);
    const engines = new Map([["runc", engine as Engine]]);
    const standbys = new Standbys({ clock, log: noLog, images: images as ImageStore, engines, admission });
    const turn = async (ms = 0) => {
      await new Promise(setImmediate);
      simulated.increment(ms);
      await new Promise(setImmediate);
    };
    return { standbys, admission, done, restored: () => restored(), turn };
  }

  it("are given to who starts the container, once", async () => {
    const { standbys, restored, done } = opened();
    assert.equal(standbys.begin(record("blog")), true);
    assert.equal(standbys.begin(record("blog")), true, "it is being made");
    restored();
    const taken = await standbys.take(record("blog"), never);
    assert.equal(taken.kind, "ready");
    assert.equal((await standbys.take(record("blog"), never)).kind, "none");
    assert.deepEqual(done, ["restore blog", "release blog"]);
  });

  it("are discarded when nobody has claimed them in time, and then made again", async () => {
    const { standbys, restored, done, turn } = opened();
    standbys.begin(record("blog"));
    restored();
    await turn(1999);
    assert.equal(done.includes("discard blog"), false);
    await turn(1);
    await turn();
    assert.equal(done.at(-1), "discard blog");
    assert.equal(standbys.begin(record("blog")), true);
  });

  it("take a free place or are not made (S3), and count as long as they are being restored", async () => {
    const { standbys, admission, restored, turn } = opened({ places: 1 });
    assert.equal(standbys.begin(record("one")), true);
    assert.equal(standbys.begin(record("two")), false);
    let started = false;
    const start = admission.run(never, () => Promise.resolve((started = true)));
    await turn();
    assert.equal(started, false);
    restored();
    await start;
    assert.equal(standbys.begin(record("two")), true);
  });

  it("are not made of what keeps its memory, takes no image, or has an engine that cannot (S1)", () => {
    const { standbys } = opened();
    const checkpoint = { onReady: false, at: "listen", warmup: "/", timeoutMs: 1000 } as const;
    assert.equal(standbys.begin(record("a", { onIdle: "suspend" })), false);
    assert.equal(standbys.begin(record("b", { checkpoint })), false);
    assert.equal(standbys.begin(record("c", { engine: "process" })), false);
  });

  it("let nobody start the container before nothing of them is left (S2)", async () => {
    const { standbys, done, turn } = opened();
    standbys.begin(record("blog"));
    await turn();
    const taken = standbys.take(record("blog", {}, "2"), never);
    assert.equal((await taken).kind, "none", "made for another specification");
    assert.deepEqual(done, ["restore blog", "release blog"], "cut off while it was being restored");
    standbys.begin(record("shop"));
    await turn();
    standbys.discard("shop", "another host was first");
    assert.equal(standbys.begin(record("shop")), false, "the old one is not gone yet");
    assert.equal((await standbys.take(record("shop"), never)).kind, "none");
  });

  it("say what was wrong with an image that could not be restored", async () => {
    const { standbys, restored } = opened({ damaged: true });
    standbys.begin(record("blog"));
    restored();
    const taken = await standbys.take(record("blog"), never);
    assert.ok(taken.kind === "failed" && taken.image.directory === "blog");
    assert.match(String(taken.error), /planted/);
  });

  it("are gone when all are cleared, and when who waits for one gives up", async () => {
    const { standbys, done, turn } = opened();
    standbys.begin(record("a"));
    standbys.begin(record("b"));
    await turn();
    const giveUp = new AbortController();
    const taken = standbys.take(record("a"), giveUp.signal);
    giveUp.abort(new Error("enough"));
    await assert.rejects(taken, /enough/);
    await standbys.clear("the host shuts down");
    assert.deepEqual(done.filter((each) => each.startsWith("release")).sort(), ["release a", "release b"]);
  });
});
