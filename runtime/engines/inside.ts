// A TCP connection made inside another network namespace: by a child process there (inside-relay.ts), which carries the bytes. For the
// few requests of Hakobu's own to a copy that nobody is to reach over the network.
import { spawn } from "node:child_process";
import type { RequestOptions } from "node:http";
import { Duplex } from "node:stream";
import { fileURLToPath } from "node:url";
import type { Target } from "../../actors/ports/prober.js";

const relay = fileURLToPath(new URL("./inside-relay.js", import.meta.url));

/** For `http.request`: a connection of its own. From inside a namespace it takes some 60 ms more. */
export function connectionTo({ address, port, within }: Target): Pick<RequestOptions, "agent" | "createConnection"> {
  if (within === undefined) return { agent: false };
  return { createConnection: () => connectInside(within, address, port) };
}

/** `namespace`: the path of a network namespace. */
function connectInside(namespace: string, address: string, port: number): Duplex {
  const argv = [`--net=${namespace}`, process.execPath, relay, address, String(port)];
  const child = spawn("nsenter", argv, { stdio: ["pipe", "pipe", "ignore"] });
  const connection = Duplex.from({ readable: child.stdout, writable: child.stdin });
  child.once("error", (error) => connection.destroy(error));
  connection.once("close", () => child.kill("SIGKILL"));
  return connection;
}
