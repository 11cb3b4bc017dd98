// The haconiwa program: how it is called, and what its answers are worth.
//
//   P1  Of `start` and `restore` exit code 0 with "successfully up" means accepted, nothing more; all else is a failure.
//   P2  Its output goes to a file: the daemon that it leaves behind would hold a pipe. It gets nothing of our terminal.
//   P3  What it starts is in the container's control group from its first moment: nothing of it can be lost.
import { createHash } from "node:crypto";
import { closeSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type ErrorCode, HakobuError } from "../../../actors/hakobu-error.js";
import { lastLines, runCommand } from "../command.js";
import { quote } from "../runc/rootfs.js";
import { variables } from "./haco-file.js";
import type { HaconiwaNames } from "./names.js";

const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const upMs = 10_000;

export interface Call {
  readonly failure: ErrorCode;
  readonly title: string;
  readonly images?: string;
  /** Address of CRIU's service. */
  readonly service?: string;
  /** What a user's own haco file may ask for when it starts or restores. */
  readonly criu?: string;
  readonly port?: number;
  readonly epoch?: number;
  readonly signal?: AbortSignal;
}

export class HaconiwaProgram {
  /** Which build it is: another one restores by other rules. */
  readonly digest: string;
  readonly #binary: string;

  constructor(binary: string) {
    this.#binary = binary;
    this.digest = createHash("sha256").update(readFileSync(binary)).digest("hex").slice(0, 16);
  }

  /** `groups`: directories of control groups that it enters first. @throws HakobuError `failure`, DEADLINE_EXCEEDED after 10 s */
  async up(command: "start" | "restore", names: HaconiwaNames, groups: readonly string[], call: Call): Promise<void> {
    const enter = groups.map((each) => `echo 0 >${quote(join(each, "cgroup.procs"))} || exit\n`).join("");
    const argv = ["/bin/sh", "-c", `${enter}exec "$@"`, "sh", ...this.#argv([command, "-D"], names, call)];
    const output = openSync(names.said, "w", 0o600);
    try {
      await runCommand(argv, { ...call, timeoutMs: upMs, output });
    } catch (error) {
      if (!(error instanceof HakobuError) || error.code !== call.failure) throw error;
      throw new HakobuError(call.failure, `${error.message}: ${this.said(names)}`, { cause: error });
    } finally {
      closeSync(output);
    }
    if (!readFileSync(names.said, "utf8").includes("successfully up"))
      throw new HakobuError(call.failure, `${call.title} was not accepted: ${this.said(names)} (see also the syslog)`);
  }

  /** Its exit code can be trusted. It takes no signal: to cut a dump harms the container. @throws HakobuError `failure`, DEADLINE_EXCEEDED */
  async checkpoint(names: HaconiwaNames, call: Call, timeoutMs: number): Promise<void> {
    await runCommand(this.#argv(["checkpoint", "-R"], names, call), { ...call, timeoutMs });
  }

  /** Sends TERM to the container and does not wait. @throws HakobuError `failure`, DEADLINE_EXCEEDED */
  async term(names: HaconiwaNames, call: Call, timeoutMs: number): Promise<void> {
    await runCommand(this.#argv(["kill", "--timeout=-1"], names, call), { ...call, timeoutMs });
  }

  /** The last lines of the last start or restore. */
  said(names: HaconiwaNames): string {
    return lastLines(readFileSync(names.said, "utf8"), 3) || "haconiwa said nothing";
  }

  #argv(command: readonly string[], names: HaconiwaNames, call: Call): string[] {
    const { images = "", service = "", criu = "criu", port = 0, epoch = 0 } = call;
    const values: Readonly<Record<keyof typeof variables, string | number>> = {
      name: names.name,
      address: names.address,
      images,
      service,
      root: names.root,
      pidFile: names.pidFile,
      bundle: names.bundle,
      restoreLog: names.restoreLog,
      criu,
      port,
      epoch,
    };
    const environment = Object.entries(values).map(
      ([key, value]) => `${variables[key as keyof typeof variables]}=${value}`,
    );
    return [
      "env",
      `PATH=${process.env.PATH ?? ""}:${systemPath}`,
      ...environment,
      this.#binary,
      ...command,
      names.hacoFile,
    ];
  }
}
