// Containers by runc, and their images by CRIU. runc starts them; dumps and restores call CRIU itself. An instance is run and
// stopped by pid and control group in either case.
//
//   E1  start() and restore() leave a running instance, or nothing of it but its log.
//   E2  What find() does not return is not there, but for standbys and shadows of this agent: leftovers of dead instances are removed.
//   E3  What changes one container happens one after the other: find() waits for a launch and meets what came of it, not its middle.
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { type ErrorCode, HakobuError, reasonOf } from "../../../actors/hakobu-error.js";
import type { Engine, Instance, Launch, Launched, Phases, Standby } from "../../../actors/ports/engine.js";
import type { Log } from "../../../actors/ports/log.js";
import type { ContainerSpec } from "../../../actors/ports/spec.js";
import { findCriu } from "../../doctor/criu-binary.js";
import { abortError, lastLines, runCommand } from "../command.js";
import { checkContainerName, containersIn, readInstance, writeInstance } from "../instance-file.js";
import { isListening } from "../listening.js";
import { Hangs } from "../hangs.js";
import { boundOutputLog, readOutputLog } from "../output-log.js";
import { fillRunDirectory, tellEpoch } from "../run-directory.js";
import { handlesTerm, identify, isRunning, signalProcess, waitUntil } from "../process-table.js";
import { Turns } from "../turns.js";
import { baseLayer } from "./base-layer.js";
import { findCgroups, scaleCgroup, signalCgroup } from "./cgroup.js";
import { type Criu, checkCriu, dump, openCriu, removeStaleMountPoints, restore } from "./criu.js";
import { machineFingerprint, rootfsFingerprint, rootfsSignature } from "./fingerprint.js";
import { type Names, namesOf, shadowOf, shadowsIn } from "./names.js";
import { openGateway } from "./network.js";
import { type Bind, bindsOf, ociConfig } from "./oci-config.js";
import { archiveCommand, growRootfs } from "./rootfs.js";
import { fillSandbox, hasSandbox, openSandbox, removeSandbox, type SandboxContext } from "./sandbox.js";

/** A container that has been started or restored, and of which no file says so yet. */
interface Laid {
  readonly names: Names;
  readonly pid: number;
  readonly phases: Phases;
}

/** Where the caller's signal sets no earlier end. */
const operationLimitMs = 120_000;

export interface RuncEngineOptions {
  readonly hostId: string;
  /** Local to this host; `runc/` in it is the engine's. */
  readonly stateDir: string;
  readonly log: Log;
  /** More directories of the host that containers with `rootfs: host` must not see, for example that of the images. */
  readonly hidden?: readonly string[];
}

export class RuncEngine implements Engine {
  readonly name = "runc";
  readonly capabilities: Engine["capabilities"];
  readonly #hostId: string;
  readonly #directory: string;
  readonly #log: Log;
  readonly #hidden: readonly string[];
  readonly #criu: Criu | undefined;
  readonly #sandbox: SandboxContext;
  readonly #layers = new Map<string, Promise<string>>();
  /** By root file system, and by container where it was renewed. Changed packages are noticed by the next agent, or a refresh. */
  readonly #fingerprints = new Map<string, Readonly<Record<string, string>>>();
  /** What was found when a root file system was last looked at. */
  readonly #latest = new Map<
    string,
    { readonly signature: string; readonly fingerprint: Readonly<Record<string, string>> }
  >();
  readonly #turns = new Turns();
  readonly #hangs = new Hangs();
  /** Standbys and shadows of this agent: find() leaves them alone. */
  readonly #held = new Set<string>();
  #ready: Promise<void> | undefined;

  constructor({ hostId, stateDir, log, hidden = [] }: RuncEngineOptions) {
    this.#hostId = hostId;
    this.#directory = join(stateDir, "runc");
    this.#log = log;
    this.#hidden = [stateDir, ...hidden];
    const binary = findCriu();
    this.#criu = binary === undefined ? undefined : openCriu(binary, [stateDir, ...hidden]);
    this.capabilities =
      this.#criu === undefined
        ? { checkpoint: false, reason: "CRIU is not installed; etc/setup.sh installs it" }
        : { checkpoint: true };
    this.#sandbox = {
      hostId,
      cgroups: findCgroups(),
      baseLayer: (rootfs) => this.#layer(rootfs),
      runcRoot: join(this.#directory, ".runc"),
    };
  }

  fingerprint(spec: ContainerSpec, now = false): Promise<Readonly<Record<string, string>>> {
    const known = this.#fingerprints.get(rememberedKey(spec)) ?? this.#fingerprints.get(spec.rootfs);
    if (known !== undefined && !now) return Promise.resolve(known);
    const signature = rootfsSignature(spec.rootfs);
    let latest = this.#latest.get(spec.rootfs);
    if (latest?.signature !== signature) {
      const machine = this.#criu === undefined ? {} : machineFingerprint(this.#criu);
      latest = { signature, fingerprint: { ...machine, rootfs: rootfsFingerprint(spec.rootfs) } };
      this.#latest.set(spec.rootfs, latest);
    }
    if (known === undefined) this.#fingerprints.set(spec.rootfs, latest.fingerprint);
    return Promise.resolve(latest.fingerprint);
  }

  remember(spec: ContainerSpec, fingerprint: Readonly<Record<string, string>>): void {
    this.#fingerprints.set(rememberedKey(spec), fingerprint);
  }

  /**
   * What all containers share: masquerading in the agent's network namespace, the base layer, CRIU's knowledge of the kernel.
   * About 200 ms once; a launch does it where nobody has. A failure is tried again by the next call.
   * @throws HakobuError START_FAILED
   */
  prepare(): Promise<void> {
    return (this.#ready ??= this.#open());
  }

  start(launch: Launch, signal: AbortSignal): Promise<Launched> {
    return this.#turns.inTurn(launch.spec.name, () => this.#start(launch, launch.spec.name, signal));
  }

  async shadow(launch: Launch, signal: AbortSignal): Promise<Launched> {
    const as = shadowOf(launch.spec.name);
    return this.#turns.inTurn(as, async () => {
      const launched = await this.#start(launch, as, signal);
      this.#held.add(as);
      return launched;
    });
  }

  async #start(launch: Launch, as: string, signal: AbortSignal): Promise<Launched> {
    const laid = await this.#launch(launch, as, undefined, signal, async (names, binds, ready) => {
      await ready;
      writeFileSync(join(names.bundle, "config.json"), JSON.stringify(ociConfig(names, launch, binds)));
      const log = join(names.bundle, "runc.log");
      const output = openSync(join(names.bundle, "runc.out"), "w", 0o600);
      try {
        const argv = ["runc", "--root", this.#sandbox.runcRoot, "--log", log, "run", "--detach"];
        await runCommand(argv.concat("--bundle", names.bundle, "--pid-file", names.pidFile, names.container), {
          failure: "START_FAILED",
          title: "runc run",
          timeoutMs: operationLimitMs,
          signal,
          output,
        });
      } catch (error) {
        if (!(error instanceof HakobuError) || error.code !== "START_FAILED") throw error;
        const said = lastLines(readFileSync(join(names.bundle, "runc.out"), "utf8"), 3);
        throw new HakobuError("START_FAILED", `${error.message}: ${said}`, { cause: error });
      } finally {
        closeSync(output);
      }
      return Number(readFileSync(names.pidFile, "utf8"));
    });
    return this.#note(launch, laid);
  }

  restore(launch: Launch, directory: string, signal: AbortSignal): Promise<Launched> {
    return this.#turns.inTurn(launch.spec.name, async () =>
      this.#note(launch, await this.#restore(launch, directory, false, signal)),
    );
  }

  async standby(launch: Omit<Launch, "epoch">, directory: string, signal: AbortSignal): Promise<Standby> {
    const { name } = launch.spec;
    const laid = await this.#turns.inTurn(name, async () => {
      const restored = await this.#restore({ ...launch, epoch: 0 }, directory, true, signal);
      this.#held.add(name);
      return restored;
    });
    return {
      phases: laid.phases,
      run: (epoch) => this.#turns.inTurn(name, () => this.#resume({ ...launch, epoch }, laid)),
      discard: () => this.#turns.inTurn(name, () => this.#remove(laid.names)),
    };
  }

  async #resume(launch: Launch, laid: Laid): Promise<Launched> {
    const { names } = laid;
    const begunMs = performance.now();
    try {
      fillRunDirectory(names.run, this.#hostId, launch);
      signalCgroup(names, "SIGCONT");
      const { instance } = await this.#note(launch, laid);
      this.#held.delete(names.container);
      return { instance, phases: [{ name: "resume", ms: performance.now() - begunMs }] };
    } catch (error) {
      await this.#remove(names);
      const message = `${names.container} did not go on: ${reasonOf(error)}`;
      // It died as it was, or this machine could not write a file for it.
      const died = error instanceof HakobuError;
      throw new HakobuError(died ? "RESTORE_FAILED" : "START_FAILED", message, { cause: error });
    }
  }

  async #restore(launch: Launch, directory: string, stopped: boolean, signal: AbortSignal): Promise<Laid> {
    const criu = this.#requireCriu("UNAVAILABLE");
    return this.#launch(launch, launch.spec.name, directory, signal, (names, binds, ready) => {
      const cgroups = this.#sandbox.cgroups.of(names);
      const options = { directory, binds, cgroups, ready, stopped, signal };
      let made = false;
      ready.then(
        () => (made = true),
        () => {},
      );
      const begun = (): boolean => made && !signal.aborted;
      return this.#hangs.watch(names.container, directory, begun, () => restore(criu, names, options));
    });
  }

  /** Notes it on disk: from now on an agent that starts again finds it. */
  async #note(launch: Launch, { names, pid, phases }: Laid): Promise<Launched> {
    const { spec, specHash, epoch } = launch;
    try {
      const { startTime } = identify(pid);
      const { container, address, outlet, namespaceFile } = names;
      const within = outlet === undefined ? {} : { within: namespaceFile };
      const where = { address, port: spec.port, ...within };
      const instance = { container, engine: this.name, epoch, specHash, ...where, pid, startTime };
      writeInstance(names.directory, instance);
      return { instance, phases };
    } catch (error) {
      await this.#remove(names);
      throw error;
    }
  }

  async checkpoint(instance: Instance, spec: ContainerSpec, directory: string, signal: AbortSignal): Promise<Phases> {
    const criu = this.#requireCriu("CHECKPOINT_FAILED");
    const names = this.#names(instance.container);
    if (!isRunning(instance))
      throw new HakobuError("CHECKPOINT_FAILED", `${instance.container} does not run any more: nothing to image`);
    const begunMs = performance.now();
    await dump(criu, names, {
      pid: instance.pid,
      directory,
      binds: bindsOf(names, spec),
      whileFrozen: archiveCommand(names, directory),
      timeoutMs: operationLimitMs,
      signal,
    });
    return [{ name: "criu dump", ms: performance.now() - begunMs }];
  }

  async scale(instance: Instance, limits: ContainerSpec["limits"]): Promise<void> {
    const names = this.#names(instance.container);
    scaleCgroup(this.#sandbox.cgroups, names, limits);
    await growRootfs(names, limits);
  }

  async renew(instance: Instance, epoch: number): Promise<Instance> {
    const names = this.#names(instance.container);
    const renewed = { ...instance, epoch };
    tellEpoch(names.run, epoch);
    writeInstance(names.directory, renewed);
    return renewed;
  }

  stop(instance: Instance, graceMs: number): Promise<void> {
    return this.#turns.inTurn(instance.container, async () => {
      // Without a handler for it the first process of a pid namespace never notices a TERM.
      if (graceMs > 0 && isRunning(instance) && handlesTerm(instance.pid)) {
        signalProcess(instance.pid, "SIGTERM");
        await waitUntil(() => !isRunning(instance), graceMs);
      }
      await this.#remove(this.#names(instance.container));
    });
  }

  alive(instance: Instance): boolean {
    return isRunning(instance);
  }

  listening(instance: Instance): Promise<boolean> {
    return isListening(instance.pid, instance.port);
  }

  async find(): Promise<readonly Instance[]> {
    const containers = containersIn(this.#directory);
    const found = await Promise.all(containers.map((container) => this.#runningOrRemoved(container)));
    await Promise.all(shadowsIn(this.#directory).map((shadow) => this.#runningOrRemoved(shadow)));
    return found.filter((instance) => instance !== undefined);
  }

  /** E2, E3. A shadow is removed though it runs. */
  async #runningOrRemoved(container: string): Promise<Instance | undefined> {
    const names = this.#names(container);
    const running = (): Instance | undefined => {
      const instance = names.outlet === undefined ? readInstance(names.directory) : undefined;
      return instance !== undefined && isRunning(instance) ? instance : undefined;
    };
    // What runs already needs no turn: its end, if it is under way, may take a while. What is in its turn is this agent's own.
    if (this.#turns.busy(container)) return running();
    return (
      running() ??
      this.#turns.inTurn(container, async () => {
        const instance = running();
        if (instance !== undefined || this.#held.has(container)) return instance;
        const left = names.outlet !== undefined || readInstance(names.directory) !== undefined;
        if (!left && !hasSandbox(names, this.#sandbox.runcRoot)) return undefined;
        this.#log.info({ container }, "removing what is left of a container that does not run");
        await this.#remove(names);
        return undefined;
      })
    );
  }

  async #remove(names: Names): Promise<void> {
    await removeSandbox(names, this.#sandbox.runcRoot);
    this.#held.delete(names.container);
  }

  output(container: string, lines: number): Promise<string> {
    return readOutputLog(this.#names(container).outputLog, lines);
  }

  boundOutput(container: string): Promise<void> {
    return boundOutputLog(this.#names(container).outputLog);
  }

  async tidy(wanted: (container: string) => boolean): Promise<void> {
    for (const container of containersIn(this.#directory))
      await this.#turns.inTurn(container, async () => {
        const names = this.#names(container);
        if (
          !wanted(container) &&
          readInstance(names.directory) === undefined &&
          !hasSandbox(names, this.#sandbox.runcRoot)
        )
          await rm(names.directory, { recursive: true, force: true });
      });
  }

  async #launch(
    launch: Launch,
    as: string,
    image: string | undefined,
    signal: AbortSignal,
    run: (names: Names, binds: readonly Bind[], ready: Promise<unknown>) => Promise<number>,
  ): Promise<Laid> {
    const { spec } = launch;
    checkContainerName(spec.name);
    const names = this.#names(as);
    const title = `${image === undefined ? "the start" : "the restore"} of ${as}`;
    if (signal.aborted) throw abortError(signal, title);
    const known = readInstance(names.directory);
    if (known !== undefined && isRunning(known))
      throw new HakobuError("START_FAILED", `${as} runs on this host already, as process ${known.pid}: stop it first`);
    try {
      await this.prepare();
      if (hasSandbox(names, this.#sandbox.runcRoot)) await this.#remove(names);
      const binds = bindsOf(names, spec);
      const unlimited = openSandbox(this.#sandbox, names, launch);
      if (unlimited.length > 0)
        this.#log.warn({ container: spec.name, unlimited }, "limits that this machine does not enforce");
      let filledMs = 0;
      // A turn later, so that run() begins first.
      const filled = Promise.resolve()
        .then(() => fillSandbox(this.#sandbox, names, launch, image, signal))
        .finally(() => {
          filledMs = performance.now();
        });
      const [phases, pid] = await both(filled, run(names, binds, filled));
      const runMs = performance.now() - filledMs;
      identify(pid);
      if (signal.aborted) throw abortError(signal, title);
      const ran = { name: image === undefined ? "runc run" : "criu restore", ms: runMs };
      return { names, pid, phases: [...phases, ran] };
    } catch (error) {
      await this.#remove(names).catch((left: unknown) =>
        this.#log.error({ container: spec.name, reason: reasonOf(left) }, "could not clean up after a failed launch"),
      );
      if (signal.aborted) throw abortError(signal, title);
      // What is not the image's fault keeps its own code: the image stays in use.
      if (error instanceof HakobuError) throw error;
      throw new HakobuError("START_FAILED", `${title} failed: ${reasonOf(error)}`, { cause: error });
    }
  }

  async #open(): Promise<void> {
    try {
      mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
      removeStaleMountPoints();
      const criu = this.#criu === undefined ? undefined : checkCriu(this.#criu);
      await Promise.all([
        openGateway(),
        this.#layer("host"),
        criu?.catch((error: unknown) =>
          this.#log.warn({ reason: reasonOf(error) }, "CRIU does not work here: restores will fail and start cold"),
        ),
      ]);
    } catch (error) {
      this.#ready = undefined;
      throw error;
    }
  }

  /** Shared by all launches, so it ends with none of them: it has a deadline of its own. */
  #layer(rootfs: string): Promise<string> {
    let layer = this.#layers.get(rootfs);
    if (layer === undefined) {
      layer = baseLayer(rootfs === "host" ? "/" : rootfs, this.#hidden);
      layer.catch(() => this.#layers.delete(rootfs));
      this.#layers.set(rootfs, layer);
    }
    return layer;
  }

  #names(container: string): Names {
    return namesOf(this.#hostId, this.#directory, container);
  }

  #requireCriu(code: ErrorCode): Criu {
    if (this.#criu === undefined) throw new HakobuError(code, "CRIU is not installed; etc/setup.sh installs it");
    return this.#criu;
  }
}

function rememberedKey({ name, rootfs }: ContainerSpec): string {
  return `${name} ${rootfs}`;
}

/** Waits for both, also when one fails: what is still at work cannot be cleaned up after. */
async function both<A, B>(first: Promise<A>, second: Promise<B>): Promise<[A, B]> {
  await Promise.allSettled([first, second]);
  return [await first, await second];
}
