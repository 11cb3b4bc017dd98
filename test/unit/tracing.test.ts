import assert from "node:assert/strict";
import { context, propagation, trace } from "@opentelemetry/api";
import * as fc from "fast-check";
import type { Log } from "../../actors/ports/log.js";
import { noTracing } from "../../actors/ports/tracer.js";
import { startTracing, type Tracing, type TracingOptions } from "../../runtime/tracing/opentelemetry.js";
import {
  formatTraceparent,
  isTraceContext,
  newTraceContext,
  parseTraceparent,
} from "../../runtime/tracing/traceparent.js";
import { deadPort, until } from "../lab/hop.js";
import { type OtlpReceiver, otlpReceiver, type ReceivedSpan } from "../lab/otlp-receiver.js";

class Lines implements Log {
  readonly lines: string[] = [];
  debug(): void {}
  info(_details: object, message: string): void {
    this.lines.push(`info ${message}`);
  }
  warn(_details: object, message: string): void {
    this.lines.push(`warn ${message}`);
  }
  error(_details: object, message: string): void {
    this.lines.push(`error ${message}`);
  }
}

describe("tracing with OpenTelemetry", () => {
  const log = new Lines();
  let receiver: OtlpReceiver;
  const open: Tracing[] = [];
  const variables = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS"];
  const before = new Map(variables.map((name) => [name, process.env[name]]));

  function tracing(more: Partial<TracingOptions> = {}): Tracing {
    const made = startTracing({ service: "hakobu-proxy", instance: "p1", log, exportEveryMs: 20, ...more });
    open.push(made);
    return made;
  }

  async function span(name: string): Promise<ReceivedSpan> {
    await until(() => receiver.spans.some((each) => each.name === name), `the span ${name}`);
    return receiver.spans.find((each) => each.name === name) as ReceivedSpan;
  }

  beforeEach(async () => {
    for (const name of variables) delete process.env[name];
    log.lines.length = 0;
    receiver = await otlpReceiver();
  });
  afterEach(async () => {
    await Promise.all(open.splice(0).map((each) => each.close()));
    await receiver.close();
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  });

  it("exports a trace with its parts, attributes, links and times", async () => {
    const { tracer } = tracing({ endpoint: receiver.endpoint });
    const request = newTraceContext();
    const later = newTraceContext();
    const began = Date.now();
    const root = tracer.span("relocation", {
      links: [request],
      attributes: { container: "blog", epoch: 7, warm: true, nothing: undefined },
      begunMsAgo: 500,
    });
    const probe = root.child("probe", { attributes: { host: "a" }, begunMsAgo: 100 });
    probe.end();
    root.record("restore", 80, 60, { bytes: 1000 });
    root.link(later);
    root.set({ to: "b" });
    root.end();
    const [got, child, recorded] = [await span("relocation"), await span("probe"), await span("restore")];
    assert.deepEqual([got.service, got.instance, got.parentSpanId], ["hakobu-proxy", "p1", ""]);
    assert.deepEqual({ traceId: got.traceId, spanId: got.spanId }, root.context);
    assert.deepEqual(got.links, [request, later]);
    assert.deepEqual(got.attributes, { container: "blog", epoch: "7", warm: true, to: "b" });
    assert.ok(Math.abs(got.startMs - (began - 500)) < 100, `began ${began - got.startMs} ms ago`);
    assert.ok(got.ms >= 500 && got.ms < 1000);
    for (const part of [child, recorded]) {
      assert.deepEqual([part.traceId, part.parentSpanId], [got.traceId, got.spanId]);
      assert.ok(part.startMs >= got.startMs && part.startMs + part.ms <= got.startMs + got.ms + 0.01);
    }
    assert.ok(child.ms >= 100 && child.ms < 500);
    assert.ok(Math.abs(recorded.ms - 60) < 0.01);
    assert.deepEqual(recorded.attributes, { bytes: "1000" });
    assert.deepEqual(got.status, { code: "STATUS_CODE_UNSET", message: "" });
  });

  it("gives a span identifiers that have already travelled, under a parent that came in", async () => {
    const { tracer } = tracing({ endpoint: receiver.endpoint });
    const parent = newTraceContext();
    const own = { traceId: parent.traceId, spanId: newTraceContext().spanId };
    const request = tracer.span("request", { parent, identity: own });
    assert.deepEqual(request.context, own);
    request.child("wait").end();
    request.end();
    const alone = newTraceContext();
    tracer.span("alone", { identity: alone }).end();
    const other = tracer.span("other");
    other.end();
    assert.notEqual(other.context.traceId, alone.traceId);
    assert.ok(isTraceContext(other.context));
    const got = await span("request");
    assert.deepEqual([got.traceId, got.spanId, got.parentSpanId], [own.traceId, own.spanId, parent.spanId]);
    const wait = await span("wait");
    assert.equal(wait.parentSpanId, own.spanId);
    assert.notEqual(wait.spanId, own.spanId);
    const root = await span("alone");
    assert.deepEqual([root.traceId, root.spanId, root.parentSpanId], [alone.traceId, alone.spanId, ""]);
  });

  it("marks what failed, with the text of the error, and ends once", async () => {
    const { tracer } = tracing({ endpoint: receiver.endpoint });
    const thrown = tracer.span("thrown");
    thrown.end(new Error("no image"));
    thrown.end();
    thrown.end(new Error("again"));
    tracer.span("said").end("host b is full");
    const error = await span("thrown");
    assert.deepEqual(error.status, { code: "STATUS_CODE_ERROR", message: "no image" });
    assert.equal(error.events[0]?.name, "exception");
    assert.equal(error.events[0]?.attributes["exception.message"], "no image");
    assert.deepEqual((await span("said")).status, { code: "STATUS_CODE_ERROR", message: "host b is full" });
    assert.equal(receiver.spans.filter(({ name }) => name === "thrown").length, 1);
  });

  it("registers nothing globally", async () => {
    const { tracer } = tracing({ endpoint: receiver.endpoint });
    tracer.span("ours").end();
    await span("ours");
    trace.getTracer("someone").startSpan("theirs").end();
    assert.equal(trace.getTracer("someone").startSpan("theirs").isRecording(), false);
    assert.deepEqual(propagation.fields(), []);
    assert.equal(
      context.with(context.active(), () => trace.getActiveSpan()),
      undefined,
    );
  });

  it("takes the collector and its headers from the environment, as the specification says", async () => {
    assert.equal(tracing().tracer, noTracing);
    process.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = `${receiver.endpoint}/base`;
    process.env["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=Bearer%20x,team=a";
    tracing().tracer.span("general").end();
    await span("general");
    assert.equal(receiver.posts[0]?.path, "/base/v1/traces");
    assert.equal(receiver.posts[0]?.headers["authorization"], "Bearer x");
    assert.equal(receiver.posts[0]?.headers["team"], "a");
    process.env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = `${receiver.endpoint}/only/traces`;
    tracing().tracer.span("specific").end();
    await span("specific");
    assert.equal(receiver.posts.at(-1)?.path, "/only/traces");
    assert.throws(() => startTracing({ service: "s", instance: "i", endpoint: "collector:4318", log }), {
      code: "CONFIG_INVALID",
    });
  });

  it("says once that the collector is down, and closes within its limit", async () => {
    const { address, port } = await deadPort();
    const made = tracing({ endpoint: `http://${address}:${port}` });
    for (let i = 0; i < 3; i++) {
      made.tracer.span("lost").end();
      await until(() => log.lines.length > 0, "the line in the log", 10_000);
    }
    made.tracer.span("lost").end();
    const began = performance.now();
    await made.close();
    await made.close();
    assert.ok(performance.now() - began < 2300, `${performance.now() - began} ms`);
    assert.equal(log.lines.length, 1);
    assert.match(log.lines[0] as string, /^warn traces: the collector does not take them/);
    made.tracer.span("after close").end();
  });

  it("says when a collector is back", async () => {
    const { tracer } = tracing({ endpoint: receiver.endpoint });
    receiver.answer = 400;
    tracer.span("refused").end();
    await until(() => log.lines.length === 1, "the line about the outage", 10_000);
    receiver.answer = 200;
    tracer.span("taken").end();
    await span("taken");
    await until(() => log.lines.length === 2, "the line about its end");
    assert.match(log.lines[1] as string, /^info traces: the collector takes them again/);
  });

  it("does not wait for a collector that hangs longer than its limit", async () => {
    receiver.answer = "hang";
    const made = tracing({ endpoint: receiver.endpoint, closeLimitMs: 300 });
    made.tracer.span("lost").end();
    await until(() => receiver.posts.length > 0, "the export");
    const began = performance.now();
    await made.close();
    assert.ok(performance.now() - began < 600, `${performance.now() - began} ms`);
  });

  it("exports what is left when it closes", async () => {
    const made = tracing({ endpoint: receiver.endpoint, exportEveryMs: 60_000 });
    for (let i = 0; i < 1000; i++) made.tracer.span(`s${i}`).end();
    await made.close();
    assert.equal(receiver.spans.length, 1000);
  });
});

describe("traceparent", () => {
  const traceId = "0af7651916cd43dd8448eb211c80319c";
  const spanId = "b7ad6b7169203331";

  it("reads what it writes", () => {
    for (const sampled of [true, false]) {
      const made = newTraceContext();
      assert.deepEqual(parseTraceparent(formatTraceparent(made, sampled)), { ...made, sampled });
    }
    assert.equal(formatTraceparent({ traceId, spanId }), `00-${traceId}-${spanId}-01`);
  });

  it("reads a later version with more fields, and ignores everything that the standard says to ignore", () => {
    assert.deepEqual(parseTraceparent(`01-${traceId}-${spanId}-03-more`), { traceId, spanId, sampled: true });
    const invalid = [
      undefined,
      "",
      `00-${traceId}-${spanId}`,
      `00-${traceId}-${spanId}-1`,
      `00-${traceId}-${spanId}-01-more`,
      `ff-${traceId}-${spanId}-01`,
      `00-${"0".repeat(32)}-${spanId}-01`,
      `00-${traceId}-${"0".repeat(16)}-01`,
      `00-${traceId.toUpperCase()}-${spanId}-01`,
      ` 00-${traceId}-${spanId}-01`,
      `00-${traceId}-${spanId}-01x`,
      `00-${traceId}-${spanId}-01, 00-${traceId}-${spanId}-01`,
    ];
    for (const value of invalid) assert.equal(parseTraceparent(value), undefined, String(value));
  });

  it("never throws, whatever is in the field", () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 80 }), (value) => {
        const read = parseTraceparent(value);
        assert.ok(read === undefined || isTraceContext(read));
      }),
    );
  });

  it("makes identifiers that differ and are valid", () => {
    const made = Array.from({ length: 10_000 }, newTraceContext);
    assert.ok(made.every(isTraceContext));
    assert.equal(new Set(made.map((each) => each.traceId)).size, made.length);
    assert.equal(new Set(made.map((each) => each.spanId)).size, made.length);
  });
});
