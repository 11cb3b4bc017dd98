// Spans as the actors make them. OpenTelemetry implements it (runtime/tracing/); `noTracing` is for embedding without.

export type Attributes = Readonly<Record<string, string | number | boolean | undefined>>;

/** W3C Trace Context: 32 and 16 lower-case hex digits. */
export interface TraceContext {
  readonly traceId: string;
  readonly spanId: string;
}

export interface SpanOptions {
  readonly parent?: TraceContext;
  readonly links?: readonly TraceContext[];
  readonly attributes?: Attributes;
  /** Gives a root span identifiers that have already travelled in a `traceparent` header. */
  readonly identity?: TraceContext;
  /** Milliseconds before now at which it began. */
  readonly begunMsAgo?: number;
}

export interface Span {
  readonly context: TraceContext;
  set(attributes: Attributes): void;
  link(to: TraceContext): void;
  child(name: string, options?: Pick<SpanOptions, "attributes" | "begunMsAgo">): Span;
  /** A child that is already over: it began `begunMsAgo` and lasted `ms`. */
  record(name: string, begunMsAgo: number, ms: number, attributes?: Attributes): void;
  /** Idempotent. With an error or a text the span's status is `error`. */
  end(error?: unknown): void;
}

export interface Tracer {
  span(name: string, options?: SpanOptions): Span;
}

const nowhere: Span = {
  context: { traceId: "0".repeat(32), spanId: "0".repeat(16) },
  set() {},
  link() {},
  child: () => nowhere,
  record() {},
  end() {},
};

export const noTracing: Tracer = { span: () => nowhere };
