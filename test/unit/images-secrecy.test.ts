import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { HakobuError } from "../../actors/hakobu-error.js";
import { noLog } from "../../actors/ports/log.js";
import type { FoundImage, Image, Manifest, Taken } from "../../actors/ports/image-store.js";
import { ClusterKey } from "../../runtime/images/cluster-key.js";
import { DirectoryImageStore, type DirectoryImageStoreOptions } from "../../runtime/images/directory-store.js";
import { PrivateMemory } from "../../runtime/images/private-memory.js";
import { chunkBytes, openSealedFile, sealFile, tagBytes } from "../../runtime/images/sealed-file.js";
import { recordOf } from "../lab/records.js";

const fingerprint = { arch: "x64", cpu: "aaaa", criu: "4.2", kernel: "6.18" };
const record = recordOf("blog", {}, "hash");
const noSignal = new AbortController().signal;
const secret = "the session secret of a user";
const pages = Buffer.concat([Buffer.from(secret), randomBytes(2 * chunkBytes + 4711)]);
const isCode =
  (code: string) =>
  (error: unknown): boolean => {
    assert.ok(error instanceof HakobuError, String(error));
    assert.equal(error.code, code, error.message);
    return true;
  };

describe("images with the cluster's key", () => {
  const key = new ClusterKey(randomBytes(32));
  const clear = join("/dev/shm", `hakobu-test-${process.pid}`);
  const memory = new PrivateMemory(clear);
  let directory: string;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-images-"));
  });
  const stores: DirectoryImageStore[] = [];
  afterEach(async () => {
    for (const store of stores.splice(0)) await store.close();
    await rm(directory, { recursive: true, force: true });
    await memory.close();
  });

  function storeWith(more: Partial<DirectoryImageStoreOptions>): DirectoryImageStore {
    const store = new DirectoryImageStore({ directory, log: noLog, ...more });
    stores.push(store);
    return store;
  }

  const taken = (epoch: number, more: Partial<Taken> = {}): Taken => {
    const when = "2026-01-01T00:00:00Z";
    return {
      container: "blog",
      epoch,
      specHash: "hash",
      engine: "runc",
      at: "warm",
      fingerprint,
      taken: when,
      ...more,
    };
  };

  async function publish(store: DirectoryImageStore, epoch: number, more: Partial<Taken> = {}): Promise<Image> {
    const draft = await store.begin("blog", epoch);
    await mkdir(join(draft.directory, "criu"));
    await writeFile(join(draft.directory, "criu", "core-1.img"), `core of ${secret}`);
    await writeFile(join(draft.directory, "criu", "pages-1.img"), pages);
    await writeFile(join(draft.directory, "empty"), "");
    return draft.publish(taken(epoch, more));
  }

  const why = ({ skipped }: FoundImage): string => skipped.map(({ reason }) => reason).join("\n");

  async function rewrite({ directory: image }: Image, change: (manifest: Manifest) => object): Promise<void> {
    const path = join(image, "manifest.json");
    await writeFile(path, JSON.stringify(change(JSON.parse(await readFile(path, "utf8")) as Manifest)));
  }

  async function flip(path: string, at?: number): Promise<void> {
    const bytes = await readFile(path);
    const place = at ?? bytes.length >> 1;
    bytes[place] = (bytes[place] ?? 0) ^ 1;
    await writeFile(path, bytes);
  }

  describe("integrity (D5)", () => {
    it("are used by the hosts that have the key, and by those that have none", async () => {
      const image = await publish(storeWith({ key }), 1);
      assert.match(image.manifest.mac ?? "", /^[0-9a-f]{64}$/);
      for (const store of [storeWith({ key }), storeWith({})]) {
        assert.deepEqual(await store.find(record, fingerprint), { image, skipped: [] });
        assert.equal(await store.verify(image), undefined);
      }
    });

    it("are refused without a MAC, and with that of another key", async () => {
      await publish(storeWith({}), 1);
      await publish(storeWith({ key: new ClusterKey(randomBytes(32)) }), 2);
      const found = await storeWith({ key }).find(record, fingerprint);
      assert.equal(found.image, undefined);
      assert.match(found.skipped[0]?.reason ?? "", /not made with this cluster's key, or its manifest was changed/);
      assert.match(found.skipped[1]?.reason ?? "", /not made with this cluster's key: it carries no MAC/);
      await publish(storeWith({ key }), 3);
      assert.equal((await storeWith({ key }).find(record, fingerprint)).image?.manifest.epoch, 3);
    });

    const forgeries: readonly [string, (manifest: Manifest) => object][] = [
      ["specification", (manifest) => ({ ...manifest, specHash: "other" })],
      ["machine", (manifest) => ({ ...manifest, fingerprint: { ...fingerprint, kernel: "6.19" } })],
      ["list of files", (manifest) => ({ ...manifest, files: {} })],
      ["time", (manifest) => ({ ...manifest, taken: "2027-01-01T00:00:00Z" })],
      ["MAC, which is cut off", (manifest) => ({ ...manifest, mac: undefined })],
    ];
    for (const [what, change] of forgeries)
      it(`are refused when somebody changed the ${what}`, async () => {
        const store = storeWith({ key });
        await rewrite(await publish(store, 1), change);
        const found = await store.find(recordOf("blog", {}, "other"), { ...fingerprint, kernel: "6.19" });
        assert.equal(found.image, undefined);
        assert.match(why(found), /not made with this cluster's key/);
      });

    it("are refused when a file was changed together with its digest", async () => {
      const store = storeWith({ key });
      const image = await publish(store, 1);
      const other = await publish(storeWith({}), 2);
      await writeFile(join(image.directory, "empty"), "no longer");
      await writeFile(join(other.directory, "empty"), "no longer");
      await rewrite(image, (manifest) => ({
        ...manifest,
        files: { ...manifest.files, empty: { bytes: 9, sha256: "0".repeat(64) } },
      }));
      assert.match(why(await store.find(record, fingerprint)), /not made with this cluster's key, or/);
    });

    it("are refused when a file lies in them that they do not name", async () => {
      const store = storeWith({ key });
      const image = await publish(store, 1);
      await writeFile(join(image.directory, "criu", "more.img"), "");
      assert.match(why(await store.find(record, fingerprint)), /criu\/more\.img does not belong to it/);
    });

    it("name what differs on this machine, with both values", async () => {
      const store = storeWith({ key });
      await publish(store, 1);
      const find = async (here: Record<string, string>): Promise<string> => why(await store.find(record, here));
      assert.equal(await find({ ...fingerprint, cpu: "bbbb" }), "cpu differs: the image has aaaa, this host bbbb");
      assert.equal(await find({ ...fingerprint, criu: "4.1" }), "criu differs: the image has 4.2, this host 4.1");
    });

    it("are set aside in the background after a restore, when a page file was changed in its size", async () => {
      const store = storeWith({ key, verifyAfterMs: 0 });
      const image = await publish(store, 1);
      await flip(join(image.directory, "criu", "pages-1.img"));
      assert.equal((await store.find(record, fingerprint)).image?.manifest.epoch, 1);
      (await store.use(image, noSignal))?.release();
      await until(async () => (await store.find(record, fingerprint)).image === undefined);
      const [bad] = await store.list("blog");
      assert.match(bad !== undefined && "reason" in bad ? bad.reason : "", /pages-1\.img has changed/);
      await store.close();
    });
  });

  it("stay where a host that looks at them after a restore cannot read them", async () => {
    const problems: string[] = [];
    const log = { ...noLog, warn: (_: object, message: string) => void problems.push(message) };
    const store = storeWith({ key, log, verifyAfterMs: 0 });
    const image = await publish(store, 1);
    await unreadable(join(image.directory, "criu", "pages-1.img"));
    (await store.use(image, noSignal))?.release();
    await until(() => Promise.resolve(problems.length > 0));
    assert.deepEqual(problems, ["image could not be verified"]);
    assert.deepEqual(await readdir(join(directory, "blog")), ["1"]);
    assert.match(why(await store.find(record, fingerprint)), /cannot be read here: ELOOP/);
    await store.close();
  });

  describe("the key's file (K2)", () => {
    it("is taken when it is long enough and private, and refused otherwise", async () => {
      const path = join(directory, "key");
      await writeFile(path, randomBytes(32), { mode: 0o600 });
      assert.ok((await ClusterKey.read(path)) instanceof ClusterKey);
      for (const mode of [0o640, 0o604, 0o660]) {
        await chmod(path, mode);
        await assert.rejects(ClusterKey.read(path), isCode("CONFIG_INVALID"));
      }
      await writeFile(join(directory, "short"), randomBytes(31), { mode: 0o600 });
      await assert.rejects(ClusterKey.read(join(directory, "short")), isCode("CONFIG_INVALID"));
      await assert.rejects(ClusterKey.read(join(directory, "none")), isCode("CONFIG_INVALID"));
      await assert.rejects(ClusterKey.read(directory), isCode("CONFIG_INVALID"));
    });
  });

  describe("encryption at rest (D5)", () => {
    const encrypted = (more: Partial<DirectoryImageStoreOptions> = {}): DirectoryImageStore =>
      storeWith({ key, memory, encrypt: true, ...more });

    async function readable(folder: string): Promise<boolean> {
      for (const entry of await readdir(folder, { recursive: true, withFileTypes: true }))
        if (entry.isFile() && (await readFile(join(entry.parentPath, entry.name))).includes(secret)) return true;
      return false;
    }

    it("shows nothing on the shared directory, and gives back every byte in private memory", async () => {
      const store = encrypted();
      const image = await publish(store, 1);
      assert.equal(await readable(directory), false);
      assert.deepEqual(await readdir(clear), [], "the draft is removed");
      assert.equal((await stat(clear)).mode & 0o777, 0o700);
      assert.equal(await store.verify(image), undefined);
      const found = (await store.find(record, fingerprint)).image ?? assert.fail("not found");
      const use = (await store.use(found, noSignal)) ?? assert.fail("gone");
      assert.ok(use.directory.startsWith(`${clear}/`));
      assert.deepEqual(await readFile(join(use.directory, "criu", "pages-1.img")), pages);
      assert.equal(await readFile(join(use.directory, "criu", "core-1.img"), "utf8"), `core of ${secret}`);
      assert.equal((await stat(join(use.directory, "empty"))).size, 0);
      use.release();
      await until(async () => (await readdir(clear)).length === 0);
    });

    it("has its draft in memory too, which goes when it is discarded", async () => {
      const draft = await encrypted().begin("blog", 1);
      assert.ok(draft.directory.startsWith(`${clear}/`));
      await writeFile(join(draft.directory, "pages-1.img"), secret);
      assert.equal(await readable(directory), false);
      await draft.discard();
      assert.deepEqual(await readdir(clear), []);
      assert.deepEqual(await readdir(join(directory, "blog")), []);
    });

    it("refuses plain images, and is refused by a host without the key", async () => {
      await publish(storeWith({ key }), 1);
      assert.match(why(await encrypted().find(record, fingerprint)), /is not encrypted, and images\.encrypt asks/);
      await publish(encrypted(), 2);
      const keyless = await storeWith({}).find(record, fingerprint);
      assert.equal(keyless.image?.manifest.epoch, 1);
      assert.match(why(keyless), /is encrypted, and this host has no key/);
      const rolling = await storeWith({ key, memory }).find(record, fingerprint);
      assert.equal(rolling.image?.manifest.epoch, 2, "a host that does not encrypt yet reads what others encrypt");
    });

    const harms: readonly [string, (file: string) => Promise<unknown>][] = [
      ["a flipped bit", (file) => flip(file)],
      ["a flipped bit in the last tag", (file) => flip(file, pages.length + 3 * tagBytes - 1)],
      ["its end cut off", (file) => truncate(file, pages.length)],
      ["its last chunk cut off", (file) => truncate(file, 2 * (chunkBytes + tagBytes))],
      ["nothing in it", (file) => truncate(file, 0)],
      ["another file of the image in its place", (file) => cp(join(file, "..", "core-1.img"), file)],
      ["no file at all", (file) => rm(file)],
    ];
    for (const [what, harm] of harms)
      it(`restores nothing from a page file with ${what}, and leaves nothing behind`, async () => {
        const store = encrypted();
        const image = await publish(store, 1);
        await harm(join(image.directory, "criu", "pages-1.img"));
        await assert.rejects(store.use(image, noSignal), isCode("RESTORE_FAILED"));
        assert.deepEqual(await readdir(clear), []);
        assert.notEqual(await store.verify(image), undefined);
      });

    it("is not to blame for a host that cannot read it", async () => {
      const store = encrypted();
      const image = await publish(store, 1);
      await unreadable(join(image.directory, "criu", "pages-1.img"));
      await assert.rejects(store.use(image, noSignal), isCode("UNAVAILABLE"));
      assert.deepEqual(await readdir(clear), []);
    });

    it("stops when the restore is called off", async () => {
      const store = encrypted();
      const image = await publish(store, 1);
      const reason = new Error("called off");
      await assert.rejects(store.use(image, AbortSignal.abort(reason)), reason);
      assert.deepEqual(await readdir(clear), []);
    });

    it("needs a key and a place in memory that is one", async () => {
      assert.throws(() => storeWith({ encrypt: true }), isCode("CONFIG_INVALID"));
      assert.throws(() => storeWith({ encrypt: true, key }), isCode("CONFIG_INVALID"));
      if ((await readFile("/proc/mounts", "utf8")).includes(` ${tmpdir()} tmpfs `)) return;
      const onDisk = new PrivateMemory(join(directory, "clear"));
      await assert.rejects(encrypted({ memory: onDisk }).begin("blog", 1), isCode("CONFIG_INVALID"));
    });

    it("removes at its start what a crash left decrypted (V2)", async () => {
      await writeFile(join(await memory.make(), "pages-1.img"), secret);
      await new PrivateMemory(clear).prepare();
      assert.deepEqual(await readdir(clear), []);
    });

    describe("a sealed file (S1)", () => {
      const own = randomBytes(32);
      const paths = (): [string, string, string] => {
        const name = randomBytes(8).toString("hex");
        return [join(directory, name), join(directory, `${name}.sealed`), join(directory, `${name}.opened`)];
      };
      const seal = async (content: Buffer): Promise<[string, string]> => {
        const [plain, sealed, opened] = paths();
        await writeFile(plain, content);
        const { bytes } = await sealFile(plain, sealed, own);
        assert.equal(bytes, content.length + tagBytes * Math.max(1, Math.ceil(content.length / chunkBytes)));
        return [sealed, opened];
      };

      it("opens to what was sealed, in any size", async () => {
        const edges = [0, 1, chunkBytes - 1, chunkBytes, chunkBytes + 1, 2 * chunkBytes, 3 * chunkBytes - tagBytes];
        const size = fc.oneof(fc.constantFrom(...edges), fc.nat(3 * chunkBytes));
        await fc.assert(
          fc.asyncProperty(size, async (length) => {
            const content = randomBytes(length);
            const [sealed, opened] = await seal(content);
            await openSealedFile(sealed, opened, own, noSignal);
            assert.ok(content.equals(await readFile(opened)));
          }),
          { numRuns: 40, examples: edges.map((each): [number] => [each]) },
        );
      });

      it("does not open when it was cut, extended, or its chunks were moved, repeated or left out", async () => {
        const size = chunkBytes + tagBytes;
        const [sealed] = await seal(randomBytes(3 * chunkBytes));
        const whole = await readFile(sealed);
        const [a, b, c] = [0, 1, 2].map((n) => whole.subarray(n * size, (n + 1) * size)) as [Buffer, Buffer, Buffer];
        const wrong: readonly Buffer[][] = [[b, a, c], [a, c, b], [a, b], [a, c], [a, b, c, c], [a, a, c], [c], []];
        for (const [index, parts] of wrong.entries()) {
          const [, file, opened] = paths();
          await writeFile(file, Buffer.concat(parts));
          await assert.rejects(openSealedFile(file, opened, own, noSignal), isCode("RESTORE_FAILED"), `case ${index}`);
        }
        await fc.assert(
          fc.asyncProperty(fc.nat(whole.length - 1), async (length) => {
            const [, file, opened] = paths();
            await writeFile(file, whole.subarray(0, length));
            await assert.rejects(openSealedFile(file, opened, own, noSignal), isCode("RESTORE_FAILED"));
            await Promise.all([file, opened].map((path) => rm(path)));
          }),
          { numRuns: 30 },
        );
      });

      it("does not open with another key", async () => {
        const [sealed, opened] = await seal(Buffer.from(secret));
        await assert.rejects(openSealedFile(sealed, opened, randomBytes(32), noSignal), isCode("RESTORE_FAILED"));
        assert.equal((await stat(opened)).size, 0, "nothing is written that was not authenticated (S2)");
      });
    });
  });

  describe("on a disk that is full (D1)", () => {
    const mounted: string[] = [];

    before(function () {
      if (process.getuid?.() !== 0) this.skip();
    });
    afterEach(() => {
      for (const point of mounted.splice(0)) execFileSync("umount", ["--lazy", point]);
    });

    async function tmpfs(name: string, size: string): Promise<string> {
      const point = join(directory, name);
      await mkdir(point);
      execFileSync("mount", ["-t", "tmpfs", "-o", `size=${size},mode=0700`, "hakobu-test", point]);
      mounted.push(point);
      return point;
    }

    for (const encrypt of [false, true])
      it(`publishes nothing and harms nothing${encrypt ? ", encrypted" : ""}`, async () => {
        const shared = await tmpfs("images", "5m");
        const store = storeWith({ directory: shared, key, memory, encrypt });
        const good = await publish(store, 1);
        const draft = await store.begin("blog", 2);
        await writeFile(join(draft.directory, "layer.tar"), "small");
        const write = writeFile(join(draft.directory, "pages-1.img"), randomBytes(4 * chunkBytes));
        if (encrypt) await write;
        else await assert.rejects(write, /ENOSPC/);
        // What the dump left no room for is the manifest.
        if (!encrypt) await writeFile(join(draft.directory, "rest"), randomBytes(chunkBytes)).catch(() => {});
        await assert.rejects(draft.publish(taken(2)), isCode("CHECKPOINT_FAILED"));
        await draft.discard();
        const found = await store.find(record, fingerprint);
        assert.deepEqual(found, { image: good, skipped: [] });
        assert.equal(await store.verify(good), undefined);
        assert.deepEqual(await readdir(join(shared, "blog")), ["1"], "the room is free again");
        await publish(store, 3);
        assert.equal((await store.find(record, fingerprint)).image?.manifest.epoch, 3);
      });

    it("reads an image where not even a reference fits, and collects", async () => {
      const shared = await tmpfs("images", "5m");
      const store = storeWith({ directory: shared, key, keep: 1 });
      await publish(storeWith({ directory: shared, key }), 1);
      const image = await publish(storeWith({ directory: shared, key }), 2);
      await writeFile(join(shared, "filler"), randomBytes(4 * chunkBytes)).catch(() => {});
      const use = (await store.use(image, noSignal)) ?? assert.fail("gone");
      assert.equal(use.directory, image.directory);
      use.release();
      await store.collect();
      assert.deepEqual(await epochs(join(shared, "blog")), [2]);
      await store.close();
    });

    it("gives the suspended image to a run that cannot be noted, and to no later one", async () => {
      const shared = await tmpfs("images", "5m");
      const problems: string[] = [];
      const log = { ...noLog, warn: (_: object, message: string) => void problems.push(message) };
      const store = storeWith({ directory: shared, log });
      const draft = await store.begin("blog", 1);
      await writeFile(join(draft.directory, "pages-1.img"), secret);
      await draft.publish({ ...taken(1), tier: "suspended" });
      await writeFile(join(shared, "filler"), randomBytes(5 * chunkBytes)).catch(() => {});
      const suspends = recordOf("blog", { onIdle: "suspend" }, "hash");
      const { image } = await store.takeSuspended(suspends, fingerprint, 2);
      assert.equal(image?.manifest.epoch, 1);
      assert.deepEqual(problems, ["it could not be noted that the container runs"]);
      assert.equal((await store.takeSuspended(suspends, fingerprint, 2)).image, undefined);
      assert.deepEqual(
        (await readdir(join(shared, "blog"))).filter((name) => !name.startsWith(".taken-")),
        [],
      );
    });

    it("keeps an image for which there is no memory now", async () => {
      const small = new PrivateMemory(join(await tmpfs("clear", "1m"), "of-host"));
      const image = await publish(storeWith({ key, memory, encrypt: true }), 1);
      await assert.rejects(storeWith({ key, memory: small }).use(image, noSignal), isCode("OVERLOADED"));
      assert.deepEqual(await readdir(join(directory, "clear", "of-host")), []);
    });
  });
});

async function epochs(home: string): Promise<number[]> {
  return (await readdir(home)).filter((name) => /^\d+$/.test(name)).map(Number);
}

/** To whoever opens it, the system says no: a link to itself. */
async function unreadable(file: string): Promise<void> {
  await rm(file);
  await symlink(file, file);
}

async function until(holds: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + 5000;
  while (!(await holds())) {
    assert.ok(performance.now() < end, "it did not happen within 5 s");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
