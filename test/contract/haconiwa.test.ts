// The Haconiwa engine: against the real binary where HACONIWA_BIN names one, else against a stand-in that behaves as the real one
// was observed to (test/lab/fixtures/haconiwa-stand-in.mjs). The titles say which.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import * as fc from "fast-check";
import type { Suite } from "mocha";
import type { Instance } from "../../actors/ports/engine.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { findProgram } from "../../runtime/doctor/criu-binary.js";
import { canRestore, examine, missingToRestore } from "../../runtime/doctor/doctor.js";
import { HaconiwaEngine } from "../../runtime/engines/haconiwa/engine.js";
import { hacoFile, rubyString } from "../../runtime/engines/haconiwa/haco-file.js";
import { haconiwaNamesOf } from "../../runtime/engines/haconiwa/names.js";
import { containerOf, supervisorIn } from "../../runtime/engines/haconiwa/pid-file.js";
import { DirectoryImageStore } from "../../runtime/images/directory-store.js";
import { bindsOf } from "../../runtime/engines/runc/oci-config.js";
import { TcpProber } from "../../runtime/probes/tcp.js";
import { specOf } from "../lab/records.js";
import {
  codeIs,
  counterPort,
  counterSpec,
  engineContract,
  fixtures,
  get,
  launchOf,
  limit,
  processesOf,
  whenListening,
} from "./engine.js";

const standIn = join(fixtures, "haconiwa-stand-in.mjs");
const real = process.env.HACONIWA_BIN;
const binary = real || standIn;
const kind = real ? "real" : "stand-in";
const log = { debug() {}, info() {}, warn() {}, error() {} };
const stateDir = await mkdtemp(join(tmpdir(), "hakobu-haconiwa-"));
const stateOf = (hostId: string): string => join(stateDir, hostId);
const engines: HaconiwaEngine[] = [];

function engineOf(hostId: string): HaconiwaEngine {
  const engine = new HaconiwaEngine({ hostId, stateDir: stateOf(hostId), log, binary });
  engines.push(engine);
  return engine;
}

describe("Haconiwa", () => {
  engineContract(`haconiwa (${kind})`, {
    engine: engineOf,
    resources: (hostIds) => Promise.resolve(machineResources([...hostIds, ...hostIds.map(stateOf)])),
    missing,
  });

  describe(`engine haconiwa (${kind}), beyond the contract`, beyondTheContract);

  describe("haco files", hacoFiles);

  after(async () => {
    for (const engine of engines) await engine.close();
    await rm(stateDir, { recursive: true, force: true });
  });
});

function beyondTheContract(this: Suite): void {
  this.timeout(30_000);
  const hostId = `x${process.pid}`;
  let engine: HaconiwaEngine;
  let images: string;
  let count = 0;

  const names = (container: string) => haconiwaNamesOf(hostId, join(stateOf(hostId), "haconiwa"), container);
  const fresh = (env: Record<string, string> = {}) => counterSpec(engine, `x${process.pid}-${++count}`, { env });
  const nothingLeft = async (container: string): Promise<void> => {
    assert.deepEqual(machineResources([hostId]), []);
    assert.deepEqual(await processesOf(container), []);
  };
  async function running(env: Record<string, string> = {}) {
    const spec = fresh(env);
    const { instance } = await engine.start(launchOf(spec), limit());
    await whenListening(engine, instance);
    return { spec, instance };
  }
  const supervisorOf = (instance: Instance): number =>
    supervisorIn(names(instance.container).pidFile) ?? assert.fail("no live supervisor");
  const image = (): Promise<string> => mkdtemp(join(images, "image-"));

  before(async function () {
    const why = await missing();
    if (why !== undefined) {
      process.stdout.write(`    skipped: the haconiwa engine ${why}\n`);
      this.skip();
    }
    engine = engineOf(hostId);
    images = await mkdtemp(join(tmpdir(), "hakobu-images-"));
  });

  afterEach(async () => {
    for (const instance of await engine.find()) await engine.stop(instance, 0);
    assert.deepEqual(machineResources([hostId]), []);
  });

  after(async () => {
    if (images !== undefined) await rm(images, { recursive: true, force: true });
  });

  it("runs, images and restores a container by a haco file of the user's own, and takes no image of another one", async () => {
    const spec = { ...fresh(), haconiwa: { file: join(images, "own.haco") } };
    await writeFile(spec.haconiwa.file, ownHaco(spec));
    const { instance } = await engine.start(launchOf(spec), limit());
    await whenListening(engine, instance);
    assert.equal(await get(instance, "/env?name=OWN"), "yes");
    assert.equal(await get(instance, "/count"), "1");
    const directory = await image();
    await engine.checkpoint(instance, spec, directory, limit());
    const before = await engine.fingerprint(spec);
    await engine.stop(instance, 1000);
    const restored = await engine.restore(launchOf(spec), directory, limit());
    assert.equal(await get(restored.instance, "/count"), "2");
    await engine.stop(restored.instance, 0);
    await writeFile(spec.haconiwa.file, `${ownHaco(spec)}# changed\n`);
    assert.notDeepEqual(await engine.fingerprint(spec), before);
    await nothingLeft(spec.name);
  });

  it("has another fingerprint with another build of Haconiwa, of which no image is taken", async () => {
    const spec = fresh();
    const build = join(images, "haconiwa");
    await writeFile(build, "#!/bin/sh\nexit 0\n", { mode: 0o755 });
    const [one, other] = ["h", "i"].map(
      (id) => new HaconiwaEngine({ hostId: id, stateDir: stateOf(id), log, binary: id === "h" ? binary : build }),
    ) as [HaconiwaEngine, HaconiwaEngine];
    const [mine, theirs] = [await one.fingerprint(spec), await other.fingerprint(spec)];
    assert.deepEqual(await engine.fingerprint(spec), mine);
    assert.deepEqual({ ...theirs, haconiwa: mine["haconiwa"] }, mine);
    const store = new DirectoryImageStore({ directory: join(images, "store"), log });
    const about = { container: spec.name, epoch: 1, specHash: "1", engine: "haconiwa", at: "warm" } as const;
    await (await store.begin(spec.name, 1)).publish({ ...about, taken: "now", fingerprint: theirs });
    const { image: found, skipped } = await store.find({ spec, hash: "1" }, mine);
    assert.equal(found, undefined);
    assert.match(skipped[0]?.reason ?? "", /^haconiwa differs: /);
  });

  it("says what a haco file of the user's own lacks, or that it is not there", async () => {
    const file = join(images, "lacking.haco");
    const spec = { ...fresh(), haconiwa: { file } };
    const refused = (words: RegExp) =>
      assert.rejects(
        engine.start(launchOf(spec), limit()),
        (error) => codeIs("START_FAILED")(error) && words.test(String(error)),
      );
    await refused(/cannot be read/);
    await writeFile(file, ownHaco(spec).replaceAll("HAKOBU_HACONIWA_PID_FILE", "MINE"));
    await refused(/does not use ENV\["HAKOBU_HACONIWA_PID_FILE"\]/);
    await nothingLeft(spec.name);
  });

  /** As a user would write one: what the generated one has as literals comes from the environment. */
  function ownHaco(spec: ContainerSpec): string {
    const at = names(spec.name);
    const generated = hacoFile({ names: at, launch: launchOf(spec), binds: bindsOf(at, spec), criu: "criu" });
    const literals: readonly (readonly [string, string])[] = [
      [at.pidFile, "PID_FILE"],
      [at.restoreLog, "RESTORE_LOG"],
      [at.bundle, "BUNDLE"],
    ];
    const own = literals.reduce(
      (text, [literal, variable]) => text.replaceAll(rubyString(literal), `ENV["HAKOBU_HACONIWA_${variable}"]`),
      generated,
    );
    return own
      .replace(/criu_bin_path = .*/, 'criu_bin_path = ENV["HAKOBU_HACONIWA_CRIU"]')
      .replace(`c.chroot_to ${rubyString(at.root)}`, 'c.chroot_to ENV["HAKOBU_HACONIWA_ROOT"]')
      .replace("c.environ = { ", 'c.environ = { "OWN" => "yes", ');
  }

  it("reads a pid file that ends with a NUL, and adopts by it", async () => {
    const { instance } = await running();
    assert.match(readFileSync(names(instance.container).pidFile, "latin1"), /^\d+\0$/);
    assert.equal(containerOf(supervisorOf(instance)), instance.pid);
    assert.deepEqual(await engineOf(hostId).find(), [instance]);
  });

  it("takes an empty pid file for none", async () => {
    const { instance } = await running();
    const { pidFile } = names(instance.container);
    writeFileSync(pidFile, "");
    assert.equal(supervisorIn(pidFile), undefined);
    await engine.stop(instance, 1000);
    assert.equal(existsSync(pidFile), false);
    await nothingLeft(instance.container);
  });

  it("kills the orphan that a TERM to its supervisor leaves, with the pid file gone", async () => {
    const { instance } = await running({ IGNORE_TERM: "1" });
    const supervisor = supervisorOf(instance);
    process.kill(supervisor, "SIGTERM");
    await until(
      () => supervisorIn(names(instance.container).pidFile) === undefined && !existsSync(`/proc/${supervisor}`),
    );
    assert.equal(engine.alive(instance), true);
    await engine.stop(instance, 300);
    assert.equal(engine.alive(instance), false);
    await nothingLeft(instance.container);
  });

  it("does not adopt an orphan: removes it (E2)", async () => {
    const { instance } = await running({ IGNORE_TERM: "1" });
    process.kill(supervisorOf(instance), "SIGKILL");
    await until(() => supervisorIn(names(instance.container).pidFile) === undefined);
    assert.equal(engine.alive(instance), true);
    assert.deepEqual(await engineOf(hostId).find(), []);
    assert.equal(engine.alive(instance), false);
    await nothingLeft(instance.container);
  });

  it("does not return from a restore before the pid file is there, later than the port", async () => {
    const { spec, instance } = await running();
    const directory = await image();
    await engine.checkpoint(instance, spec, directory, limit());
    await engine.stop(instance, 1000);
    const { pidFile, address } = names(spec.name);
    let early = false;
    let over = false;
    const restore = engine.restore(launchOf(spec), directory, limit()).finally(() => (over = true));
    while (!over) {
      const unsupervised = supervisorIn(pidFile) === undefined;
      const answer = await new TcpProber().probe({ address, port: counterPort }, 1000);
      early ||= answer.kind === "alive" && unsupervised && supervisorIn(pidFile) === undefined;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const restored = await restore;
    if (!real) assert.equal(early, true, "the port answered before the pid file was there");
    assert.equal(containerOf(supervisorOf(restored.instance)), restored.instance.pid);
    // A kill in the gap fails and leaves an orphan.
    await engine.stop(restored.instance, 1000);
    await nothingLeft(spec.name);
  });

  it("starts criu service again when it has died, and ends it with the engine", async () => {
    const { spec, instance } = await running();
    await engine.checkpoint(instance, spec, await image(), limit());
    const first = (await engine.servicePid()) ?? assert.fail("no criu service");
    process.kill(first, "SIGKILL");
    await until(() => !existsSync(`/proc/${first}`));
    const directory = await image();
    await engine.checkpoint(instance, spec, directory, limit());
    const second = (await engine.servicePid()) ?? assert.fail("no criu service");
    assert.notEqual(second, first);
    await engine.close();
    await until(() => !existsSync(`/proc/${second}`));
    assert.equal(engine.alive(instance), true);
    await engine.stop(instance, 0);
    const { instance: restored } = await engine.restore(launchOf(spec), directory, limit());
    assert.equal(await get(restored, "/count"), "1");
  });

  it("says with CRIU's own words why a restore failed", async () => {
    const { spec, instance } = await running();
    const directory = await image();
    await engine.checkpoint(instance, spec, directory, limit());
    await engine.stop(instance, 0);
    const sizes = JSON.parse(readFileSync(join(directory, "sizes.json"), "utf8")) as Record<string, number>;
    const core = Object.keys(sizes).find((name) => name.startsWith("core-")) ?? assert.fail("no core image");
    // Of the right size, so that CRIU has to find it out.
    writeFileSync(join(directory, "criu", core), Buffer.alloc(sizes[core] as number));
    await assert.rejects(engine.restore(launchOf(spec), directory, limit()), (error: Error) => {
      assert.match(error.message, /Error \(criu/);
      return codeIs("RESTORE_FAILED")(error);
    });
    await nothingLeft(spec.name);
  });

  it("stops a container only after the dump that is going on (E3)", async () => {
    const { spec, instance } = await running();
    const directory = await image();
    const dump = engine.checkpoint(instance, spec, directory, limit());
    await engine.stop(instance, 1000);
    await dump;
    await nothingLeft(spec.name);
    const { instance: restored } = await engine.restore(launchOf(spec), directory, limit());
    assert.equal(await get(restored, "/count"), "1");
  });

  describe("when haconiwa accepts and then fails", () => {
    before(function () {
      if (real) this.skip();
    });

    async function withFault<T>(fault: string, work: () => Promise<T>): Promise<T> {
      process.env.HACONIWA_STAND_IN_FAULT = fault;
      try {
        return await work();
      } finally {
        delete process.env.HACONIWA_STAND_IN_FAULT;
      }
    }

    it("does not believe exit code 0 of a start or a restore that then ends", async () => {
      const { spec, instance } = await running();
      const directory = await image();
      await engine.checkpoint(instance, spec, directory, limit());
      await engine.stop(instance, 0);
      await withFault("dies", async () => {
        await assert.rejects(engine.start(launchOf(spec), limit()), codeIs("START_FAILED"));
        await nothingLeft(spec.name);
        await assert.rejects(engine.restore(launchOf(spec), directory, limit()), codeIs("RESTORE_FAILED"));
        await nothingLeft(spec.name);
      });
    });

    it("does not believe exit code 0 without the words for success", async () => {
      const spec = fresh();
      await withFault("not-booted", () =>
        assert.rejects(engine.start(launchOf(spec), limit()), (error: Error) => {
          assert.match(error.message, /cannot be booted/);
          return codeIs("START_FAILED")(error);
        }),
      );
      await nothingLeft(spec.name);
    });

    it("waits for a pid file no longer than its caller, and leaves nothing", async () => {
      const spec = fresh();
      await withFault("no-pid-file", () =>
        assert.rejects(engine.start(launchOf(spec), limit(1000)), codeIs("DEADLINE_EXCEEDED")),
      );
      await nothingLeft(spec.name);
    });

    it("reports a dump that failed, which leaves part of an image, and takes the next one into a fresh directory", async () => {
      const { spec, instance } = await running();
      const half = await image();
      await withFault("no-dump", () =>
        assert.rejects(engine.checkpoint(instance, spec, half, limit()), (error: Error) => {
          assert.match(error.message, /told to fail/);
          return codeIs("CHECKPOINT_FAILED")(error);
        }),
      );
      assert.deepEqual(readdirSync(join(half, "criu")).sort(), ["core-1.img", "dump.log"]);
      assert.equal(await get(instance, "/count"), "1");
      await engine.checkpoint(instance, spec, await image(), limit());
      await engine.stop(instance, 0);
      await assert.rejects(engine.restore(launchOf(spec), half, limit()), codeIs("RESTORE_FAILED"));
    });
  });

  describe("the stand-in itself", () => {
    before(function () {
      if (real) this.skip();
    });

    const standInWith = (...args: string[]) => run(standIn, args);

    it("says that it is one, and takes an unknown command for a question", async () => {
      assert.match((await standInWith("--version")).stdout, /STAND-IN/);
      const unknown = await standInWith("ps");
      assert.equal(unknown.code, 0);
      assert.match(unknown.stdout, /NOT Haconiwa/);
    });

    it("exits with 1 for a bad option and for a haco file that it cannot read", async () => {
      assert.equal((await standInWith("start", "--what", "file")).code, 1);
      assert.equal((await standInWith("start", "/nonexistent.haco")).code, 1);
      assert.equal((await standInWith("start")).code, 1);
    });

    it("does not boot a container twice, and exits with 0", async () => {
      const { instance } = await running();
      const { hacoFile: file, name, address } = names(instance.container);
      const { code, stdout } = await run("env", [
        `HAKOBU_HACONIWA_NAME=${name}`,
        `HAKOBU_HACONIWA_ADDRESS=${address}`,
        standIn,
        "start",
        "-D",
        file,
      ]);
      assert.deepEqual([code, /cannot be booted/.test(stdout)], [0, true]);
      assert.equal(engine.alive(instance), true);
    });

    it("leaves an empty pid file when it is to kill what does not run, and exits with 1", async () => {
      const file = join(stateDir, "not-running.haco");
      const pidFile = join(stateDir, "not-running.pid");
      writeFileSync(
        file,
        `Haconiwa.define do |c|\n  c.name = "n"\n  c.chroot_to "/"\n  c.init_command = ["x"]\n  c.container_pid_file = ${rubyString(pidFile)}\nend\n`,
      );
      for (const args of [["kill"], ["checkpoint", "-R"]]) {
        await rm(pidFile, { force: true });
        assert.equal((await standInWith(...args, file)).code, 1);
        assert.equal(readFileSync(pidFile, "utf8"), "");
      }
    });
  });
}

function hacoFiles(): void {
  type Haco = { setters: Record<string, unknown>; appended: [string, unknown[]][] };
  type Parse = (text: string, given: { env: Record<string, string>; subcommand: string }) => Haco;
  let parse: Parse;

  before(async () => {
    ({ parseHaco: parse } = (await import(pathToFileURL(standIn).href)) as { parseHaco: Parse });
  });

  const text = fc.oneof(
    fc.string({ unit: "binary" }),
    fc.string({ unit: "grapheme" }),
    fc.constantFrom(
      '"',
      "\\",
      '\\"',
      "#{`id`}",
      "#$0",
      "#@x",
      "%w(a)",
      "\nend\n",
      "'",
      '"; system("id"); "',
      "\\x41",
      "\\u{41}",
      "=begin\n",
    ),
  );
  /** What a program can be given: no NUL; a lone surrogate has no bytes in UTF-8. */
  const given = fc
    .array(text, { maxLength: 4 })
    .map((parts) => Buffer.from(parts.join("").replaceAll("\0", "")).toString());
  const environment = fc.dictionary(fc.stringMatching(/^[A-Za-z_][A-Za-z0-9_]{0,9}$/), given, { maxKeys: 5 });

  function written(command: readonly string[], env: Record<string, string>, cwd = "/"): string {
    const spec = specOf("any", { engine: "haconiwa", command, env, cwd });
    const names = haconiwaNamesOf("haco", "/state", "any");
    const binds = [{ source: cwd, target: cwd, readOnly: true }];
    return hacoFile({ names, launch: launchOf(spec), binds, criu: "/usr/sbin/criu" });
  }

  it("give every command, variable and path back as it was, whatever is in it (H1)", () => {
    fc.assert(
      fc.property(fc.array(given, { minLength: 1, maxLength: 4 }), environment, given, (command, env, cwd) => {
        const { setters, appended } = parse(written(command, env, cwd), { env: {}, subcommand: "start" });
        assert.deepEqual((setters["init_command"] as string[]).slice(4), command);
        const read = Object.fromEntries(setters["environ"] as [string, string][]);
        for (const [name, value] of Object.entries(env)) assert.equal(read[name], value);
        assert.equal(setters["workdir"], cwd);
        const mount = appended.find(([path]) => path === "add_mount_point")?.[1] ?? [];
        assert.deepEqual(mount, [cwd, ["to", `/state/any/root${cwd}`], ["criu_ext_key", cwd], ["readonly", true]]);
      }),
      { numRuns: 500 },
    );
  });

  it("have the same statements whatever is in the specification, and nothing but printable ASCII (H1)", () => {
    const shape = (file: string): string[] => {
      const { setters, appended } = parse(file, { env: {}, subcommand: "start" });
      return [...Object.keys(setters), ...appended.map(([path]) => path)];
    };
    const plain = shape(written(["true"], {}));
    fc.assert(
      fc.property(fc.array(given, { minLength: 1, maxLength: 3 }), environment, given, (command, env, cwd) => {
        const file = written(command, env, cwd);
        assert.match(file, /^[\n -~]*$/);
        assert.equal(file.split("\n").length, written(["true"], {}).split("\n").length);
        assert.deepEqual(shape(file), plain);
      }),
    );
  });

  it("refuse a NUL, which no program can be given", () => {
    assert.throws(() => rubyString("a\0b"), codeIs("START_FAILED"));
  });

  it("take name, address and images from the environment (H2)", () => {
    const env = {
      HAKOBU_HACONIWA_NAME: "n",
      HAKOBU_HACONIWA_ADDRESS: "127.64.0.1",
      HAKOBU_HACONIWA_IMAGES: "/images",
      HAKOBU_HACONIWA_CRIU_SERVICE: "/socket",
    };
    const file = written(["true"], {});
    const { setters } = parse(file, { env, subcommand: "start" });
    assert.equal(setters["name"], "n");
    assert.equal(Object.fromEntries(setters["environ"] as [string, string][])["HOST"], "127.64.0.1");
    assert.deepEqual(
      [setters["checkpoint.images_dir"], setters["checkpoint.criu_service_address"]],
      ["/images", "/socket"],
    );
    assert.equal(setters["checkpoint.criu_log_file"], "dump.log");
    const restored = parse(file, { env, subcommand: "restore" }).setters["checkpoint.criu_log_file"];
    assert.equal(restored, "/state/any/bundle/restore.log");
  });
}

async function missing(): Promise<string | undefined> {
  if (real && findProgram(real) === undefined) assert.fail(`HACONIWA_BIN: cannot execute ${real}`);
  const checks = await examine();
  if (!canRestore(checks)) return `needs ${missingToRestore(checks).join(", ")}`;
  const programs = ["setpriv", ...(real ? [] : ["perl", "unshare", "pivot_root"])];
  const absent = programs.filter((name) => findProgram(name) === undefined);
  return absent.length > 0 ? `needs ${absent.join(", ")}` : undefined;
}

/** Mounts, control groups and Haconiwa's own files in whose names one of these occurs. */
function machineResources(parts: readonly string[]): string[] {
  const found: string[] = [];
  const look = (what: string, lines: readonly string[]): void => {
    for (const line of lines) if (parts.some((part) => line.includes(part))) found.push(`${what} ${line}`);
  };
  const entries = (path: string): string[] => (existsSync(path) ? readdirSync(path) : []);
  look("mount", readFileSync("/proc/self/mountinfo", "utf8").split("\n"));
  const hierarchies = entries("/sys/fs/cgroup").map((name) => join("/sys/fs/cgroup", name));
  for (const hierarchy of ["/sys/fs/cgroup", ...hierarchies]) look("control group", entries(join(hierarchy, "hakobu")));
  look("lock", entries("/var/lock"));
  look("pid file", entries("/var/run"));
  look(
    "restored pid",
    entries("/tmp").filter((name) => name.startsWith(".__criu")),
  );
  return found;
}

async function until(condition: () => boolean, limitMs = 5000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!condition()) {
    assert.ok(performance.now() < end, `not within ${limitMs} ms: ${condition.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

function run(program: string, args: readonly string[]): Promise<{ code: number; stdout: string }> {
  return new Promise((resolve) => {
    execFile(program, args, { timeout: 10_000 }, (error, stdout) =>
      resolve({ code: error === null ? 0 : Number(error.code ?? -1), stdout }),
    );
  });
}
