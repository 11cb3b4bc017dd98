// A hop on loopback as the proxy and the dispatcher make it, servers that fail in chosen ways, and plain clients.
import { once } from "node:events";
import http, { type IncomingHttpHeaders, type RequestListener } from "node:http";
import net, { type AddressInfo, type Socket } from "node:net";
import type { Target } from "../../actors/ports/prober.js";
import { forward } from "../../runtime/forwarding/forward.js";
import { hasBody, requestHeaders, type RequestHeaderRules } from "../../runtime/forwarding/headers.js";
import type { ForwardOutcome } from "../../runtime/forwarding/outcome.js";
import { Pools, type PoolsOptions, SOCKET_HIGH_WATER_MARK } from "../../runtime/forwarding/pools.js";
import { ReplayBody } from "../../runtime/forwarding/replay-body.js";
import type { ExchangeOptions } from "../../runtime/forwarding/exchange.js";

const open: { close(): unknown }[] = [];

/** For `afterEach`: closes everything that this file opened since. */
export async function closeAll(): Promise<void> {
  await Promise.all(open.splice(0).map((part) => part.close()));
}

export interface Listening extends Target {
  readonly sockets: ReadonlySet<Socket>;
  /** Connections since it began to listen. */
  readonly accepted: () => number;
  close(): Promise<void>;
}

async function listening(server: net.Server): Promise<Listening> {
  const sockets = new Set<Socket>();
  let accepted = 0;
  server.on("connection", (socket: Socket) => {
    accepted += 1;
    sockets.add(socket);
    socket.on("error", () => undefined);
    socket.on("close", () => sockets.delete(socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const part = {
    address: "127.0.0.1",
    port: (server.address() as AddressInfo).port,
    sockets,
    accepted: () => accepted,
    async close(): Promise<void> {
      for (const socket of sockets) socket.destroy();
      if (server.listening) await new Promise((resolve) => server.close(resolve));
    },
  };
  open.push(part);
  return part;
}

export function httpServer(listener: RequestListener, prepare?: (server: http.Server) => void): Promise<Listening> {
  const server = http.createServer({ highWaterMark: SOCKET_HIGH_WATER_MARK }, listener);
  prepare?.(server);
  return listening(server);
}

export function tcpServer(listener: (socket: Socket) => void): Promise<Listening> {
  return listening(net.createServer(listener));
}

/** A port on which nothing listens. */
export async function deadPort(): Promise<Target> {
  const server = await tcpServer((socket) => socket.destroy());
  const { address, port } = server;
  await server.close();
  return { address, port };
}

export interface Hop extends Listening {
  readonly pools: Pools;
  readonly outcomes: ForwardOutcome[];
  readonly bodies: ReplayBody[];
}

export interface HopOptions extends Partial<ExchangeOptions> {
  readonly rules?: RequestHeaderRules;
  readonly pools?: PoolsOptions;
  readonly replayLimitBytes?: number;
  /** Whether the next target may have the request. Default: as long as its body is whole. */
  readonly again?: (outcome: ForwardOutcome & { kind: "failed" }) => boolean;
}

/** Sends each request to the targets in turn until one answers; with none left it says what happened, with status 502. */
export async function hop(targets: readonly Target[], options: HopOptions = {}): Promise<Hop> {
  const pools = new Pools(options.pools);
  const outcomes: ForwardOutcome[] = [];
  const bodies: ReplayBody[] = [];
  const server = await httpServer((incoming, outgoing) => {
    const body = hasBody(incoming) ? new ReplayBody(incoming, options.replayLimitBytes) : undefined;
    if (body !== undefined) bodies.push(body);
    void (async () => {
      const headers = requestHeaders(incoming, options.rules ?? { forwarded: "replace" });
      for (const target of targets) {
        const outcome = await forward(pools.get(target), incoming, outgoing, {
          headersTimeoutMs: 5000,
          bodyTimeoutMs: 5000,
          ...options,
          headers,
          body,
        });
        outcomes.push(outcome);
        if (outcome.kind === "failed" && !outcome.responded && (body?.replayable ?? true)) {
          if (options.again?.(outcome) ?? true) continue;
        }
        break;
      }
      if (!outgoing.headersSent && !outgoing.destroyed) {
        outgoing.writeHead(502).end(JSON.stringify(outcomes.map((outcome) => outcome.kind)));
        body?.discard();
      }
    })();
  });
  open.push({ close: () => pools.close() });
  return Object.assign(server, { pools, outcomes, bodies });
}

export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly rawHeaders: readonly string[];
  readonly rawTrailers: readonly string[];
  readonly hints: readonly IncomingHttpHeaders[];
  readonly body: Buffer;
}

export interface Ask {
  readonly method?: string;
  readonly path?: string;
  readonly headers?: http.OutgoingHttpHeaders | readonly string[];
  readonly body?: Buffer | string;
}

/** One request on a connection of its own. @throws when the response breaks off */
export function ask(target: Target, { method = "GET", path = "/", headers = {}, body }: Ask = {}): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const hints: IncomingHttpHeaders[] = [];
    const request = http.request(
      {
        host: target.address,
        port: target.port,
        method,
        path,
        agent: false,
        headers: headers as http.OutgoingHttpHeaders,
      },
      (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("error", reject);
        response.on("end", () =>
          resolve({
            status: response.statusCode as number,
            headers: response.headers,
            rawHeaders: response.rawHeaders,
            rawTrailers: response.rawTrailers,
            hints,
            body: Buffer.concat(chunks),
          }),
        );
      },
    );
    request.on("information", (info) => hints.push(info.headers));
    request.on("error", reject);
    request.setTimeout(10_000, () => request.destroy(new Error("no answer within 10 s")));
    request.end(body);
  });
}

/** Writes bytes as they are, and gives what came back until the other side closed. `reset` when it was by a reset. */
export function raw(target: Target, text: string): Promise<{ text: string; reset: boolean }> {
  return new Promise((resolve) => {
    const socket = net.connect({ host: target.address, port: target.port });
    let received = "";
    let reset = false;
    socket.setEncoding("latin1");
    socket.on("data", (chunk: string) => {
      received += chunk;
    });
    socket.on("error", () => {
      reset = true;
    });
    socket.on("close", () => resolve({ text: received, reset }));
    socket.setTimeout(10_000, () => socket.destroy());
    socket.write(text, "latin1");
  });
}

/** Waits until it holds. @throws after `timeoutMs` */
export async function until(holds: () => boolean, what: string, timeoutMs = 5000): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`after ${timeoutMs} ms still not: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
