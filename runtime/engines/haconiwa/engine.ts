// Containers by Haconiwa, and their images by CRIU through it. Haconiwa's words are never taken for the container's state: that
// is read from its processes, its pid file and its port.
//
//   E1  start() and restore() leave a running instance with a live supervisor, or nothing of it but its log.
//   E2  What find() does not return is not there. An orphan, which runs without its supervisor, is not adopted: it could be neither
//       imaged nor stopped by Haconiwa.
//   E3  What changes one container happens one after the other.
//   E4  A dump is never cut by its caller: a container in which CRIU works would be damaged. An abort is reported when it has ended.
import { mkdirSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { type ErrorCode, HakobuError, reasonOf } from "../../../actors/hakobu-error.js";
import type { Engine, Instance, Launch, Launched, Phases } from "../../../actors/ports/engine.js";
import type { Log } from "../../../actors/ports/log.js";
import type { ContainerSpec } from "../../../actors/ports/spec.js";
import { findCriu, findProgram } from "../../doctor/criu-binary.js";
import { TcpProber } from "../../probes/tcp.js";
import { abortError } from "../command.js";
import { containersIn, readInstance, writeInstance } from "../instance-file.js";
import { tellEpoch } from "../run-directory.js";
import { isListening } from "../listening.js";
import { Hangs } from "../hangs.js";
import { boundOutputLog, readOutputLog } from "../output-log.js";
import { handlesTerm, identify, isRunning, signalProcess, waitUntil } from "../process-table.js";
import { Turns } from "../turns.js";
import { baseLayer } from "../runc/base-layer.js";
import { type Cgroups, findCgroups, scaleCgroup } from "../runc/cgroup.js";
import { type Criu, openCriu, removeStaleMountPoints } from "../runc/criu.js";
import { machineFingerprint, rootfsFingerprint } from "../runc/fingerprint.js";
import { archiveCommand, growRootfs } from "../runc/rootfs.js";
import { CriuService } from "./criu-service.js";
import { hacoFile, ownHacoFile, ownHacoFingerprint } from "./haco-file.js";
import { checkSizes, criuDirectory, lastErrorsIn, whyNoDump } from "../criu-images.js";
import { sealImage } from "./image.js";
import { type HaconiwaNames, haconiwaNamesOf } from "./names.js";
import { containerOf, supervisorIn } from "./pid-file.js";
import { HaconiwaProgram } from "./program.js";
import { hasProcesses, hasSandbox, makeSandbox, removeSandbox, type SandboxContext } from "./sandbox.js";

const pollMs = 10;
const probeMs = 1_000;
/** From "accepted" to a live supervisor with its container. */
const startLimitMs = 10_000;
const restoreLimitMs = 15_000;
const restoreLimitMsPerMiB = 20;
const dumpLimitMs = 60_000;
const killCommandMs = 5_000;
/** Haconiwa's processes end by themselves after the container, and remove their files. */
const settleLimitMs = 1_000;

const notInstalled =
  "Haconiwa is not installed: it is in no package registry; build it and name the binary in HACONIWA_BIN (docs/reference/haconiwa.md)";
const noCriu = "CRIU is not installed; etc/setup.sh installs it";

export interface HaconiwaEngineOptions {
  readonly hostId: string;
  /** Local to this host; `haconiwa/` in it is the engine's. */
  readonly stateDir: string;
  readonly log: Log;
  /** The haconiwa executable. Default: the one that `HACONIWA_BIN` names, else that on the PATH. */
  readonly binary?: string;
  /** More directories of the host that containers with `rootfs: host` must not see, for example that of the images. */
  readonly hidden?: readonly string[];
}

export class HaconiwaEngine implements Engine {
  readonly name = "haconiwa";
  readonly capabilities: Engine["capabilities"];
  readonly #hostId: string;
  readonly #directory: string;
  readonly #log: Log;
  readonly #hidden: readonly string[];
  readonly #program: HaconiwaProgram | undefined;
  readonly #criu: Criu | undefined;
  readonly #service: CriuService | undefined;
  readonly #cgroups: Cgroups;
  readonly #layers = new Map<string, Promise<string>>();
  readonly #rootfs = new Map<string, string>();
  readonly #turns = new Turns();
  readonly #hangs = new Hangs();
  readonly #prober = new TcpProber();

  constructor({ hostId, stateDir, log, binary, hidden = [] }: HaconiwaEngineOptions) {
    this.#hostId = hostId;
    this.#directory = join(stateDir, "haconiwa");
    this.#log = log;
    this.#hidden = [stateDir, ...hidden];
    const program = findProgram(binary ?? (process.env.HACONIWA_BIN || "haconiwa"));
    this.#program = program === undefined ? undefined : new HaconiwaProgram(program);
    const criu = findCriu();
    this.#criu = criu === undefined ? undefined : openCriu(criu, this.#hidden);
    this.#service = criu === undefined ? undefined : new CriuService(criu, log);
    const reason = program === undefined ? notInstalled : criu === undefined ? noCriu : undefined;
    this.capabilities = reason === undefined ? { checkpoint: true } : { checkpoint: false, reason };
    this.#cgroups = findCgroups();
  }

  fingerprint(spec: ContainerSpec): Promise<Readonly<Record<string, string>>> {
    let rootfs = this.#rootfs.get(spec.rootfs);
    if (rootfs === undefined) {
      rootfs = rootfsFingerprint(spec.rootfs);
      this.#rootfs.set(spec.rootfs, rootfs);
    }
    const machine = this.#criu === undefined ? {} : machineFingerprint(this.#criu);
    const program = this.#program === undefined ? {} : { haconiwa: this.#program.digest };
    const haco = spec.haconiwa === undefined ? {} : { haco: ownHacoFingerprint(spec.haconiwa.file) };
    return Promise.resolve({ ...machine, ...program, rootfs, ...haco });
  }

  async start(launch: Launch, signal: AbortSignal): Promise<Launched> {
    return this.#launch("START_FAILED", launch, undefined, signal);
  }

  async restore(launch: Launch, directory: string, signal: AbortSignal): Promise<Launched> {
    return this.#launch("RESTORE_FAILED", launch, directory, signal);
  }

  async checkpoint(instance: Instance, spec: ContainerSpec, directory: string, signal: AbortSignal): Promise<Phases> {
    const { container, pid } = instance;
    const names = this.#names(container);
    const title = `the checkpoint of ${spec.name}`;
    const program = this.#required(this.#program, "CHECKPOINT_FAILED", notInstalled);
    const service = this.#required(this.#service, "CHECKPOINT_FAILED", noCriu);
    return this.#turns.inTurn(container, async () => {
      if (signal.aborted) throw abortError(signal, title);
      if (!isRunning(instance))
        throw new HakobuError("CHECKPOINT_FAILED", `${container} does not run any more: nothing to image`);
      const begunMs = performance.now();
      const address = await service.address();
      const readyMs = performance.now();
      const images = criuDirectory(directory);
      mkdirSync(images, { mode: 0o700 });
      const done = service.whileFrozen(pid, `${archiveCommand(names, directory)}\n`);
      try {
        await program.checkpoint(names, { failure: "CHECKPOINT_FAILED", title, images, service: address }, dumpLimitMs);
        sealImage(container, directory);
      } catch (error) {
        // The service has no time-out: it would dump on, and no other dump could begin.
        if (error instanceof HakobuError && error.code === "DEADLINE_EXCEEDED") await service.close();
        if (signal.aborted) throw abortError(signal, title);
        const why = whyNoDump(join(images, "dump.log"), error);
        throw new HakobuError("CHECKPOINT_FAILED", `${title} failed: ${why}`, { cause: error });
      } finally {
        done();
      }
      if (signal.aborted) throw abortError(signal, title);
      return [
        { name: "criu service", ms: readyMs - begunMs },
        { name: "haconiwa checkpoint", ms: performance.now() - readyMs },
      ];
    });
  }

  async scale(instance: Instance, limits: ContainerSpec["limits"]): Promise<void> {
    const names = this.#names(instance.container);
    await this.#turns.inTurn(instance.container, async () => {
      scaleCgroup(this.#cgroups, names, limits);
      await growRootfs(names, limits);
    });
  }

  async renew(instance: Instance, epoch: number): Promise<Instance> {
    const names = this.#names(instance.container);
    const renewed = { ...instance, epoch };
    tellEpoch(names.run, epoch);
    writeInstance(names.directory, renewed);
    return renewed;
  }

  async stop(instance: Instance, graceMs: number): Promise<void> {
    const { container, pid } = instance;
    const names = this.#names(container);
    await this.#turns.inTurn(container, async () => {
      // Without a handler for it the first process of a pid namespace never notices a TERM.
      if (graceMs > 0 && isRunning(instance) && handlesTerm(pid)) {
        await this.#term(names, pid);
        await waitUntil(() => !isRunning(instance), graceMs);
      }
      // The container's, not the supervisor's: that one would go and leave an orphan.
      if (isRunning(instance)) signalProcess(pid, "SIGKILL");
      await waitUntil(() => !hasProcesses(this.#cgroups, names), settleLimitMs);
      await removeSandbox(names);
    });
  }

  alive(instance: Instance): boolean {
    return isRunning(instance);
  }

  listening(instance: Instance): Promise<boolean> {
    return isListening(instance.pid, instance.port, instance.address);
  }

  async find(): Promise<readonly Instance[]> {
    const found: Instance[] = [];
    removeStaleMountPoints();
    for (const container of containersIn(this.#directory)) {
      // This agent's own.
      if (this.#turns.busy(container)) continue;
      const names = this.#names(container);
      await this.#turns.inTurn(container, async () => {
        const instance = readInstance(names.directory);
        const supervisor = supervisorIn(names.pidFile);
        const supervised = supervisor === undefined ? undefined : containerOf(supervisor);
        if (instance !== undefined && instance.pid === supervised && isRunning(instance)) {
          found.push(instance);
          return;
        }
        if (instance === undefined && !hasSandbox(names)) return;
        this.#log.info({ container }, "removing what is left of a container that does not run under Haconiwa");
        await removeSandbox(names);
      });
    }
    return found;
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
        if (!wanted(container) && readInstance(names.directory) === undefined && !hasSandbox(names))
          await rm(names.directory, { recursive: true, force: true });
      });
  }

  /** Ends `criu service`; containers go on. Idempotent. */
  async close(): Promise<void> {
    await this.#service?.close();
  }

  /** Of `criu service`, while it runs. */
  async servicePid(): Promise<number | undefined> {
    return this.#service?.pid();
  }

  async #launch(
    failure: "START_FAILED" | "RESTORE_FAILED",
    launch: Launch,
    image: string | undefined,
    signal: AbortSignal,
  ): Promise<Launched> {
    const { spec } = launch;
    const title = `${image === undefined ? "the start" : "the restore"} of ${spec.name}`;
    const names = this.#names(spec.name);
    return this.#turns.inTurn(spec.name, async () => {
      if (signal.aborted) throw abortError(signal, title);
      const program = this.#required(this.#program, "UNAVAILABLE", notInstalled);
      if (image !== undefined) this.#required(this.#criu, "UNAVAILABLE", noCriu);
      const known = readInstance(names.directory);
      if (known !== undefined && isRunning(known))
        throw new HakobuError(
          "START_FAILED",
          `${spec.name} runs on this host already, as process ${known.pid}: stop it first`,
        );
      try {
        if (hasSandbox(names)) await removeSandbox(names);
        return await this.#bringUp(failure, program, names, launch, image, signal);
      } catch (error) {
        await removeSandbox(names).catch((left: unknown) =>
          this.#log.error({ container: spec.name, reason: reasonOf(left) }, "could not clean up after a failed launch"),
        );
        if (signal.aborted) throw abortError(signal, title);
        if (error instanceof HakobuError) throw error;
        throw new HakobuError("START_FAILED", `${title} failed: ${reasonOf(error)}`, { cause: error });
      }
    });
  }

  async #bringUp(
    failure: "START_FAILED" | "RESTORE_FAILED",
    program: HaconiwaProgram,
    names: HaconiwaNames,
    launch: Launch,
    image: string | undefined,
    signal: AbortSignal,
  ): Promise<Launched> {
    const { spec, specHash, epoch } = launch;
    const begunMs = performance.now();
    const bytes = image === undefined ? 0 : checkSizes(spec.name, image);
    const { binds, unlimited } = await makeSandbox(this.#context(), names, launch, image, signal);
    if (unlimited.length > 0)
      this.#log.warn({ container: spec.name, unlimited }, "limits that this machine does not enforce");
    const criu = this.#criu?.binary;
    const own = spec.haconiwa?.file;
    const haco = own === undefined ? hacoFile({ names, launch, binds, criu }) : ownHacoFile(own);
    writeFileSync(names.hacoFile, haco, { mode: 0o600 });
    const madeMs = performance.now();
    const command = image === undefined ? "start" : "restore";
    const images = image === undefined ? {} : { images: criuDirectory(image) };
    const told = { port: spec.port, epoch, ...(criu === undefined ? {} : { criu }) };
    const call = { failure, title: `haconiwa ${command} of ${spec.name}`, signal, ...images, ...told };
    await program.up(command, names, this.#cgroups.of(names), call);
    const acceptedMs = performance.now();
    const limitMs = image === undefined ? startLimitMs : restoreLimitMs + (bytes / 1024 / 1024) * restoreLimitMsPerMiB;
    const whenUp = (): Promise<number> =>
      this.#whenUp(failure, program, names, spec, image !== undefined, limitMs, signal);
    const pid =
      image === undefined ? await whenUp() : await this.#hangs.watch(spec.name, image, () => !signal.aborted, whenUp);
    const { startTime } = identify(pid);
    const instance: Instance = {
      container: spec.name,
      engine: this.name,
      epoch,
      specHash,
      address: names.address,
      port: spec.port,
      pid,
      startTime,
    };
    writeInstance(names.directory, instance);
    return {
      instance,
      phases: [
        { name: "root file system", ms: madeMs - begunMs },
        { name: `haconiwa ${command}`, ms: acceptedMs - madeMs },
        { name: "supervisor", ms: performance.now() - acceptedMs },
      ],
    };
  }

  /** @returns the container's pid when the pid file holds a live supervisor; of a restored one also only when its port answers */
  async #whenUp(
    failure: ErrorCode,
    program: HaconiwaProgram,
    names: HaconiwaNames,
    { name, port }: ContainerSpec,
    restored: boolean,
    limitMs: number,
    signal: AbortSignal,
  ): Promise<number> {
    const what = restored ? "the restore" : "the start";
    const target = { address: names.address, port };
    const end = performance.now() + limitMs;
    const why = async (): Promise<string> =>
      restored
        ? lastErrorsIn(names.restoreLog)
        : (await readOutputLog(names.outputLog, 3)) || `${program.said(names)} (see also the syslog)`;
    for (let answers = !restored; ; ) {
      if (signal.aborted) throw abortError(signal, `${what} of ${name}`);
      // Asked first: what ended after it is seen in the next turn.
      const ended = !hasProcesses(this.#cgroups, names);
      answers ||= (await this.#prober.probe(target, probeMs)).kind === "alive";
      const supervisor = supervisorIn(names.pidFile);
      const pid = supervisor === undefined ? undefined : containerOf(supervisor);
      if (answers && pid !== undefined) return pid;
      if (ended) throw new HakobuError(failure, `${what} of ${name} was accepted, then it ended: ${await why()}`);
      if (performance.now() > end)
        throw new HakobuError(
          restored ? "DEADLINE_EXCEEDED" : failure,
          `${what} of ${name} was accepted, then nothing came of it in ${limitMs} ms (${
            answers ? "no live supervisor in its pid file" : "its port does not answer"
          }): ${await why()}`,
        );
      await new Promise((resolve) => setTimeout(resolve, pollMs));
    }
  }

  /** By Haconiwa; itself where that does not know the container any more. */
  async #term(names: HaconiwaNames, pid: number): Promise<void> {
    try {
      const program = this.#required(this.#program, "STOP_FAILED", notInstalled);
      await program.term(names, { failure: "STOP_FAILED", title: "haconiwa kill" }, killCommandMs);
    } catch (error) {
      this.#log.warn(
        { container: names.container, reason: reasonOf(error) },
        "haconiwa kill failed: signals it itself",
      );
      signalProcess(pid, "SIGTERM");
    }
  }

  #context(): SandboxContext {
    return { hostId: this.#hostId, cgroups: this.#cgroups, baseLayer: (rootfs) => this.#layer(rootfs) };
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

  #names(container: string): HaconiwaNames {
    return haconiwaNamesOf(this.#hostId, this.#directory, container);
  }

  #required<T>(part: T | undefined, code: ErrorCode, reason: string): T {
    if (part === undefined) throw new HakobuError(code, reason);
    return part;
  }
}
