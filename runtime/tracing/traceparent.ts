// W3C Trace Context, level 1 (https://www.w3.org/TR/trace-context/): the `traceparent` field, and new identifiers.
import { randomFillSync } from "node:crypto";
import type { TraceContext } from "../../actors/ports/tracer.js";

const FORMAT = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/**
 * Undefined for anything that the standard says to ignore: upper case, identifiers of zeros only, version ff, or further
 * fields in version 00.
 */
export function parseTraceparent(
  value: string | undefined,
): (TraceContext & { readonly sampled: boolean }) | undefined {
  if (value === undefined || value.length < 55) return undefined;
  const match = FORMAT.exec(value);
  if (match === null) return undefined;
  const [, version, traceId, spanId, flags, more] = match as unknown as [
    string,
    string,
    string,
    string,
    string,
    string?,
  ];
  if (version === "ff" || (version === "00" && more !== undefined)) return undefined;
  if (!isTraceContext({ traceId, spanId })) return undefined;
  return { traceId, spanId, sampled: (Number.parseInt(flags, 16) & 1) === 1 };
}

export function formatTraceparent({ traceId, spanId }: TraceContext, sampled = true): string {
  return `00-${traceId}-${spanId}-${sampled ? "01" : "00"}`;
}

/** Whether both identifiers are of the right form and not of zeros only. */
export function isTraceContext({ traceId, spanId }: TraceContext): boolean {
  return /^(?!0{32})[0-9a-f]{32}$/.test(traceId) && /^(?!0{16})[0-9a-f]{16}$/.test(spanId);
}

const POOL_BYTES = 24 * 170;
const pool = Buffer.alloc(POOL_BYTES);
let used = POOL_BYTES;

function randomHex(bytes: number): string {
  for (;;) {
    if (used + bytes > POOL_BYTES) {
      randomFillSync(pool);
      used = 0;
    }
    const text = pool.toString("hex", used, used + bytes);
    used += bytes;
    if (!/^0+$/.test(text)) return text;
  }
}

/** New random identifiers; the system's random source is asked once for 170 of them. */
export function newTraceContext(): TraceContext {
  return { traceId: randomHex(16), spanId: randomHex(8) };
}

/** A new span identifier in the trace that is given. */
export function newSpanId(): string {
  return randomHex(8);
}
