// The suspended tier of the image store: one image, restored at most once, never older than the last run.
import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, truncate, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { FoundImage, Image, Taken } from "../../actors/ports/image-store.js";
import { noLog } from "../../actors/ports/log.js";
import { DirectoryImageStore } from "../../runtime/images/directory-store.js";
import { recordOf } from "../lab/records.js";

describe("the suspended tier", () => {
  const fingerprint = { kernel: "6.18" };
  const record = recordOf("blog", { onIdle: "suspend" }, "hash");
  let directory: string;
  let store: DirectoryImageStore;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-suspended-"));
    store = new DirectoryImageStore({ directory, log: noLog });
  });
  afterEach(async () => {
    await store.close();
    await rm(directory, { recursive: true, force: true });
  });

  async function suspend(
    epoch: number,
    content = "memory",
    more: Partial<Taken> = {},
    signal?: AbortSignal,
  ): Promise<Image> {
    const draft = await store.begin("blog", epoch);
    try {
      await writeFile(join(draft.directory, "pages-1.img"), content);
      const taken = { container: "blog", epoch, specHash: "hash", engine: "runc", at: "warm", fingerprint } as const;
      const when = "2026-01-01T00:00:00Z";
      return await draft.publish({ ...taken, tier: "suspended", taken: when, ...more }, signal);
    } finally {
      await draft.discard();
    }
  }
  const take = (epoch: number, of = record): Promise<FoundImage> => store.takeSuspended(of, fingerprint, epoch);
  const kept = async (): Promise<string[]> =>
    (await readdir(join(directory, "blog")).catch(() => [])).toSorted((a, b) => (a < b ? -1 : 1));
  const why = ({ skipped }: FoundImage): string => skipped.map(({ reason }) => reason).join();

  it("gives its image to one of many that want it, and to nobody afterwards", async () => {
    await take(3);
    await suspend(3);
    const taken = await Promise.all([take(4), take(4), take(4)]);
    const images = taken.flatMap(({ image }) => image ?? []);
    assert.equal(images.length, 1);
    assert.equal((await take(4)).image, undefined);
    assert.equal((await take(5)).image, undefined);
    const [image] = images as [Image];
    const use = await store.use(image, AbortSignal.timeout(5000));
    assert.ok(use !== undefined);
    use.release();
    await store.remove(image);
    await store.remove(image);
    assert.deepEqual(await kept(), [".ran"]);
  });

  it("is listed, and not found by those who look for a golden image", async () => {
    const image = await suspend(3);
    assert.deepEqual(await store.find(record, fingerprint), { skipped: [] });
    assert.deepEqual(await store.list("blog"), [image]);
    assert.deepEqual(await store.list(), [image]);
  });

  it("is listed with the reason where it is of no use any more", async () => {
    await suspend(3);
    await take(4);
    await suspend(4);
    await writeFile(join(directory, "blog", ".ran"), "7\n");
    const [later] = await store.list("blog");
    assert.deepEqual(
      [later && "tier" in later && later.tier, later && "reason" in later && later.reason],
      ["suspended", "the container has run since, at epoch 7"],
    );
    await truncate(join(directory, "blog", "suspended", "manifest.json"), 10);
    const [damaged] = await store.list("blog");
    assert.match(damaged && "reason" in damaged ? damaged.reason : "", /manifest is damaged/);
  });

  it("holds one image: the newer replaces the older", async () => {
    await suspend(3, "older");
    const { bytes } = await suspend(3, "the newer one");
    assert.deepEqual(await kept(), ["suspended"]);
    assert.equal((await take(4)).image?.bytes, bytes);
  });

  it("refuses an image from before the last run, when it is published and when it is taken", async () => {
    await suspend(3);
    assert.equal((await take(4)).image?.manifest.epoch, 3);
    await assert.rejects(suspend(3), (error) => error instanceof HakobuError && error.code === "CHECKPOINT_FAILED");
    await suspend(4);
    const late = await take(3);
    assert.match(why(late), /has run since, at epoch 4/);
    assert.equal((await take(5)).image?.manifest.epoch, 4);
  });

  it("publishes nothing once a request has cancelled it", async () => {
    const abort = new AbortController();
    abort.abort(new HakobuError("ABORTED", "a request came"));
    await assert.rejects(suspend(3, "memory", {}, abort.signal), /a request came/);
    assert.deepEqual(await kept(), []);
  });

  it("sets an image aside, with the reason, that another specification or machine made, or that is damaged", async () => {
    await suspend(1, "memory", { specHash: "other" });
    assert.match(why(await take(2)), /another specification/);
    await suspend(2, "memory", { fingerprint: { kernel: "5.10" } });
    assert.match(why(await take(3)), /kernel differs/);
    const { directory: damaged } = await suspend(3);
    await truncate(join(damaged, "pages-1.img"), 2);
    assert.match(why(await take(4)), /2 bytes instead of 6/);
    assert.deepEqual(
      (await kept()).filter((name) => !name.startsWith(".")),
      [],
    );
    assert.equal((await store.list("blog")).length, 3, "they are listed with their reasons");
  });

  it("is kept for people where it cannot be read, or is of another version, beside golden ones that are set aside", async () => {
    const draft = await store.begin("blog", 1);
    await writeFile(join(draft.directory, "pages-1.img"), "golden");
    const taken = { container: "blog", epoch: 1, specHash: "hash", engine: "runc", at: "warm", fingerprint } as const;
    await store.setAside(await draft.publish({ ...taken, taken: "2026-01-01T00:00:00Z" }), "no good");
    const { directory: published } = await suspend(1, "memory of users");
    const manifest = join(published, "manifest.json");
    await writeFile(manifest, (await readFile(manifest, "utf8")).replace('"format": 1', '"format": 2'));
    assert.match(why(await take(1)), /another version: format 2/);
    await suspend(1, "damaged", { specHash: "other" });
    assert.match(why(await take(1)), /another specification/);
    const bad = (await kept()).filter((name) => name.startsWith(".bad-"));
    assert.equal(bad.length, 3, bad.join());
    const texts = await Promise.all(bad.map((name) => readFile(join(directory, "blog", name, "pages-1.img"), "utf8")));
    assert.deepEqual(texts.toSorted(), ["damaged", "golden", "memory of users"]);
    const listed = await store.list("blog");
    assert.equal(listed.filter((each) => "tier" in each && each.tier === "suspended").length, 2);
    const later = new Date(Date.now() - 25 * 60 * 60 * 1000);
    for (const name of bad) await utimes(join(directory, "blog", name, "reason.txt"), later, later);
    await store.collect();
    assert.deepEqual(await store.list("blog"), []);
  });

  it("is dropped by a start of a container that keeps its memory no more", async () => {
    await suspend(3);
    const stops = recordOf("blog", {}, "hash");
    const { image } = await take(4, stops);
    assert.ok(image !== undefined, "whoever starts it gets the image, to use it this once or to remove it");
    assert.deepEqual(
      (await kept()).filter((name) => name === "suspended"),
      [],
    );
  });
});
