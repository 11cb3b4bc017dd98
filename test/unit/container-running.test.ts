// What a container's actor does while it runs: its limits, its output.
import assert from "node:assert/strict";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Engine } from "../../actors/ports/engine.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { containerBench, imageOfBlog } from "../lab/container-bench.js";

describe("a container that runs", () => {
  type Limits = ContainerSpec["limits"];
  const old: Limits = { cpus: 1, memoryMiB: 256, pids: 100 };
  const asked: Limits = { cpus: 2, memoryMiB: 64, pids: 100 };

  it("gets the limits back that it had when new ones are refused half-way", async () => {
    const set: Limits[] = [];
    const scale: Engine["scale"] = (_, limits) => {
      set.push(limits);
      return limits.memoryMiB < 256
        ? Promise.reject(new HakobuError("CONFIG_INVALID", "it uses more than that now"))
        : Promise.resolve();
    };
    const { container, served } = containerBench({ engine: { scale }, spec: { limits: old } });
    await served();
    assert.deepEqual(set, [], "it was launched with them");
    await assert.rejects(container.scale(asked), { code: "CONFIG_INVALID" });
    await container.scale(old);
    assert.deepEqual(set, [asked, old]);
    container.abandon();
  });

  it("gets the limits of now when it comes from a standby, which was made under others", async () => {
    const set: Limits[] = [];
    const scale: Engine["scale"] = (_, limits) => Promise.resolve(void set.push(limits));
    const launched = { instance: { container: "blog", engine: "runc", epoch: 1 }, phases: [] } as never;
    const standby: Engine["standby"] = () =>
      Promise.resolve({
        phases: [{ name: "criu restore", ms: 1 }],
        run: () => Promise.resolve(launched),
        discard: () => Promise.resolve(),
      });
    const { container, standbys, record, served, turns } = containerBench({
      engine: { scale, standby },
      images: { find: () => Promise.resolve({ image: imageOfBlog, skipped: [] }) },
      spec: { limits: asked },
    });
    standbys.begin({ ...record, spec: { ...record.spec, limits: old } });
    await served();
    await turns();
    assert.equal(container.activation?.how, "restored");
    assert.deepEqual(set, [asked]);
    container.abandon();
  });

  it("is not cut out of its dump by a request that comes while it is suspended, and leaves no image of it (K2)", async () => {
    for (const takeover of ["fast", "exclusive"] as const) {
      let signal: AbortSignal | undefined;
      let end: () => void = () => {};
      const checkpoint: Engine["checkpoint"] = (_instance, _spec, _directory, given) => {
        signal = given;
        return new Promise((resolve) => (end = () => resolve([])));
      };
      const { container, served, pass, turns, done } = containerBench({
        engine: { checkpoint },
        spec: { onIdle: "suspend", idleTimeoutMs: 60_000, takeover },
      });
      await served();
      await pass(60_000);
      assert.equal(container.state, "running.suspending");
      await served();
      await turns();
      assert.equal(signal?.aborted, takeover === "exclusive");
      done.length = 0;
      end();
      await turns();
      assert.deepEqual(done, ["discard", "take"], "the draft goes, and nothing is kept");
      assert.equal(container.state, "running.serving");
      container.abandon();
    }
  });

  it("has the output of a container that runs bounded now and then", async () => {
    const { served, done, pass, container } = containerBench({});
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
