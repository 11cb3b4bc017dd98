// Images that are taken again while requests go on, on a cluster of two agents in network namespaces, with runc and CRIU.
import assert from "node:assert/strict";
import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Manifest } from "../../actors/ports/image-store.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { specRecord } from "../../runtime/config/spec.js";
import { cannotRestore, eventually, openTestCluster, type TestCluster } from "../lab/cluster.js";
import { specOf } from "../lab/records.js";

interface Answer {
  readonly count: number;
  readonly served: number;
  readonly content: string;
  readonly hooks: readonly { readonly name: string }[];
}

/** Two looks, and a refresh. */
const refreshLimitMs = 45_000;

describe("images that stay fresh", function () {
  this.timeout(120_000);
  let lab: TestCluster;
  let count = 0;

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    lab = await openTestCluster("fresh", ["a", "b"]);
  });
  after(async () => {
    await lab?.close();
  });

  /** Placed, started cold, imaged; with a file that it reads when it starts. */
  async function ready(more: Partial<ContainerSpec> = {}) {
    const name = `fresh-${++count}`;
    const hostname = `${name}.localhost`;
    const content = join(lab.cluster.shared, `${name}.content`);
    const refuse = join(lab.cluster.shared, `${name}.refuse`);
    const images = join(lab.cluster.shared, "images", name);
    await writeFile(content, "one");
    const spec = lab.journal(name, {
      command: [process.execPath, "/app/hooked.mjs"],
      hooks: { beforeCheckpoint: "/hooks/before", timeoutMs: 5000 },
      checkpoint: { ...specOf(name).checkpoint, refresh: { paths: [content] } },
      ...more,
      env: { CONTENT: `/shared/${name}.content`, REFUSE: `/shared/${name}.refuse`, ...more.env },
    }).spec;
    await lab.cluster.apply([specRecord(spec)]);
    const ask = async (method = "GET", path = "/"): Promise<Answer> => {
      const reply = await lab.send(hostname, { method, path });
      assert.equal(reply.status, 200, reply.text);
      return JSON.parse(reply.text) as Answer;
    };
    await ask();
    const state = async () => {
      const owner = (await lab.cluster.owner(name)) as string;
      return (await lab.cluster.status(owner))?.containers.find((each) => each.name === name);
    };
    const names = async () => (await readdir(images).catch(() => [])).filter((each) => /^\d/.test(each));
    const [first = ""] = await names();
    const refreshed = (n = 1) =>
      eventually(`image ${first}.${n}`, async () => (await names()).includes(`${first}.${n}`), refreshLimitMs);
    const elsewhere = async () => {
      const owner = (await lab.cluster.owner(name)) as string;
      await lab.cluster.relocate(name, lab.cluster.hosts.find((host) => host !== owner) as string);
    };
    /** Requests one after the other, until it is ended. @returns every status but 200, and how many there were */
    const load = () => {
      const failed: string[] = [];
      let sent = 0;
      let stop = false;
      const running = (async () => {
        for (; !stop; sent++) {
          const { status, text } = await lab.send(hostname);
          if (status !== 200) failed.push(`${status}: ${text}`);
        }
      })();
      return async () => {
        stop = true;
        await running;
        return { failed, sent };
      };
    };
    return { name, spec, content, refuse, images, first, ask, state, names, refreshed, elsewhere, load };
  }

  it("hold what changed on the shared directory, and nothing of what users did, and no request fails", async () => {
    const app = await ready();
    for (let n = 0; n < 20; n++) await app.ask("POST", "/count");
    const before = await app.state();
    const end = app.load();
    await writeFile(app.content, "two!");
    const begunMs = performance.now();
    await app.refreshed();
    console.log(`      from the change to the new image: ${Math.round(performance.now() - begunMs)} ms`);
    const still = await app.ask();
    assert.deepEqual([still.content, still.count], ["one", 20], "who runs goes on as it was");
    const now = await app.state();
    assert.deepEqual([now?.pid, now?.epoch, now?.imageTrouble], [before?.pid, before?.epoch, undefined]);
    await app.elsewhere();
    const { failed, sent } = await end();
    assert.deepEqual(failed, [], `of ${sent}`);
    console.log(`      requests meanwhile: ${sent}, failed: ${failed.length}`);
    const moved = await app.ask();
    assert.equal(moved.content, "two!");
    assert.equal(moved.count, 0);
    assert.equal((await app.state())?.how, "restored");
    assert.deepEqual(
      moved.hooks.map(({ name }) => name),
      ["beforeCheckpoint"],
    );
  });

  it("have seen the warm-up and no other request", async () => {
    const app = await ready();
    const end = app.load();
    await writeFile(app.content, "two!");
    await app.refreshed();
    await end();
    const manifest = JSON.parse(
      await readFile(join(app.images, `${app.first}.1`, "manifest.json"), "utf8"),
    ) as Manifest;
    assert.equal(manifest.sequence, 1);
    await app.elsewhere();
    const copy = await app.ask();
    assert.deepEqual([copy.content, copy.served], ["two!", 2], "the warm-up, and this request");
  });

  it("tell why they could not be taken; the old one serves", async () => {
    const app = await ready();
    await writeFile(app.refuse, "beforeCheckpoint");
    await writeFile(app.content, "two!");
    const trouble = await eventually("it fails", async () => (await app.state())?.imageTrouble, refreshLimitMs);
    assert.match(trouble, /could not be refreshed \(1\).*beforeCheckpoint.*500: planted/);
    assert.deepEqual(await app.names(), [app.first]);
    await rm(app.refuse);
    await app.elsewhere();
    assert.equal((await app.ask()).content, "one");
    assert.equal((await app.state())?.how, "restored");
  });

  it("are there before a changed specification is followed: its next copy is restored, not started cold", async () => {
    const app = await ready();
    const pid = (await app.state())?.pid;
    const spec = { ...app.spec, env: { ...app.spec.env, CONTENT: "/shared/other.content" } };
    await writeFile(join(lab.cluster.shared, "other.content"), "another");
    await lab.cluster.apply([specRecord(spec)]);
    await app.refreshed();
    await eventually("it follows", async () => (await app.state())?.pid !== pid);
    assert.equal((await app.ask()).content, "another");
    assert.equal((await app.state())?.how, "restored");
  });

  it("are not waited for by a host that drains while one is taken: it moves, and nothing is left", async () => {
    // Its shadow waits a minute for the answer of this hook.
    const app = await ready({ hooks: { beforeCheckpoint: "/hooks/before", timeoutMs: 60_000 } });
    const owner = (await lab.cluster.owner(app.name)) as string;
    const state = join(lab.cluster.stateDir(owner), "runc");
    const shadows = async () => (await readdir(state)).filter((each) => each.endsWith(".shadow"));
    await writeFile(app.refuse, "silence");
    await writeFile(app.content, "two!");
    await eventually("a shadow is there", async () => (await shadows()).length > 0, refreshLimitMs);
    const begunMs = performance.now();
    await lab.cluster.drain(owner);
    await eventually("it has moved", async () => (await lab.cluster.owner(app.name)) !== owner);
    await eventually("no shadow is left", async () => (await shadows()).length === 0);
    assert.ok(performance.now() - begunMs < 20_000);
    assert.deepEqual(await app.names(), [app.first], "no image of it was published");
    assert.equal((await app.ask()).count, 0);
    assert.equal((await app.state())?.how, "restored");
    await lab.cluster.undrain(owner);
    await rm(app.refuse);
  });
});
