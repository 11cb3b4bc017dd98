// A container whose image store does not answer, as a file server that hangs: it starts cold after a while and serves, and what the
// store comes to later does no harm.
import assert from "node:assert/strict";
import { HakobuError } from "../../actors/hakobu-error.js";
import { within } from "../../actors/ports/clock.js";
import type { FoundImage } from "../../actors/ports/image-store.js";
import { storeLimitMs } from "../../actors/store-limit.js";
import { containerBench, hangs, imageOfBlog } from "../lab/container-bench.js";
import { recordOf } from "../lab/records.js";

describe("an image store that hangs", () => {
  for (const call of ["takeSuspended", "find", "use", "begin"] as const)
    it(`holds a start up for no more than a few seconds when it hangs in ${call}`, async () => {
      const works = call === "begin" ? { find: () => Promise.resolve({ skipped: [] }) } : {};
      const { served, done, container } = containerBench({ images: { ...works, [call]: hangs } });
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
    const { served, container } = containerBench({
      images: { find: () => Promise.resolve({ skipped: [] }), begin: () => Promise.resolve(draft) },
      spec: { checkpoint: { ...checkpoint, refresh, timeoutMs: 3000 } },
    });
    assert.ok((await served()) <= 3000 + storeLimitMs + 1000);
    container.abandon();
  });

  it("sets aside what it gives back of a suspended image when the container runs without it", async () => {
    let answer: (found: FoundImage) => void = () => {};
    const takeSuspended = (): Promise<FoundImage> => new Promise((resolve) => (answer = resolve));
    const { served, done, turns, container } = containerBench({ images: { takeSuspended } });
    await served();
    answer({ image: imageOfBlog, skipped: [] });
    await turns();
    assert.deepEqual(
      done.filter((each) => each === "set aside" || each === "restore"),
      ["set aside"],
    );
    container.abandon();
  });

  it("does not stop an image that failed to be restored from being followed by a cold start", async () => {
    const bad = (): Promise<never> => Promise.reject(new HakobuError("RESTORE_FAILED", "planted"));
    const { served, container } = containerBench({ images: { setAside: hangs }, engine: { restore: bad } });
    assert.ok((await served()) <= storeLimitMs + 1000);
    assert.equal(container.activation?.how, "cold");
    container.abandon();
  });

  it("keeps an image that a host could not restore for a reason of its own", async () => {
    for (const code of ["START_FAILED", "UNAVAILABLE", "DEADLINE_EXCEEDED"] as const) {
      const here = (): Promise<never> => Promise.reject(new HakobuError(code, "planted"));
      const { served, done, container } = containerBench({ engine: { restore: here } });
      await served();
      assert.equal(done.includes("set aside"), false, code);
      container.abandon();
    }
  });

  it("leaves no kept image behind a suspend that failed after all, nor behind a cold start", async () => {
    const refuses = (): Promise<never> => Promise.reject(new Error("the disk failed after the rename"));
    const draft = { directory: "/draft", publish: refuses, discard: () => Promise.resolve() };
    const { served, done, pass, container } = containerBench({
      images: { find: () => Promise.resolve({ skipped: [] }), begin: () => Promise.resolve(draft) },
      spec: { onIdle: "suspend", idleTimeoutMs: 60_000 },
    });
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
