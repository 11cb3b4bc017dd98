// A host dies with many containers, and all of them are asked for at once: they come back from their images, and no more of them at the
// same time than the host that takes them over allows (host.startsAtOnce). bench/storm.ts measures it with more.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { cannotRestore, eventually, openTestCluster, type TestCluster } from "../lab/cluster.js";

const startsAtOnce = 2;
const containers = Array.from({ length: 12 }, (_, index) => `many-${index + 1}`);
const warmUpWidth = 4;
const lookEveryMs = 5;

describe("a host that dies with many containers", function () {
  this.timeout(120_000);
  let lab: TestCluster;

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    lab = await openTestCluster("many", ["a", "b"], { ttlSeconds: 4, hostSettings: { startsAtOnce } });
    await lab.cluster.apply(
      containers.map((name) => lab.journal(name, { limits: { cpus: 1, memoryMiB: 96, pids: 32 } })),
    );
    const left = [...containers];
    const next = async (): Promise<void> => {
      for (let name = left.pop(); name !== undefined; name = left.pop()) {
        const reply = await lab.send(`${name}.localhost`);
        assert.equal(reply.status, 200, reply.text);
        if ((await lab.cluster.owner(name)) !== "a") await lab.cluster.relocate(name, "a");
      }
    };
    await Promise.all(Array.from({ length: warmUpWidth }, next));
    await eventually("all run on host a, and nothing on host b", async () => {
      const [a, b] = await Promise.all(["a", "b"].map((host) => lab.cluster.status(host)));
      return a?.containers.length === containers.length && b?.containers.length === 0;
    });
  });
  after(() => lab?.close());

  it("has all of them answered from their images, with never more restores at once than are allowed", async () => {
    const images = join(lab.cluster.shared, "images");
    const watch = new Watch(() => restoring(images));
    await lab.cluster.killHost("a");
    const replies = await Promise.all(containers.map((name) => lab.send(`${name}.localhost`)));
    watch.end();
    assert.deepEqual(
      replies.filter(({ status }) => status !== 200).map(({ status, text }) => `${status} ${text}`),
      [],
    );
    const hosts = new Set(replies.map(({ text }) => (JSON.parse(text) as { host: string }).host));
    assert.deepEqual([...hosts], [lab.cluster.hostId("b")]);
    const status = await lab.cluster.status("b");
    const how = Object.fromEntries((status?.containers ?? []).map((each) => [each.name, each.how]));
    assert.deepEqual(how, Object.fromEntries(containers.map((name) => [name, "restored"])));
    assert.ok(watch.seen.size > containers.length / 2, `the looks saw ${[...watch.seen].join(", ")}`);
    assert.ok(watch.most <= startsAtOnce, `${watch.most} restores at once`);
  });
});

/** Looks again and again, and keeps the most that it saw at once. */
class Watch {
  readonly seen = new Set<string>();
  most = 0;
  readonly #timer: ReturnType<typeof setInterval>;

  constructor(look: () => ReadonlySet<string>) {
    this.#timer = setInterval(() => {
      const found = look();
      for (const each of found) this.seen.add(each);
      this.most = Math.max(this.most, found.size);
    }, lookEveryMs);
  }

  end(): void {
    clearInterval(this.#timer);
  }
}

/** Containers that CRIU restores from those images at this moment. It has several processes for each. */
function restoring(images: string): ReadonlySet<string> {
  const found = new Set<string>();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name)))
    try {
      const [program = "", ...args] = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
      const from = args[args.indexOf("-D") + 1] ?? "";
      if (program.endsWith("criu") && args[0] === "restore" && from.startsWith(`${images}/`))
        found.add(from.slice(images.length + 1).split("/")[0] as string);
    } catch {
      // It has ended meanwhile.
    }
  return found;
}
