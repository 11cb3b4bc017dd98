// The guard of a host: a small process beside the agent that holds one end of a pipe. Each line says for how long the lease is proven and
// which processes are exclusive. When no line comes in time (the agent stands still) or the pipe closes (the agent is
// dead), it kills those processes: before the lease can have ended, so that an exclusive container never has two owners.
//
//   G1  A process is killed only if it is still the one that was named (pid and start time); with its process group, where it leads one.
//   G2  It is a session of its own: what ends the agent does not end it.
import { type ChildProcess, spawn } from "node:child_process";
import type { Guard } from "../actors/ports/guard.js";
import type { Instance } from "../actors/ports/engine.js";

const script = `
limit=86400 named=
while IFS=' ' read -r -t "$limit" said these; do
  [ "$said" = end ] && exit
  limit=$said named=$these
done
for each in $named; do
  stat=$(cat "/proc/\${each%:*}/stat" 2>/dev/null) || continue
  set -- \${stat##*) }
  [ "\${20}" = "\${each#*:}" ] || continue
  pid=\${each%:*}
  if [ "$3" = "$pid" ]; then kill -KILL -- "-$pid"; else kill -KILL "$pid"; fi
done`;

export class ProcessGuard implements Guard {
  #child: ChildProcess | undefined;
  #closed = false;

  watch(remainingMs: number, instances: readonly Instance[]): void {
    if (this.#closed || (instances.length === 0 && this.#child === undefined)) return;
    const names = instances.map(({ pid, startTime }) => `${pid}:${startTime}`).join(" ");
    this.#say(`${(Math.max(1, remainingMs) / 1000).toFixed(3)} ${names}`);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#child !== undefined) this.#say("end");
    this.#child?.stdin?.end();
  }

  #say(line: string): void {
    this.#child ??= this.#start();
    this.#child.stdin?.write(`${line}\n`);
  }

  /** It ends when it has killed; the next line starts another. */
  #start(): ChildProcess {
    const child = spawn("bash", ["-c", script, "hakobu-guard"], {
      detached: true,
      stdio: ["pipe", "ignore", "ignore"],
    });
    const gone = (): void => {
      if (this.#child === child) this.#child = undefined;
    };
    child.once("error", gone).once("exit", gone);
    child.stdin.on("error", gone);
    child.unref();
    (child.stdin as unknown as { unref(): void }).unref();
    return child;
  }
}
