// HostClient over HTTP: claim and activate calls to a host's control API.
import type { Pool } from "undici";
import type { z } from "zod";
import { reasonOf } from "../../actors/hakobu-error.js";
import type { ActivateReply, Claim, ClaimReply, HostClient } from "../../actors/ports/host-client.js";
import type { HostRecord, Placement } from "../../actors/ports/placement-store.js";
import type { TraceContext } from "../../actors/ports/tracer.js";
import { activateReplySchema, claimReplySchema, path } from "../dispatcher/protocol.js";
import { formatTraceparent } from "../tracing/traceparent.js";

export class HttpHostClient implements HostClient {
  readonly #pool: (host: HostRecord) => Pool;

  constructor(pool: (host: HostRecord) => Pool) {
    this.#pool = pool;
  }

  claim(host: HostRecord, claim: Claim, trace: TraceContext, signal: AbortSignal): Promise<ClaimReply> {
    return this.#call(host, path.claim, claim, claimReplySchema, trace, signal);
  }

  activate(host: HostRecord, placement: Placement, trace: TraceContext, signal: AbortSignal): Promise<ActivateReply> {
    const { container, epoch } = placement;
    return this.#call(host, path.activate, { container, epoch }, activateReplySchema, trace, signal);
  }

  async prepare(host: HostRecord, container: string, signal: AbortSignal): Promise<void> {
    try {
      const response = await this.#pool(host).request({
        method: "POST",
        path: path.prepare,
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ container }),
        signal,
      });
      await response.body.dump();
    } catch {
      // It was a hint.
    }
  }

  async #call<T>(
    host: HostRecord,
    to: string,
    body: object,
    schema: z.ZodType<T>,
    trace: TraceContext,
    signal: AbortSignal,
  ): Promise<T | { kind: "unreachable"; reason: string }> {
    try {
      const response = await this.#pool(host).request({
        method: "POST",
        path: to,
        headers: { "content-type": "application/json", traceparent: formatTraceparent(trace, true) },
        body: JSON.stringify(body),
        signal,
      });
      const text = await response.body.text();
      const reply = schema.safeParse(json(text));
      if (reply.success) return reply.data;
      return { kind: "unreachable", reason: `host ${host.id} answered ${response.statusCode}: ${text.slice(0, 200)}` };
    } catch (error) {
      return { kind: "unreachable", reason: `host ${host.id}: ${reasonOf(signal.aborted ? signal.reason : error)}` };
    }
  }
}

/** Undefined where it is none: a host's refusal of the call itself is plain text. */
function json(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
