// How forwarding one request ended.

export type FailureCode =
  /** Nothing listens there (ECONNREFUSED). */
  | "refused"
  /** The network has no way there. */
  | "unreachable"
  /** The connection was reset. */
  | "reset"
  /** The connection was closed where a response was due, or the pool was. */
  | "closed"
  /** No connection, no response head, or no further part of the body within its time. */
  | "timeout"
  /** What came back was not HTTP, or was cut short, or a kept response was too large. */
  | "protocol"
  /** The request itself cannot be forwarded: answer 400. */
  | "invalid"
  /** Cancelled by the caller. */
  | "aborted";

export interface ForwardFailure {
  readonly kind: "failed";
  /** `nothing`: not one byte of the request went out, so any method may be sent elsewhere. A connection that was kept alive and turned out dead counts as `something`. */
  readonly sent: "nothing" | "something";
  /** The head of the response was passed on. The client's connection has then been reset: there is nothing left to answer. */
  readonly responded: boolean;
  readonly code: FailureCode;
  readonly error: Error;
}

export type ForwardOutcome =
  /** The whole response was written to the client. */
  | { readonly kind: "served"; readonly status: number }
  /** `onResponse` kept it: nothing was written to the client. */
  | {
      readonly kind: "intercepted";
      readonly status: number;
      /** Flat, without hop-by-hop and `hakobu-*` fields. */
      readonly headers: readonly string[];
      readonly internal: Readonly<Record<string, string>>;
      readonly body: Buffer;
    }
  | ForwardFailure
  /** The client closed its connection, or sent nothing more of its upload for `bodyTimeoutMs`; the next hop was told. */
  | { readonly kind: "client-gone" };

/** In the place of ECONNRESET on an established connection; see pools.ts P2. */
export const BROKEN_CONNECTION = "HAKOBU_RESET";

const CODES: Readonly<Record<string, FailureCode>> = {
  ECONNREFUSED: "refused",
  EHOSTUNREACH: "unreachable",
  ENETUNREACH: "unreachable",
  EHOSTDOWN: "unreachable",
  ENETDOWN: "unreachable",
  ECONNRESET: "reset",
  EPIPE: "reset",
  ECONNABORTED: "reset",
  ETIMEDOUT: "timeout",
  UND_ERR_HEADERS_TIMEOUT: "timeout",
  UND_ERR_BODY_TIMEOUT: "timeout",
  UND_ERR_CONNECT_TIMEOUT: "timeout",
  UND_ERR_SOCKET: "closed",
  UND_ERR_CLOSED: "closed",
  UND_ERR_DESTROYED: "closed",
  UND_ERR_INFO: "closed",
  UND_ERR_ABORTED: "aborted",
  UND_ERR_INVALID_ARG: "invalid",
  UND_ERR_NOT_SUPPORTED: "invalid",
  /** What the connector throws. */
  DEADLINE_EXCEEDED: "timeout",
  /** What `Pools` cuts with. */
  UNAVAILABLE: "closed",
  [BROKEN_CONNECTION]: "reset",
};

export function failureCode(error: Error): FailureCode {
  return CODES[(error as NodeJS.ErrnoException).code ?? ""] ?? "protocol";
}
