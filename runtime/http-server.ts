// Opening and closing an HTTP server, as proxy, host and admin do it.
import { createServer, type Server, type ServerOptions } from "node:http";
import type { Socket } from "node:net";
import type Koa from "koa";
import { HakobuError } from "../actors/hakobu-error.js";

/** A server, not yet listening, that a Koa application answers. */
export function koaServer(app: Koa, options: ServerOptions = {}): Server {
  const answer = app.callback();
  return createServer(options, (incoming, outgoing) => void answer(incoming, outgoing));
}

/** Open connections of each server, upgraded ones too, which node:http no longer knows. */
const connections = new WeakMap<Server, Set<Socket>>();

/** @throws HakobuError CONFIG_INVALID */
export function listen(server: Server, at: { address: string; port: number }): Promise<void> {
  const open = new Set<Socket>();
  connections.set(server, open);
  server.on("connection", (socket) => {
    open.add(socket);
    socket.once("close", () => open.delete(socket));
  });
  return new Promise((resolve, reject) => {
    server.once("error", (cause) =>
      reject(
        new HakobuError("CONFIG_INVALID", `cannot listen on ${at.address}:${at.port}: ${cause.message}`, { cause }),
      ),
    );
    // The queue of the kernel, so that a burst of connections or of probes is not refused.
    server.listen({ host: at.address, port: at.port, backlog: 4096 }, resolve);
  });
}

/** Closes a server and every connection on it. */
export function shut(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    for (const socket of connections.get(server) ?? []) socket.destroy();
  });
}
