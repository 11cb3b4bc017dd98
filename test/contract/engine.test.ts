import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, opendir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Engine, Instance } from "../../actors/ports/engine.js";
import { canRestore, examine, missingToRestore } from "../../runtime/doctor/doctor.js";
import { ProcessEngine } from "../../runtime/engines/process.js";
import { RuncEngine } from "../../runtime/engines/runc/engine.js";
import { namesOf } from "../../runtime/engines/runc/names.js";
import { eventually } from "../lab/cluster.js";
import { codeIs, counterSpec, engineContract, get, launchOf, limit, whenListening } from "./engine.js";

const log = { debug() {}, info() {}, warn() {}, error() {} };
const stateDir = await mkdtemp(join(tmpdir(), "hakobu-engines-"));
const stateOf = (hostId: string): string => join(stateDir, hostId);

after(async () => {
  assert.deepEqual(await machineResources([stateDir]), []);
  await rm(stateDir, { recursive: true, force: true });
});

engineContract("process", {
  engine: (hostId) => new ProcessEngine({ hostId, stateDir: stateOf(hostId), log }),
  resources: () => Promise.resolve([]),
  missing: () => Promise.resolve(undefined),
});

engineContract("runc", {
  engine: (hostId) => new RuncEngine({ hostId, stateDir: stateOf(hostId), log }),
  resources: (hostIds) => machineResources([...hostIds, ...hostIds.map(stateOf)]),
  missing,
});

describe("engine process, beyond the contract", () => {
  const engine = new ProcessEngine({ hostId: "h", stateDir: stateOf("h"), log });

  it("refuses what a child process cannot be given, with the reason", async () => {
    const spec = counterSpec(engine, "refused");
    const elsewhere = { source: "/usr", target: "/other", readOnly: true };
    for (const [more, why] of [
      [{ rootfs: "/srv/image" }, /root file system/],
      [{ mounts: [elsewhere] }, /mounts/],
    ] as const)
      await assert.rejects(engine.start(launchOf({ ...spec, ...more }), limit()), (error: Error) => {
        assert.match(error.message, why);
        return codeIs("START_FAILED")(error);
      });
  });

  it("gives containers loopback addresses of their own, other ones on other hosts", async () => {
    const addresses = new Set<string>();
    for (const hostId of ["h", "i"]) {
      const each = new ProcessEngine({ hostId, stateDir: stateOf(hostId), log });
      const { instance } = await each.start(launchOf(counterSpec(each, "same")), limit());
      await each.stop(instance, 0);
      assert.match(instance.address, /^127\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.\d+\.\d+$/);
      addresses.add(instance.address);
    }
    assert.equal(addresses.size, 2);
  });
});

describe("engine runc, beyond the contract", function () {
  this.timeout(30_000);
  const hostId = `x${process.pid}`;
  let engine: RuncEngine;
  let images: string;

  before(async function () {
    const why = await missing();
    if (why !== undefined) {
      process.stdout.write(`    skipped: the runc engine ${why}\n`);
      this.skip();
    }
    engine = new RuncEngine({ hostId, stateDir: stateOf(hostId), log });
    images = await mkdtemp(join(tmpdir(), "hakobu-images-"));
  });

  afterEach(async () => {
    for (const instance of await engine.find()) await engine.stop(instance, 0);
    assert.deepEqual(await machineResources([hostId]), []);
  });

  after(async () => {
    if (images !== undefined) await rm(images, { recursive: true, force: true });
  });

  async function bothWays(name: string, look: (instance: Instance, engine: Engine) => Promise<void>): Promise<void> {
    const spec = counterSpec(engine, name, { limits: { cpus: 0.5, memoryMiB: 200, pids: 50 } });
    const image = await mkdtemp(join(images, "image-"));
    const { instance } = await engine.start(launchOf(spec), limit());
    await whenListening(engine, instance);
    await look(instance, engine);
    await engine.checkpoint(instance, spec, image, limit());
    await engine.stop(instance, 0);
    const restored = await engine.restore(launchOf(spec), image, limit());
    await look(restored.instance, engine);
    await engine.stop(restored.instance, 0);
  }

  it("is not kept from removing a container by somebody who is looking into its files", async () => {
    const { instance } = await engine.start(launchOf(counterSpec(engine, "watched")), limit());
    await whenListening(engine, instance);
    const within = await opendir(namesOf(hostId, join(stateOf(hostId), "runc"), "watched").root);
    try {
      await engine.stop(instance, 0);
      assert.deepEqual(await machineResources([hostId, stateOf(hostId)]), []);
      assert.notEqual(await within.read(), null);
    } finally {
      await within.close();
    }
  });

  it("keeps to the limits of the specification, cold started and restored (G1)", async () => {
    await bothWays("limits", async ({ pid, container }) => {
      const { cgroup } = namesOf(hostId, join(stateOf(hostId), "runc"), container);
      const unified = existsSync("/sys/fs/cgroup/cgroup.controllers");
      const value = (controller: string, file: string): string =>
        readFileSync(join("/sys/fs/cgroup", unified ? "" : controller, cgroup, file), "utf8").trim();
      const found = unified
        ? [value("", "memory.max"), value("", "cpu.max"), value("", "pids.max")]
        : [
            value("memory", "memory.limit_in_bytes"),
            `${value("cpu", "cpu.cfs_quota_us")} ${value("cpu", "cpu.cfs_period_us")}`,
            value("pids", "pids.max"),
          ];
      assert.deepEqual(found, [String(200 * 1024 * 1024), "50000 100000", "50"]);
      const groups = readFileSync(`/proc/${pid}/cgroup`, "utf8");
      for (const controller of unified ? [""] : ["cpu", "memory", "pids"])
        assert.match(groups, new RegExp(`:${controller}:/${cgroup}$`, "m"));
    });
  });

  it("confines the container, cold started and restored (O1, F2)", async () => {
    const secret = join(stateOf(hostId), "secret");
    await bothWays("confined", async (instance) => {
      writeFileSync(secret, "secret");
      const status = readFileSync(`/proc/${instance.pid}/status`, "utf8");
      assert.match(status, /^NoNewPrivs:\t1$/m);
      assert.match(status, /^Seccomp:\t2$/m);
      // SYS_ADMIN, SYS_PTRACE, NET_ADMIN, MKNOD, NET_RAW are none of its own.
      const bounding = BigInt(`0x${/^CapBnd:\t([0-9a-f]+)$/m.exec(status)?.[1]}`);
      for (const capability of [21n, 19n, 12n, 27n, 13n]) assert.equal((bounding >> capability) & 1n, 0n);
      const read = (path: string): Promise<string> => get(instance, `/read?path=${path}`);
      assert.match(await read("/etc/passwd"), /^root:/);
      await assert.rejects(read("/etc/shadow"), /ENOENT/);
      await assert.rejects(read(secret), /ENOENT/);
      await assert.rejects(get(instance, "/write?path=/proc/sys/kernel/hostname&text=x"), /EROFS/);
      if (existsSync("/proc/sysrq-trigger"))
        await assert.rejects(get(instance, "/write?path=/proc/sysrq-trigger&text=x"), /EROFS/);
      await assert.rejects(
        get(instance, `/write?path=${counterSpec(engine, "any").mounts[0]?.source}/x&text=x`),
        /EROFS/,
      );
      assert.equal(await read("/proc/keys"), "");
    });
  });

  it("keeps what a container writes out of the host's own files (F1)", async () => {
    await bothWays("writer", async (instance) => {
      assert.equal(await get(instance, "/write?path=/etc/hakobu-test&text=inside"), "written");
      assert.equal(await get(instance, "/read?path=/etc/hakobu-test"), "inside");
      assert.equal(existsSync("/etc/hakobu-test"), false);
    });
  });

  it("removes what a killed agent left half made (E2)", async () => {
    const spec = counterSpec(engine, "half");
    const { instance } = await engine.start(launchOf(spec), limit());
    const { directory } = namesOf(hostId, join(stateOf(hostId), "runc"), "half");
    await rm(join(directory, "instance.json"));
    const again = new RuncEngine({ hostId, stateDir: stateOf(hostId), log });
    assert.deepEqual(await again.find(), []);
    assert.equal(engine.alive(instance), false);
    assert.deepEqual(await machineResources([hostId]), []);
  });

  it("goes on with the clocks of the image, as often as it is restored, and fires no timer early", async function () {
    if (!existsSync("/proc/self/ns/time")) return this.skip();
    const spec = counterSpec(engine, "clocks");
    const started = (await engine.start(launchOf(spec), limit())).instance;
    await whenListening(engine, started);
    const [timers, fromMs, everyMs] = [20, 2000, 100];
    await get(started, `/timers?count=${timers}&from=${fromMs}&every=${everyMs}`);

    /** Imaged, gone for so long, restored: compares its clocks with ours. */
    const awayFor = async (instance: Instance, leastMs: number): Promise<Instance> => {
      const image = await mkdtemp(join(images, "image-"));
      const before = await clocksOf(instance);
      await engine.checkpoint(instance, spec, image, limit());
      await engine.stop(instance, 0);
      const goneMs = performance.now();
      await eventually("it was gone long enough", () => performance.now() > goneMs + leastMs);
      const awayMs = performance.now() - goneMs;
      const restored = (await engine.restore(launchOf(spec), image, limit())).instance;
      const after = await clocksOf(restored);
      const ranMs = after.askedMs - before.askedMs - awayMs;
      for (const clock of ["monotonicMs", "performanceMs", "uptimeMs"] as const) {
        const wentMs = after[clock] - before[clock];
        assert.ok(wentMs >= 0 && wentMs < ranMs + 100, `${clock} went ${wentMs} ms in the ${ranMs} ms that it ran`);
      }
      assert.ok(after.wallMs - before.wallMs > awayMs, "the time of day goes on");
      assert.ok(
        Math.abs(after.wallMs - after.trueMs) < 1000,
        `the time of day is ${after.wallMs - after.trueMs} ms off`,
      );
      return restored;
    };
    const once = await awayFor(started, fromMs + (timers + 1) * everyMs);
    const { fired } = await eventually("all timers have fired", async () => {
      const now = await clocksOf(once);
      return now.fired.length === timers && now;
    });
    for (const { dueMs, atMs } of fired) assert.ok(atMs > dueMs - 5, `one was ${dueMs - atMs} ms early`);
    await engine.stop(await awayFor(once, 500), 0);
  });

  it("images a container whose mount has a symbolic link in its target", async () => {
    const spec = counterSpec(engine, "linked");
    const mounts = [...spec.mounts, { source: "/usr/share", target: "/var/run/linked", readOnly: true }];
    const image = await mkdtemp(join(images, "image-"));
    const { instance } = await engine.start(launchOf({ ...spec, mounts }), limit());
    await whenListening(engine, instance);
    await engine.checkpoint(instance, { ...spec, mounts }, image, limit());
    await engine.stop(instance, 0);
    const restored = await engine.restore(launchOf({ ...spec, mounts }), image, limit());
    assert.equal(await get(restored.instance, "/count"), "1");
  });

  it("does not start a second copy beside a running one", async () => {
    const spec = counterSpec(engine, "twice");
    const { instance } = await engine.start(launchOf(spec), limit());
    await assert.rejects(engine.start(launchOf(spec), limit()), codeIs("START_FAILED"));
    assert.equal(engine.alive(instance), true);
  });
});

interface Clocks {
  readonly monotonicMs: number;
  readonly performanceMs: number;
  readonly uptimeMs: number;
  readonly wallMs: number;
  /** On the monotonic clock. */
  readonly fired: readonly { readonly dueMs: number; readonly atMs: number }[];
}

/** As the container sees them, and as the test does when it has asked. */
async function clocksOf(instance: Instance): Promise<Clocks & { readonly askedMs: number; readonly trueMs: number }> {
  const clocks = JSON.parse(await get(instance, "/clocks")) as Clocks;
  return { ...clocks, askedMs: performance.now(), trueMs: Date.now() };
}

async function missing(): Promise<string | undefined> {
  const checks = await examine();
  return canRestore(checks) ? undefined : `needs ${missingToRestore(checks).join(", ")}`;
}

/** Namespaces, mounts, links and control groups in whose names one of these occurs. */
async function machineResources(parts: readonly string[]): Promise<string[]> {
  const found: string[] = [];
  const look = (kind: string, lines: readonly string[]): void => {
    for (const line of lines) if (parts.some((part) => line.includes(part))) found.push(`${kind} ${line}`);
  };
  look("namespace", existsSync("/run/netns") ? readdirSync("/run/netns") : []);
  look("mount", readFileSync("/proc/self/mountinfo", "utf8").split("\n"));
  const hierarchies = readdirSync("/sys/fs/cgroup").map((name) => join("/sys/fs/cgroup", name));
  for (const hierarchy of ["/sys/fs/cgroup", ...hierarchies]) {
    const hosts = join(hierarchy, "hakobu");
    look("control group", existsSync(hosts) ? readdirSync(hosts) : []);
  }
  const { stdout } = await promisify(execFile)("ip", ["-o", "link"]).catch(() => ({ stdout: "" }));
  const links = parts.flatMap((hostId) =>
    /^[a-z0-9]+$/.test(hostId) ? [...Array(40).keys()].map((n) => linkOf(hostId, `t${process.pid}-${n}`)) : [],
  );
  for (const link of links) if (stdout.includes(` ${link}@`)) found.push(`link ${link}`);
  return found;
}

function linkOf(hostId: string, container: string): string {
  return namesOf(hostId, "/", container).link;
}
