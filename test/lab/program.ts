// The program `hakobu` as a user runs it: one command that ends, or the members of a cluster, each a process.
import { execFile } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Child } from "../../runtime/local/child.js";
import { freePorts } from "./cluster.js";

const program = fileURLToPath(new URL("../../runtime/cli/main.js", import.meta.url));
const commandLimitMs = 30_000;
const readyLimitMs = 20_000;
const stopGraceMs = 10_000;

export interface CommandResult {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** Never rejects. */
export function hakobu(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<CommandResult> {
  return new Promise((resolve) => {
    const options = { env: { ...process.env, ...env }, timeout: commandLimitMs };
    execFile(process.execPath, [program, ...args], options, (error, out, err) =>
      resolve({ code: error === null ? 0 : Number(error.code ?? -1), out, err }),
    );
  });
}

export interface Members {
  readonly proxy: { readonly address: string; readonly port: number };
  close(): Promise<void>;
}

/** Hosts that run child processes, and a proxy, on loopback and without root. `env` tells them and commands where etcd is. */
export async function startMembers(
  hosts: readonly string[],
  directory: string,
  env: NodeJS.ProcessEnv,
): Promise<Members> {
  const ports = await freePorts(hosts.length + 2);
  const [proxyPort, adminPort] = ports.splice(0, 2) as [number, number];
  await mkdir(join(directory, "logs"), { recursive: true });
  const children: Child[] = [];
  const start = (name: string, args: readonly string[]): Child => {
    const command = [process.execPath, program, ...args];
    const child = new Child(name, command, { logFile: join(directory, "logs", `${name}.log`), env });
    children.push(child);
    return child;
  };
  const answers = async (url: string, of: (text: string) => boolean): Promise<boolean> => {
    const answer = await fetch(url, { signal: AbortSignal.timeout(1000) });
    return answer.ok && of(await answer.text());
  };
  const close = async (): Promise<void> => {
    await Promise.all(children.map((child) => child.stop(stopGraceMs, "SIGINT")));
  };
  try {
    await Promise.all(
      hosts.map((id, index) => {
        const listen = `127.0.0.1:${ports[index]}`;
        const files = ["--state-dir", join(directory, "hosts", id), "--images", join(directory, "images")];
        const host = start(`host-${id}`, ["host", "--id", id, "--listen", listen, "--engines", "process", ...files]);
        const running = (text: string): boolean => text.includes('"state":"running"');
        return host.until(() => answers(`http://${listen}/v1/host`, running), readyLimitMs, "joins");
      }),
    );
    const admin = `127.0.0.1:${adminPort}`;
    const proxy = start("proxy", ["proxy", "--listen", `127.0.0.1:${proxyPort}`, "--admin", admin]);
    const all = (text: string): boolean => hosts.every((id) => text.includes(`"id":"${id}"`));
    await proxy.until(() => answers(`http://${admin}/hosts`, all), readyLimitMs, "sees the hosts");
  } catch (error) {
    await close();
    throw error;
  }
  return { proxy: { address: "127.0.0.1", port: proxyPort }, close };
}
