import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { noLog } from "../../actors/ports/log.js";
import type { Image, Taken } from "../../actors/ports/image-store.js";
import { collectHourly } from "../../runtime/images/collector.js";
import { DirectoryImageStore, type DirectoryImageStoreOptions } from "../../runtime/images/directory-store.js";
import { closeToReaders } from "../../runtime/images/reference.js";
import { recordOf } from "../lab/records.js";

const bytes = 1000;
const noSignal = new AbortController().signal;
const hourMs = 60 * 60 * 1000;

describe("retention of images", () => {
  let directory: string;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-images-"));
  });
  afterEach(async () => {
    for (const store of stores.splice(0)) await store.close();
    await rm(directory, { recursive: true, force: true });
  });

  const stores: DirectoryImageStore[] = [];
  const storeWith = (more: Partial<DirectoryImageStoreOptions> = {}): DirectoryImageStore => {
    const store = new DirectoryImageStore({ directory, log: noLog, ...more });
    stores.push(store);
    return store;
  };
  /** Publishes and keeps all. */
  const plenty = (): DirectoryImageStore => storeWith({ keep: 100 });

  /** When it resolves, what it supersedes has been collected. */
  async function publish(
    store: DirectoryImageStore,
    epoch: number,
    container = "blog",
    more: Partial<Taken> = {},
  ): Promise<Image> {
    const draft = await store.begin(container, epoch);
    await writeFile(join(draft.directory, "pages-1.img"), Buffer.alloc(bytes, epoch));
    const image = await draft.publish({
      container,
      epoch,
      specHash: "hash",
      engine: "runc",
      at: "warm",
      fingerprint: {},
      taken: "2026-01-01T00:00:00Z",
      ...more,
    });
    await store.close();
    return image;
  }

  async function names(container = "blog"): Promise<string[]> {
    return (await readdir(join(directory, container)).catch(() => [])).toSorted((a, b) => (a < b ? -1 : 1));
  }

  async function aged(path: string, ms: number): Promise<void> {
    const then = new Date(Date.now() - ms);
    await utimes(path, then, then);
  }

  const use = async (store: DirectoryImageStore, image: Image): Promise<{ release(): void; directory: string }> =>
    (await store.use(image, noSignal)) ?? assert.fail("it is gone");

  it("keeps as many good images as it is told to (C1)", async () => {
    for (const epoch of [1, 2, 3, 4, 5]) await publish(plenty(), epoch);
    await storeWith({ keep: 3 }).collect();
    assert.deepEqual(await names(), ["3", "4", "5"]);
    await truncate(join(directory, "blog", "5", "pages-1.img"), 1);
    await storeWith({ keep: 1 }).collect();
    assert.deepEqual(await names(), ["4", "5"], "a damaged image is none of the good ones");
  });

  it("keeps as many for each kind of machine in a mixed cluster, for a week (C1)", async () => {
    const [one, two] = ["6.12.4", "6.12.9"].map((kernel) => ({ fingerprint: { kernel } })) as [object, object];
    await publish(plenty(), 1, "blog", { specHash: "older" });
    for (const epoch of [2, 3, 4]) await publish(plenty(), epoch, "blog", one);
    for (const epoch of [5, 6, 7]) await publish(plenty(), epoch, "blog", two);
    await storeWith({ keep: 2 }).collect();
    assert.deepEqual(await names(), ["3", "4", "6", "7"]);
    for (const epoch of ["4", "7"]) await aged(join(directory, "blog", epoch, "manifest.json"), 8 * 24 * hourMs);
    await storeWith({ keep: 2 }).collect();
    assert.deepEqual(await names(), ["3", "6", "7"]);
  });

  it("is the same when many hosts collect at once, and while they publish", async () => {
    for (let epoch = 1; epoch <= 12; epoch++) await publish(plenty(), epoch);
    const problems: unknown[] = [];
    const log = { ...noLog, warn: (details: object) => void problems.push(details) };
    const hosts = Array.from({ length: 6 }, () => storeWith({ log }));
    await Promise.all([...hosts.map((host) => host.collect()), publish(hosts[0] as DirectoryImageStore, 13)]);
    await storeWith().collect();
    assert.deepEqual(await names(), ["12", "13"]);
    assert.deepEqual(problems, []);
  });

  it("is waited for by nobody who publishes", async () => {
    const order: string[] = [];
    const log = { ...noLog, debug: (_: object, message: string) => void order.push(message) };
    const store = storeWith({ keep: 1, log });
    const older = await publish(store, 1);
    const draft = await store.begin("blog", 2);
    await writeFile(join(draft.directory, "pages-1.img"), "pages");
    await draft.publish({ ...older.manifest, epoch: 2 });
    order.push("published");
    await store.close();
    assert.deepEqual(order, ["published", "image removed"]);
  });

  describe("an image in use (C2)", () => {
    it("stays until it is given back", async () => {
      const store = storeWith({ keep: 1 });
      const image = await publish(store, 1);
      const restore = await use(store, image);
      for (const epoch of [2, 3]) await publish(store, epoch);
      await store.close();
      assert.deepEqual(await names(), ["1", "3"]);
      assert.equal((await readFile(join(restore.directory, "pages-1.img"))).length, bytes);
      restore.release();
      await until(async () => (await readdir(join(image.directory, ".in-use"))).length === 0);
      await store.collect();
      assert.deepEqual(await names(), ["3"]);
      await store.close();
    });

    it("also stays where the quota is exceeded", async () => {
      const image = await publish(plenty(), 1);
      await publish(plenty(), 2);
      const restore = await use(plenty(), image);
      await storeWith({ quotaBytes: bytes }).collect();
      assert.deepEqual(await names(), ["1", "2"]);
      restore.release();
    });

    it("does not count when its reader has been silent for more than 10 minutes (R3)", async () => {
      const image = await publish(plenty(), 1);
      await publish(plenty(), 2);
      await writeFile(join(image.directory, ".in-use", "dead-1-1"), "");
      await storeWith({ keep: 1 }).collect();
      assert.deepEqual(await names(), ["1", "2"]);
      await aged(join(image.directory, ".in-use", "dead-1-1"), 11 * 60 * 1000);
      await storeWith({ keep: 1 }).collect();
      assert.deepEqual(await names(), ["2"]);
    });

    it("is not opened any more once a collector has closed it, and goes with the next collection (R2)", async () => {
      const store = plenty();
      const image = await publish(store, 1);
      await publish(store, 2);
      assert.equal(await closeToReaders(image.directory, Date.now()), true);
      assert.equal(await closeToReaders(image.directory, Date.now()), true);
      assert.equal(await store.use(image, noSignal), undefined);
      await rm(join(directory, "blog", "2"), { recursive: true });
      const found = await store.find(recordOf("blog", {}, "hash"), {});
      assert.equal(found.image, undefined);
      assert.match(found.skipped[0]?.reason ?? "", /it is being removed/);
      await publish(store, 3);
      await storeWith({ keep: 1 }).collect();
      assert.deepEqual(await names(), ["3"]);
    });

    it("is either refused or whole until it is given back, whenever a collector comes (R1)", async () => {
      const outcomes = { whole: 0, gone: 0 };
      for (let round = 0; round < 40; round++) {
        const image = await publish(plenty(), 2 * round);
        await publish(plenty(), 2 * round + 1);
        const store = storeWith({ keep: 1, verifyAfterMs: 1e6 });
        const read = async (): Promise<void> => {
          const restore = await store.use(image, noSignal);
          if (restore === undefined) return void outcomes.gone++;
          for (let n = 0; n < 5; n++)
            assert.equal((await readFile(join(restore.directory, "pages-1.img"))).length, bytes);
          outcomes.whole++;
          restore.release();
        };
        const collectors = Promise.all([store, storeWith({ keep: 1 })].map((each) => each.collect()));
        const readers = Array.from({ length: 3 }, async (_, n) => {
          for (let turn = 0; turn < n * (round % 5); turn++) await stat(directory);
          // The last one comes when the collectors have been there.
          if (n === 2) await collectors;
          await read();
        });
        await Promise.all([...readers, collectors]);
        await store.close();
        await rm(join(directory, "blog"), { recursive: true, force: true });
      }
      assert.equal(outcomes.whole + outcomes.gone, 120);
      assert.ok(outcomes.whole > 0 && outcomes.gone > 0, JSON.stringify(outcomes));
    });
  });

  describe("the quota (C3)", () => {
    it("takes the oldest first, never the newest good one of a container", async () => {
      const order: [string, number][] = [
        ["blog", 1],
        ["shop", 2],
        ["blog", 3],
        ["shop", 4],
        ["idle", 5],
      ];
      for (const [index, [container, epoch]] of order.entries()) {
        const image = await publish(plenty(), epoch, container);
        await aged(join(image.directory, "manifest.json"), (10 - index) * hourMs);
      }
      await storeWith({ quotaBytes: 4 * bytes }).collect();
      assert.deepEqual([await names(), await names("shop")], [["3"], ["2", "4"]]);
      const problems: object[] = [];
      const log = { ...noLog, warn: (details: object) => void problems.push(details) };
      await storeWith({ quotaBytes: bytes, log }).collect();
      assert.deepEqual([await names(), await names("shop"), await names("idle")], [["3"], ["4"], ["5"]]);
      assert.equal(problems.length, 1, "it says that what is left exceeds it");
    });

    it("takes images that were set aside, and holds when one is published", async () => {
      const store = storeWith({ quotaBytes: 2 * bytes });
      await store.setAside(await publish(store, 1), "bad");
      await aged(join(directory, "blog", ".bad-1", "manifest.json"), hourMs);
      await publish(store, 2);
      await publish(store, 3);
      await store.close();
      assert.deepEqual(await names(), ["2", "3"]);
    });

    it("counts suspended images, and never takes one", async () => {
      for (const epoch of [1, 2]) await publish(plenty(), epoch);
      const draft = await plenty().begin("blog", 2);
      await writeFile(join(draft.directory, "pages-1.img"), Buffer.alloc(bytes));
      const taken = {
        container: "blog",
        epoch: 2,
        specHash: "hash",
        engine: "runc",
        at: "warm",
        fingerprint: {},
      } as const;
      await draft.publish({ ...taken, tier: "suspended", taken: "2026-01-01T00:00:00Z" });
      await storeWith({ quotaBytes: 2.9 * bytes }).collect();
      assert.deepEqual(await names(), ["2", "suspended"]);
      await storeWith({ quotaBytes: 1 }).collect();
      assert.deepEqual(await names(), ["2", "suspended"]);
    });

    it("counts a newest image that is damaged as none, and keeps the good one before it", async () => {
      await publish(plenty(), 1);
      await publish(plenty(), 2);
      await truncate(join(directory, "blog", "2", "pages-1.img"), bytes / 2);
      await aged(join(directory, "blog", "1", "manifest.json"), hourMs);
      await storeWith({ quotaBytes: bytes }).collect();
      assert.deepEqual(await names(), ["1"]);
    });
  });

  it("keeps images that were set aside for a day, and three of them", async () => {
    const store = plenty();
    for (const epoch of [1, 2, 3, 4, 5]) await store.setAside(await publish(store, epoch), "bad");
    await store.collect();
    assert.deepEqual(await names(), [".bad-3", ".bad-4", ".bad-5"]);
    await aged(join(directory, "blog", ".bad-4", "reason.txt"), 25 * hourMs);
    await store.collect();
    assert.deepEqual(await names(), [".bad-3", ".bad-5"]);
    await storeWith({ keepBadMs: 0 }).setAside(await publish(store, 6), "bad");
    await aged(join(directory, "blog", ".bad-6", "reason.txt"), 10);
    await storeWith({ keepBadMs: 0, keep: 9 }).collect();
    assert.deepEqual(await names(), []);
  });

  describe("a container without a specification (C4)", () => {
    it("loses its images after a day, and not when the specifications are not known", async () => {
      const store = plenty();
      await publish(store, 1);
      await publish(store, 2, "shop");
      await store.setAside(await publish(store, 3), "bad");
      await store.collect(new Set(["shop"]));
      const note = join(directory, "blog", ".unclaimed");
      await aged(note, 23 * hourMs);
      await store.collect(new Set(["shop"]));
      await aged(note, 25 * hourMs);
      await store.collect(undefined);
      assert.deepEqual(await names(), [".bad-3", ".unclaimed", "1"]);
      await store.collect(new Set(["shop"]));
      assert.deepEqual(await readdir(directory), ["shop"]);
    });

    it("keeps them when it was applied again meanwhile, and while one is in use", async () => {
      const store = plenty();
      const image = await publish(store, 1);
      const note = join(directory, "blog", ".unclaimed");
      await store.collect(new Set());
      await aged(note, 25 * hourMs);
      await store.collect(new Set(["blog"]));
      assert.deepEqual(await names(), ["1"]);
      await store.collect(new Set());
      await aged(note, 25 * hourMs);
      const restore = await use(store, image);
      await store.collect(new Set());
      assert.deepEqual(await names(), [".unclaimed", "1"]);
      restore.release();
      await store.close();
    });

    it("loses its suspended image with them", async () => {
      const store = plenty();
      await publish(store, 1);
      const home = join(directory, "blog");
      for (const name of ["suspended"]) await mkdir(join(home, name));
      await writeFile(join(home, ".ran"), "5");
      await store.collect(new Set());
      assert.deepEqual(await names(), [".ran", ".unclaimed", "1", "suspended"]);
      await aged(join(home, ".unclaimed"), 25 * hourMs);
      await store.collect(new Set());
      assert.deepEqual(await readdir(directory), []);
    });

    it("is not every directory: what holds no image is somebody else's", async () => {
      await mkdir(join(directory, "notes"));
      await writeFile(join(directory, "notes", "a.txt"), "mine");
      for (let n = 0; n < 2; n++) await plenty().collect(new Set());
      assert.deepEqual(await names("notes"), ["a.txt"]);
    });
  });

  it("removes what collectors and writers left when they died", async () => {
    await publish(plenty(), 1);
    const home = join(directory, "blog");
    for (const name of [".gone-0-abc", ".draft-7-old", ".draft-8-new"]) await mkdir(join(home, name));
    await aged(join(home, ".draft-7-old"), 61 * 60 * 1000);
    await writeFile(join(home, ".draft-9-crashed.ran"), "9");
    await aged(join(home, ".draft-9-crashed.ran"), 61 * 60 * 1000);
    await plenty().collect();
    assert.deepEqual(await names(), [".draft-8-new", "1"]);
  });

  it("goes on by the hour, without the specifications where they cannot be read, and ends", async () => {
    const seen: (ReadonlySet<string> | undefined)[] = [];
    const end = collectHourly(
      (wanted) => Promise.resolve(void seen.push(wanted)),
      () => Promise.reject(new Error("etcd is away")),
    );
    await end();
    assert.deepEqual(seen, [undefined]);
  });
});

async function until(holds: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + 5000;
  while (!(await holds())) {
    assert.ok(performance.now() < end, "it did not happen within 5 s");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
