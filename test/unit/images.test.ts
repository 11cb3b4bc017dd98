import assert from "node:assert/strict";
import {
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { FoundImage, Image, Manifest } from "../../actors/ports/image-store.js";
import { DirectoryImageStore } from "../../runtime/images/directory-store.js";
import { eventually } from "../lab/cluster.js";
import { recordOf } from "../lab/records.js";

const log = { debug() {}, info() {}, warn() {}, error() {} };
const fingerprint = { arch: "x64", criu: "4.2.1", kernel: "6.18" };
const pagesBytes = 2 * 1024 * 1024;

describe("image store on a directory", () => {
  let directory: string;
  let store: DirectoryImageStore;
  const record = recordOf("blog", {}, "hash");

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-images-"));
    store = open();
  });

  afterEach(async () => {
    for (const each of stores.splice(0)) await each.close();
    await rm(directory, { recursive: true, force: true });
  });

  const stores: DirectoryImageStore[] = [];
  function open(keep = 2): DirectoryImageStore {
    const opened = new DirectoryImageStore({ directory, log, keep });
    stores.push(opened);
    return opened;
  }

  function manifestOf(epoch: number, more: Partial<Manifest> = {}): Omit<Manifest, "format" | "files"> {
    const taken = "2026-01-01T00:00:00Z";
    return { container: "blog", epoch, specHash: "hash", engine: "runc", at: "warm", fingerprint, taken, ...more };
  }

  async function publish(epoch: number, more: Partial<Manifest> = {}, from = store): Promise<Image> {
    const container = more.container ?? "blog";
    const draft = await from.begin(container, epoch);
    await mkdir(join(draft.directory, "criu"));
    await writeFile(join(draft.directory, "criu", "core-1.img"), `core of ${epoch}`);
    await writeFile(join(draft.directory, "criu", "pages-1.img"), Buffer.alloc(pagesBytes, epoch % 256));
    await writeFile(join(draft.directory, "layer.tar"), "layer");
    return draft.publish(manifestOf(epoch, more));
  }

  const find = (): Promise<FoundImage> => store.find(record, fingerprint);
  const epochOf = ({ image }: FoundImage): number | undefined => image?.manifest.epoch;
  const reasons = ({ skipped }: FoundImage): string =>
    skipped.map(({ epoch, reason }) => `${epoch}: ${reason}`).join("\n");

  it("gives back what was published, with sizes and digests of every file", async () => {
    const image = await publish(7);
    const found = await find();
    assert.deepEqual(found, { image, skipped: [] });
    assert.deepEqual(Object.keys(image.manifest.files).sort(), ["criu/core-1.img", "criu/pages-1.img", "layer.tar"]);
    assert.equal(image.bytes, pagesBytes + "core of 7".length + "layer".length);
    assert.equal(image.manifest.format, 1);
    assert.equal(await readFile(join(image.directory, "criu", "core-1.img"), "utf8"), "core of 7");
    assert.equal(await store.verify(image), undefined);
  });

  it("finds nothing where nothing was published", async () => {
    assert.deepEqual(await find(), { skipped: [] });
    assert.deepEqual(await store.list(), []);
    assert.deepEqual(await store.list("blog"), []);
  });

  it("finds the newest image", async () => {
    for (const epoch of [9, 10, 11]) await publish(epoch);
    assert.equal(epochOf(await find()), 11);
  });

  it("keeps its directories to its own user", async () => {
    const { directory: image } = await publish(1);
    for (const path of [join(directory, "blog"), image]) assert.equal((await stat(path)).mode & 0o777, 0o700);
  });

  it("shows nothing of a draft, and nothing of a discarded one (D1)", async () => {
    const draft = await store.begin("blog", 3);
    assert.deepEqual(await readdir(draft.directory), []);
    await writeFile(join(draft.directory, "pages-1.img"), "half");
    assert.deepEqual(await find(), { skipped: [] });
    assert.deepEqual(await store.list("blog"), []);
    await draft.discard();
    await draft.discard();
    assert.deepEqual(await readdir(join(directory, "blog")), []);
  });

  it("keeps a published image when its draft is discarded afterwards", async () => {
    const draft = await store.begin("blog", 3);
    await writeFile(join(draft.directory, "pages-1.img"), "whole");
    await draft.publish(manifestOf(3));
    await draft.discard();
    assert.equal(epochOf(await find()), 3);
  });

  it("removes drafts that nobody has touched for an hour", async () => {
    const old = await store.begin("blog", 1);
    const recent = await store.begin("blog", 2);
    const past = new Date(Date.now() - 61 * 60 * 1000);
    await utimes(old.directory, past, past);
    await store.begin("blog", 3);
    await assert.rejects(stat(old.directory));
    await stat(recent.directory);
  });

  describe("skips, with the reason, and gives the next older one instead of (D2, D3)", () => {
    const damages: readonly [string, (image: Image) => Promise<unknown>, RegExp][] = [
      [
        "an image with a flipped bit in a small file",
        ({ directory: image }) => flip(join(image, "criu", "core-1.img")),
        /core-1\.img has changed/,
      ],
      [
        "an image with a file that was cut off",
        ({ directory: image }) => truncate(join(image, "criu", "pages-1.img"), pagesBytes - 1),
        /pages-1\.img has 2097151 bytes instead of 2097152/,
      ],
      [
        "an image without one of its files",
        ({ directory: image }) => rm(join(image, "layer.tar")),
        /layer\.tar is missing/,
      ],
      [
        "an image with a directory in place of a file",
        async ({ directory: image }) => {
          await rm(join(image, "layer.tar"));
          await mkdir(join(image, "layer.tar"));
        },
        /layer\.tar is missing/,
      ],
      [
        "an image without a manifest",
        ({ directory: image }) => rm(join(image, "manifest.json")),
        /manifest cannot be read/,
      ],
      [
        "an image with a manifest that is cut off",
        ({ directory: image }) => truncate(join(image, "manifest.json"), 50),
        /manifest is damaged/,
      ],
      [
        "an empty manifest",
        ({ directory: image }) => writeFile(join(image, "manifest.json"), ""),
        /manifest is damaged/,
      ],
      [
        "a manifest of a later format",
        (image) => rewrite(image, (manifest) => ({ ...manifest, format: 2 })),
        /of another version: format/,
      ],
      [
        "a manifest that leads out of the image",
        (image) =>
          rewrite(image, (manifest) => ({ ...manifest, files: { "../../x": { bytes: 1, sha256: "0".repeat(64) } } })),
        /damaged or of another version/,
      ],
      [
        "the manifest of another container",
        (image) => rewrite(image, (manifest) => ({ ...manifest, container: "shop" })),
        /that of shop at epoch 5/,
      ],
    ];
    for (const [what, damage, reason] of damages)
      it(what, async () => {
        await publish(4);
        const image = await publish(5);
        await damage(image);
        const found = await find();
        assert.equal(epochOf(found), 4);
        assert.match(reasons(found), reason);
        assert.equal(found.skipped.length, 1);
      });

    it("an image of another specification", async () => {
      await publish(4);
      await publish(5, { specHash: "changed" });
      const found = await find();
      assert.equal(epochOf(found), 4);
      assert.match(reasons(found), /5: it was taken with another specification/);
    });

    it("an image that was taken on another kind of machine, naming the difference", async () => {
      await publish(4);
      await publish(5, { fingerprint: { ...fingerprint, kernel: "5.10" } });
      await publish(6, { fingerprint: { arch: "x64", criu: "4.2.1" } });
      const found = await find();
      assert.equal(reasons(found).split("\n").length, 2);
      assert.match(reasons(found), /6: kernel differs: the image has none, this host 6\.18/);
      assert.match(reasons(found), /5: kernel differs: the image has 5\.10, this host 6\.18/);
    });

    for (const [what, cpu, reason] of [
      ["more", "GenuineIntel avx avx2 sse", "the image needs avx2, which this host does not have"],
      [
        "much more",
        "GenuineIntel a avx b c d e f g sse",
        "the image needs a, b, c, d, e and 2 more, which this host does not have",
      ],
      ["less", "GenuineIntel sse", "this host has avx, without which the image was taken"],
      ["otherwise", "AuthenticAMD avx sse", "the image has AuthenticAMD, this host GenuineIntel"],
      ["what is not known", "9c1f0a77b2d4aa00", "the image has 9c1f0a77b2d4aa00, this host GenuineIntel"],
    ] as const)
      it(`an image of a processor that can do ${what}, naming it`, async () => {
        await publish(5, { fingerprint: { ...fingerprint, cpu } });
        const found = await store.find(record, { ...fingerprint, cpu: "GenuineIntel avx sse" });
        assert.equal(reasons(found), `5: cpu differs: ${reason}`);
      });
  });

  it("leaves the digest of large files to verify()", async () => {
    const image = await publish(5);
    await flip(join(image.directory, "criu", "pages-1.img"));
    assert.equal(epochOf(await find()), 5);
    assert.match((await store.verify(image)) ?? "", /pages-1\.img has changed/);
  });

  it("keeps an image that is set aside for people, and out of every later search", async () => {
    await publish(4);
    const image = await publish(5);
    await store.setAside(image, "the restored copy died");
    assert.equal(epochOf(await find()), 4);
    assert.deepEqual((await find()).skipped, []);
    const [newest, next] = await store.list("blog");
    assert.deepEqual(newest, { container: "blog", epoch: 5, sequence: 0, reason: "the restored copy died" });
    assert.ok(next !== undefined && "manifest" in next);
    await store.setAside(image, "again");
    await publish(5);
    assert.equal(epochOf(await find()), 5);
  });

  it("keeps the newest two good images, and counts no bad one as good (D4)", async () => {
    for (const epoch of [1, 2, 3]) await publish(epoch);
    assert.deepEqual(await epochs(), [3, 2]);
    const bad = await publish(4);
    assert.deepEqual(await epochs(), [4, 3]);
    await truncate(join(bad.directory, "layer.tar"), 1);
    await publish(5);
    assert.deepEqual(await epochs(), [5, 4, 3]);
  });

  it("never removes an image of a newer epoch than its own (D4)", async () => {
    for (const epoch of [10, 11, 12]) await publish(epoch);
    await publish(5);
    assert.equal(epochOf(await find()), 12);
    assert.deepEqual(await epochs(), [12, 11, 5]);
  });

  it("serves many hosts that publish at once", async () => {
    const hosts = [1, 2, 3, 4].map(() => open());
    const published = await Promise.allSettled(
      Array.from({ length: 12 }, (_, n) => publish(20 + n, {}, hosts[n % hosts.length])),
    );
    assert.deepEqual(
      published.map(({ status }) => status),
      published.map(() => "fulfilled"),
    );
    const found = await find();
    assert.equal(epochOf(found), 31);
    assert.equal(await store.verify(found.image as Image), undefined);
    assert.ok((await epochs()).length >= 2);
    assert.deepEqual(
      (await readdir(join(directory, "blog"))).filter((name) => name.startsWith(".draft-")),
      [],
    );
  });

  describe("images of one epoch", () => {
    const places = async (): Promise<string[]> => {
      await store.close();
      return (await readdir(join(directory, "blog"))).toSorted((a, b) => (a < b ? -1 : 1));
    };
    const sequenceOf = ({ image }: FoundImage): number | undefined => image?.manifest.sequence;

    it("are told apart by a sequence: the newest is found, and says so itself", async () => {
      await publish(5, { specHash: "older" });
      assert.equal(epochOf(await find()), undefined);
      for (let n = 1; n < 12; n++) await publish(5);
      const found = await find();
      assert.deepEqual([epochOf(found), sequenceOf(found)], [5, 11]);
      assert.deepEqual(await places(), ["5.10", "5.11"]);
      await publish(6);
      assert.deepEqual([epochOf(await find()), sequenceOf(await find())], [6, undefined]);
    });

    it("are no better under a newer one's name", async () => {
      await publish(5);
      await rename(join(directory, "blog", "5"), join(directory, "blog", "5.3"));
      assert.match(reasons(await find()), /manifest is that of blog at epoch 5$/);
    });

    it("never take the name of one that was set aside", async () => {
      await store.setAside(await publish(5), "planted");
      await publish(5);
      assert.deepEqual(await places(), [".bad-5", "5.1"]);
      await store.setAside((await find()).image as Image, "planted too");
      await publish(5);
      assert.deepEqual(
        (await store.list("blog")).map((each) => ("reason" in each ? each.sequence : each.manifest.sequence)),
        [2, 1, 0],
      );
    });

    it("leave those in peace that a restore reads, however many are published meanwhile", async () => {
      const old = await publish(5);
      const use = (await store.use(old, new AbortController().signal)) ?? assert.fail("it is gone");
      for (let n = 0; n < 4; n++) {
        await publish(5);
        assert.equal((await readFile(join(use.directory, "criu", "pages-1.img"))).length, pagesBytes);
        assert.equal(await store.verify(old), undefined);
      }
      assert.deepEqual(await places(), ["5", "5.3", "5.4"]);
      use.release();
      await eventually("it goes with a later one", async () => {
        await store.collect();
        return !(await places()).includes("5");
      });
    });

    it("serve until the newer one is whole: a writer that dies before its rename takes nothing away", async () => {
      const old = await publish(5);
      const draft = await store.begin("blog", 5);
      await cp(old.directory, draft.directory, { recursive: true });
      const again = open();
      assert.deepEqual(await again.find(record, fingerprint), { image: old, skipped: [] });
      assert.equal((await again.list()).length, 1);
      const abort = new AbortController();
      abort.abort(new Error("planted"));
      await rm(draft.directory, { recursive: true });
      await mkdir(draft.directory);
      await writeFile(join(draft.directory, "pages-1.img"), "whole");
      await assert.rejects(draft.publish(manifestOf(5), abort.signal), /planted/);
      assert.deepEqual(await again.find(record, fingerprint), { image: old, skipped: [] });
      await draft.discard();
    });

    it("are all published where many writers are at it, each under a name of its own", async () => {
      const plenty = () => open(100);
      const images = await Promise.all(Array.from({ length: 6 }, () => publish(5, {}, plenty())));
      assert.equal(new Set(images.map((image) => image.directory)).size, 6);
      for (const image of images) assert.equal(await store.verify(image), undefined);
    });

    it("are found at any moment while the next one is published", async () => {
      await publish(5);
      let done = false;
      const writer = (async () => {
        for (let n = 0; n < 10; n++) await publish(5);
        done = true;
      })();
      while (!done) assert.equal(epochOf(await find()), 5);
      await writer;
    });
  });

  it("finds a whole image at any moment while others publish", async () => {
    await publish(1);
    let done = false;
    const writer = (async () => {
      for (let epoch = 2; epoch < 12; epoch++) await publish(epoch);
      done = true;
    })();
    let last = 0;
    while (!done) {
      const found = await find();
      const epoch = epochOf(found) ?? assert.fail(`no image: ${reasons(found)}`);
      assert.ok(epoch >= last);
      last = epoch;
    }
    await writer;
  });

  it("reads no file outside of an image, whatever its manifest names", async () => {
    for (const path of ["../x", "a/../../x", "/etc/passwd", "a\n/../../../x", "a\0b"]) {
      const image = await publish(1);
      await rewrite(image, (manifest) => ({ ...manifest, files: { [path]: { bytes: 1, sha256: "0".repeat(64) } } }));
      assert.match(reasons(await find()), /its manifest is damaged/, JSON.stringify(path));
      await rm(image.directory, { recursive: true });
    }
  });

  it("refuses names and epochs of which a path could be made", async () => {
    const invalid = (error: unknown): boolean => error instanceof HakobuError && error.code === "CONFIG_INVALID";
    for (const name of ["..", "../x", "a/b", "", ".draft-1", "A", "a".repeat(64)]) {
      await assert.rejects(store.begin(name, 1), invalid);
      await assert.rejects(store.list(name), invalid);
      await assert.rejects(store.find(recordOf(name), fingerprint), invalid);
    }
    for (const epoch of [-1, 1.5, Number.NaN]) await assert.rejects(store.begin("blog", epoch), invalid);
    const draft = await store.begin("blog", 1);
    await assert.rejects(draft.publish(manifestOf(2)), invalid);
    await draft.discard();
  });

  it("refuses to publish what is no ordinary file", async () => {
    const draft = await store.begin("blog", 1);
    await symlink("/etc/passwd", join(draft.directory, "link"));
    await assert.rejects(draft.publish(manifestOf(1)), (error: HakobuError) => error.code === "CHECKPOINT_FAILED");
    await draft.discard();
    assert.deepEqual(await find(), { skipped: [] });
  });

  it("lists all containers, and leaves foreign files in the directory alone", async () => {
    await publish(1);
    await publish(2, { container: "shop" });
    await writeFile(join(directory, "README"), "not ours");
    await mkdir(join(directory, "Strange Name"));
    await mkdir(join(directory, "blog", "notes"));
    const all = await store.list();
    assert.deepEqual(
      all.map((each) => ("manifest" in each ? `${each.manifest.container}/${each.manifest.epoch}` : each.reason)),
      ["blog/1", "shop/2"],
    );
  });

  /** When what is superseded has been collected. */
  async function epochs(): Promise<number[]> {
    await store.close();
    const names = await readdir(join(directory, "blog"));
    return names
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .sort((a, b) => b - a);
  }

  async function flip(path: string): Promise<void> {
    const bytes = await readFile(path);
    const middle = bytes.length >> 1;
    bytes[middle] = (bytes[middle] ?? 0) ^ 1;
    await writeFile(path, bytes);
  }

  async function rewrite({ directory: image }: Image, change: (manifest: Manifest) => object): Promise<void> {
    const path = join(image, "manifest.json");
    const manifest = JSON.parse(await readFile(path, "utf8")) as Manifest;
    await writeFile(`${path}.new`, JSON.stringify(change(manifest)));
    await rename(`${path}.new`, path);
  }
});
