// When images are taken again, and what becomes of that: a simulated clock, and ports that do as they are told.
import assert from "node:assert/strict";
import { SimulatedClock } from "xstate";
import { Admission } from "../../actors/admission.js";
import { ImageRefresher, lookEveryMs, type Refreshed } from "../../actors/image-refresher.js";
import type { Clock } from "../../actors/ports/clock.js";
import type { Engine, Instance } from "../../actors/ports/engine.js";
import type { Image, ImageStore, Taken } from "../../actors/ports/image-store.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { noTracing } from "../../actors/ports/tracer.js";
import { recordOf, specOf } from "../lab/records.js";

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
type Refresh = NonNullable<ContainerSpec["checkpoint"]["refresh"]>;

function refreshed(name: string, refresh: Partial<Refresh> | undefined, hash = "1", more: Partial<ContainerSpec> = {}) {
  const { checkpoint } = specOf(name);
  return recordOf(
    name,
    {
      engine: "runc",
      ...more,
      checkpoint: { ...checkpoint, ...(refresh === undefined ? {} : { refresh: { paths: [], ...refresh } }) },
    },
    hash,
  );
}

class Container implements Refreshed {
  epoch = 5;
  state = "running.serving";
  readonly updates: string[] = [];
  record: SpecRecord;
  constructor(record: SpecRecord) {
    this.record = record;
  }
  get name(): string {
    return this.record.spec.name;
  }
  update(record: SpecRecord): void {
    this.record = record;
    this.updates.push(record.hash);
  }
}

/** A host with these containers; each starts with an image that was taken now. */
function hostWith(...records: SpecRecord[]) {
  const simulated = new SimulatedClock();
  const clock: Clock = {
    now: () => simulated.now(),
    timestamp: () => new Date(Date.parse("2026-01-01T00:00:00Z") + simulated.now()).toISOString(),
    setTimeout: (fn, ms) => simulated.setTimeout(fn, ms),
    clearTimeout: (id) => simulated.clearTimeout(id as number),
  };
  const containers = records.map((record) => new Container(record));
  const world = {
    fingerprint: { rootfs: "a" },
    remembered: { rootfs: "a" },
    content: "one",
    mayRefresh: true,
    hook: "",
  };
  const images: Image[] = [];
  const events: string[] = [];
  const warnings: Record<string, unknown>[] = [];
  const shadows = new Set<Instance>();
  const asked: string[] = [];
  let hold: Promise<void> | undefined;
  let most = 0;

  const publish = (taken: Taken): Image => {
    const image = { manifest: { ...taken, format: 1, files: {} }, directory: `${images.length}`, bytes: 1 } as const;
    images.push(image);
    return image;
  };
  for (const { spec, hash } of records)
    publish({
      container: spec.name,
      epoch: 5,
      specHash: hash,
      engine: "runc",
      at: "warm",
      fingerprint: world.fingerprint,
      taken: clock.timestamp(),
      ...(spec.checkpoint.refresh?.paths.length ? { content: "one" } : {}),
    });
  const store: Partial<ImageStore> = {
    find: async (record, fingerprint) => {
      const image = images.findLast(
        ({ manifest }) =>
          manifest.container === record.spec.name &&
          manifest.specHash === record.hash &&
          manifest.fingerprint["rootfs"] === fingerprint["rootfs"],
      );
      return { ...(image === undefined ? {} : { image }), skipped: [] };
    },
    begin: async () => ({
      directory: "draft",
      publish: async (taken, signal) => {
        signal?.throwIfAborted();
        return publish(taken);
      },
      discard: async () => void events.push("discarded"),
    }),
  };
  const engine: Partial<Engine> = {
    name: "runc",
    capabilities: { checkpoint: true },
    fingerprint: async (_, now = false) => (now ? world.fingerprint : world.remembered),
    remember: (_, fingerprint) => void (world.remembered = fingerprint as typeof world.remembered),
    shadow: async ({ spec, specHash, epoch }, signal) => {
      signal.throwIfAborted();
      const instance: Instance = {
        container: spec.name,
        engine: "runc",
        epoch,
        specHash,
        address: "",
        port: 1,
        within: "x",
        pid: 1,
        startTime: 1,
      };
      shadows.add(instance);
      most = Math.max(most, shadows.size);
      events.push(`shadow ${spec.name}`);
      return { instance, phases: [] };
    },
    listening: async () => true,
    alive: () => true,
    checkpoint: async (_instance, _spec, _directory, signal) => {
      if (hold !== undefined)
        await new Promise<void>((resolve, reject) => {
          void hold?.then(resolve);
          signal.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
        });
      if (world.hook !== "") throw new Error(world.hook);
      return [{ name: "dump", ms: 1 }];
    },
    stop: async (instance) => void shadows.delete(instance),
    output: async () => "",
  };
  const admission = new Admission(1);
  const log = { debug() {}, info() {}, warn: (details: object) => void warnings.push({ ...details }), error() {} };
  const refresher = new ImageRefresher({
    engines: new Map([
      ["runc", engine as Engine],
      ["process", { name: "process", capabilities: { checkpoint: false, reason: "none" } } as Engine],
    ]),
    images: store as ImageStore,
    content: { digest: async () => world.content },
    readiness: { get: async (_target, _hostname, path) => (asked.push(path), 200) },
    hooks: { call: async () => {} },
    admission,
    clock,
    tracer: noTracing,
    log,
    containers: () => containers,
    mayRefresh: () => world.mayRefresh,
  });
  const turns = async (): Promise<void> => {
    for (let n = 0; n < 30; n++) await new Promise(setImmediate);
  };
  /** So much time goes by, with checks as often as a host makes them, or at each look only where it is long. */
  const pass = async (ms: number): Promise<void> => {
    const step = Math.min(ms, Math.max(500, ms > hourMs ? minuteMs : lookEveryMs));
    for (let gone = 0; gone < ms; gone += step) {
      simulated.increment(step);
      refresher.check();
      await turns();
    }
  };
  const taken = (name = records[0]?.spec.name) =>
    images.filter(({ manifest }) => manifest.container === name).length - 1;
  const holdDumps = (): (() => void) => {
    let release = (): void => {};
    hold = new Promise((resolve) => (release = resolve));
    return () => {
      hold = undefined;
      release();
    };
  };
  const at = (index: number) => containers[index] as Container;
  return {
    admission,
    asked,
    at,
    events,
    holdDumps,
    images,
    pass,
    refresher,
    shadows,
    taken,
    turns,
    warnings,
    world,
    most: () => most,
  };
}

describe("the refresher of images", () => {
  it("takes an image again when the newest is as old as the specification says, and not before", async () => {
    const host = hostWith(refreshed("blog", { everyMs: hourMs }));
    await host.pass(59 * minuteMs);
    assert.equal(host.taken(), 0);
    await host.pass(2 * minuteMs);
    assert.equal(host.taken(), 1);
    await host.pass(3 * hourMs + 5 * minuteMs);
    assert.equal(host.taken(), 4);
    assert.equal(host.shadows.size, 0);
    assert.deepEqual(host.at(0).updates, [], "the container is left alone");
  });

  it("asks the shadow for all that the specification names to warm it up, in that order", async () => {
    const { hash, spec } = refreshed("blog", { everyMs: hourMs });
    const warmup = ["/", "/login", "/"];
    const host = hostWith({ hash, spec: { ...spec, checkpoint: { ...spec.checkpoint, warmup } } });
    await host.pass(61 * minuteMs);
    assert.deepEqual([host.taken(), host.asked], [1, warmup]);
  });

  it("does nothing for containers without a refresh, exclusive ones, and engines that cannot", async () => {
    const host = hostWith(
      refreshed("plain", undefined),
      refreshed("only", { everyMs: minuteMs }, "1", { takeover: "exclusive" }),
      refreshed("child", { everyMs: minuteMs }, "1", { engine: "process" }),
    );
    host.world.fingerprint = { rootfs: "b" };
    await host.pass(2 * hourMs);
    assert.deepEqual(host.events, []);
  });

  it("takes it again when content changed and has settled, with what the content was in its manifest", async () => {
    const host = hostWith(refreshed("blog", { paths: ["/shared/blog"] }));
    await host.pass(minuteMs);
    assert.equal(host.taken(), 0);
    host.world.content = "two";
    await host.pass(lookEveryMs);
    assert.equal(host.taken(), 0, "it may be half written");
    await host.pass(lookEveryMs);
    assert.equal(host.taken(), 1);
    assert.equal(host.images.at(-1)?.manifest.content, "two");
    await host.pass(hourMs);
    assert.equal(host.taken(), 1);
  });

  it("does not wait for ever for content that never rests, and takes no more than one image in 5 minutes of it", async () => {
    const host = hostWith(refreshed("blog", { paths: ["/shared/blog"] }));
    for (let n = 0; n < 180; n++) {
      host.world.content = `changed ${n}`;
      await host.pass(lookEveryMs);
    }
    assert.ok(host.taken() >= 4 && host.taken() <= 6, `${host.taken()} in half an hour`);
  });

  it("takes it again when the root filesystem changed, and the old image serves until then", async () => {
    const host = hostWith(refreshed("blog", {}));
    await host.pass(minuteMs);
    const release = host.holdDumps();
    host.world.fingerprint = { rootfs: "b" };
    await host.pass(lookEveryMs);
    assert.equal(host.shadows.size, 1);
    assert.deepEqual(host.world.remembered, { rootfs: "a" });
    release();
    await host.turns();
    assert.equal(host.taken(), 1);
    assert.deepEqual(host.world.remembered, { rootfs: "b" });
  });

  it("uses what another host has refreshed, and takes none itself", async () => {
    const host = hostWith(refreshed("blog", {}));
    const [first] = host.images as [Image];
    host.world.fingerprint = { rootfs: "b" };
    host.images.push({ ...first, manifest: { ...first.manifest, epoch: 6, fingerprint: { rootfs: "b" } } });
    await host.pass(minuteMs);
    assert.deepEqual(host.events, []);
    assert.deepEqual(host.world.remembered, { rootfs: "b" });
  });

  it("takes one where none can be used, unless the container comes up and takes one itself", async () => {
    const host = hostWith(refreshed("blog", {}));
    host.images.length = 0;
    for (const state of ["starting", "restoring", "running.checkpointing", "failed"]) {
      host.at(0).state = state;
      await host.pass(lookEveryMs);
      assert.deepEqual(host.events, [], state);
    }
    host.at(0).state = "stopped";
    await host.pass(lookEveryMs);
    assert.equal(host.images.length, 1);
  });

  it("says why a refresh failed, and tries again after 1, 2, 4 ... 60 minutes; the old image stays", async () => {
    const host = hostWith(refreshed("blog", { everyMs: hourMs }));
    host.world.hook = "planted";
    await host.pass(hourMs);
    const attempts = () => host.events.filter((each) => each.startsWith("shadow")).length;
    assert.equal(attempts(), 1);
    assert.match(host.refresher.trouble(host.at(0)) ?? "", /could not be refreshed \(1\): planted/);
    for (const [minutes, expected] of [
      [1.2, 2],
      [1.5, 2],
      [0.7, 3],
      [2.8, 3],
      [1, 4],
    ] as const) {
      await host.pass(minutes * minuteMs);
      assert.equal(attempts(), expected, `${minutes} min later`);
    }
    await host.pass(24 * hourMs);
    assert.deepEqual(
      host.warnings.flatMap(({ pauseMs }) => (typeof pauseMs === "number" ? pauseMs / minuteMs : [])).slice(0, 9),
      [1, 2, 4, 8, 16, 32, 60, 60, 60],
    );
    assert.equal(host.images.length, 1);
    assert.equal(host.shadows.size, 0);
    host.world.hook = "";
    await host.pass(61 * minuteMs);
    assert.equal(host.taken(), 1);
    assert.equal(host.refresher.trouble(host.at(0)), undefined);
  });

  it("refreshes one container at a time", async () => {
    const host = hostWith(...["a", "b", "c"].map((name) => refreshed(name, { everyMs: minuteMs })));
    await host.pass(1.5 * minuteMs);
    assert.equal(host.most(), 1);
    for (const name of ["a", "b", "c"]) assert.equal(host.taken(name), 1, name);
  });

  it("waits while requests bring containers up, and holds none of them up", async () => {
    const host = hostWith(refreshed("blog", { everyMs: minuteMs }));
    let end = (): void => {};
    const start = host.admission.run(
      new AbortController().signal,
      () => new Promise<void>((resolve) => (end = resolve)),
    );
    await host.pass(2 * minuteMs);
    assert.deepEqual(host.events, []);
    end();
    await start;
    await host.turns();
    assert.equal(host.taken(), 1);
  });

  it("is aborted when the host may not go on with it: nothing is published, no shadow is left", async () => {
    const host = hostWith(refreshed("blog", { everyMs: minuteMs }));
    const release = host.holdDumps();
    await host.pass(minuteMs);
    assert.equal(host.shadows.size, 1);
    host.world.mayRefresh = false;
    await host.pass(500);
    assert.equal(host.shadows.size, 0);
    release();
    await host.pass(hourMs);
    assert.equal(host.taken(), 0);
    assert.deepEqual(host.warnings, [], "that is no failure");
    host.world.mayRefresh = true;
    await host.pass(lookEveryMs);
    assert.equal(host.taken(), 1);
  });

  it("ends what is under way when it is closed, twice too, and begins nothing more", async () => {
    const host = hostWith(refreshed("blog", { everyMs: minuteMs }), refreshed("shop", { everyMs: minuteMs }));
    host.holdDumps();
    await host.pass(minuteMs);
    assert.equal(host.shadows.size, 1);
    await Promise.all([host.refresher.close("planted"), host.refresher.close("planted")]);
    assert.equal(host.shadows.size, 0);
    await host.pass(hourMs);
    assert.deepEqual(host.events, ["shadow blog", "discarded"]);
  });

  describe("a changed specification (F4)", () => {
    const next = refreshed("blog", {}, "2");

    it("is followed when its image is there; until then the container serves with the old one", async () => {
      const host = hostWith(refreshed("blog", {}));
      await host.pass(lookEveryMs);
      const release = host.holdDumps();
      assert.equal(host.refresher.prepares(host.at(0), next), true);
      await host.pass(500);
      assert.equal(host.shadows.size, 1);
      assert.deepEqual(host.at(0).updates, []);
      release();
      await host.turns();
      assert.equal(host.images.at(-1)?.manifest.specHash, "2");
      assert.deepEqual(host.at(0).updates, ["2"]);
    });

    it("is followed all the same when the first attempt fails", async () => {
      const host = hostWith(refreshed("blog", {}));
      host.world.hook = "planted";
      assert.equal(host.refresher.prepares(host.at(0), next), true);
      await host.pass(500);
      assert.deepEqual(host.at(0).updates, ["2"]);
      assert.match(host.refresher.trouble(host.at(0)) ?? "", /planted/);
    });

    it("is followed at once where its image is there already", async () => {
      const host = hostWith(refreshed("blog", {}));
      const [first] = host.images as [Image];
      host.images.push({ ...first, manifest: { ...first.manifest, specHash: "2" } });
      assert.equal(host.refresher.prepares(host.at(0), next), true);
      await host.pass(500);
      assert.deepEqual(host.at(0).updates, ["2"]);
      assert.deepEqual(host.events, []);
    });

    it("is the caller's business where the container does not serve, or nothing that runs changes, or no refresh is asked for", async () => {
      const host = hostWith(refreshed("blog", {}));
      assert.equal(host.refresher.prepares(host.at(0), refreshed("blog", { everyMs: hourMs })), false);
      assert.equal(host.refresher.prepares(host.at(0), refreshed("blog", undefined, "2")), false);
      host.at(0).state = "stopped";
      assert.equal(host.refresher.prepares(host.at(0), next), false);
      host.at(0).state = "running.serving";
      host.world.mayRefresh = false;
      assert.equal(host.refresher.prepares(host.at(0), next), false);
    });

    it("comes before what else is due, and the last one that was applied counts", async () => {
      const host = hostWith(
        refreshed("a", { everyMs: minuteMs }),
        refreshed("b", { everyMs: minuteMs }),
        refreshed("blog", {}),
      );
      const release = host.holdDumps();
      await host.pass(minuteMs);
      assert.equal(host.refresher.prepares(host.at(2), next), true);
      assert.equal(host.refresher.prepares(host.at(2), refreshed("blog", {}, "3")), true);
      release();
      await host.turns();
      await host.pass(lookEveryMs);
      assert.deepEqual(
        host.events.filter((each) => each.startsWith("shadow")),
        ["shadow a", "shadow blog", "shadow b"],
      );
      assert.deepEqual(host.at(2).updates, ["3"]);
    });
  });
});
