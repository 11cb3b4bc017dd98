// Which images a host reads ahead, in what order, and how much of them.
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SimulatedClock } from "xstate";
import { candidates } from "../../actors/candidates.js";
import { ClusterView } from "../../actors/cluster-view.js";
import { NextInLine } from "../../actors/next-in-line.js";
import type { Clock } from "../../actors/ports/clock.js";
import type { Engine } from "../../actors/ports/engine.js";
import type { Image, ImageStore } from "../../actors/ports/image-store.js";
import { noLog } from "../../actors/ports/log.js";
import { warmPages } from "../../runtime/images/warm-pages.js";
import { hostNamed } from "../contract/placement-store.js";
import { specOf } from "../lab/records.js";

describe("a host that is next in line", () => {
  const names = Array.from({ length: 12 }, (_, index) => `app-${index}`);

  function opened(limitBytes = 1000) {
    const simulated = new SimulatedClock();
    const clock: Clock = Object.assign(simulated, { timestamp: () => "" });
    const view = new ClusterView();
    view.apply({
      kind: "reset",
      specs: names.map((name) => ({ spec: specOf(name, { engine: "runc" }), hash: "1" })),
      hosts: ["a", "b", "c"].map((id) => ({ ...hostNamed(id), engines: ["runc"] })),
      placements: names.map((container, index) => ({
        container,
        host: "a",
        epoch: index + 1,
        since: "",
        reason: "test",
      })),
    });
    const read: string[] = [];
    const engine: Partial<Engine> = { capabilities: { checkpoint: true }, fingerprint: () => Promise.resolve({}) };
    let looks = 0;
    let held: Promise<void> = Promise.resolve();
    const hold = (): (() => void) => {
      let release: () => void = () => {};
      held = new Promise((resolve) => (release = resolve));
      return release;
    };
    const images: Partial<ImageStore> = {
      find: async ({ spec }) => {
        looks++;
        return { image: { directory: spec.name, bytes: 100 } as Image, skipped: [] };
      },
      warm: async ({ directory }) => {
        await held;
        read.push(directory);
      },
    };
    const engines = new Map([["runc", engine as Engine]]);
    const deps = { hostId: "b", view, engines, images: images as ImageStore, clock, log: noLog, limitBytes };
    const nextInLine = new NextInLine(deps);
    const turn = async (ms: number) => {
      for (let each = 0; each < 200; each++) {
        simulated.increment(ms / 200);
        await new Promise(setImmediate);
      }
    };
    return { nextInLine, view, read, turn, hold, looks: () => looks };
  }
  const ofB = (view: ClusterView): string[] =>
    names
      .filter((name) => {
        const record = view.spec(name);
        return record && candidates(view, record, new Set(["a"]), () => false)[0]?.id === "b";
      })
      .toReversed();

  it("reads the images of other hosts' containers whose best candidate it is, the one that was placed last first, once", async () => {
    const { nextInLine, view, read, turn } = opened();
    const wanted = ofB(view);
    assert.ok(wanted.length > 1 && wanted.length < names.length, `${wanted.length} of ${names.length}`);
    await turn(3000);
    assert.deepEqual(read, wanted);
    view.apply({ kind: "spec", name: "other", record: { spec: specOf("other", { engine: "runc" }), hash: "1" } });
    await turn(3000);
    assert.deepEqual(read, wanted, "nothing that concerns it has changed");
    await nextInLine.close();
  });

  it("reads no more than its limit, and again what the kernel may have dropped", async () => {
    const { nextInLine, view, read, turn } = opened(150);
    await turn(3000);
    assert.deepEqual(read, ofB(view).slice(0, 1));
    await turn(11 * 60_000);
    assert.deepEqual(read, [...ofB(view).slice(0, 1), ...ofB(view).slice(0, 1)]);
    await nextInLine.close();
  });

  it("looks once more, however much has changed, behind a look that takes long (N3)", async () => {
    const { nextInLine, view, turn, looks, hold } = opened();
    const release = hold();
    for (let n = 0; n < 5; n++) {
      const record = { spec: specOf(`other-${n}`, { engine: "runc" }), hash: "1" };
      view.apply({ kind: "spec", name: record.spec.name, record });
      await turn(2000);
    }
    assert.equal(looks(), 1);
    release();
    await turn(3000);
    assert.equal(looks(), 2 * ofB(view).length);
    await nextInLine.close();
  });

  it("reads nothing when it may not, nor of what it owns itself", async () => {
    const off = opened(0);
    await off.turn(3000);
    assert.deepEqual(off.read, []);
    const { nextInLine, view, read, turn } = opened();
    for (const container of names)
      view.apply({
        kind: "placement",
        container,
        placement: { container, host: "b", epoch: 99, since: "", reason: "" },
      });
    await turn(3000);
    assert.deepEqual(read, []);
    await nextInLine.close();
  });

  it("reads every file of an image, leaves out what is gone, and stops when told to", async () => {
    const directory = await mkdtemp(join(tmpdir(), "hakobu-warm-"));
    try {
      await writeFile(join(directory, "pages"), Buffer.alloc(3_000_000));
      const files = { pages: { bytes: 3_000_000, sha256: "" }, gone: { bytes: 1, sha256: "" } };
      const image = { directory, manifest: { files }, bytes: 3_000_001 } as unknown as Image;
      await warmPages(image, new AbortController().signal);
      await assert.rejects(warmPages(image, AbortSignal.abort(new Error("enough"))), /enough/);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });
});
