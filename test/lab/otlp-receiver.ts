// A collector of traces for tests: OTLP over HTTP, decoded with OpenTelemetry's own generated protobuf code.
import { once } from "node:events";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import { gunzipSync } from "node:zlib";

export interface ReceivedSpan {
  readonly service: string;
  readonly instance: string;
  readonly name: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string;
  readonly links: readonly { readonly traceId: string; readonly spanId: string }[];
  readonly attributes: Readonly<Record<string, unknown>>;
  readonly events: readonly { readonly name: string; readonly attributes: Readonly<Record<string, unknown>> }[];
  readonly status: { readonly code: string; readonly message: string };
  /** Since 1970. */
  readonly startMs: number;
  readonly ms: number;
}

export interface OtlpReceiver {
  readonly endpoint: string;
  readonly spans: ReceivedSpan[];
  readonly posts: { readonly path: string; readonly headers: Readonly<Record<string, unknown>> }[];
  /** Status of the answers from now on; `hang` gives none. */
  answer: number | "hang";
  close(): Promise<void>;
}

interface KeyValue {
  readonly key: string;
  readonly value?: Readonly<Record<string, unknown>>;
}

interface RawSpan {
  readonly name?: string;
  readonly traceId: Uint8Array;
  readonly spanId: Uint8Array;
  readonly parentSpanId?: Uint8Array;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes?: KeyValue[];
  readonly links?: { readonly traceId: Uint8Array; readonly spanId: Uint8Array }[];
  readonly events?: { readonly name: string; readonly attributes?: KeyValue[] }[];
  readonly status?: { readonly code?: string; readonly message?: string };
}

interface RawRequest {
  readonly resourceSpans: {
    readonly resource: { readonly attributes: KeyValue[] };
    readonly scopeSpans: { readonly spans: RawSpan[] }[];
  }[];
}

interface Codec {
  decode(data: Uint8Array): unknown;
  toObject(message: unknown, options: object): RawRequest;
}

// Not in the package's exports: this is the one place that depends on where the file lies.
const { opentelemetry } = createRequire(import.meta.url)("otlp-decode/build/src/generated/root.js") as {
  opentelemetry: { proto: { collector: { trace: { v1: { ExportTraceServiceRequest: Codec } } } } };
};
const codec = opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest;

const hex = (bytes: Uint8Array | undefined): string => (bytes === undefined ? "" : Buffer.from(bytes).toString("hex"));

function plain(pairs: readonly KeyValue[] = []): Record<string, unknown> {
  return Object.fromEntries(
    pairs.map(({ key, value }) => [key, value === undefined ? undefined : Object.values(value)[0]]),
  );
}

function decode(body: Buffer): ReceivedSpan[] {
  const { resourceSpans } = codec.toObject(codec.decode(body), { longs: String, enums: String });
  return resourceSpans.flatMap(({ resource, scopeSpans }) => {
    const about = plain(resource.attributes);
    return scopeSpans.flatMap(({ spans }) =>
      spans.map((span) => ({
        service: String(about["service.name"]),
        instance: String(about["service.instance.id"]),
        name: span.name ?? "",
        traceId: hex(span.traceId),
        spanId: hex(span.spanId),
        parentSpanId: hex(span.parentSpanId),
        links: (span.links ?? []).map((link) => ({ traceId: hex(link.traceId), spanId: hex(link.spanId) })),
        attributes: plain(span.attributes),
        events: (span.events ?? []).map(({ name, attributes }) => ({ name, attributes: plain(attributes) })),
        status: { code: span.status?.code ?? "STATUS_CODE_UNSET", message: span.status?.message ?? "" },
        startMs: Number(BigInt(span.startTimeUnixNano) / 1000n) / 1000,
        ms: Number(BigInt(span.endTimeUnixNano) - BigInt(span.startTimeUnixNano)) / 1e6,
      })),
    );
  });
}

export async function otlpReceiver(port = 0): Promise<OtlpReceiver> {
  const receiver: OtlpReceiver = { endpoint: "", spans: [], posts: [], answer: 200, close };
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      receiver.posts.push({ path: request.url ?? "", headers: request.headers });
      if (receiver.answer === "hang") return;
      if (receiver.answer === 200) {
        const body = Buffer.concat(chunks);
        receiver.spans.push(...decode(request.headers["content-encoding"] === "gzip" ? gunzipSync(body) : body));
      }
      response.writeHead(receiver.answer, { "content-type": "application/x-protobuf" }).end();
    });
  });
  async function close(): Promise<void> {
    server.closeAllConnections();
    if (server.listening) await new Promise((resolve) => server.close(resolve));
  }
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  return Object.assign(receiver, { endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}` });
}
