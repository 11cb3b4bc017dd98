// A child process of the local cluster: its output in a file, its end known, and never outliving the parent
// (setpriv(1) --pdeathsig), whatever happens to that.
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { HakobuError } from "../../actors/hakobu-error.js";

export class Child {
  readonly name: string;
  readonly logFile: string;
  readonly exited: Promise<void>;
  readonly #process: ChildProcess;
  #ended: string | undefined;

  /** `wrap` puts the command into a network namespace, for example. */
  constructor(name: string, command: readonly string[], options: { logFile: string; env?: NodeJS.ProcessEnv }) {
    this.name = name;
    this.logFile = options.logFile;
    const log = openSync(options.logFile, "a");
    const [program, ...args] = ["setpriv", "--pdeathsig", "TERM", "--", ...command] as [string, ...string[]];
    this.#process = spawn(program, args, {
      stdio: ["ignore", log, log],
      env: { ...process.env, ...options.env },
      detached: true,
    });
    closeSync(log);
    this.exited = new Promise((resolve) => {
      this.#process.once("error", (error) => {
        this.#ended = error.message;
        resolve();
      });
      this.#process.once("exit", (code, signal) => {
        this.#ended = signal === null ? `exit status ${code}` : `signal ${signal}`;
        resolve();
      });
    });
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  get running(): boolean {
    return this.#ended === undefined;
  }

  signal(signal: NodeJS.Signals): void {
    if (this.running) this.#process.kill(signal);
  }

  /** The signal, then KILL after `graceMs`. Idempotent. */
  async stop(graceMs: number, signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    this.signal(signal);
    const timer = setTimeout(() => this.signal("SIGKILL"), graceMs);
    await this.exited;
    clearTimeout(timer);
  }

  /** Polls `test` until it holds. @throws HakobuError START_FAILED with the last log lines when the process ends before */
  async until(test: () => Promise<boolean>, limitMs: number, what: string): Promise<void> {
    const end = performance.now() + limitMs;
    for (;;) {
      if (await test().catch(() => false)) return;
      if (!this.running || performance.now() > end) {
        const text = await readFile(this.logFile, "utf8").catch(() => "");
        const tail = text.trim().split("\n").slice(-5).join("\n");
        const why = this.running ? `not within ${limitMs} ms` : `it ended (${this.#ended})`;
        throw new HakobuError("START_FAILED", `${this.name}: ${what}: ${why}. Last lines of ${this.logFile}:\n${tail}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }
}
