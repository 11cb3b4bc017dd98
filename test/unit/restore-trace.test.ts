// What the trace and the log tell of a start: each image that was not used, why a start was cold, and each part at its time.
import assert from "node:assert/strict";
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Admission } from "../../actors/admission.js";
import { ContainerActor } from "../../actors/container.js";
import { type MoveReport, untilFirstResponse } from "../../actors/move-report.js";
import type { Engine, Instance, Launch, Phases } from "../../actors/ports/engine.js";
import { noLog } from "../../actors/ports/log.js";
import { ActorRegistry } from "../../actors/registry.js";
import { Standbys } from "../../actors/standbys.js";
import { DirectoryImageStore } from "../../runtime/images/directory-store.js";
import { systemClock } from "../../runtime/system-clock.js";
import { startTracing, type Tracing } from "../../runtime/tracing/opentelemetry.js";
import { until } from "../lab/hop.js";
import { type OtlpReceiver, otlpReceiver, type ReceivedSpan } from "../lab/otlp-receiver.js";
import { recordOf } from "../lab/records.js";

const here = { kernel: "6.1" };
const record = recordOf("blog", { engine: "runc" });

describe("the trace of a start", () => {
  let receiver: OtlpReceiver;
  let tracing: Tracing;
  let directory: string;
  let store: DirectoryImageStore;
  let warnings: Record<string, unknown>[];

  beforeEach(async () => {
    warnings = [];
    receiver = await otlpReceiver();
    const { endpoint } = receiver;
    tracing = startTracing({ service: "hakobu-host", instance: "h", endpoint, log: noLog, exportEveryMs: 20 });
    directory = await mkdtemp(join(tmpdir(), "hakobu-restore-trace-"));
    store = new DirectoryImageStore({ directory, log: noLog, keep: 10 });
  });
  afterEach(async () => {
    await tracing.close();
    await receiver.close();
    await store.close();
    await rm(directory, { recursive: true, force: true });
  });

  async function image(epoch: number, fingerprint = here): Promise<string> {
    const draft = await store.begin("blog", epoch);
    await writeFile(join(draft.directory, "pages"), "memory");
    const about = {
      container: "blog",
      epoch,
      specHash: record.hash,
      engine: "runc",
      at: "warm",
      taken: "now",
    } as const;
    return (await draft.publish({ ...about, fingerprint })).directory;
  }

  /** The container on a host of which each restore has these parts, each of which takes its time. */
  function host(phases: Phases = [{ name: "criu restore", ms: 5 }]) {
    const launched = ({ spec, specHash, epoch }: Launch) => {
      const where = { container: spec.name, engine: "runc", address: "127.0.0.1", port: 1, pid: 1, startTime: 1 };
      return { instance: { ...where, epoch, specHash } satisfies Instance, phases };
    };
    const tookMs = phases.reduce((sum, { ms }) => sum + ms, 0);
    const restored = () => new Promise((resolve) => setTimeout(resolve, tookMs));
    const engine: Partial<Engine> = {
      name: "runc",
      capabilities: { checkpoint: true },
      fingerprint: async () => here,
      start: async (launch) => launched(launch),
      restore: async (launch) => restored().then(() => launched(launch)),
      standby: async (launch) => {
        await restored();
        const run = async (epoch: number) => ({
          ...launched({ ...launch, epoch }),
          phases: [{ name: "resume", ms: 0.1 }],
        });
        return { phases, run, discard: async () => {} };
      },
      checkpoint: async () => [],
      stop: async () => {},
      alive: () => true,
      listening: async () => true,
    };
    const log = { ...noLog, warn: (details: object) => void warnings.push({ ...details }) };
    const admission = new Admission(1);
    const engines = new Map([["runc", engine as Engine]]);
    const shared = { clock: systemClock, log, images: store, admission };
    const standbys = new Standbys({ ...shared, engines });
    const container = new ContainerActor(
      {
        ...shared,
        standbys,
        engine: engine as Engine,
        tracer: tracing.tracer,
        registry: new ActorRegistry(),
        readiness: { get: async () => 200 },
        hooks: { call: async () => {} },
        content: { digest: async () => "" },
      },
      record,
      9,
    );
    return { standbys, container };
  }

  const span = async (name: string): Promise<ReceivedSpan> => {
    await until(() => receiver.spans.some((each) => each.name === name), `the span ${name}`);
    return receiver.spans.find((each) => each.name === name) as ReceivedSpan;
  };
  const notUsed = ({ events }: ReceivedSpan) =>
    events.map(({ name, attributes }) => [name, attributes["hakobu.image.epoch"], attributes["hakobu.reason"]]);
  const asked = new AbortController().signal;

  it("names each image that was not used with its reason, in a restore from an older one", async () => {
    const good = await image(1);
    await truncate(join(await image(2), "pages"), 3);
    await image(3, { kernel: "6.2" });
    await host().container.whenServing(undefined, asked);
    const restore = await span("restore");
    const [foreign, damaged] = [
      "kernel differs: the image has 6.2, this host 6.1",
      "pages has 3 bytes instead of 6",
    ] as const;
    assert.deepEqual(notUsed(restore), [
      ["image not used", "3", foreign],
      ["image not used", "2", damaged],
    ]);
    assert.equal(restore.attributes["image"], good);
    assert.deepEqual(
      warnings.map(({ epoch, reason }) => [epoch, reason]),
      [
        [3, foreign],
        [2, damaged],
      ],
    );
  });

  it("does so too where the restore was ahead of its claim", async () => {
    const good = await image(1);
    await truncate(join(await image(2), "pages"), 3);
    const { standbys, container } = host();
    assert.equal(standbys.begin(record), true);
    await container.whenServing(undefined, asked);
    const restore = await span("restore");
    assert.deepEqual([restore.attributes["image"], restore.attributes["hakobu.standby"]], [good, true]);
    assert.deepEqual(notUsed(restore), [["image not used", "2", "pages has 3 bytes instead of 6"]]);
    assert.deepEqual(
      warnings.map(({ epoch, reason }) => [epoch, reason]),
      [[2, "pages has 3 bytes instead of 6"]],
    );
  });

  it("says why a start was cold, in the restore that became one and in itself", async () => {
    await image(3, { kernel: "6.2" });
    await host().container.whenServing(undefined, asked);
    const [restore, cold] = [await span("restore"), await span("cold start")];
    const why = "kernel differs: the image has 6.2, this host 6.1";
    assert.deepEqual(notUsed(restore), [["image not used", "3", why]]);
    assert.deepEqual([restore.attributes["hakobu.note"], cold.attributes["hakobu.note"]], [why, why]);
    assert.equal(restore.status.code, "STATUS_CODE_UNSET");
  });

  it("says so in the span of the move", async () => {
    const move = tracing.tracer.span("relocation");
    const report = { how: "cold", note: "there is no image yet" } as MoveReport;
    untilFirstResponse({ clock: systemClock, log: noLog, limitMs: 1000 }, report, move)();
    assert.equal((await span("relocation")).attributes["hakobu.note"], "there is no image yet");
  });

  it("holds each part of a restore that was ahead, inside of it and at the time at which it ran", async () => {
    await image(1);
    const { standbys, container } = host([
      { name: "network", ms: 60 },
      { name: "root file system", ms: 100, beside: true },
      { name: "criu restore", ms: 200 },
    ]);
    standbys.begin(record);
    await container.whenServing(undefined, asked);
    const restore = await span("restore");
    const standby = await span("standby");
    assert.equal(standby.parentSpanId, restore.spanId);
    const parts = receiver.spans.filter(({ parentSpanId }) => parentSpanId === standby.spanId);
    const at = (name: string) => parts.find((part) => part.name === name) ?? assert.fail(`no ${name}`);
    assert.deepEqual(parts.map(({ name }) => name).sort(), [
      "criu restore",
      "find image",
      "network",
      "root file system",
    ]);
    const end = ({ startMs, ms }: ReceivedSpan): number => startMs + ms;
    // Each part is recorded a moment after the one before.
    const near = (a: number, b: number): void => assert.ok(Math.abs(a - b) < 30, `${a} and ${b}`);
    near(at("network").startMs, at("root file system").startMs);
    near(end(at("root file system")), at("criu restore").startMs);
    near(end(at("criu restore")), end(standby));
    for (const part of parts) assert.ok(part.startMs > standby.startMs - 30, part.name);
    assert.ok(end(standby) <= end(restore));
    const own = receiver.spans.filter(({ parentSpanId }) => parentSpanId === restore.spanId).map(({ name }) => name);
    assert.deepEqual(own.sort(), ["resume", "standby", "wait for standby"]);
  });
});
