// Forwards one HTTP request to the next hop, and its response back. Used twice: by the proxy towards a host, and by a host's
// dispatcher towards a container. Nothing here retries: the outcome says whether somebody may.
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Pool } from "undici";
import { HakobuError } from "../../actors/hakobu-error.js";
import { Exchange, type ExchangeOptions } from "./exchange.js";
import { requestTarget } from "./headers.js";
import type { ForwardOutcome } from "./outcome.js";

/** A body, either way, of which nothing more comes for this long is given up. Long enough for server-sent events with a heartbeat. */
export const BODY_SILENCE_MS = 300_000;

export interface ForwardOptions extends ExchangeOptions {
  /** From `requestHeaders`, flat. */
  readonly headers: readonly string[];
}

/**
 * Never rejects. Resolves when the response has been written out, was kept, or the attempt failed; while it fails before
 * the head of the response was passed on, `outgoing` is untouched, and the same request can be forwarded again.
 *
 * Passed on: status, reason, end-to-end fields, body, trailers, 103 with `Link` (RFC 8297). Not passed on: request trailers,
 * other interim responses. `Expect: 100-continue` is answered here by node:http, before the body is read.
 * A response to a request whose upload is still under way ends the upload: the rest of it is read and dropped.
 */
export function forward(
  pool: Pool,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  options: ForwardOptions,
): Promise<ForwardOutcome> {
  const exchange = new Exchange(outgoing, options);
  const path = requestTarget(incoming);
  if (path === undefined) exchange.refuse(new HakobuError("ABORTED", `Cannot forward the target "${incoming.url}"`));
  else exchange.start(pool, path, incoming.method ?? "GET", options.headers);
  return exchange.outcome;
}
