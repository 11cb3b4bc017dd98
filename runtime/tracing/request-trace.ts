// The trace of one request through a proxy. Identifiers exist from the start, because they travel on; a span is made only
// when the request turns out not to be on the warm path.
import type { IncomingMessage } from "node:http";
import type { Attributes, Span, TraceContext, Tracer } from "../../actors/ports/tracer.js";
import { formatTraceparent, newTraceContext, parseTraceparent } from "./traceparent.js";

export class RequestTrace {
  /** Of this request's span, made or not. */
  readonly context: TraceContext;
  readonly #tracer: Tracer;
  readonly #parent: TraceContext | undefined;
  readonly #incoming: IncomingMessage;
  readonly #begunMs = performance.now();
  #span: Span | undefined;

  constructor(tracer: Tracer, incoming: IncomingMessage) {
    this.#tracer = tracer;
    this.#incoming = incoming;
    this.#parent = parseTraceparent(incoming.headers.traceparent as string | undefined);
    const own = newTraceContext();
    this.context = this.#parent === undefined ? own : { traceId: this.#parent.traceId, spanId: own.spanId };
  }

  /** What the next hop gets: marked as sampled once there is a span. */
  get traceparent(): string {
    return formatTraceparent(this.context, this.#span !== undefined);
  }

  /** The span, from now on at the latest; it begins when the request came. */
  open(attributes?: Attributes): Span {
    this.#span ??= this.#tracer.span("request", {
      ...(this.#parent === undefined ? {} : { parent: this.#parent }),
      identity: this.context,
      begunMsAgo: performance.now() - this.#begunMs,
      attributes: {
        "http.request.method": this.#incoming.method,
        "url.path": this.#incoming.url?.split("?")[0],
        "server.address": this.#incoming.headers.host,
      },
    });
    if (attributes !== undefined) this.#span.set(attributes);
    return this.#span;
  }

  /** Ends the span, if there is one. */
  close(status: number | undefined, error?: unknown): void {
    if (this.#span === undefined) return;
    this.#span.set({ "http.response.status_code": status });
    this.#span.end(error);
  }
}
