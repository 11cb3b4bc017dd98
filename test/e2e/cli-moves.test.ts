// The commands relocate, drain, undrain and images as a user runs them: what they print, how they end, and that it is true.
// (scale: tiers.test.ts.)
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findProgram } from "../../runtime/doctor/criu-binary.js";
import { type EtcdServer, startEtcd } from "../../runtime/placement/etcd-server.js";
import { cannotRestore, eventually, fixtures, openTestCluster, send, type TestCluster } from "../lab/cluster.js";
import { hakobu, type Members, startMembers } from "../lab/program.js";

interface Row {
  readonly name: string;
  readonly host: string;
  readonly state: string;
  readonly epoch: number;
}

async function rows(env: NodeJS.ProcessEnv): Promise<ReadonlyMap<string, Row>> {
  const { code, out, err } = await hakobu(["get", "--json"], env);
  assert.equal(code, 0, err);
  return new Map((JSON.parse(out) as Row[]).map((row) => [row.name, row]));
}

describe("the commands that move containers", function () {
  this.timeout(120_000);
  const names = ["one", "two"];
  let directory: string;
  let etcd: EtcdServer;
  let members: Members;
  let env: NodeJS.ProcessEnv;

  const hostOf = async (name: string): Promise<string> => (await rows(env)).get(name)?.host ?? "";

  before(async function () {
    if (findProgram("etcd") === undefined) {
      console.log("      skipped: needs etcd");
      this.skip();
    }
    directory = await mkdtemp(join(tmpdir(), "hakobu-moves-"));
    etcd = await startEtcd({ dataDir: join(directory, "etcd") });
    env = { HAKOBU_ETCD_ENDPOINTS: etcd.endpoints[0] };
    members = await startMembers(["a", "b"], directory, env);
    const command = JSON.stringify([process.execPath, join(fixtures, "journal.mjs")]);
    const documents = names.map((name) =>
      // A confirmed one ends on its old host before it starts on the next.
      [`name: ${name}`, "engine: process", "port: 80", `command: ${command}`, "takeover: confirmed", ""].join("\n"),
    );
    const file = join(directory, "applications.yaml");
    await writeFile(file, documents.join("---\n"));
    const applied = await hakobu(["apply", "-f", file], env);
    assert.equal(applied.code, 0, applied.err);
    for (const name of names)
      await eventually(
        `${name} is served`,
        async () => (await send(members.proxy, `${name}.localhost`)).status === 200,
      );
  });
  after(async () => {
    await members?.close();
    await etcd?.stop();
    if (directory !== undefined) await rm(directory, { recursive: true, force: true });
  });

  it("relocates a container, shows each step once in a log, and says where it serves now", async () => {
    const from = await hostOf("one");
    const to = from === "a" ? "b" : "a";
    let sent = false;
    const slow = send(members.proxy, "one.localhost", { path: "/?ms=3000", sent: () => (sent = true) });
    await eventually("a request is being answered", () => sent);
    const { code, out, err } = await hakobu(["relocate", "one", "--to", to], env);
    assert.equal(code, 0, err);
    const moved = new RegExp(`^one moved from ${from} to ${to} in \\d+ ms \\(epoch (\\d+), started cold.*\\)\\n$`).exec(
      out,
    );
    assert.ok(moved !== null, out);
    const steps = err.trimEnd().split("\n");
    assert.deepEqual(steps.slice(0, 2), [`one: ${from} asks ${to}`, `one: draining requests on ${from} (1 in flight)`]);
    assert.ok(steps.includes(`one: claimed by ${to} (epoch ${moved[1]})`), err);
    assert.ok(steps.includes(`one: starting cold on ${to}`), err);
    assert.equal(new Set(steps).size, steps.length, err);
    assert.equal((await slow).status, 200, "what was being answered was answered");
    const row = (await rows(env)).get("one");
    assert.deepEqual([row?.host, row?.epoch, row?.state], [to, Number(moved[1]), "running.serving"]);
    assert.equal((await send(members.proxy, "one.localhost")).status, 200);
  });

  it("refuses to relocate what is on no host, to where it is, and to a host that nobody knows", async () => {
    const unplaced = await hakobu(["relocate", "nothing"], env);
    assert.deepEqual([unplaced.code, unplaced.out], [2, ""]);
    assert.match(unplaced.err, /^hakobu: nothing is on no host; see: hakobu get\n$/);
    const host = await hostOf("one");
    for (const [to, why] of [
      [host, /is on host . already/],
      ["z", /no host z has joined; see: hakobu get hosts/],
    ] as const) {
      const { code, out, err } = await hakobu(["relocate", "one", "--to", to], env);
      assert.deepEqual([code, out], [1, ""]);
      assert.match(err, why);
    }
    assert.equal(await hostOf("one"), host);
  });

  it("drains a host, which takes nothing until it is undrained, and names what nobody took", async () => {
    const drained = await hakobu(["drain", "a"], env);
    assert.deepEqual(
      [drained.code, drained.out],
      [0, "a is empty and takes no containers. To take it back: hakobu undrain a\n"],
      drained.err,
    );
    for (const name of names) {
      assert.equal(await hostOf(name), "b");
      assert.equal((await send(members.proxy, `${name}.localhost`)).status, 200);
    }
    assert.match((await hakobu(["get", "hosts"], env)).out, /^a .*draining/m);
    const refused = await hakobu(["relocate", "one", "--to", "a"], env);
    assert.deepEqual([refused.code, refused.out], [1, ""]);
    assert.match(refused.err, /one stays where it is: host a drains/);
    assert.equal((await rows(env)).get("one")?.state, "running.serving", "nothing was stopped for it");
    const last = await hakobu(["drain", "b"], env);
    assert.deepEqual([last.code, last.out], [1, ""]);
    assert.match(last.err, /^hakobu: nobody took (one, two|two, one) from b: see its log/m);
    for (const name of names) assert.equal(await hostOf(name), "b", "what nobody took stays");
    for (const host of ["a", "b"]) {
      const undrained = await hakobu(["undrain", host], env);
      assert.deepEqual([undrained.code, undrained.out], [0, `${host} takes containers again\n`], undrained.err);
    }
    await eventually("both are served", async () =>
      (await Promise.all(names.map((name) => send(members.proxy, `${name}.localhost`)))).every(
        ({ status }) => status === 200,
      ),
    );
    const back = await hakobu(["relocate", "one", "--to", (await hostOf("one")) === "a" ? "b" : "a"], env);
    assert.equal(back.code, 0, back.err);
  });
});

describe("the commands on containers with images", function () {
  this.timeout(120_000);
  let lab: TestCluster;
  let env: NodeJS.ProcessEnv;

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    lab = await openTestCluster("commands", ["a", "b"]);
    env = {
      HAKOBU_ETCD_ENDPOINTS: lab.cluster.etcd,
      HAKOBU_HOST_ID: lab.cluster.hostId("a"),
      HAKOBU_HOST_IMAGES: join(lab.cluster.shared, "images"),
    };
  });
  after(async () => {
    await lab?.close();
  });

  it("relocates a container with its memory: its last image is a step, and it is restored on the other host", async () => {
    const { cluster } = lab;
    await cluster.apply([lab.journal("keeps", { onIdle: "suspend" })]);
    assert.equal((await lab.send("keeps.localhost", { method: "POST" })).status, 200);
    const from = (await cluster.owner("keeps")) as string;
    const to = from === "a" ? "b" : "a";
    const { code, out, err } = await hakobu(["relocate", "keeps", "--to", cluster.hostId(to)], env);
    assert.equal(code, 0, err);
    assert.match(
      out,
      new RegExp(`^keeps moved from commands-${from} to commands-${to} in \\d+ ms .*, restored\\)\\n$`),
    );
    assert.match(err, new RegExp(`^keeps: taking the last image on commands-${from}$`, "m"));
    assert.match(err, new RegExp(`^keeps: claimed by commands-${to} \\(epoch \\d+\\)$`, "m"));
    const { count } = JSON.parse((await lab.send("keeps.localhost")).text) as { count: number };
    assert.equal(count, 1, "it remembers");
    assert.equal(await cluster.owner("keeps"), to);
  });

  it("lists the image of a container, that this machine can use it, and every byte of it on request", async () => {
    await lab.cluster.apply([lab.journal("pictured")]);
    assert.equal((await lab.send("pictured.localhost")).status, 200);
    const list = await eventually("there is an image", async () => {
      const result = await hakobu(["images", "pictured"], env);
      assert.deepEqual([result.code, result.err], [0, ""]);
      return !result.out.startsWith("No images in") && result.out;
    });
    assert.match(list, /^CONTAINER .*USABLE HERE/);
    assert.match(list, /^pictured +\d+ +golden +\d+s +\d+\.\d MiB +warm +[0-9a-f]{12} +yes *$/m);
    const verified = await hakobu(["images", "pictured", "--verify", "--json"], env);
    assert.equal(verified.code, 0, verified.err);
    // What its host says: why it did not start from an image.
    assert.match((await hakobu(["get"], env)).out, /^NAME .* NOTE *$[^]*^pictured .* there is no image yet *$/m);
    const [image] = JSON.parse(verified.out) as { usable: boolean; damaged: boolean }[];
    assert.deepEqual([image?.usable, image?.damaged], [true, false]);
  });
});
