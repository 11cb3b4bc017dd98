// What a proxy itself has to say to a client: plain text with the trace id, and the status that an error stands for.
import type { ServerResponse } from "node:http";
import type { HakobuError } from "../../actors/hakobu-error.js";
import type { RequestTrace } from "../tracing/request-trace.js";

export function statusOf(error: HakobuError): number {
  switch (error.code) {
    case "UNAVAILABLE":
    case "OVERLOADED":
      return 503;
    case "ABORTED":
      return 502;
    case "DEADLINE_EXCEEDED":
      return 504;
    case "CONFIG_INVALID":
      return 400;
    case "STORE_UNAVAILABLE":
    case "STORE_REFUSED":
    case "HOST_ID_TAKEN":
    case "NOT_OWNER":
    case "LEASE_LOST":
    case "START_FAILED":
    case "RESTORE_FAILED":
    case "CHECKPOINT_FAILED":
    case "STOP_FAILED":
      return 500;
  }
}

export function say(
  outgoing: ServerResponse,
  status: number,
  text: string,
  trace: RequestTrace,
  retryAfterSeconds?: number,
): void {
  const body = `${text}Trace: ${trace.context.traceId}\n`;
  outgoing.writeHead(status, {
    "content-type": "text/plain; charset=utf-8",
    "content-length": Buffer.byteLength(body),
    ...(retryAfterSeconds === undefined ? {} : { "retry-after": String(retryAfterSeconds) }),
  });
  outgoing.end(body);
}
