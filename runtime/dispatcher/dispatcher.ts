// The HTTP face of a host for tenants' requests: forwards to the container that the request names, waking it first.
//
//   D1  Nothing is forwarded for a container that this host does not own, or under an epoch older than its own: 421.
//   D2  A request that finds its container asleep waits in a bounded queue, within its own deadline. Who owns the container is
//       looked at again when it serves: this process may have stood still meanwhile.
//   D3  A request goes to a container a second time only if the first copy cannot have acted on it, or its method is
//       idempotent (RFC 9110 section 9.2.2) and its body is still whole.
//   D4  Answers of the dispatcher itself carry `hakobu-verdict`; no answer of a container does.
import type { IncomingMessage, ServerResponse } from "node:http";
import type { ContainerActor } from "../../actors/container.js";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { HostActor } from "../../actors/host.js";
import { type Clock, deadline, delay } from "../../actors/ports/clock.js";
import type { Instance } from "../../actors/ports/engine.js";
import type { Log } from "../../actors/ports/log.js";
import type { Placement } from "../../actors/ports/placement-store.js";
import type { Tracer } from "../../actors/ports/tracer.js";
import type { ClusterView } from "../../actors/cluster-view.js";
import { BODY_SILENCE_MS, forward } from "../forwarding/forward.js";
import { hasBody, requestHeaders } from "../forwarding/headers.js";
import type { ForwardFailure } from "../forwarding/outcome.js";
import type { Pools } from "../forwarding/pools.js";
import { forwardUpgrade } from "../forwarding/upgrade.js";
import { ReplayBody } from "../forwarding/replay-body.js";
import { parseTraceparent } from "../tracing/traceparent.js";
import { isIdempotent } from "./methods.js";
import { header, type VerdictBody } from "./protocol.js";

export interface DispatcherOptions {
  readonly host: HostActor;
  readonly view: ClusterView;
  readonly pools: Pools;
  readonly clock: Clock;
  readonly tracer: Tracer;
  readonly log: Log;
  /** Requests that may wait for sleeping containers at once. */
  readonly maxWaiting: number;
  readonly replayLimitBytes: number;
  /** For the head of a response. */
  readonly requestTimeoutMs: number;
}

/** Copies of one request that may be sent to a container. */
const attemptLimit = 3;
const retryPauseMs = 20;

export class Dispatcher {
  readonly #options: DispatcherOptions;
  #waiting = 0;

  constructor(options: DispatcherOptions) {
    this.#options = options;
  }

  /** Requests that wait for their containers. */
  get waiting(): number {
    return this.#waiting;
  }

  /** `head`: of a WebSocket handshake, what came after it. Never rejects. */
  async handle(incoming: IncomingMessage, outgoing: ServerResponse, head?: Buffer): Promise<void> {
    const { host } = this.#options;
    const name = incoming.headers[header.container] as string;
    const epoch = Number(incoming.headers[header.epoch]);
    let container = host.container(name);
    if (container === undefined || epoch > container.epoch) {
      await host.claimed(name);
      container = host.container(name);
    }
    if (container === undefined) return this.#moved(outgoing, name);
    if (epoch > container.epoch) host.supersede(container, epoch);
    if (epoch !== container.epoch) return this.#moved(outgoing, name);
    const body = hasBody(incoming) ? new ReplayBody(incoming, this.#options.replayLimitBytes) : undefined;
    try {
      if (!(await host.mayServe(container))) throw this.#doubtful(container);
      await this.#carry(container, incoming, outgoing, body, head);
    } catch (error) {
      // Else what is left of the upload would keep the connection from being read again.
      body?.discard();
      this.#refuse(container, outgoing, error);
    }
  }

  async #carry(
    container: ContainerActor,
    incoming: IncomingMessage,
    outgoing: ServerResponse,
    body: ReplayBody | undefined,
    head: Buffer | undefined,
  ): Promise<void> {
    const { host, pools, clock, requestTimeoutMs } = this.#options;
    const headers = requestHeaders(incoming, { forwarded: "keep" });
    for (let attempt = 1; ; attempt++) {
      let instance = container.serving;
      if (instance === undefined || attempt > 1) {
        instance ??= await this.#wake(container, incoming, outgoing);
        if (!(await host.mayServe(container))) throw this.#doubtful(container);
      }
      container.enter();
      const pool = pools.get(instance);
      const forwarding = { headers, headersTimeoutMs: requestTimeoutMs, bodyTimeoutMs: BODY_SILENCE_MS };
      const outcome =
        head === undefined
          ? await forward(pool, incoming, outgoing, { ...forwarding, body })
          : await forwardUpgrade(pool, incoming, outgoing, head, forwarding);
      container.leave(outcome.kind === "served" && outcome.status < 500);
      if (outcome.kind !== "failed" || outcome.responded) return;
      container.check();
      if (attempt === attemptLimit || !mayRepeat(incoming, outcome, body)) {
        body?.discard();
        return this.#broken(container, outgoing, outcome);
      }
      await delay(clock, retryPauseMs);
    }
  }

  async #wake(container: ContainerActor, incoming: IncomingMessage, outgoing: ServerResponse): Promise<Instance> {
    const { tracer, clock, maxWaiting } = this.#options;
    if (this.#waiting >= maxWaiting)
      throw new HakobuError("OVERLOADED", `${maxWaiting} requests already wait on this host (maxWaiting)`, {
        retryable: true,
      });
    const parent = parseTraceparent(incoming.headers.traceparent as string | undefined);
    const span = tracer.span("wake", {
      ...(parent === undefined ? {} : { parent }),
      attributes: { "hakobu.container": container.name, "hakobu.epoch": container.epoch },
    });
    const { startTimeoutMs, checkpoint } = container.record.spec;
    const limitMs = startTimeoutMs + checkpoint.timeoutMs;
    const client = new AbortController();
    const onClose = (): void => client.abort(new HakobuError("ABORTED", "the client closed its connection"));
    outgoing.once("close", onClose);
    this.#waiting++;
    try {
      const limit = deadline(clock, limitMs, `${container.name} did not serve within ${limitMs} ms`);
      const instance = await container.whenServing(span.context, AbortSignal.any([limit, client.signal]));
      outgoing.setHeader(header.activation, container.activation?.how ?? "running");
      span.set({ "hakobu.how": container.activation?.how });
      span.end();
      return instance;
    } catch (error) {
      span.end(error);
      throw error;
    } finally {
      this.#waiting--;
      outgoing.off("close", onClose);
    }
  }

  #refuse(container: ContainerActor, outgoing: ServerResponse, error: unknown): void {
    const { log } = this.#options;
    if (outgoing.destroyed || outgoing.headersSent) return;
    if (error instanceof HakobuError && error.code === "NOT_OWNER") return this.#moved(outgoing, container.name);
    const reason = reasonOf(error);
    log.warn({ container: container.name, reason }, "request not served");
    const doubtful = error instanceof HakobuError && error.code === "LEASE_LOST";
    answer(outgoing, 503, {
      verdict: "refused",
      reason,
      ...(doubtful ? {} : { keeps: true as const, retryAfterMs: 1000 }),
    });
  }

  #doubtful({ name, left }: ContainerActor): HakobuError {
    const { id } = this.#options.host.record;
    if (left) return new HakobuError("NOT_OWNER", `${name} has left host ${id}`);
    return new HakobuError("LEASE_LOST", `host ${id} cannot prove that ${name} is still its own`, { retryable: true });
  }

  #moved(outgoing: ServerResponse, name: string): void {
    const { view, host } = this.#options;
    if (host.handingOver(name)) return answer(outgoing, 421, { verdict: "leaving" });
    const placement: Placement | undefined = view.placement(name);
    answer(outgoing, 421, { verdict: "moved", ...(placement === undefined ? {} : { placement }) });
  }

  #broken(container: ContainerActor, outgoing: ServerResponse, failure: ForwardFailure): void {
    this.#options.log.warn(
      { container: container.name, code: failure.code, sent: failure.sent, reason: failure.error.message },
      "the container broke its connection",
    );
    if (outgoing.destroyed) return;
    const status = failure.code === "timeout" ? 504 : failure.code === "invalid" ? 400 : 502;
    const text = `${container.name}: the application did not answer this request (${failure.code}).\n`;
    outgoing.writeHead(status, { "content-type": "text/plain; charset=utf-8", connection: "close" });
    outgoing.end(text);
  }
}

function mayRepeat(incoming: IncomingMessage, failure: ForwardFailure, body: ReplayBody | undefined): boolean {
  if (failure.code === "timeout" || failure.code === "invalid" || failure.code === "aborted") return false;
  if (body !== undefined && !body.replayable) return false;
  return failure.sent === "nothing" || isIdempotent(incoming.method);
}

function answer(outgoing: ServerResponse, status: 421 | 503, body: VerdictBody): void {
  const text = JSON.stringify(body);
  outgoing.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
    [header.verdict]: body.verdict,
  });
  outgoing.end(text);
}
