// One request on one connection to the next hop, and its response on the client's connection: the handler that undici drives.
//
//   X1  The promise settles once, and after that nothing is written to the client.
//   X2  `sent` is `nothing` only while undici has written no byte: before `onConnect`, and, with a body, before the first
//       chunk, because undici writes the head together with it.
//   X3  A response that breaks after its head was passed on ends in a reset of the client's connection, never in an end
//       that looks regular.
//   X4  A client that goes away aborts the request on the next hop, and takes its connection with it.
//   X5  Neither side is read faster than the other takes it.
//
// This is the form of handler that undici 7 drives without a wrapper around it; the newer one costs an object and a parsed
// header table for each request.
import { type ServerResponse, STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import type { Readable } from "node:stream";
import type { Dispatcher, Pool } from "undici";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Cancellation } from "./cancellation.js";
import { responseHead, trailerFields } from "./headers.js";
import { type FailureCode, failureCode, type ForwardOutcome } from "./outcome.js";
import type { ReplayBody } from "./replay-body.js";

/** A response that is kept from the client may have this much of a body. */
export const MAX_KEPT_BYTES = 64 * 1024;
/** A body up to this size that arrives in one piece is written together with its head. */
const ONE_WRITE_BYTES = 16 * 1024;
const NO_INTERNAL: Readonly<Record<string, string>> = Object.freeze({});

export interface ExchangeOptions {
  /** Longest silence before the head of the response; the wait for a connection counts, a client that is slow to upload does not. 0: no limit. */
  readonly headersTimeoutMs: number;
  /** Longest silence inside the response body, kept with a precision of a second, and inside an upload, kept with one of `headersTimeoutMs`. 0: no limit. */
  readonly bodyTimeoutMs: number;
  readonly body?: ReplayBody | undefined;
  readonly cancellation?: Cancellation | undefined;
  /** Fields to add to a response that is passed on, flat. */
  readonly responseHeaders?: readonly string[] | undefined;
  /** Called with the head of the final response, before anything of it is passed on. `keep` gives it to the caller instead of the client. */
  readonly onResponse?: ((status: number, internal: Readonly<Record<string, string>>) => "pass" | "keep") | undefined;
}

type Phase =
  | "waiting" // no final head yet
  | "held" // head known, not written
  | "passing" // head written
  | "keeping"
  | "ended"; // settled, or all written

/** `Extra`: endings that only a subclass knows. */
export class Exchange<Extra = never> implements Dispatcher.DispatchHandler {
  readonly outcome: Promise<ForwardOutcome | Extra>;
  readonly #outgoing: ServerResponse;
  readonly #options: ExchangeOptions;
  #settle: ((outcome: ForwardOutcome | Extra) => void) | undefined;
  #phase: Phase = "waiting";
  #abort: ((error?: Error) => void) | undefined;
  #cause: FailureCode | undefined;
  #sent = false;
  #sentSinceCheck = false;
  #clientSilentMs = 0;
  #timer: NodeJS.Timeout | undefined;
  #resume: (() => void) | undefined;
  #status = 0;
  #statusText = "";
  #headers: string[] = [];
  #internal: Readonly<Record<string, string>> = NO_INTERNAL;
  #length = -1;
  #kept: Buffer[] = [];
  #keptBytes = 0;

  constructor(outgoing: ServerResponse, options: ExchangeOptions) {
    this.#outgoing = outgoing;
    this.#options = options;
    this.outcome = new Promise((resolve) => {
      this.#settle = resolve;
    });
  }

  /** `upgrade`: the protocol to ask for. */
  start(pool: Pool, path: string, method: string, headers: readonly string[], upgrade: string | null = null): void {
    const { headersTimeoutMs, bodyTimeoutMs, cancellation, body } = this.#options;
    if (this.#outgoing.destroyed || this.#outgoing.closed) return this.finish({ kind: "client-gone" });
    this.#outgoing.on("close", this.#onClientClose);
    cancellation?.listen(this.#onCancel);
    if (this.#settle === undefined) return;
    if (headersTimeoutMs > 0) this.#timer = setTimeout(this.#onSilence, headersTimeoutMs);
    let stream: Readable | null = null;
    if (body !== undefined) {
      try {
        stream = body.open();
      } catch (error) {
        if (body.failed) return this.finish({ kind: "client-gone" });
        return this.#fail("aborted", error as Error);
      }
    }
    pool.dispatch(
      {
        path,
        method,
        headers: headers as string[],
        body: stream,
        upgrade,
        headersTimeout: 0,
        bodyTimeout: bodyTimeoutMs,
      },
      this,
    );
  }

  /** Refuses the request without asking the next hop. */
  refuse(error: Error): void {
    this.#fail("invalid", error);
  }

  // What undici calls.

  onConnect(abort: (error?: Error) => void): void {
    // undici drops a request whose handler throws here, and keeps the connection for the next one.
    if (this.#settle === undefined) throw new HakobuError("ABORTED", "Nobody waits for this request any more");
    this.#abort = abort;
    if (this.#options.body === undefined) this.#sent = true;
  }

  onBodySent(): void {
    this.#sent = true;
    this.#sentSinceCheck = true;
  }

  onRequestSent(): void {
    this.onBodySent();
  }

  onHeaders(status: number, raw: readonly Buffer[], resume: () => void, statusText: string): boolean {
    if (this.#settle === undefined) return false;
    if (status < 200) {
      this.#sentSinceCheck = true;
      if (status === 103) this.#passHints(raw);
      return true;
    }
    clearTimeout(this.#timer);
    this.#resume = resume;
    const head = responseHead(raw);
    this.#status = status;
    this.#statusText = statusText;
    this.#headers = head.headers;
    if (this.#options.responseHeaders !== undefined) this.#headers.push(...this.#options.responseHeaders);
    this.#length = head.contentLength;
    this.#internal = head.internal ?? NO_INTERNAL;
    if (this.#options.onResponse?.(status, this.#internal) === "keep") {
      this.#phase = "keeping";
      return true;
    }
    this.#phase = "held";
    // A short body is most often in the same packet. Anything else must not keep the client waiting for the head.
    if (this.#length < 0 || this.#length > ONE_WRITE_BYTES) queueMicrotask(this.#passHead);
    return true;
  }

  onData(chunk: Buffer): boolean {
    if (this.#settle === undefined) return false;
    if (this.#phase === "keeping") return this.#keep(chunk);
    if (this.#phase === "held") {
      this.#writeHead();
      if (chunk.length === this.#length && chunk.length <= ONE_WRITE_BYTES) {
        this.#phase = "ended";
        // As a string: node:http then puts head and body into one write.
        this.#outgoing.end(chunk.toString("latin1"), "latin1");
        return true;
      }
      this.#phase = "passing";
    }
    if (this.#outgoing.write(chunk)) return true;
    this.#outgoing.once("drain", this.#resume as () => void);
    return false;
  }

  onComplete(trailers: unknown): void {
    if (this.#settle === undefined || this.#phase === "ended") return;
    if (this.#phase === "keeping") {
      const body = Buffer.concat(this.#kept);
      return this.finish({
        kind: "intercepted",
        status: this.#status,
        headers: this.#headers,
        internal: this.#internal,
        body,
      });
    }
    if (this.#phase === "held") this.#writeHead();
    this.#phase = "ended";
    const raw = trailers as readonly Buffer[] | null;
    if (raw !== null && raw.length > 0 && this.#outgoing.chunkedEncoding) {
      this.#outgoing.addTrailers(trailerFields(raw));
    }
    this.#outgoing.end();
  }

  onError(error: Error): void {
    if (this.#settle === undefined) return;
    if (this.#options.body?.failed === true) return this.finish({ kind: "client-gone" });
    this.#fail(this.#cause ?? failureCode(error), error);
  }

  // The end.

  /** False once it has settled. */
  protected get pending(): boolean {
    return this.#settle !== undefined;
  }

  /** From here on a subclass owns both connections, and ends with `finish`. */
  protected takeOver(): void {
    clearTimeout(this.#timer);
    this.#outgoing.off("close", this.#onClientClose);
    this.#options.cancellation?.listen(undefined);
  }

  protected finish(outcome: ForwardOutcome | Extra): void {
    const settle = this.#settle;
    if (settle === undefined) return;
    this.#settle = undefined;
    this.#phase = "ended";
    clearTimeout(this.#timer);
    this.#outgoing.off("close", this.#onClientClose);
    if (this.#resume !== undefined) this.#outgoing.off("drain", this.#resume);
    this.#options.cancellation?.listen(undefined);
    settle(outcome);
  }

  #fail(code: FailureCode, error: Error): void {
    const responded = this.#outgoing.headersSent;
    this.finish({ kind: "failed", sent: this.#sent ? "something" : "nothing", responded, code, error });
    if (responded) reset(this.#outgoing.socket);
  }

  #stop(code: FailureCode, error: Error): void {
    this.#cause = code;
    // undici answers with `onError`. While it still waits for a connection it cannot be told: `onConnect` will drop it.
    this.#abort?.(error);
    this.#fail(code, error);
  }

  readonly #onClientClose = (): void => {
    if (this.#phase === "ended" && this.#outgoing.writableFinished) {
      this.#options.body?.discard();
      return this.finish({ kind: "served", status: this.#status });
    }
    const abort = this.#abort;
    this.finish({ kind: "client-gone" });
    abort?.(new HakobuError("ABORTED", "The client has gone"));
  };

  readonly #onCancel = (reason: Error): void => this.#stop("aborted", reason);

  readonly #onSilence = (): void => {
    const { headersTimeoutMs, bodyTimeoutMs, body } = this.#options;
    const silent = !this.#sentSinceCheck;
    this.#sentSinceCheck = false;
    this.#clientSilentMs = silent ? this.#clientSilentMs + headersTimeoutMs : 0;
    if (silent && body?.awaitsClient === true && bodyTimeoutMs > 0 && this.#clientSilentMs >= bodyTimeoutMs) {
      // A client that has left without saying so: nobody waits for an answer.
      reset(this.#outgoing.socket);
      return;
    }
    if (!silent || body?.awaitsClient === true) {
      this.#timer = setTimeout(this.#onSilence, headersTimeoutMs);
      return;
    }
    const where = this.#abort === undefined ? "no connection was free" : "no response began";
    this.#stop("timeout", new HakobuError("DEADLINE_EXCEEDED", `For ${headersTimeoutMs} ms ${where}`));
  };

  // The response.

  readonly #passHead = (): void => {
    if (this.#phase !== "held") return;
    this.#phase = "passing";
    try {
      this.#writeHead();
      this.#outgoing.flushHeaders();
    } catch (error) {
      this.#stop("protocol", error as Error);
    }
  };

  #writeHead(): void {
    const text = this.#statusText;
    // An odd reason phrase is dropped: it means nothing (RFC 9112 section 4), and node:http refuses to write it.
    if (text === STATUS_CODES[this.#status] || !/^[\t\x20-\x7e\x80-\xff]+$/.test(text))
      this.#outgoing.writeHead(this.#status, this.#headers);
    else this.#outgoing.writeHead(this.#status, text, this.#headers);
  }

  /** RFC 8297. Other interim responses stop here: 100 is answered by node:http itself, 102 means nothing to a browser. */
  #passHints(raw: readonly Buffer[]): void {
    if (this.#outgoing.headersSent || this.#outgoing.req.httpVersionMinor === 0) return;
    const hints: Record<string, string[]> = {};
    const { headers } = responseHead(raw);
    for (let i = 0; i < headers.length; i += 2) {
      const name = (headers[i] as string).toLowerCase();
      // node:http takes links one by one.
      const values = name === "link" ? (headers[i + 1] as string).split(/,\s*(?=<)/) : [headers[i + 1] as string];
      (hints[name] ??= []).push(...values);
    }
    try {
      this.#outgoing.writeEarlyHints(hints);
    } catch {
      // A hint that node:http does not like to write is only a hint.
    }
  }

  #keep(chunk: Buffer): boolean {
    this.#keptBytes += chunk.length;
    if (this.#keptBytes > MAX_KEPT_BYTES) {
      this.#stop("protocol", new HakobuError("OVERLOADED", `A kept response is larger than ${MAX_KEPT_BYTES} bytes`));
      return false;
    }
    this.#kept.push(Buffer.from(chunk));
    return true;
  }
}

/** So that also a client that takes the end of the connection for the end of the body sees the difference (X3). */
function reset(socket: Socket | null): void {
  if (socket === null || socket.destroyed) return;
  if ("encrypted" in socket) socket.destroy();
  else socket.resetAndDestroy();
}
