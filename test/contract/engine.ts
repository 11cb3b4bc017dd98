// What every Engine owes its caller (actors/ports/engine.ts), with a real server as the container.
import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Engine, Instance, Launch, Standby } from "../../actors/ports/engine.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { packageRoot } from "../../runtime/package-root.js";
import { specOf } from "../lab/records.js";

export const fixtures = join(packageRoot(), "test/lab/fixtures");

export interface EngineBench {
  /** An engine object of that host. Asked twice for one host, it gives two objects over the same state. */
  engine(hostId: string): Engine;
  /** All that is on the machine of these hosts: namespaces, links, mounts, control groups; a line each. */
  resources(hostIds: readonly string[]): Promise<string[]>;
  /** Why the suite cannot run here. */
  missing(): Promise<string | undefined>;
}

export const counterPort = 8123;

/** The counter as a container; node itself may lie where containers cannot see it, so it is mounted then. */
export function counterSpec(engine: Engine, name: string, more: Partial<ContainerSpec> = {}): ContainerSpec {
  const folder = dirname(process.execPath);
  const seen = engine.name === "process" || folder.startsWith("/usr/");
  return specOf(name, {
    engine: engine.name as "process" | "runc",
    command: [process.execPath, join(fixtures, "counter.mjs")],
    port: counterPort,
    mounts: [fixtures, ...(seen ? [] : [folder])].map((path) => ({ source: path, target: path, readOnly: true })),
    ...more,
  });
}

export function launchOf(spec: ContainerSpec, epoch = 1): Launch {
  return { spec, specHash: `hash of ${spec.name}`, epoch };
}

export function limit(ms = 15_000): AbortSignal {
  return AbortSignal.timeout(ms);
}

export function get({ address, port }: Instance, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const sent = request({ host: address, port, path, agent: false, timeout: 5000 }, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => (text += chunk));
      response.on("end", () =>
        response.statusCode === 200 ? resolve(text.trim()) : reject(new Error(`${response.statusCode}: ${text}`)),
      );
    });
    sent.on("timeout", () => sent.destroy(new Error("no answer within 5 s")));
    sent.on("error", reject).end();
  });
}

export async function whenListening(engine: Engine, instance: Instance, limitMs = 10_000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!(await engine.listening(instance))) {
    if (!engine.alive(instance) || performance.now() > end)
      throw new Error(`it does not listen; its output: ${await engine.output(instance.container, 5)}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Processes of the machine that were started as that container: restored ones keep their environment. */
export async function processesOf(container: string): Promise<number[]> {
  const wanted = `HAKOBU_CONTAINER=${container}`;
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const environments = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/environ`, "latin1").catch(() => "")));
  return pids.filter((_, n) => environments[n]?.split("\0").includes(wanted)).map(Number);
}

/** proc(5), the third field of stat. */
async function stateOf(pid: number): Promise<string> {
  const stat = await readFile(`/proc/${pid}/stat`, "latin1");
  return stat.slice(stat.lastIndexOf(")") + 2, stat.lastIndexOf(")") + 3);
}

export function codeIs(...codes: readonly string[]): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof HakobuError, `not a HakobuError: ${String(error)}`);
    assert.ok(codes.includes(error.code), `${error.code}: ${error.message}`);
    return true;
  };
}

export function engineContract(title: string, bench: EngineBench): void {
  describe(`engine ${title}`, function () {
    this.timeout(30_000);
    const hosts = [`t${process.pid}a`, `t${process.pid}b`] as const;
    const names = new Set<string>();
    let engine: Engine;
    let other: Engine;
    let images: string;
    let count = 0;

    const fresh = (more: Partial<ContainerSpec> = {}): ContainerSpec => {
      const name = `t${process.pid}-${++count}`;
      names.add(name);
      return counterSpec(engine, name, more);
    };
    const nothingLeft = async (): Promise<void> => {
      assert.deepEqual(await bench.resources(hosts), []);
      for (const name of names) assert.deepEqual(await processesOf(name), [], `processes of ${name}`);
    };
    const started = async (spec: ContainerSpec): Promise<Instance> => {
      const { instance } = await engine.start(launchOf(spec), limit());
      await whenListening(engine, instance);
      return instance;
    };

    before(async function () {
      const missing = await bench.missing();
      if (missing !== undefined) {
        process.stdout.write(`    skipped: the ${title} engine ${missing}\n`);
        this.skip();
      }
      images = await mkdtemp(join(tmpdir(), "hakobu-images-"));
      engine = bench.engine(hosts[0]);
      other = bench.engine(hosts[1]);
    });

    afterEach(async () => {
      // Also after a failure: what a test left must not disturb the next one.
      for (const each of [engine, other]) for (const instance of await each.find()) await each.stop(instance, 0);
    });

    after(async () => {
      if (images !== undefined) await rm(images, { recursive: true, force: true });
    });

    it("starts a container that then listens and answers at its address", async () => {
      const spec = fresh();
      const { instance, phases } = await engine.start(launchOf(spec, 42), limit());
      assert.ok(phases.length > 0 && phases.every(({ ms }) => ms >= 0));
      assert.deepEqual(
        [instance.container, instance.engine, instance.epoch, instance.specHash, instance.port],
        [spec.name, engine.name, 42, `hash of ${spec.name}`, counterPort],
      );
      await whenListening(engine, instance);
      assert.equal(await get(instance, "/count"), "1");
      assert.equal(await get(instance, "/env?name=HAKOBU_EPOCH"), "42");
      assert.equal(await get(instance, "/env?name=HAKOBU_CONTAINER"), spec.name);
      assert.match(await engine.output(spec.name, 1), /count 1/);
      assert.equal(engine.alive(instance), true);
    });

    it("gives a container the same address again", async () => {
      const spec = fresh();
      const first = await started(spec);
      await engine.stop(first, 1000);
      const second = await started(spec);
      assert.deepEqual([second.address, second.port], [first.address, first.port]);
      assert.notDeepEqual([second.pid, second.startTime], [first.pid, first.startTime]);
      assert.equal(engine.alive(first), false);
    });

    it("runs two containers on one port side by side", async () => {
      const one = await started(fresh());
      const two = await started(fresh());
      assert.deepEqual([await get(one, "/count"), await get(one, "/count"), await get(two, "/count")], ["1", "2", "1"]);
    });

    it("stops a container and leaves nothing of it, twice if asked twice", async () => {
      const instance = await started(fresh());
      await engine.stop(instance, 5000);
      assert.equal(engine.alive(instance), false);
      assert.equal(await engine.listening(instance), false);
      await nothingLeft();
      await engine.stop(instance, 5000);
      await nothingLeft();
    });

    it("kills what ignores the request to stop when the grace is over", async () => {
      const instance = await started(fresh({ env: { IGNORE_TERM: "1" } }));
      const begunMs = performance.now();
      await engine.stop(instance, 300);
      assert.ok(performance.now() - begunMs >= 290);
      await nothingLeft();
    });

    it("cleans up after a container that died by itself, its children too", async () => {
      const instance = await started(fresh());
      assert.equal(await get(instance, "/child"), "started");
      await assert.rejects(get(instance, "/exit"));
      const end = performance.now() + 5000;
      while (engine.alive(instance)) assert.ok(performance.now() < end, "it is alive");
      assert.equal(await engine.listening(instance), false);
      await engine.stop(instance, 5000);
      await nothingLeft();
    });

    it("says what a program that cannot be run was, and leaves nothing of it", async () => {
      const spec = fresh({ command: ["/nonexistent/program"] });
      const outcome = await engine.start(launchOf(spec), limit()).catch((error: unknown) => error as Error);
      if (outcome instanceof Error) {
        codeIs("START_FAILED")(outcome);
        assert.match(outcome.message, /nonexistent|ended/);
      } else {
        // A shell inside the container found out.
        await assert.rejects(whenListening(engine, outcome.instance), /nonexistent/);
        await engine.stop(outcome.instance, 0);
      }
      await nothingLeft();
    });

    it("leaves nothing of a start that is aborted at any point", async () => {
      for (const afterMs of [0, 1, 3, 8, 15, 25, 40]) {
        const abort = new AbortController();
        const start = engine.start(launchOf(fresh()), abort.signal);
        const timer = setTimeout(() => abort.abort(), afterMs);
        const outcome = await start.catch((error: unknown) => error as Error);
        clearTimeout(timer);
        if (outcome instanceof Error) codeIs("ABORTED")(outcome);
        else await engine.stop(outcome.instance, 0);
        await nothingLeft();
      }
    });

    it("refuses a start whose deadline has passed", async () => {
      await assert.rejects(engine.start(launchOf(fresh()), AbortSignal.abort()), codeIs("ABORTED"));
      const passed = AbortSignal.timeout(0);
      await new Promise((resolve) => passed.addEventListener("abort", resolve, { once: true }));
      await assert.rejects(engine.start(launchOf(fresh()), passed), codeIs("DEADLINE_EXCEEDED"));
      await nothingLeft();
    });

    it("refuses names of which a path could be made", async () => {
      for (const name of ["../up", "a/b", "", "-a", "A"])
        await assert.rejects(engine.start(launchOf({ ...fresh(), name }), limit()), codeIs("CONFIG_INVALID"));
    });

    it("finds a running container again after the agent's restart, and forgets a dead one", async () => {
      const instance = await started(fresh());
      const again = bench.engine(hosts[0]);
      assert.deepEqual(await again.find(), [instance]);
      assert.equal(again.alive(instance), true);
      assert.equal(await again.listening(instance), true);
      process.kill(instance.pid, "SIGKILL");
      const end = performance.now() + 5000;
      while (again.alive(instance)) assert.ok(performance.now() < end, "it is alive");
      assert.deepEqual(await bench.engine(hosts[0]).find(), []);
      await nothingLeft();
    });

    it("notes that a running container has been claimed again, and tells it", async () => {
      const instance = await started(fresh());
      const renewed = await engine.renew(instance, 77);
      assert.deepEqual(renewed, { ...instance, epoch: 77 });
      assert.deepEqual(await bench.engine(hosts[0]).find(), [renewed]);
      if (engine.name !== "process") assert.equal(await get(instance, "/read?path=/run/hakobu/epoch"), "77");
      await engine.stop(renewed, 1000);
    });

    it("says by its capabilities whether it takes images", async function () {
      if (engine.capabilities.checkpoint) return this.skip();
      const instance = await started(fresh());
      const spec = counterSpec(engine, instance.container);
      assert.match(engine.capabilities.reason, /./);
      await assert.rejects(engine.checkpoint(instance, spec, images, limit()), codeIs("CHECKPOINT_FAILED"));
      await assert.rejects(other.restore(launchOf(spec), images, limit()), codeIs("RESTORE_FAILED"));
      assert.equal(await get(instance, "/count"), "1");
    });

    describe("with images", () => {
      let spec: ContainerSpec;
      let image: string;
      /** The one that was imaged. It runs no more, but its address is every copy's. */
      let first: Instance;

      before(async function () {
        if (!engine.capabilities.checkpoint) this.skip();
      });

      beforeEach(async () => {
        spec = fresh();
        image = await mkdtemp(join(images, "image-"));
        const instance = await started(spec);
        first = instance;
        assert.equal(await get(instance, "/count"), "1");
        assert.equal(await get(instance, "/write?path=/var/tmp/note&text=kept"), "written");
        assert.equal(await get(instance, "/write?path=/dev/shm/note&text=shared"), "written");
        const phases = await engine.checkpoint(instance, spec, image, limit());
        assert.ok(phases.length > 0);
        assert.equal(await get(instance, "/count"), "2");
        await engine.stop(instance, 1000);
      });

      it("restores on another host where the image was taken: memory, files and output", async () => {
        const { instance, phases } = await other.restore(launchOf(spec, 9), image, limit());
        assert.ok(phases.length > 0);
        assert.equal(instance.epoch, 9);
        assert.equal(await other.listening(instance), true);
        assert.equal(await get(instance, "/count"), "2");
        assert.equal(await get(instance, "/read?path=/var/tmp/note"), "kept");
        assert.equal(await get(instance, "/read?path=/dev/shm/note"), "shared");
        assert.equal(await get(instance, "/read?path=/run/hakobu/epoch"), "9");
        assert.equal(await get(instance, "/read?path=/run/hakobu/host"), hosts[1]);
        assert.match(await other.output(spec.name, 1), /count 2/);
        await other.stop(instance, 1000);
        assert.match(await other.output(spec.name, 1), /count 2/);
        await nothingLeft();
      });

      it("restores one image any number of times, and images a restored container again", async () => {
        for (const expected of ["2", "2"]) {
          const { instance } = await other.restore(launchOf(spec), image, limit());
          assert.equal(await get(instance, "/count"), expected);
          await other.stop(instance, 0);
        }
        const { instance } = await other.restore(launchOf(spec), image, limit());
        assert.deepEqual([await get(instance, "/count"), await get(instance, "/count")], ["2", "3"]);
        const second = await mkdtemp(join(images, "image-"));
        await other.checkpoint(instance, spec, second, limit());
        assert.equal(await get(instance, "/count"), "4");
        await other.stop(instance, 0);
        const back = await engine.restore(launchOf(spec), second, limit());
        assert.equal(await get(back.instance, "/count"), "4");
        await engine.stop(back.instance, 1000);
        await nothingLeft();
      });

      it("adopts a restored container after the agent's restart", async () => {
        const { instance } = await other.restore(launchOf(spec), image, limit());
        assert.deepEqual(await bench.engine(hosts[1]).find(), [instance]);
        await bench.engine(hosts[1]).stop(instance, 1000);
        await nothingLeft();
      });

      it("refuses a damaged image and leaves nothing of the attempt", async () => {
        const files = await readdir(join(image, "criu"));
        const core = files.find((name) => name.startsWith("core-")) ?? assert.fail("no core image");
        await truncate(join(image, "criu", core), 10);
        await assert.rejects(other.restore(launchOf(spec), image, limit()), codeIs("RESTORE_FAILED"));
        await nothingLeft();
        await rm(join(image, "criu", core));
        await assert.rejects(other.restore(launchOf(spec), image, limit()), codeIs("RESTORE_FAILED"));
        await nothingLeft();
      });

      it("refuses an image whose pages are cut off, and one whose files of the container are", async () => {
        const files = await readdir(join(image, "criu"));
        const pages = files.find((name) => name.startsWith("pages-")) ?? assert.fail("no pages image");
        await truncate(join(image, "criu", pages), 4096);
        await assert.rejects(other.restore(launchOf(spec), image, limit()), codeIs("RESTORE_FAILED"));
        await nothingLeft();
        const archive = (await readdir(image)).find((name) => name.endsWith(".tar")) ?? assert.fail("no archive");
        await writeFile(join(image, archive), "this is no archive");
        await assert.rejects(other.restore(launchOf(spec), image, limit()), codeIs("RESTORE_FAILED"));
        await nothingLeft();
      });

      it("leaves nothing of a restore that is aborted at any point", async () => {
        for (const afterMs of [0, 1, 4, 8, 12, 18, 25, 35, 50]) {
          const abort = new AbortController();
          const restore = other.restore(launchOf(spec), image, abort.signal);
          const timer = setTimeout(() => abort.abort(), afterMs);
          const outcome = await restore.catch((error: unknown) => error as Error);
          clearTimeout(timer);
          if (outcome instanceof Error) codeIs("ABORTED")(outcome);
          else await other.stop(outcome.instance, 0);
          await nothingLeft();
        }
      });

      it("lets the container go on when a checkpoint is aborted at any point", async () => {
        const { instance } = await other.restore(launchOf(spec), image, limit());
        let expected = 1;
        for (const afterMs of [0, 5, 10, 15, 20, 25, 30, 40]) {
          const abort = new AbortController();
          const directory = await mkdtemp(join(images, "aborted-"));
          const checkpoint = other.checkpoint(instance, spec, directory, abort.signal);
          const timer = setTimeout(() => abort.abort(), afterMs);
          const outcome = await checkpoint.catch((error: unknown) => error as Error);
          clearTimeout(timer);
          if (outcome instanceof Error) codeIs("ABORTED")(outcome);
          assert.equal(await get(instance, "/count"), String(++expected), `aborted after ${afterMs} ms`);
        }
        const directory = await mkdtemp(join(images, "image-"));
        await other.checkpoint(instance, spec, directory, limit());
        await other.stop(instance, 0);
        const again = await engine.restore(launchOf(spec), directory, limit());
        assert.equal(await get(again.instance, "/count"), String(expected + 1));
      });

      describe("held ready", () => {
        const hold = async (signal = limit()): Promise<Standby> => {
          const { spec: it, specHash } = launchOf(spec);
          return (await other.standby?.({ spec: it, specHash }, image, signal)) ?? assert.fail("no standby");
        };

        before(function () {
          if (other.standby === undefined) this.skip();
        });

        it("does nothing until it is run, and then goes on as that epoch", async () => {
          const standby = await hold();
          assert.ok(standby.phases.length > 0);
          const pids = await processesOf(spec.name);
          assert.ok(pids.length > 0);
          for (const pid of pids) assert.equal(await stateOf(pid), "T", "stopped");
          let answered = false;
          const asked = get(first, "/count").finally(() => (answered = true));
          for (const pid of pids) assert.equal(await stateOf(pid), "T", "stopped, with a request in its socket");
          assert.equal(answered, false);
          const { instance } = await standby.run(7);
          assert.equal(await asked, "2");
          assert.equal(instance.epoch, 7);
          assert.equal(await get(instance, "/read?path=/run/hakobu/epoch"), "7");
          assert.deepEqual(await bench.engine(hosts[1]).find(), [instance]);
          await other.stop(instance, 1000);
          await nothingLeft();
        });

        it("leaves nothing when it is discarded, and the container can be restored at once", async () => {
          const standby = await hold();
          await standby.discard();
          await nothingLeft();
          await standby.discard();
          const { instance } = await other.restore(launchOf(spec), image, limit());
          assert.equal(await get(instance, "/count"), "2");
          await other.stop(instance, 0);
        });

        it("is removed, and not adopted, by the agent that comes after the one that made it", async () => {
          await hold();
          assert.deepEqual(await bench.engine(hosts[1]).find(), []);
          await nothingLeft();
        });

        it("leaves nothing when it is aborted at any point", async () => {
          for (const afterMs of [0, 4, 12, 25, 40]) {
            const abort = new AbortController();
            const timer = setTimeout(() => abort.abort(), afterMs);
            const outcome = await hold(abort.signal).catch((error: unknown) => error as Error);
            clearTimeout(timer);
            if (!(outcome instanceof Error)) await outcome.discard();
            await nothingLeft();
          }
        });

        it("says that its processes have gone, and leaves nothing", async () => {
          const standby = await hold();
          for (const pid of await processesOf(spec.name)) process.kill(pid, "SIGKILL");
          await assert.rejects(standby.run(7), codeIs("RESTORE_FAILED"));
          await nothingLeft();
        });
      });

      it("has the same fingerprint on both hosts", async () => {
        const fingerprint = await engine.fingerprint(spec);
        assert.deepEqual(await other.fingerprint(spec), fingerprint);
        assert.deepEqual(Object.keys(fingerprint).sort(), ["arch", "cpu", "criu", "kernel", "rootfs"]);
      });
    });
  });
}
