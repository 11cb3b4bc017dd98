// Forwards a WebSocket handshake, and then the bytes of both sides.
//
//   U1  Only `websocket` over GET without a body is upgraded. Another protocol, `h2c` above all, would open a way past the
//       rules of headers.ts; such a request is forwarded as if it had not asked (RFC 9110 section 7.8 allows that).
//   U2  Both sides end together: when one ends or closes, what it sent is flushed to the other, then that closes too. A
//       WebSocket has no half-closed state (RFC 6455 section 7.1.1), and a client that vanished shows no more than its end.
import { type IncomingMessage, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { Dispatcher, Pool } from "undici";
import { HakobuError } from "../../actors/hakobu-error.js";
import { Exchange } from "./exchange.js";
import type { ForwardOptions } from "./forward.js";
import { hasBody, requestTarget, responseHead } from "./headers.js";
import type { ForwardOutcome } from "./outcome.js";

/** The connection was upgraded and both sides have closed, or it was cancelled. */
export type UpgradeOutcome = ForwardOutcome | { readonly kind: "tunnelled" };

/**
 * A response on the connection of an `upgrade` event, from which node:http has taken its hands: for refusals, and for
 * `forwardUpgrade`. The connection closes after it.
 */
export function upgradeResponse(incoming: IncomingMessage, socket: Duplex): ServerResponse {
  const outgoing = new ServerResponse(incoming);
  outgoing.shouldKeepAlive = false;
  outgoing.assignSocket(socket as Socket);
  socket.on("error", () => socket.destroy());
  socket.on("drain", () => outgoing.emit("drain"));
  outgoing.on("finish", () => (socket as Socket).destroySoon());
  return outgoing;
}

/**
 * Like `forward`, for an `upgrade` event of node:http. `outgoing` comes from `upgradeResponse`, and can be used for several
 * attempts in turn; `head` is what the event gave. A next hop that answers without upgrading is `served`.
 */
export function forwardUpgrade(
  pool: Pool,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  head: Buffer,
  options: Omit<ForwardOptions, "body">,
): Promise<UpgradeOutcome> {
  const exchange = new Upgrade(outgoing, head, options);
  const path = requestTarget(incoming);
  const wanted = incoming.headers.upgrade?.trim().toLowerCase() === "websocket" && incoming.method === "GET";
  if (path === undefined) exchange.refuse(new HakobuError("ABORTED", `Cannot forward the target "${incoming.url}"`));
  else if (hasBody(incoming))
    exchange.refuse(new HakobuError("ABORTED", "A request for an upgrade cannot have a body"));
  else exchange.start(pool, path, incoming.method ?? "GET", options.headers, wanted ? "websocket" : null);
  return exchange.outcome;
}

class Upgrade extends Exchange<{ readonly kind: "tunnelled" }> implements Dispatcher.DispatchHandler {
  readonly #outgoing: ServerResponse;
  readonly #head: Buffer;
  readonly #options: Omit<ForwardOptions, "body">;
  readonly #client: Socket | null;

  constructor(outgoing: ServerResponse, head: Buffer, options: Omit<ForwardOptions, "body">) {
    super(outgoing, options);
    this.#outgoing = outgoing;
    this.#head = head;
    this.#options = options;
    this.#client = outgoing.socket;
    // Until there is a tunnel nobody reads this socket, and one that is not read does not learn that its client has gone.
    this.#client?.once("end", this.#onClientEnd).read(0);
  }

  readonly #onClientEnd = (): void => {
    this.#client?.destroy();
  };

  protected override takeOver(): void {
    this.#client?.off("end", this.#onClientEnd);
    super.takeOver();
  }

  protected override finish(outcome: UpgradeOutcome): void {
    this.#client?.off("end", this.#onClientEnd);
    super.finish(outcome);
  }

  onUpgrade(status: number, raw: unknown, upstreamSide: Duplex): void {
    const upstream = upstreamSide as Socket;
    const client = this.#client;
    if (!this.pending || client === null || client.destroyed) {
      upstream.destroy();
      return this.finish({ kind: "client-gone" });
    }
    this.takeOver();
    const { headers, internal } = responseHead(raw as readonly Buffer[]);
    this.#options.onResponse?.(status, internal ?? {});
    let text = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    for (let i = 0; i < headers.length; i += 2) text += `${headers[i]}: ${headers[i + 1]}\r\n`;
    this.#outgoing.detachSocket(client);
    client.setTimeout(0);
    client.setNoDelay(true);
    client.write(`${text}\r\n`, "latin1");
    if (this.#head.length > 0) upstream.write(this.#head);
    client.pipe(upstream);
    upstream.pipe(client);
    // U2. An error is followed by `close`, which is all that matters here.
    upstream.on("error", () => undefined);
    let open = 2;
    const onClose = (other: Socket) => () => {
      other.destroySoon();
      open -= 1;
      if (open > 0) return;
      this.#options.cancellation?.listen(undefined);
      this.finish({ kind: "tunnelled" });
    };
    client.on("close", onClose(upstream)).once("end", () => upstream.destroySoon());
    upstream.on("close", onClose(client)).once("end", () => client.destroySoon());
    this.#options.cancellation?.listen(() => {
      upstream.destroy();
      client.destroy();
    });
  }
}
