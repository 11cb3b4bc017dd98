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
  /** Something that happened now. */
  event(name: string, attributes?: Attributes): void;
  child(name: string, options?: Pick<SpanOptions, "attributes" | "begunMsAgo">): Span;
  /** A child that is already over: it began `begunMsAgo` and lasted `ms`. Its own parts may still be recorded. */
  record(name: string, begunMsAgo: number, ms: number, attributes?: Attributes): Span;
  /** Idempotent. With an error or a text the span's status is `error`. */
  end(error?: unknown): void;
}

export interface Tracer {
  span(name: string, options?: SpanOptions): Span;
}

/** Phases until `endedMsAgo`, as child spans at the times at which they ran; without those that were done ahead. */
export function addPhases(span: Span, phases: Phases, endedMsAgo = 0): void {
  let begunMsAgo = endedMsAgo;
  for (const together of groups(phases.filter(({ ahead }) => ahead !== true)).toReversed()) {
    begunMsAgo += Math.max(...together.map(({ ms }) => ms));
    for (const { name, ms } of together) span.record(name, begunMsAgo, ms);
  }
}

/** Those that began at once. */
function groups(phases: Phases): Phases[] {
  const all: Phases[number][][] = [];
  for (const phase of phases) {
    const last = all.at(-1);
    if (phase.beside === true && last !== undefined) last.push(phase);
    else all.push([phase]);
  }
  return all;
}

const nowhere: Span = {
  context: { traceId: "0".repeat(32), spanId: "0".repeat(16) },
  set() {},
  link() {},
  event() {},
  child: () => nowhere,
  record: () => nowhere,
  end() {},
};

export const noTracing: Tracer = { span: () => nowhere };
