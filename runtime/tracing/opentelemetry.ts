// `Tracer` on OpenTelemetry, exported as OTLP over HTTP with protobuf.
//
//   O1  Nothing is registered globally: who embeds Hakobu owns the globals.
//   O2  A collector that is down costs spans and nothing else: one line in the log when it goes, one when it is back.
//   O3  `close` returns within `closeLimitMs`, whatever the collector does.
//   O4  The times of one trace come from the monotonic clock, set off once, so that a correction of the wall clock in between
//       cannot turn a child's time around.
import { type Context, ROOT_CONTEXT, type Span as ApiSpan } from "@opentelemetry/api";
import { type HrTime, SpanStatusCode, trace, TraceFlags, type Tracer as ApiTracer } from "@opentelemetry/api";
import { type ExportResult, ExportResultCode } from "@opentelemetry/core";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import { defaultResource, detectResources, envDetector, resourceFromAttributes } from "@opentelemetry/resources";
import { AlwaysOnSampler, BatchSpanProcessor, type IdGenerator, type ReadableSpan } from "@opentelemetry/sdk-trace";
import { type SpanExporter, TracerProvider } from "@opentelemetry/sdk-trace";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { Log } from "../../actors/ports/log.js";
import type { Attributes, Span, SpanOptions, TraceContext, Tracer } from "../../actors/ports/tracer.js";
import { noTracing } from "../../actors/ports/tracer.js";
import { isTraceContext, newSpanId, newTraceContext } from "./traceparent.js";

export interface TracingOptions {
  /** `service.name`, for example `hakobu-proxy`. OTEL_SERVICE_NAME wins. */
  readonly service: string;
  /** `service.instance.id`, for example the host's name. */
  readonly instance: string;
  /**
   * Base address of a collector, for example `http://127.0.0.1:4318`. Default: what the variables OTEL_EXPORTER_OTLP_ENDPOINT
   * and OTEL_EXPORTER_OTLP_TRACES_ENDPOINT say (with OTEL_EXPORTER_OTLP_HEADERS and the others that the exporter knows:
   * https://opentelemetry.io/docs/specs/otel/protocol/exporter/). With none of them nothing is traced.
   */
  readonly endpoint?: string;
  readonly log: Log;
  /** Default 2000. */
  readonly closeLimitMs?: number;
  /** From the end of a span to its export, at most. Default 1000. */
  readonly exportEveryMs?: number;
}

export interface Tracing {
  readonly tracer: Tracer;
  /** Exports what is left, within `closeLimitMs`. Never rejects. Idempotent. */
  close(): Promise<void>;
}

const REQUEST_LIMIT_MS = 2000;

/** @throws HakobuError CONFIG_INVALID when `endpoint` is not a URL */
export function startTracing(options: TracingOptions): Tracing {
  const { service, instance, log, closeLimitMs = REQUEST_LIMIT_MS, exportEveryMs = 1000 } = options;
  const { env } = process;
  const wanted = [options.endpoint, env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"], env["OTEL_EXPORTER_OTLP_ENDPOINT"]];
  const off = env["OTEL_SDK_DISABLED"]?.toLowerCase() === "true" || env["OTEL_TRACES_EXPORTER"] === "none";
  const endpoint = wanted.find((each) => each !== undefined && each !== "");
  if (endpoint === undefined || (off && options.endpoint === undefined))
    return { tracer: noTracing, close: () => Promise.resolve() };
  if (!/^https?:\/\//.test(endpoint) || !URL.canParse(endpoint))
    throw new HakobuError(
      "CONFIG_INVALID",
      `"${endpoint}" is no address of a collector: expected one such as http://127.0.0.1:4318`,
    );
  const limited = env["OTEL_EXPORTER_OTLP_TIMEOUT"] ?? env["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"];
  const exporter = new OTLPTraceExporter({
    ...(options.endpoint === undefined ? {} : { url: `${options.endpoint.replace(/\/$/, "")}/v1/traces` }),
    ...(limited === undefined ? { timeoutMillis: REQUEST_LIMIT_MS } : {}),
  });
  const ids = new PresetIds();
  const provider = new TracerProvider({
    resource: defaultResource()
      .merge(resourceFromAttributes({ "service.name": service, "service.instance.id": instance }))
      .merge(detectResources({ detectors: [envDetector] })),
    sampler: new AlwaysOnSampler(),
    idGenerator: ids,
    spanProcessors: [
      new BatchSpanProcessor({
        exporter: new OutageReport(exporter, endpoint, log),
        maxQueueSize: 4096,
        scheduledDelayMillis: exportEveryMs,
        exportTimeoutMillis: REQUEST_LIMIT_MS + 500,
      }),
    ],
  });
  const root = new Root(provider.getTracer("hakobu"), ids);
  let closed: Promise<void> | undefined;
  return { tracer: root, close: () => (closed ??= within(closeLimitMs, provider.shutdown())) };
}

/** Resolves with the promise, however it ends, or after `ms`. */
async function within(ms: number, promise: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  // An export that failed has been reported already (O2).
  await Promise.race([promise.catch(() => undefined), limit]);
  clearTimeout(timer);
}

/** O2. */
class OutageReport implements SpanExporter {
  readonly #exporter: SpanExporter;
  readonly #endpoint: string;
  readonly #log: Log;
  #out = false;

  constructor(exporter: SpanExporter, endpoint: string, log: Log) {
    this.#exporter = exporter;
    this.#endpoint = endpoint;
    this.#log = log;
  }

  export(spans: ReadableSpan[], done: (result: ExportResult) => void): void {
    this.#exporter.export(spans, (result) => {
      const failed = result.code !== ExportResultCode.SUCCESS;
      if (failed !== this.#out) {
        this.#out = failed;
        const collector = this.#endpoint;
        if (failed) {
          const reason = reasonOf(result.error ?? "no reason given");
          this.#log.warn(
            { collector, reason },
            "traces: the collector does not take them; they are dropped until it does",
          );
        } else this.#log.info({ collector }, "traces: the collector takes them again");
      }
      done(result);
    });
  }

  forceFlush(): Promise<void> {
    return this.#exporter.forceFlush?.() ?? Promise.resolve();
  }

  shutdown(): Promise<void> {
    return this.#exporter.shutdown();
  }
}

/** Random identifiers, or those that were set for the span that is started next. */
class PresetIds implements IdGenerator {
  next: TraceContext | undefined;

  generateTraceId(): string {
    return this.next?.traceId ?? newTraceContext().traceId;
  }

  generateSpanId(): string {
    return this.next?.spanId ?? newSpanId();
  }
}

class Root implements Tracer {
  readonly #tracer: ApiTracer;
  readonly #ids: PresetIds;

  constructor(tracer: ApiTracer, ids: PresetIds) {
    this.#tracer = tracer;
    this.#ids = ids;
  }

  span(name: string, options: SpanOptions = {}): Span {
    const { parent } = options;
    const context = parent !== undefined && isTraceContext(parent) ? remote(parent) : ROOT_CONTEXT;
    const nowMs = performance.now();
    return this.start(name, options, context, nowMs, Date.now() - nowMs);
  }

  /** `offsetMs`: from the monotonic clock to the wall clock, in this trace (O4). */
  start(name: string, options: SpanOptions, context: Context, nowMs: number, offsetMs: number): OpenTelemetrySpan {
    const { identity, links = [], attributes = {}, begunMsAgo = 0 } = options;
    const preset = identity !== undefined && isTraceContext(identity) ? identity : undefined;
    this.#ids.next = preset;
    try {
      const span = this.#tracer.startSpan(
        name,
        {
          startTime: hrTime(nowMs - begunMsAgo + offsetMs),
          attributes,
          links: links.filter(isTraceContext).map((link) => ({ context: spanContext(link) })),
        },
        context,
      );
      return new OpenTelemetrySpan(this, span, offsetMs);
    } finally {
      this.#ids.next = undefined;
    }
  }
}

class OpenTelemetrySpan implements Span {
  readonly context: TraceContext;
  readonly #root: Root;
  readonly #span: ApiSpan;
  readonly #offsetMs: number;
  #ended = false;

  constructor(root: Root, span: ApiSpan, offsetMs: number) {
    this.#root = root;
    this.#span = span;
    this.#offsetMs = offsetMs;
    const { traceId, spanId } = span.spanContext();
    this.context = { traceId, spanId };
  }

  set(attributes: Attributes): void {
    this.#span.setAttributes(attributes);
  }

  link(to: TraceContext): void {
    if (isTraceContext(to)) this.#span.addLink({ context: spanContext(to) });
  }

  event(name: string, attributes: Attributes = {}): void {
    this.#span.addEvent(name, attributes, hrTime(performance.now() + this.#offsetMs));
  }

  child(name: string, options: Pick<SpanOptions, "attributes" | "begunMsAgo"> = {}): Span {
    return this.#root.start(name, options, this.#inside, performance.now(), this.#offsetMs);
  }

  record(name: string, begunMsAgo: number, ms: number, attributes: Attributes = {}): Span {
    const nowMs = performance.now();
    const span = this.#root.start(name, { begunMsAgo, attributes }, this.#inside, nowMs, this.#offsetMs);
    span.#endAt(nowMs - begunMsAgo + ms);
    return span;
  }

  get #inside(): Context {
    return trace.setSpan(ROOT_CONTEXT, this.#span);
  }

  end(error?: unknown): void {
    if (this.#ended) return;
    if (error !== undefined) {
      this.#span.setStatus({ code: SpanStatusCode.ERROR, message: reasonOf(error) });
      if (error instanceof Error) this.#span.recordException(error, hrTime(performance.now() + this.#offsetMs));
    }
    this.#endAt(performance.now());
  }

  #endAt(monotonicMs: number): void {
    this.#ended = true;
    this.#span.end(hrTime(monotonicMs + this.#offsetMs));
  }
}

/** Seconds and nanoseconds: a bare number would be taken for monotonic time when it is from before this process began. */
function hrTime(epochMs: number): HrTime {
  const seconds = Math.floor(epochMs / 1000);
  return [seconds, Math.round((epochMs - seconds * 1000) * 1e6)];
}

function spanContext({ traceId, spanId }: TraceContext): { traceId: string; spanId: string; traceFlags: TraceFlags } {
  return { traceId, spanId, traceFlags: TraceFlags.SAMPLED };
}

function remote(parent: TraceContext): Context {
  return trace.setSpanContext(ROOT_CONTEXT, { ...spanContext(parent), isRemote: true });
}
