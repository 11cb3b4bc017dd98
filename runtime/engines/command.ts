// Runs a program to its end: with a deadline, an AbortSignal and a bounded memory of what it wrote.
//
//   C1  The promise settles only when the program has ended, also after an abort: the caller may clean up at once.
//   C2  A program that must end early takes its whole process group with it.
//   C3  `failure` is what the program said of its work. That it could not be run, or was killed, is this machine's trouble: UNAVAILABLE.
import { type ChildProcess, spawn } from "node:child_process";
import { type ErrorCode, HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import { signalProcess } from "./process-table.js";

export interface CommandOptions {
  /** Thrown when it exits with anything but 0, or crashes. */
  readonly failure: ErrorCode;
  /** What it is for, in the messages: "the restore". */
  readonly title: string;
  /** From when it has its input. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
  /** From an abort or the deadline to the KILL; default 0. For what does harm when it is cut short. */
  readonly patienceMs?: number;
  /** A promise: it is written when that resolves; when that rejects, the program is ended and its reason thrown. */
  readonly input?: string | Promise<string>;
  /** Open files that it gets as 3, 4, ... */
  readonly files?: readonly number[];
  /** An open file for its standard output and error: for programs that leave a daemon behind, which must not hold a pipe. */
  readonly output?: number;
}

const keptCharacters = 16_384;

/**
 * @returns its standard output, the last 16 KiB of it
 * @throws HakobuError `failure` when it fails; UNAVAILABLE when it cannot be run, or somebody kills it; DEADLINE_EXCEEDED; and the
 *   signal's reason (as ABORTED where that is no HakobuError)
 */
export function runCommand(argv: readonly string[], options: CommandOptions): Promise<string> {
  const { failure, title, timeoutMs, signal, patienceMs = 0, input, files = [], output } = options;
  const late = Promise.resolve(input);
  // Where nothing was started, nobody waits for it.
  late.catch(() => {});
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(abortError(signal, title));
    const [program = "", ...args] = argv;
    const cannotRun = (cause: unknown): HakobuError =>
      new HakobuError("UNAVAILABLE", `${title}: cannot run ${program}: ${reasonOf(cause)}`, { cause, retryable: true });
    let child: ChildProcess;
    try {
      child = spawn(program, args, {
        detached: true,
        stdio: [input === undefined ? "ignore" : "pipe", output ?? "pipe", output ?? "pipe", ...files],
      });
    } catch (error) {
      return reject(cannotRun(error));
    }
    let stdout = "";
    let stderr = "";
    let early: HakobuError | undefined;
    child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      stdout = (stdout + text).slice(-keptCharacters);
    });
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      stderr = (stderr + text).slice(-keptCharacters);
    });

    let patience: NodeJS.Timeout | undefined;
    const kill = (): void => {
      if (child.pid !== undefined) signalProcess(-child.pid, "SIGKILL");
    };
    const end = (why: HakobuError): void => {
      if (early !== undefined) return;
      early = why;
      if (patienceMs === 0) kill();
      else patience = setTimeout(kill, patienceMs);
    };
    // A program that ends without reading its input is judged by its exit code.
    child.stdin?.on("error", () => {});
    let timer: NodeJS.Timeout | undefined;
    let settled = false;
    late.then(
      (text) => {
        child.stdin?.end(text);
        if (!settled) timer = setTimeout(expire, timeoutMs);
      },
      (error: unknown) =>
        end(error instanceof HakobuError ? error : new HakobuError(failure, `${title}: ${reasonOf(error)}`)),
    );
    const onAbort = (): void => end(abortError(signal, title));
    signal?.addEventListener("abort", onAbort, { once: true });
    const expire = (): void =>
      end(new HakobuError("DEADLINE_EXCEEDED", `${title} took longer than ${timeoutMs} ms`, { retryable: true }));
    const settle = (error?: HakobuError): void => {
      settled = true;
      clearTimeout(timer);
      clearTimeout(patience);
      signal?.removeEventListener("abort", onAbort);
      if (early ?? error) reject(early ?? error);
      else resolve(stdout);
    };
    child.once("error", (error) => settle(cannotRun(error)));
    child.once("close", (exitCode, killedBy) => {
      if (exitCode === 0) return settle();
      const how = killedBy === null ? `exit code ${exitCode}` : `killed by ${killedBy}`;
      const said = lastLines(stderr || stdout, 5);
      const code = killedBy === "SIGKILL" ? "UNAVAILABLE" : failure;
      settle(new HakobuError(code, `${title}: ${program} failed (${how})${said === "" ? "" : `: ${said}`}`));
    });
  });
}

/** What is thrown for an aborted signal: its own reason where that says it well already. */
export function abortError(signal: AbortSignal | undefined, title: string): HakobuError {
  const reason: unknown = signal?.reason;
  if (reason instanceof HakobuError) return reason;
  const timedOut = reason instanceof DOMException && reason.name === "TimeoutError";
  return timedOut
    ? new HakobuError("DEADLINE_EXCEEDED", `${title} was not done in time`, { cause: reason, retryable: true })
    : new HakobuError("ABORTED", `${title} was cancelled`, { cause: reason });
}

export function lastLines(text: string, count: number): string {
  return text.trimEnd().split("\n").slice(-count).join("\n");
}
