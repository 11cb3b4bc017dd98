// A port on loopback that answers no connection attempt, as a host that was cut off does: its listener accepts nothing and its
// backlog is full.
import { spawn } from "node:child_process";
import { connect } from "node:net";
import type { Target } from "../../actors/ports/prober.js";
import { until } from "./hop.js";

// node:net accepts whatever comes, so the listener is made elsewhere. It ends when its standard input does.
const LISTENER = `
import socket, sys
s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen(0)
print(s.getsockname()[1], flush=True)
sys.stdin.read()
`;

export interface Blackhole extends Target {
  close(): void;
}

export async function blackhole(): Promise<Blackhole> {
  const child = spawn("python3", ["-c", LISTENER], { stdio: ["pipe", "pipe", "inherit"] });
  const port = await new Promise<number>((resolve, reject) => {
    child.once("error", reject);
    child.stdout.once("data", (data: Buffer) => resolve(Number(data.toString())));
  });
  // With a backlog of 0 Linux completes one handshake and drops what comes after it.
  const fillers = Array.from({ length: 8 }, () => connect(port, "127.0.0.1").on("error", () => undefined));
  await until(() => fillers.some((socket) => !socket.connecting), "one connection in the backlog");
  return {
    address: "127.0.0.1",
    port,
    close() {
      for (const socket of fillers) socket.destroy();
      child.stdin.end();
    },
  };
}
