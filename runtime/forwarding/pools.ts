// Connections to the next hop: one undici Pool for each address and port.
//
//   P1  A connection attempt ends within `connectTimeoutMs`, measured by a timer of our own (undici's fires half a second
//       late), and a stall of the event loop alone never ends one.
//   P2  A response that ends by the closing of its connection is complete only if the connection was closed and not reset.
//       undici lets ECONNRESET pass for the end of such a response (for macOS); the connector gives it another code.
//   P3  An aborted request closes its connection and opens none. undici would take the request for one to be sent again,
//       connect for it, and only then see that it was aborted; here too another code makes the difference.
//   P4  `destroy` cuts every socket of a target at once, those still connecting and upgraded ones too.
import { connect, type Socket, type TcpNetConnectOpts } from "node:net";
import { type buildConnector, Pool } from "undici";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Target } from "../../actors/ports/prober.js";
import { BROKEN_CONNECTION } from "./outcome.js";

/** For the sockets of servers too: `http.createServer({ highWaterMark: SOCKET_HIGH_WATER_MARK })`. 64 KiB costs a tenth of the throughput of large bodies. */
export const SOCKET_HIGH_WATER_MARK = 256 * 1024;

export interface PoolsOptions {
  /** Default 100. */
  readonly connectTimeoutMs?: number;
  /** Connections to one target at once; more requests wait. Default 256. `unlimited`: where requests of many tenants go to one target. */
  readonly connections?: number | "unlimited";
  /** An unused connection is closed after this long, or a second before the server says it will. Default 4000. */
  readonly keepAliveTimeoutMs?: number;
}

interface Entry {
  readonly pool: Pool;
  readonly sockets: Set<Socket>;
}

export class Pools {
  readonly #connectTimeoutMs: number;
  readonly #connections: number | "unlimited";
  readonly #keepAliveTimeoutMs: number;
  readonly #entries = new Map<string, Entry>();
  #closed = false;

  constructor({ connectTimeoutMs = 100, connections = 256, keepAliveTimeoutMs = 4000 }: PoolsOptions = {}) {
    this.#connectTimeoutMs = connectTimeoutMs;
    this.#connections = connections;
    this.#keepAliveTimeoutMs = keepAliveTimeoutMs;
  }

  /**
   * The pool of a target, made on first use. The address is a literal IP address.
   * @throws HakobuError UNAVAILABLE after `close`
   */
  get(target: Target): Pool {
    const key = origin(target);
    const known = this.#entries.get(key);
    if (known !== undefined) return known.pool;
    if (this.#closed) throw new HakobuError("UNAVAILABLE", "The connection pools are closed: the process is stopping");
    const sockets = new Set<Socket>();
    const pool = new Pool(key, {
      connections: this.#connections === "unlimited" ? null : this.#connections,
      keepAliveTimeout: this.#keepAliveTimeoutMs,
      keepAliveTimeoutThreshold: 1000,
      // Deadlines are given with each request; these hold for whoever uses the pool directly.
      headersTimeout: 60_000,
      bodyTimeout: 60_000,
      connect: connector(target, this.#connectTimeoutMs, sockets),
    });
    this.#entries.set(key, { pool, sockets });
    return pool;
  }

  /** Sockets that are open or opening. */
  sockets(target: Target): number {
    return this.#entries.get(origin(target))?.sockets.size ?? 0;
  }

  /** Cuts all connections of a target; requests on them fail with the code `closed`. The next `get` starts afresh. Idempotent. */
  destroy(target: Target, reason: string): void {
    const key = origin(target);
    const entry = this.#entries.get(key);
    if (entry === undefined) return;
    this.#entries.delete(key);
    cut(entry, new HakobuError("UNAVAILABLE", `${key}: ${reason}`));
  }

  /** Waits for the requests that are under way, at most `graceMs`, then cuts. Idempotent. */
  async close(graceMs = 0): Promise<void> {
    this.#closed = true;
    const entries = [...this.#entries.values()];
    this.#entries.clear();
    const drained = Promise.all(entries.map(({ pool }) => pool.close()));
    let timer: NodeJS.Timeout | undefined;
    const graceOver = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, graceMs);
    });
    await Promise.race([drained, graceOver]);
    clearTimeout(timer);
    for (const entry of entries) cut(entry, new HakobuError("UNAVAILABLE", "The connection pools are closed"));
  }
}

function cut({ pool, sockets }: Entry, error: HakobuError): void {
  // Rejects only when it is called in a wrong way; the requests get the error.
  void pool.destroy(error).catch(() => undefined);
  for (const socket of sockets) socket.destroy(error);
}

function origin({ address, port }: Target): string {
  return address.includes(":") ? `http://[${address}]:${port}` : `http://${address}:${port}`;
}

function connector(target: Target, timeoutMs: number, sockets: Set<Socket>): buildConnector.connector {
  return (_options, callback) => {
    // @types/node does not list highWaterMark, which net.connect hands to its stream.
    const socket = connect({
      host: target.address,
      port: target.port,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: 15_000,
      highWaterMark: SOCKET_HIGH_WATER_MARK,
    } as TcpNetConnectOpts);
    sockets.add(socket);
    let pending = true;
    // Two turns more, so that an answer that lies in the queue of a stalled event loop is read first (P1).
    const timer = setTimeout(() => {
      setImmediate(() => setImmediate(() => fail(timedOut(target, timeoutMs))));
    }, timeoutMs);
    function fail(error: Error): void {
      if (!pending) return;
      pending = false;
      clearTimeout(timer);
      socket.destroy();
      callback(error, null);
    }
    socket.once("connect", () => {
      if (!pending) return;
      pending = false;
      clearTimeout(timer);
      callback(null, socket);
    });
    // Stays for the whole life of the socket, and is called before undici's own listener.
    socket.on("error", (error: NodeJS.ErrnoException) => {
      if (pending) return fail(error);
      if (error.code === "ECONNRESET")
        error.code = BROKEN_CONNECTION; // P2
      else if (error.code === "UND_ERR_INFO" && error.message === "aborted") error.code = "UND_ERR_ABORTED"; // P3
    });
    socket.once("close", () => {
      sockets.delete(socket);
      fail(new HakobuError("UNAVAILABLE", `The connection to ${target.address}:${target.port} was closed`));
    });
  };
}

function timedOut({ address, port }: Target, timeoutMs: number): HakobuError {
  return new HakobuError("DEADLINE_EXCEEDED", `${address}:${port} did not accept a connection within ${timeoutMs} ms`, {
    retryable: true,
  });
}
