// npm run bench:restore: what each protection of a container costs a restore and its first response, and what each measure that
// makes it quick saves. One image of each kind, of the same application; then they are restored in turns, in another order each
// round. The peer in the same rounds: `runc restore` as it comes, of the fully protected container.
//
// A protection is part of the image: CRIU restores the seccomp filter and the mounts that it found. So each kind is a cold start with a
// runtime configuration from which one of them was taken out; there is no such option in Hakobu.
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { mkdtemp, writeFile } from "node:fs/promises";
import { cpus, release, totalmem } from "node:os";
import { delimiter, dirname, join } from "node:path";
import Table from "cli-table3";
import { HakobuError, reasonOf } from "../actors/hakobu-error.js";
import type { Launch } from "../actors/ports/engine.js";
import type { ContainerSpec } from "../actors/ports/spec.js";
import { fail } from "../runtime/cli/output.js";
import { findCriu } from "../runtime/doctor/criu-binary.js";
import { canRestore, examine, missingToRestore } from "../runtime/doctor/doctor.js";
import { baseLayer } from "../runtime/engines/runc/base-layer.js";
import { findCgroups } from "../runtime/engines/runc/cgroup.js";
import { runCommand } from "../runtime/engines/command.js";
import { type Criu, dump, openCriu, restore } from "../runtime/engines/runc/criu.js";
import { RuncEngine } from "../runtime/engines/runc/engine.js";
import { type Names, namesOf } from "../runtime/engines/runc/names.js";
import { bindsOf, ociConfig } from "../runtime/engines/runc/oci-config.js";
import { archiveCommand } from "../runtime/engines/runc/rootfs.js";
import { fillSandbox, openSandbox, removeSandbox, type SandboxContext } from "../runtime/engines/runc/sandbox.js";
import { failed, get, median } from "../runtime/experiment/load.js";
import { programLog } from "../runtime/log.js";
import { packageRoot } from "../runtime/package-root.js";
import { type Application, applications } from "./relocation/applications.js";
import { quiet } from "./relocation/quiet.js";

const home = "/var/lib/hakobu/bench";
const hostId = "restores";
/** `--quick`: a try of the benchmark itself; nothing is written. */
const quick = process.argv.includes("--quick");
const rounds = quick ? 2 : 15;
const limitMs = 60_000;

/** The parts of the OCI runtime configuration that protect. */
interface Protections {
  readonly process: { noNewPrivileges?: boolean };
  readonly linux: { seccomp?: object; maskedPaths?: string[]; readonlyPaths?: string[] };
  annotations?: Record<string, string>;
}

interface Kind {
  readonly name: string;
  readonly without: (config: Protections) => void;
  readonly cpus?: number;
}

const kinds: readonly Kind[] = [
  { name: "as shipped", without: () => {} },
  { name: "without seccomp", without: ({ linux }) => delete linux.seccomp },
  { name: "without masked paths", without: ({ linux }) => delete linux.maskedPaths },
  { name: "without read-only paths", without: ({ linux }) => delete linux.readonlyPaths },
  { name: "without the CPU limit", without: () => {}, cpus: cpus().length },
  {
    name: "without all of them",
    without: ({ linux, process }) => {
      delete linux.seccomp;
      delete linux.maskedPaths;
      delete linux.readonlyPaths;
      delete process.noNewPrivileges;
    },
    cpus: cpus().length,
  },
];
const peer = "runc restore instead of CRIU directly";

const sandboxAhead = "sandbox made before it is asked for";
const uncached = "without the cache of kernel features";

class Bench {
  readonly #engine: RuncEngine;
  readonly #context: SandboxContext;
  readonly #directory: string;
  readonly #criu: Criu;

  constructor(readonly state: string) {
    const criu = findCriu();
    if (criu === undefined) throw new HakobuError("UNAVAILABLE", "CRIU is not installed; etc/setup.sh installs it");
    this.#criu = openCriu(criu, [state]);
    this.#directory = join(state, "runc");
    this.#engine = new RuncEngine({ hostId, stateDir: state, log: programLog("warn") });
    this.#context = {
      hostId,
      cgroups: findCgroups(),
      baseLayer: (rootfs) => baseLayer(rootfs === "host" ? "/" : rootfs, [state]),
      runcRoot: join(this.#directory, ".runc"),
    };
  }

  /** Starts a container of that kind cold, warms it up and images it, by our CRIU command line and by runc's. @returns the image's directory */
  async take(kind: Kind, launch: Launch): Promise<string> {
    await this.#engine.prepare();
    const names = this.#names(launch);
    const image = await mkdtemp(join(this.state, "image-"));
    const binds = bindsOf(names, launch.spec);
    try {
      openSandbox(this.#context, names, launch);
      await fillSandbox(this.#context, names, launch, undefined, AbortSignal.timeout(limitMs));
      const config = ociConfig(names, launch, binds) as Protections;
      kind.without(config);
      // For runc's own calls of CRIU, which else lock the network by programs that need not be here.
      const criuConfig = join(image, "criu.conf");
      await writeFile(criuConfig, "network-lock skip\ntcp-close\n");
      config.annotations = { "org.criu.config": criuConfig };
      await writeFile(join(image, "config.json"), JSON.stringify(config));
      writeFileSync(join(names.bundle, "config.json"), JSON.stringify(config));
      await this.#runc(names, [
        "run",
        "--detach",
        "--bundle",
        names.bundle,
        "--pid-file",
        names.pidFile,
        names.container,
      ]);
      await this.#answered(names, launch.spec);
      const pid = Number(await runCommand(["cat", names.pidFile], options("reading the pid")));
      const signal = AbortSignal.timeout(limitMs);
      const whileFrozen = archiveCommand(names, image);
      await dump(this.#criu, names, {
        pid,
        directory: image,
        binds,
        whileFrozen,
        timeoutMs: limitMs,
        signal,
      });
      const argv = ["checkpoint", "--leave-running", "--file-locks", "--image-path", join(image, "runc")];
      await this.#runc(names, [...argv, "--work-path", names.bundle, names.container]);
      return image;
    } finally {
      await this.#remove(names);
    }
  }

  /** As Hakobu restores. Milliseconds until the first response was whole. */
  async restore(launch: Launch, image: string): Promise<number> {
    const begunMs = performance.now();
    const { instance } = await this.#engine.restore(launch, image, AbortSignal.timeout(limitMs));
    try {
      await ask(instance.address, launch.spec);
      return performance.now() - begunMs;
    } finally {
      await this.#engine.stop(instance, 0);
    }
  }

  /** Where this machine's /run is a tmpfs, CRIU has its cache of kernel features there in any case. */
  get cacheIsOurs(): boolean {
    return this.#criu.prefix.length > 0;
  }

  /** The engine's own call of CRIU, with the sandbox made before the clock runs, or without the cache of kernel features. */
  async restoreIn(launch: Launch, image: string, { ahead = false, cache = true }): Promise<number> {
    const names = this.#names(launch);
    const criu = cache ? this.#criu : { ...this.#criu, prefix: [] };
    const signal = AbortSignal.timeout(limitMs);
    let begunMs = performance.now();
    try {
      openSandbox(this.#context, names, launch);
      const ready = fillSandbox(this.#context, names, launch, image, signal);
      if (ahead) {
        await ready;
        begunMs = performance.now();
      }
      const binds = bindsOf(names, launch.spec);
      const cgroups = this.#context.cgroups.of(names);
      await restore(criu, names, { directory: image, binds, cgroups, ready, stopped: false, signal });
      await ask(names.address, launch.spec);
      return performance.now() - begunMs;
    } finally {
      await this.#remove(names);
    }
  }

  /** As runc restores; the sandbox is made within the time, as ours is. */
  async runcRestore(launch: Launch, image: string): Promise<number> {
    const names = this.#names(launch);
    const begunMs = performance.now();
    try {
      openSandbox(this.#context, names, launch);
      await fillSandbox(this.#context, names, launch, image, AbortSignal.timeout(limitMs));
      await runCommand(["cp", join(image, "config.json"), names.bundle], options("the configuration"));
      const argv = [
        "restore",
        "--detach",
        "--file-locks",
        "--image-path",
        join(image, "runc"),
        "--work-path",
        names.bundle,
      ];
      await this.#runc(names, [...argv, "--bundle", names.bundle, "--pid-file", names.pidFile, names.container]);
      await ask(names.address, launch.spec);
      return performance.now() - begunMs;
    } finally {
      await this.#remove(names);
    }
  }

  #names({ spec }: Launch): Names {
    return namesOf(hostId, this.#directory, spec.name);
  }

  async #remove(names: Names): Promise<void> {
    await removeSandbox(names, this.#context.runcRoot);
  }

  async #answered(names: Names, spec: ContainerSpec): Promise<void> {
    const end = performance.now() + limitMs;
    for (;;) {
      const sample = await sampleOf(names.address, spec);
      if (!failed(sample)) return;
      if (performance.now() > end)
        throw new HakobuError("START_FAILED", `${spec.name} does not answer: ${sample.error ?? sample.status}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** runc takes `criu` from the PATH. */
  async #runc(names: Names, args: readonly string[]): Promise<void> {
    const path = `PATH=${dirname(this.#criu.binary)}${delimiter}${process.env.PATH ?? ""}`;
    const log = ["--root", this.#context.runcRoot, "--log", join(names.bundle, "runc.log")];
    const script = 'exec "$@" </dev/null >/dev/null 2>&1';
    const argv = ["env", path, "/bin/sh", "-c", script, "sh", "runc", ...log, ...args];
    await runCommand(argv, options(`runc ${args[0]}`)).catch((cause: unknown) => {
      const said = readFileSync(join(names.bundle, "dump.log"), "utf8").trim().split("\n").slice(-6).join("\n");
      throw new HakobuError("START_FAILED", `${reasonOf(cause)}: ${said}`, { cause });
    });
  }
}

function options(title: string) {
  return { failure: "START_FAILED", title, timeoutMs: limitMs } as const;
}

function sampleOf(address: string, { port, hostnames }: ContainerSpec) {
  return get({ address, port, hostname: hostnames[0] as string, path: "/", timeoutMs: limitMs });
}

async function ask(address: string, spec: ContainerSpec): Promise<void> {
  const sample = await sampleOf(address, spec);
  if (failed(sample)) throw new HakobuError("RESTORE_FAILED", `${spec.name}: ${sample.error ?? sample.status}`);
}

async function measure(bench: Bench, application: Application) {
  const name = application.name.toLowerCase();
  const spec = { ...(await application.prepare(join(home, name), undefined)), name: `restored-${name}` };
  const launchOf = (kind: Kind): Launch => {
    const limits = { ...spec.limits, cpus: kind.cpus ?? spec.limits.cpus };
    return { spec: { ...spec, limits }, specHash: name, epoch: 1 };
  };
  const images = new Map<string, string>();
  const times = new Map<string, number[]>();
  for (const kind of kinds) images.set(kind.name, await bench.take(kind, launchOf(kind)));
  const runs = kinds.map((kind) => ({
    name: kind.name,
    run: () => bench.restore(launchOf(kind), images.get(kind.name) as string),
  }));
  const [shipped] = kinds as readonly [Kind];
  const image = images.get(shipped.name) as string;
  runs.push({ name: sandboxAhead, run: () => bench.restoreIn(launchOf(shipped), image, { ahead: true }) });
  if (bench.cacheIsOurs)
    runs.push({ name: uncached, run: () => bench.restoreIn(launchOf(shipped), image, { cache: false }) });
  runs.push({ name: peer, run: () => bench.runcRestore(launchOf(shipped), image) });
  let loud = 0;
  for (let round = 0; round < rounds; round++)
    for (let turn = 0; turn < runs.length; turn++) {
      const at = round % 2 === 0 ? turn + round : 2 * runs.length - 1 - turn + round;
      const { name: which, run } = runs[at % runs.length] as (typeof runs)[number];
      if (!(await quiet(AbortSignal.timeout(limitMs)))) loud++;
      times.set(which, [...(times.get(which) ?? []), await run()]);
    }
  if (loud > 0) console.log(`${application.name}: ${loud} of ${rounds * runs.length} found no calm moment`);
  return {
    name: application.name,
    ms: Object.fromEntries(runs.map((each) => [each.name, Math.round(median(times.get(each.name) ?? []) * 10) / 10])),
  };
}

function table(results: readonly Awaited<ReturnType<typeof measure>>[]): string {
  const rows = new Table({
    head: ["ms, medians", ...results.map(({ name }) => name)],
    style: { head: [], border: [] },
  });
  for (const which of Object.keys(results[0]?.ms ?? {}))
    rows.push([which, ...results.map(({ ms }) => String(ms[which]))]);
  return rows.toString();
}

async function main(): Promise<void> {
  const checks = await examine();
  if (!canRestore(checks))
    throw new HakobuError("UNAVAILABLE", `needs ${missingToRestore(checks).join(", ")}; details: hakobu doctor`);
  // Not below /tmp, which is memory on many machines.
  const state = await mkdtemp("/var/tmp/hakobu-restore-");
  try {
    const bench = new Bench(state);
    const measured = [];
    for (const application of applications.filter(({ name }) => name === "Django" || name === "Node"))
      measured.push(await measure(bench, application));
    const [cpu] = cpus();
    const machine = `${cpus().length} x ${cpu?.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}`;
    const results = { machine, date: new Date().toISOString(), rounds, applications: measured };
    const file = join(packageRoot(), "bench", "results", "restore.json");
    console.log(table(measured));
    if (quick) return;
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, `${JSON.stringify(results, null, 2)}\n`);
    console.log(file);
  } finally {
    rmSync(state, { recursive: true, force: true });
  }
}

try {
  await main();
} catch (error) {
  console.error(`bench: ${reasonOf(error)}`);
  process.exitCode = fail(error);
}
