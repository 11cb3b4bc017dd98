// Hooks, limits and the suspended tier on real parts: etcd, a proxy, two agents in network namespaces, runc and CRIU.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { readdir, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { cannotRestore, eventually, openTestCluster, type Reply, type TestCluster } from "../lab/cluster.js";

const program = fileURLToPath(new URL("../../runtime/cli/main.js", import.meta.url));

interface Answer {
  readonly count: number;
  readonly hooks: readonly { readonly name?: string; readonly url: string; readonly body?: Record<string, unknown> }[];
  readonly headers: Readonly<Record<string, string>>;
  readonly seed: string;
}

describe("a container's memory and limits", function () {
  this.timeout(90_000);
  let lab: TestCluster;
  let count = 0;

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    lab = await openTestCluster("tiers", ["a", "b"]);
  });
  after(async () => {
    await lab?.close();
  });

  const answerOf = (reply: Reply): Answer => {
    assert.equal(reply.status, 200, reply.text);
    return JSON.parse(reply.text) as Answer;
  };

  /** Placed, started cold, checkpointed. */
  async function ready(more: Partial<ContainerSpec> = {}) {
    const name = `tier-${++count}`;
    const refuse = join(lab.cluster.shared, `${name}.refuse`);
    const record = lab.journal(name, {
      command: [process.execPath, "/app/hooked.mjs"],
      ...more,
      env: { ...more.env, REFUSE: `/shared/${name}.refuse` },
    });
    await lab.cluster.apply([record]);
    const get = async () => answerOf(await lab.send(`${name}.localhost`));
    const add = async () => answerOf(await lab.send(`${name}.localhost`, { method: "POST", path: "/count" }));
    await get();
    const state = async () => {
      const owner = (await lab.cluster.owner(name)) as string;
      return (await lab.cluster.status(owner))?.containers.find((each) => each.name === name);
    };
    const stopped = () => eventually("it stops when idle", async () => (await state())?.state === "stopped");
    return { name, hostname: `${name}.localhost`, record, refuse, get, add, state, stopped };
  }

  const hooks = { beforeCheckpoint: "/hooks/before", afterRestore: "/hooks/after", timeoutMs: 5000 };

  it("calls an application's hooks around its image, and gives each restored copy another seed", async () => {
    const { get, state, stopped } = await ready({ hooks, idleTimeoutMs: 300 });
    const first = await get();
    assert.deepEqual(
      first.hooks.map(({ name, url, body }) => [name, url, body?.["reason"], body?.["seed"]]),
      [["beforeCheckpoint", "/hooks/before", "golden", undefined]],
    );
    const copies: Answer[] = [];
    for (let copy = 0; copy < 2; copy++) {
      await stopped();
      copies.push(await get());
      const now = await state();
      assert.equal(now?.how, "restored");
      const { name, body } = copies[copy]?.hooks.at(-1) ?? {};
      assert.deepEqual([name, body?.["epoch"], body?.["reason"]], ["afterRestore", now?.epoch, "golden"]);
      assert.match(String(body?.["host"]), /^tiers-[ab]$/);
      assert.match(String(body?.["seed"]), /^[0-9a-f]{64}$/);
    }
    assert.equal(copies[1]?.hooks.length, 2, "each copy comes from the same image");
    const seeds = [first.seed, ...copies.flatMap(({ seed, hooks: calls }) => [seed, calls.at(-1)?.body?.["seed"]])];
    assert.equal(new Set(seeds).size, seeds.length, "seeds are never the same");
  });

  it("starts cold when the hook after a restore fails, and tells why", async () => {
    const { name, refuse, get, state, stopped } = await ready({ hooks, idleTimeoutMs: 300 });
    await stopped();
    await writeFile(refuse, "afterRestore\n");
    assert.deepEqual(
      (await get()).hooks.map((hook) => hook.name),
      ["beforeCheckpoint"],
    );
    const now = await state();
    assert.equal(now?.how, "cold");
    const kept = await readdir(join(lab.cluster.shared, "images", name));
    assert.ok(
      kept.some((entry) => entry.startsWith(".bad-")),
      kept.join(" "),
    );
    await rm(refuse);
  });

  it("takes no image while the hook before it fails, and serves all the same", async () => {
    const name = `tier-${count + 1}`;
    await writeFile(join(lab.cluster.shared, `${name}.refuse`), "beforeCheckpoint\n");
    const { state } = await ready({ hooks });
    assert.match((await state())?.reason ?? "", /beforeCheckpoint .*500: planted/);
    const kept = await readdir(join(lab.cluster.shared, "images", name)).catch(() => []);
    assert.deepEqual(
      kept.filter((entry) => /^\d+$/.test(entry)),
      [],
    );
  });

  it("lets no client pass for a hook", async () => {
    const { hostname, get } = await ready({ hooks });
    const headers = { "hakobu-hook": "afterRestore", "Hakobu-Epoch": "99" };
    const seen = answerOf(await lab.send(hostname, { headers }));
    assert.deepEqual(
      Object.keys(seen.headers).filter((key) => key.startsWith("hakobu-")),
      [],
    );
    await lab.send(hostname, { method: "POST", path: "/hooks/after", body: "{}", headers });
    assert.equal((await get()).hooks.at(-1)?.name, undefined);
  });

  describe("suspended when idle", () => {
    const images = (name: string) => join(lab.cluster.shared, "images", name);
    const suspended = (name: string) => existsSync(join(images(name), "suspended"));
    const onIdle = "suspend";

    it("keeps what it remembers through idle times, as often as there are some", async () => {
      const { name, refuse, get, add, state, stopped } = await ready({ onIdle, idleTimeoutMs: 300, hooks });
      for (const round of [1, 2]) {
        await add();
        await stopped();
        assert.ok(suspended(name));
        const woken = await get();
        assert.equal(woken.count, round);
        assert.equal((await state())?.how, "restored");
        assert.equal(suspended(name), false, "it is used once");
        const reasons = woken.hooks.map((hook) => `${hook.name} ${String(hook.body?.["reason"])}`);
        assert.deepEqual(reasons.slice(-2), ["beforeCheckpoint suspended", "afterRestore suspended"]);
      }
      assert.equal(existsSync(`${refuse}.term`), false, "it did not notice");
      await eventually("what was used is removed", async () =>
        (await readdir(images(name))).every((entry) => !entry.startsWith(".taken-") && !entry.startsWith(".gone-")),
      );
    });

    it("keeps what it remembers through a planned move and through a drain, and no request fails", async () => {
      const { name, hostname, get, add } = await ready({ onIdle });
      await add();
      const owner = (await lab.cluster.owner(name)) as string;
      const other = lab.cluster.hosts.find((host) => host !== owner) as string;
      const statuses: number[] = [];
      let stop = false;
      const load = (async () => {
        while (!stop) statuses.push((await lab.send(hostname)).status);
      })();
      await lab.cluster.relocate(name, other);
      stop = true;
      await load;
      assert.deepEqual(new Set(statuses), new Set([200]));
      assert.equal((await add()).count, 2);
      assert.equal(await lab.cluster.owner(name), other);
      await lab.cluster.drain(other);
      await eventually("it has moved away", async () => (await lab.cluster.owner(name)) === owner);
      assert.equal((await get()).count, 2);
      await lab.cluster.undrain(other);
    });

    it("answers a request that comes during the dump, goes on running, and loses nothing of it", async () => {
      const limits = { cpus: 2, memoryMiB: 1024, pids: 128 };
      const { name, get, add, state, stopped } = await ready({
        onIdle,
        idleTimeoutMs: 1000,
        env: { FILL_MIB: "300" },
        limits,
      });
      await add();
      const pid = (await state())?.pid;
      const drafts = async () => (await readdir(images(name))).filter((entry) => entry.startsWith(".draft-"));
      await eventually("it is being imaged", async () => (await drafts()).length > 0);
      assert.equal((await add()).count, 2);
      const now = await state();
      assert.deepEqual([now?.state, now?.pid], ["running.serving", pid]);
      await eventually("the image that was begun is dropped", async () => (await drafts()).length === 0);
      assert.equal((await state())?.pid, pid);
      assert.equal(suspended(name), false);
      await stopped();
      assert.equal((await get()).count, 2);
    });

    it("begins from its golden image when the suspended one is damaged, and cold without either", async () => {
      const { name, get, add, state, stopped } = await ready({ onIdle, idleTimeoutMs: 300 });
      const damage = async (directory: string) => {
        const files = await readdir(directory, { recursive: true });
        const pages = files.find((file) => /pages-\d+\.img$/.test(file)) as string;
        await truncate(join(directory, pages), 4096);
      };
      await add();
      await stopped();
      await damage(join(images(name), "suspended"));
      assert.equal((await get()).count, 0);
      assert.equal((await state())?.how, "restored");
      await add();
      await stopped();
      await damage(join(images(name), "suspended"));
      const [golden] = (await readdir(images(name))).filter((entry) => /^\d+$/.test(entry));
      await damage(join(images(name), golden as string));
      assert.equal((await get()).count, 0);
      assert.equal((await state())?.how, "cold");
    });

    it("is not brought back twice: a host that dies takes what it remembered with it", async () => {
      const { name, get, add, stopped } = await ready({ onIdle, idleTimeoutMs: 1000 });
      await add();
      await stopped();
      assert.equal((await add()).count, 2);
      const owner = (await lab.cluster.owner(name)) as string;
      await lab.cluster.killHost(owner);
      assert.equal((await get()).count, 0);
      await lab.cluster.startAgent(owner);
    });

    it("moves with its memory when its host is shut down", async () => {
      const { name, get, add } = await ready({ onIdle });
      await add();
      const owner = (await lab.cluster.owner(name)) as string;
      await lab.cluster.stopAgent(owner);
      assert.equal((await get()).count, 1);
      assert.notEqual(await lab.cluster.owner(name), owner);
      await lab.cluster.startAgent(owner);
    });
  });

  describe("scaled", () => {
    /** Limits as the kernel has them. */
    function limitsOf(host: string, name: string): { memory: number; cpus: number } {
      const cgroup = `hakobu/${host}/${name}`;
      const read = (...files: string[]): string[] => {
        const path = files.find((file) => existsSync(file));
        assert.ok(path !== undefined, files.join(" "));
        return readFileSync(path, "utf8").trim().split(" ");
      };
      const root = "/sys/fs/cgroup";
      const [memory] = read(`${root}/memory/${cgroup}/memory.limit_in_bytes`, `${root}/${cgroup}/memory.max`);
      const [quota] = read(`${root}/cpu/${cgroup}/cpu.cfs_quota_us`, `${root}/${cgroup}/cpu.max`);
      return { memory: Number(memory), cpus: Number(quota) / 100_000 };
    }

    /** As the placement store has it. */
    async function applied(name: string): Promise<SpecRecord> {
      for await (const change of lab.cluster.store.follow(AbortSignal.timeout(5000)))
        if (change.kind === "reset") return change.specs.find(({ spec }) => spec.name === name) as SpecRecord;
      return assert.fail("the store does not answer");
    }

    async function scale(...args: string[]): Promise<{ status: number | null; text: string }> {
      const child = spawn(process.execPath, [program, "scale", ...args, "--etcd-endpoints", lab.cluster.etcd], {
        stdio: ["ignore", "pipe", "pipe"],
      });
      let text = "";
      for (const stream of [child.stdout, child.stderr])
        stream.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
      const status = await new Promise<number | null>((resolve) => child.once("close", resolve));
      return { status, text };
    }

    it("has other limits at once, in the same process, and keeps them when it is restored", async () => {
      const { name, record, get, state, stopped } = await ready({ idleTimeoutMs: 6000 });
      const before = await state();
      const host = lab.cluster.hostId((await lab.cluster.owner(name)) as string);
      assert.deepEqual(limitsOf(host, name), { memory: 256 * 2 ** 20, cpus: 1 });
      for (const [memory, cpus] of [
        [1024, 2],
        [300, 0.5],
      ] as const) {
        const { status, text } = await scale(name, "--cpu", String(cpus), "--memory", `${memory}MiB`);
        assert.equal(status, 0, text);
        assert.deepEqual(limitsOf(host, name), { memory: memory * 2 ** 20, cpus });
      }
      const now = await state();
      assert.deepEqual([now?.pid, now?.epoch], [before?.pid, before?.epoch]);
      const kept = await applied(name);
      assert.deepEqual(
        [kept.hash, kept.spec.limits],
        [record.hash, { ...record.spec.limits, cpus: 0.5, memoryMiB: 300 }],
      );
      await stopped();
      await get();
      assert.equal((await state())?.how, "restored", "the image is of use still");
      assert.deepEqual(limitsOf(host, name), { memory: 300 * 2 ** 20, cpus: 0.5 });
    });

    it("follows limits that were applied with its specification", async () => {
      const { name, record, state } = await ready();
      const before = await state();
      const host = lab.cluster.hostId((await lab.cluster.owner(name)) as string);
      const limits = { ...record.spec.limits, memoryMiB: 512 };
      await lab.cluster.apply([{ ...record, spec: { ...record.spec, limits } }]);
      await eventually("the limit changes", () => limitsOf(host, name).memory === 512 * 2 ** 20);
      assert.equal((await state())?.pid, before?.pid);
    });

    it("is refused what is less than it uses, and what is no limit; nothing changes then", async () => {
      const { name, get } = await ready();
      const host = lab.cluster.hostId((await lab.cluster.owner(name)) as string);
      const before = limitsOf(host, name);
      for (const [args, why] of [
        [["--memory", "4MiB"], /uses/],
        [["--memory", "1KiB"], /--memory: expected a size/],
        [["--cpu", "none"], /--cpu: expected a number/],
        [[], /nothing to change/],
      ] as const) {
        const { status, text } = await scale(name, ...args);
        assert.notEqual(status, 0);
        assert.match(text, why);
      }
      assert.deepEqual(limitsOf(host, name), before);
      await get();
    });
  });
});
