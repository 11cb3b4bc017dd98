// The `criu service` to which Haconiwa hands its dumps: one for an engine, started at the first dump, started again at the next
// one when it has died.
//
//   S1  It does not outlive the agent: the kernel kills it with us.
//   S2  Its configuration file says what Haconiwa has no words for. While a container is frozen, after its memory was written, the
//       service runs what whileFrozen() left for it: so the container's files are of the same moment.
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { HakobuError, reasonOf } from "../../../actors/hakobu-error.js";
import type { Log } from "../../../actors/ports/log.js";
import { findProgram } from "../../doctor/criu-binary.js";
import { identify, isRunning, type ProcessId, signalProcess, waitUntil } from "../process-table.js";

const startLimitMs = 5_000;
const endLimitMs = 5_000;
const configuration = [
  "manage-cgroups=ignore",
  "network-lock skip",
  "tcp-close",
  "file-locks",
  "skip-in-flight",
  "ghost-limit 64M",
];

interface Running extends ProcessId {
  readonly address: string;
}

export class CriuService {
  readonly #binary: string;
  readonly #log: Log;
  readonly #clear = (): void => {
    process.off("exit", this.#clear);
    if (this.#directory !== undefined) rmSync(this.#directory, { recursive: true, force: true });
    this.#directory = undefined;
  };
  /** Holds the socket: short, for a socket's path has at most 107 bytes. */
  #directory: string | undefined;
  #running: Promise<Running> | undefined;

  constructor(binary: string, log: Log) {
    this.#binary = binary;
    this.#log = log;
  }

  /** @returns the address at which it answers. @throws HakobuError CHECKPOINT_FAILED */
  async address(): Promise<string> {
    const current = this.#running;
    const known = await current?.catch(() => undefined);
    if (known !== undefined && isRunning(known)) return known.address;
    // Of several that find it dead one starts it.
    if (this.#running === current || this.#running === undefined) {
      if (known !== undefined) this.#log.warn({ pid: known.pid }, "criu service has died: starting another one");
      this.#running = this.#start();
    }
    return (await this.#running).address;
  }

  /** Its pid while it runs. */
  async pid(): Promise<number | undefined> {
    const known = await this.#running?.catch(() => undefined);
    return known !== undefined && isRunning(known) ? known.pid : undefined;
  }

  /** Until the returned function is called, the dump of `pid` runs the shell command. */
  whileFrozen(pid: number, command: string): () => void {
    const script = join(this.#home(), `frozen-${pid}`);
    writeFileSync(script, command, { mode: 0o600 });
    return () => rmSync(script, { force: true });
  }

  /** Idempotent; a dump that goes on is cut. */
  async close(): Promise<void> {
    const known = await this.#running?.catch(() => undefined);
    this.#running = undefined;
    if (known !== undefined && isRunning(known)) {
      // The group that #start() made: with a worker that dumps.
      signalProcess(-known.pid, "SIGKILL");
      await waitUntil(() => !isRunning(known), endLimitMs);
    }
    this.#clear();
  }

  #home(): string {
    if (this.#directory === undefined) {
      this.#directory = mkdtempSync("/run/hakobu-criu-");
      process.once("exit", this.#clear);
    }
    return this.#directory;
  }

  async #start(): Promise<Running> {
    const home = this.#home();
    const address = join(home, "socket");
    const config = join(home, "config");
    const script = join(home, "action.sh");
    // CRIU calls it at every step; of the images' directory it knows nothing any more at this one.
    const atEnd = `exec /bin/sh '${home}'/"frozen-$CRTOOLS_INIT_PID"`;
    writeFileSync(script, `#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0\n${atEnd}\n`, { mode: 0o700 });
    writeFileSync(config, [...configuration, `action-script ${script}`, ""].join("\n"));
    rmSync(address, { force: true });
    const service = [this.#binary, "service", "--address", address, "-W", home, "-o", join(home, "service.log"), "-v1"];
    const child = await spawned([findProgram("setpriv") ?? "setpriv", "--pdeathsig", "KILL", ...service], config);
    const { pid, startTime } = identify(child.pid as number);
    const up = await waitUntil(() => existsSync(address) || child.exitCode !== null, startLimitMs);
    if (!up || child.exitCode !== null) {
      signalProcess(-pid, "SIGKILL");
      throw new HakobuError(
        "CHECKPOINT_FAILED",
        `criu service does not start: ${this.#binary} service; see hakobu doctor`,
      );
    }
    return { pid, startTime, address };
  }
}

function spawned(argv: readonly string[], config: string): Promise<ChildProcess> {
  const [program = "", ...args] = argv;
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      detached: true,
      stdio: "ignore",
      env: { ...process.env, CRIU_CONFIG_FILE: config },
    });
    child.once("spawn", () => {
      child.unref();
      resolve(child);
    });
    child.once("error", (error) =>
      reject(new HakobuError("CHECKPOINT_FAILED", `cannot run ${program}: ${reasonOf(error)}`, { cause: error })),
    );
  });
}
