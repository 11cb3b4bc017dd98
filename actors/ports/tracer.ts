// Spans as the actors make them. OpenTelemetry implements it (runtime/tracing/); `noTracing` is for embedding without.
import type { Phases } from "./engine.js";

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

/** Phases that ran one after the other until now, as child spans; without those that were done ahead. */
export function addPhases(span: Span, phases: Phases): void {
  const awaited = phases.filter(({ ahead }) => ahead !== true);
  let begunMsAgo = awaited.reduce((sum, { ms }) => sum + ms, 0);
  for (const { name, ms } of awaited) {
    span.record(name, begunMsAgo, ms);
    begunMsAgo -= ms;
  }
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
