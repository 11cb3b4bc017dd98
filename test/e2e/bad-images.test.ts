// Images with which something is wrong, met by requests: etcd, a proxy, two agents in network namespaces, runc and CRIU. Whatever it is,
// no request fails, the reason is told, and the older image that is good stays as it was.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { cp, mkdir, mkdtemp, open, readdir, readFile, rm, statfs, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import type { Image, Manifest } from "../../actors/ports/image-store.js";
import { noLog } from "../../actors/ports/log.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { ClusterKey } from "../../runtime/images/cluster-key.js";
import { DirectoryImageStore } from "../../runtime/images/directory-store.js";
import { cannotRestore, eventually, openTestCluster, type TestCluster } from "../lab/cluster.js";

const program = fileURLToPath(new URL("../../runtime/cli/main.js", import.meta.url));
const run = promisify(execFile);
const keep = 10;

interface Row {
  readonly epoch: number;
  readonly sequence?: number;
  readonly usable: boolean;
  readonly reason?: string;
}

describe("bad images", function () {
  this.timeout(90_000);
  let lab: TestCluster;
  let key: ClusterKey;
  let keys: string;
  let count = 0;
  const mounted: string[] = [];

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    keys = await mkdtemp(join(tmpdir(), "hakobu-bad-key-"));
    const keyFile = join(keys, "images.key");
    await writeFile(keyFile, Buffer.alloc(32, 1), { mode: 0o600 });
    key = await ClusterKey.read(keyFile);
    lab = await openTestCluster("bad", ["a", "b"], { imageSettings: { keyFile, keep } });
  });
  afterEach(async () => {
    for (const host of lab?.cluster.hosts ?? []) await lab.cluster.heal(host);
  });
  after(async () => {
    await lab?.cluster.close();
    for (const directory of mounted) await run("umount", ["--lazy", directory]);
    await lab?.close();
    if (keys !== undefined) await rm(keys, { recursive: true, force: true });
  });

  const home = (name: string): string => join(lab.cluster.shared, "images", name);
  const storeWith = (own: ClusterKey) =>
    new DirectoryImageStore({ directory: join(lab.cluster.shared, "images"), log: noLog, key: own, keep });

  async function imagesOf(name: string): Promise<Image[]> {
    return (await storeWith(key).list(name)).filter((each): each is Image => "manifest" in each);
  }

  /** Placed, started cold, imaged. `at`: where its images are to lie, if that matters. */
  async function ready(more: Partial<ContainerSpec> = {}, name = `bad-${++count}`) {
    await lab.cluster.apply([lab.journal(name, more)]);
    const hostname = `${name}.localhost`;
    const reply = await lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    const [good] = await imagesOf(name);
    assert.ok(good !== undefined, "it has an image");
    const owner = (await lab.cluster.owner(name)) as string;
    const other = lab.cluster.hosts.find((host) => host !== owner) as string;
    return { name, hostname, good, owner, other };
  }

  /** The same again, as a newer image. */
  async function newer({ manifest, directory }: Image, own = key): Promise<Image> {
    const draft = await storeWith(own).begin(manifest.container, manifest.epoch);
    for (const path of Object.keys(manifest.files)) await cp(join(directory, path), join(draft.directory, path));
    const { format: _format, sequence: _sequence, files: _files, mac: _mac, ...taken } = manifest;
    return draft.publish({ ...taken, taken: new Date().toISOString() });
  }

  function fileOf({ manifest, directory }: Image, pattern: RegExp): { readonly path: string; readonly bytes: number } {
    const [path, { bytes }] = Object.entries(manifest.files).find(([each]) => pattern.test(each)) ?? assert.fail();
    return { path: join(directory, path), bytes };
  }

  async function flip({ path, bytes }: { readonly path: string; readonly bytes: number }): Promise<void> {
    const file = await open(path, "r+");
    try {
      const one = Buffer.alloc(1);
      const at = Math.floor(bytes / 2);
      await file.read(one, 0, 1, at);
      await file.write(Buffer.from([(one[0] as number) ^ 1]), 0, 1, at);
    } finally {
      await file.close();
    }
  }

  /** All but the vdso, which CRIU looks at. */
  async function emptyPages(path: string): Promise<void> {
    const page = 4096;
    const pages = await readFile(path);
    for (let at = 0; at < pages.length; at += page)
      if (pages.toString("latin1", at, at + 4) === "\x7fELF") at += page;
      else pages.fill(0, at, at + page);
    await writeFile(path, pages);
  }

  /** Signed, as if it had been taken on another machine. */
  async function takenElsewhere({ manifest, directory }: Image, machine: Readonly<Record<string, string>>) {
    const changed: Manifest = { ...manifest, fingerprint: { ...manifest.fingerprint, ...machine } };
    await writeFile(join(directory, "manifest.json"), JSON.stringify({ ...changed, mac: key.mac(changed) }));
  }

  /** Of everything in it but who reads it. */
  async function bytesOf({ directory }: Image): Promise<Record<string, string>> {
    const entries = await readdir(directory, { recursive: true, withFileTypes: true });
    const files = entries.filter((each) => each.isFile() && !each.parentPath.includes(".in-use"));
    const paths = files.map(({ parentPath, name }) => join(parentPath, name)).sort();
    const digest = async (path: string) =>
      createHash("sha256")
        .update(await readFile(path))
        .digest("hex");
    return Object.fromEntries(await Promise.all(paths.map(async (path) => [path, await digest(path)] as const)));
  }

  /** Clients that ask for it all the time, while its owner is cut off and until each has been answered by the new one. */
  async function moveUnderLoad({ name, hostname, owner, other }: Awaited<ReturnType<typeof ready>>) {
    let stop = false;
    const replies: { readonly status: number; readonly text: string }[] = [];
    const clients = [1, 2, 3].map(async () => {
      while (!stop) replies.push(await lab.send(hostname));
    });
    try {
      await eventually("the load runs", () => replies.length > 10);
      await lab.cluster.cut(owner);
      await eventually("it is elsewhere", async () => (await lab.cluster.owner(name)) === other);
      const at = replies.length;
      await eventually("the load goes on", () => replies.length > at + 10);
    } finally {
      stop = true;
      await Promise.all(clients);
    }
    assert.deepEqual(
      replies.filter(({ status }) => status !== 200),
      [],
    );
    return (await lab.cluster.moves()).findLast(({ container }) => container === name) ?? assert.fail("no move");
  }

  const logOf = (host: string): Promise<string> => readFile(join(lab.cluster.logs, `host-${host}.log`), "utf8");

  async function rowsOf(name: string, host: string): Promise<Row[]> {
    const config = join(lab.directory, `host-${host}.yaml`);
    const { stdout } = await run(process.execPath, [program, "images", name, "--json", "--config", config]);
    return JSON.parse(stdout) as Row[];
  }

  /** The owner's log has it, and `hakobu images` there. */
  async function tells(name: string, host: string, reason: RegExp): Promise<void> {
    const told = (await logOf(host)).split("\n").filter((line) => line.includes(`"${name}"`));
    assert.ok(
      told.some((line) => reason.test(line)),
      told.join("\n"),
    );
    const row = (await rowsOf(name, host)).find((each) => !each.usable);
    assert.match(row?.reason ?? "", reason);
  }

  describe("beside an older one that is good", () => {
    const cases: [string, (image: Image) => Promise<unknown>, RegExp][] = [
      [
        "pages that are cut off",
        async (image) => {
          const { path, bytes } = fileOf(image, /pages-\d+\.img$/);
          await truncate(path, Math.floor(bytes / 2));
        },
        /pages-\d+\.img has \d+ bytes instead of \d+/,
      ],
      [
        "a flipped bit in one of CRIU's small files",
        (image) => flip(fileOf(image, /core-\d+\.img$/)),
        /core-\d+\.img has changed: its SHA-256 is another one/,
      ],
      ["a file that is missing", (image) => rm(fileOf(image, /pstree\.img$/).path), /pstree\.img is missing/],
      [
        "CPU features of another machine",
        (image) => takenElsewhere(image, { cpu: `${image.manifest.fingerprint["cpu"]} avx9000` }),
        /cpu differs: the image needs avx9000, which this host does not have/,
      ],
      [
        "another CRIU",
        (image) => takenElsewhere(image, { criu: "0123456789abcdef" }),
        /criu differs: the image has 0123456789abcdef/,
      ],
    ];
    for (const [what, damage, reason] of cases)
      it(`are passed over for ${what}, and no request fails`, async () => {
        const it = await ready();
        const before = await bytesOf(it.good);
        await damage(await newer(it.good));
        const move = await moveUnderLoad(it);
        assert.deepEqual([move.how, move.image], ["restored", it.good.directory], move.note);
        await tells(it.name, it.other, reason);
        assert.deepEqual(await bytesOf(it.good), before);
      });

    it("are passed over for the MAC of another key, and no request fails", async () => {
      const it = await ready();
      const before = await bytesOf(it.good);
      await newer(it.good, new ClusterKey(Buffer.alloc(32, 2)));
      const move = await moveUnderLoad(it);
      assert.deepEqual([move.how, move.image], ["restored", it.good.directory], move.note);
      await tells(it.name, it.other, /not made with this cluster's key/);
      assert.deepEqual(await bytesOf(it.good), before);
    });

    it("answer from a flipped bit in their pages at worst, until it is found behind the restore", async () => {
      // Most of its memory is of no use, so that the bit is there, and the copy lives.
      const it = await ready({ command: [process.execPath, "/app/hooked.mjs"], env: { FILL_MIB: "24" } });
      const before = await bytesOf(it.good);
      await flip(fileOf(await newer(it.good), /pages-\d+\.img$/));
      await moveUnderLoad(it);
      await eventually("it is set aside", async () => (await imagesOf(it.name)).length === 1, 30_000);
      await tells(it.name, it.other, /pages-\d+\.img has changed: its SHA-256 is another one \(seen by/);
      process.kill(lab.cluster.running(it.other).get(it.name) as number, "SIGKILL");
      const reply = await lab.send(it.hostname);
      assert.equal(reply.status, 200, reply.text);
      assert.deepEqual(await bytesOf(it.good), before);
    });

    it("are set aside when their copy dies at once, and the requests that waited for it are answered", async () => {
      const it = await ready();
      const before = await bytesOf(it.good);
      await emptyPages(fileOf(await newer(it.good), /pages-\d+\.img$/).path);
      await moveUnderLoad(it);
      await tells(
        it.name,
        it.other,
        /its first process ended at once|the restored copy died before it answered a request/,
      );
      assert.deepEqual(await bytesOf(it.good), before);
    });
  });

  it("cost one cold start where there is no older one, and are replaced", async () => {
    const it = await ready();
    await takenElsewhere(it.good, { cpu: "AnotherVendor fpu" });
    const move = await moveUnderLoad(it);
    assert.equal(move.how, "cold");
    assert.match(move.note ?? "", /cpu differs: the image has AnotherVendor/);
    await tells(it.name, it.other, /cpu differs: the image has AnotherVendor/);
    const [usable] = (await rowsOf(it.name, it.other)).filter((row) => row.usable);
    assert.ok((usable?.epoch ?? 0) > it.good.manifest.epoch, "a new one");
  });

  it("do not come of a full disk: the older one stays, and no request fails", async () => {
    const name = `bad-${++count}`;
    const MiB = 2 ** 20;
    await mkdir(home(name), { recursive: true });
    await run("mount", ["-t", "tmpfs", "-o", "size=512m,mode=700", "tmpfs", home(name)]);
    mounted.push(home(name));
    const it = await ready({}, name);
    const before = await bytesOf(it.good);
    const { blocks, bfree, bsize } = await statfs(home(name));
    const usedMiB = Math.ceil(((blocks - bfree) * bsize) / MiB);
    await run("mount", ["-o", `remount,size=${usedMiB + 2}m`, home(name)]);
    await lab.cluster.apply([lab.journal(name, { env: { CHANGED: "1" } })]);
    await eventually("no image of what changed could be written", async () => {
      assert.equal((await lab.send(it.hostname)).status, 200);
      return /no room is left/.test(await logOf(it.owner));
    });
    const move = await moveUnderLoad(it);
    assert.equal(move.how, "cold");
    assert.match(await logOf(it.other), /no room is left/);
    assert.deepEqual(await bytesOf(it.good), before);
    assert.deepEqual(await readdir(home(name)), [String(it.good.manifest.epoch)], "no draft is left");
  });
});
