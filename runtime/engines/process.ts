// Containers as child processes, each on a loopback address of its own: where there is no root, no runc or no CRIU. Cold only.
//
//   H1  Its address is made of the host id and the container's name: the same after a restart of either.
//   H2  It outlives the agent; find() knows it by pid and start time.
//   H3  What a process cannot be given is refused at the start: another root file system, mounts elsewhere, another user without
//       root. Limits are not enforced.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, mkdirSync, openSync } from "node:fs";
import { join } from "node:path";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { Engine, Instance, Launch, Launched, Phases } from "../../actors/ports/engine.js";
import type { Log } from "../../actors/ports/log.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { abortError } from "./command.js";
import {
  checkContainerName,
  checkHostId,
  containersIn,
  readInstance,
  removeInstance,
  writeInstance,
} from "./instance-file.js";
import { isListening } from "./listening.js";
import { openOutputLog, readOutputLog } from "./output-log.js";
import { identify, isRunning, processesOfGroup, signalProcess, waitUntil } from "./process-table.js";

const killLimitMs = 5_000;
const reason = "the process engine starts cold only: checkpoints need the runc engine, root and CRIU";

export interface ProcessEngineOptions {
  readonly hostId: string;
  /** Local to this host; `process/` in it is the engine's. */
  readonly stateDir: string;
  readonly log: Log;
}

export class ProcessEngine implements Engine {
  readonly name = "process";
  readonly capabilities: Engine["capabilities"] = { checkpoint: false, reason };
  readonly #hostId: string;
  readonly #directory: string;
  readonly #log: Log;

  constructor({ hostId, stateDir, log }: ProcessEngineOptions) {
    checkHostId(hostId);
    this.#hostId = hostId;
    this.#directory = join(stateDir, "process");
    this.#log = log;
  }

  fingerprint(): Promise<Readonly<Record<string, string>>> {
    return Promise.resolve({});
  }

  async start({ spec, specHash, epoch }: Launch, signal: AbortSignal): Promise<Launched> {
    const begunMs = performance.now();
    const title = `the start of ${spec.name}`;
    if (signal.aborted) throw abortError(signal, title);
    const directory = this.#of(spec.name);
    refuseWhatIsNotPossible(spec);
    const known = readInstance(directory);
    if (known !== undefined && isRunning(known))
      throw new HakobuError("START_FAILED", `${spec.name} runs on this host already, as process ${known.pid}`);
    if (known !== undefined) await this.stop(known, 0);
    mkdirSync(directory, { recursive: true, mode: 0o755 });
    await openOutputLog(join(directory, "output.log"), spec.user);
    const address = addressOf(this.#hostId, spec.name);
    const pid = await this.#spawn(spec, epoch, address);
    try {
      if (signal.aborted) throw abortError(signal, title);
      const { startTime } = identify(pid);
      const instance: Instance = {
        container: spec.name,
        engine: this.name,
        epoch,
        specHash,
        address,
        port: spec.port,
        pid,
        startTime,
      };
      writeInstance(directory, instance);
      return { instance, phases: [{ name: "spawn", ms: performance.now() - begunMs }] };
    } catch (error) {
      signalProcess(-pid, "SIGKILL");
      throw error;
    }
  }

  restore(): Promise<Launched> {
    return Promise.reject(new HakobuError("RESTORE_FAILED", reason));
  }

  checkpoint(): Promise<Phases> {
    return Promise.reject(new HakobuError("CHECKPOINT_FAILED", reason));
  }

  async renew(instance: Instance, epoch: number): Promise<Instance> {
    const renewed = { ...instance, epoch };
    writeInstance(this.#of(instance.container), renewed);
    return renewed;
  }

  async stop(instance: Instance, graceMs: number): Promise<void> {
    const { pid, container } = instance;
    // The group that start() made: its id is the pid of its first process.
    if (graceMs > 0 && isRunning(instance) && signalProcess(-pid, "SIGTERM"))
      await waitUntil(() => !isRunning(instance), graceMs);
    const gone = await waitUntil(() => {
      const left = processesOfGroup(pid, `HAKOBU_CONTAINER=${container}`);
      for (const each of left) signalProcess(each, "SIGKILL");
      return left.length === 0 && !isRunning(instance);
    }, killLimitMs);
    if (!gone)
      throw new HakobuError("STOP_FAILED", `processes of ${container} are left after KILL, in process group ${pid}`);
    const directory = this.#of(container);
    if (readInstance(directory)?.pid === pid) removeInstance(directory);
  }

  alive(instance: Instance): boolean {
    return isRunning(instance);
  }

  listening(instance: Instance): Promise<boolean> {
    return isListening(instance.pid, instance.port, instance.address);
  }

  async find(): Promise<readonly Instance[]> {
    const found: Instance[] = [];
    for (const container of containersIn(this.#directory)) {
      const instance = readInstance(this.#of(container));
      if (instance === undefined) continue;
      if (isRunning(instance)) found.push(instance);
      else await this.stop(instance, 0);
    }
    this.#log.debug({ found: found.map(({ container }) => container) }, "looked for processes that outlived the agent");
    return found;
  }

  output(container: string, lines: number): Promise<string> {
    return readOutputLog(join(this.#of(container), "output.log"), lines);
  }

  #spawn(spec: ContainerSpec, epoch: number, address: string): Promise<number> {
    const [program = "", ...args] = spec.command;
    const output = openSync(join(this.#of(spec.name), "output.log"), "a");
    return new Promise<number>((resolve, reject) => {
      const child = spawn(program, args, {
        cwd: spec.cwd,
        detached: true,
        stdio: ["ignore", output, output],
        env: {
          PATH: process.env.PATH,
          HOME: process.env.HOME,
          LANG: process.env.LANG,
          HOST: address,
          PORT: String(spec.port),
          HAKOBU_CONTAINER: spec.name,
          HAKOBU_EPOCH: String(epoch),
          ...spec.env,
        },
        ...(process.getuid?.() === 0 ? { uid: spec.user.uid, gid: spec.user.gid } : {}),
      });
      child.once("spawn", () => {
        child.unref();
        resolve(child.pid as number);
      });
      child.once("error", (error) =>
        reject(
          new HakobuError("START_FAILED", `cannot run ${program} in ${spec.cwd}: ${reasonOf(error)}`, { cause: error }),
        ),
      );
    }).finally(() => closeSync(output));
  }

  #of(container: string): string {
    checkContainerName(container);
    return join(this.#directory, container);
  }
}

/** A read-only mount is taken as it is: the file's own permissions decide. */
function refuseWhatIsNotPossible(spec: ContainerSpec): void {
  const refuse = (why: string): never => {
    throw new HakobuError("START_FAILED", `${spec.name}: the process engine ${why}; use engine: runc`);
  };
  if (spec.rootfs !== "host") refuse(`has no root file system but the host's, not ${spec.rootfs}`);
  for (const { source, target } of spec.mounts)
    if (source !== target) refuse(`mounts nothing: ${source} cannot appear as ${target}`);
  const own = process.getuid?.() ?? 0;
  if (own !== 0 && own !== spec.user.uid) refuse(`cannot run as user ${spec.user.uid} when the agent is not root`);
}

/** In 127.64.0.0/10, without the ends of the last byte. */
function addressOf(hostId: string, container: string): string {
  const hash = createHash("sha256").update(`${hostId}/${container}`).digest().readUInt32BE();
  return `127.${64 + ((hash >>> 16) & 0x3f)}.${(hash >>> 8) & 0xff}.${1 + ((hash & 0xff) % 254)}`;
}
