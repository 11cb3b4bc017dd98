// One request through a proxy: find its container, make sure of the host, forward, and where the host is dead have the
// container moved and forward there (design, "One request").
//
//   C1  The warm path reads memory only: no store, no span, no actor event.
//   C2  A request goes to a second host only if the first cannot have acted on it: nothing of it was sent, or its method is
//       idempotent, its body is whole, and no byte of a response was passed on.
//   C3  A request that cannot be sent twice is never sent on a remembered proof: the host is probed first.
//   C4  At most `hopLimit` forwards for one request, all of them within `requestTimeoutMs` up to the head of the response;
//       whatever fails ends in one clear answer with the trace id.
import type { IncomingMessage, ServerResponse } from "node:http";
import type { ClusterView } from "../../actors/cluster-view.js";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import { type Clock, deadline, delay, within } from "../../actors/ports/clock.js";
import type { Log } from "../../actors/ports/log.js";
import type { HostRecord, Placement, SpecRecord } from "../../actors/ports/placement-store.js";
import type { ProbeResult } from "../../actors/ports/prober.js";
import type { Tracer } from "../../actors/ports/tracer.js";
import { describe, type ReachabilityActor } from "../../actors/reachability.js";
import type { Move, Relocations, Trigger } from "../../actors/relocation.js";
import { isIdempotent, isSafe } from "../dispatcher/methods.js";
import { header, verdictSchema } from "../dispatcher/protocol.js";
import { Cancellation } from "../forwarding/cancellation.js";
import { BODY_SILENCE_MS, forward, type ForwardOptions } from "../forwarding/forward.js";
import { type ForwardedPolicy, hasBody, hasPassed, requestHeaders } from "../forwarding/headers.js";
import type { ForwardFailure } from "../forwarding/outcome.js";
import type { Pools } from "../forwarding/pools.js";
import { ReplayBody } from "../forwarding/replay-body.js";
import { forwardUpgrade, type UpgradeOutcome } from "../forwarding/upgrade.js";
import { RequestTrace } from "../tracing/request-trace.js";
import { say, statusOf } from "./answers.js";
import { hostnameOf } from "./hostname.js";

export interface CarrierOptions {
  readonly view: ClusterView;
  readonly relocations: Relocations;
  readonly reachability: (host: HostRecord) => ReachabilityActor;
  readonly pools: Pools;
  readonly clock: Clock;
  readonly tracer: Tracer;
  readonly log: Log;
  readonly forwarded: ForwardedPolicy;
  readonly replayLimitBytes: number;
  readonly requestTimeoutMs: number;
  /** Requests that may wait for moves at once. */
  readonly maxWaiting: number;
}

const hopLimit = 5;
/** How long the stream may lag behind a host that says that it does not own a container. */
const viewLagMs = 1000;
/** Before a host that others reach and this proxy does not is asked for again. */
const keptPauseMs = 250;
const via = "hakobu";
const tooOften = "since it has moved too often in the last minute (movesPerMinute)";

/** One request on its way. */
interface Journey {
  readonly record: SpecRecord;
  readonly incoming: IncomingMessage;
  readonly outgoing: ServerResponse;
  readonly trace: RequestTrace;
  readonly body: ReplayBody | undefined;
  readonly head: Buffer | undefined;
  /** `clock.now()` at which it is answered, or given up. */
  readonly endMs: number;
  /** The move whose end it waited for, until its first answer. */
  move: Move | undefined;
}

interface Owner {
  readonly host: HostRecord;
  readonly placement: Placement;
  readonly reachability: ReachabilityActor;
  /** The host is silent, and the container stays there all the same, for it has moved too often: wait for its answer. */
  readonly damped?: true;
}

export class Carrier {
  readonly #options: CarrierOptions;
  #waiting = 0;

  constructor(options: CarrierOptions) {
    this.#options = options;
  }

  /** `head`: of a WebSocket handshake, what came after it. Never rejects. */
  async carry(incoming: IncomingMessage, outgoing: ServerResponse, head?: Buffer): Promise<void> {
    const { view, tracer, replayLimitBytes, requestTimeoutMs, clock, log } = this.#options;
    const trace = new RequestTrace(tracer, incoming);
    const hostname = hostnameOf(incoming);
    const record = view.specForHostname(hostname);
    if (record === undefined && !view.connected) {
      const text = `Nothing is known of "${hostname}" while the placement store is away: ${view.disconnectedReason}.\n`;
      return say(outgoing, 503, text, trace, 1);
    }
    if (record === undefined)
      return say(outgoing, 404, `No application answers to "${hostname}" here. See: hakobu get\n`, trace);
    if (hasPassed(incoming, via))
      return say(outgoing, 508, "This request has passed Hakobu before: it runs in a circle.\n", trace);
    const body = hasBody(incoming) ? new ReplayBody(incoming, replayLimitBytes) : undefined;
    const endMs = clock.now() + requestTimeoutMs;
    const journey: Journey = { record, incoming, outgoing, trace, body, head, endMs, move: undefined };
    try {
      await this.#travel(journey);
      trace.close(outgoing.statusCode);
    } catch (error) {
      body?.discard();
      const status = error instanceof HakobuError ? statusOf(error) : 500;
      if (status === 500) log.error({ container: record.spec.name, error: reasonOf(error) }, "request failed");
      trace.open().end(error);
      if (outgoing.destroyed) return;
      if (outgoing.headersSent) outgoing.destroy();
      else say(outgoing, status, `${reasonOf(error)}\n`, trace, status === 503 ? 1 : undefined);
    }
  }

  async #travel(journey: Journey): Promise<void> {
    let refusal: string | undefined;
    for (let hop = 1; hop <= hopLimit; hop++) {
      const owner = await this.#owner(journey);
      const outcome = await this.#attempt(journey, owner);
      switch (outcome.kind) {
        case "served":
        case "tunnelled":
        case "client-gone":
          return;
        case "intercepted":
          refusal = await this.#redirect(journey, owner, outcome.body);
          break;
        case "failed":
          await this.#recover(journey, owner, outcome);
          refusal = `${owner.host.id}: ${outcome.error.message}`;
      }
      if (journey.outgoing.destroyed) return;
    }
    throw new HakobuError("UNAVAILABLE", `${journey.record.spec.name}: no answer after ${hopLimit} tries; ${refusal}`);
  }

  /** Who owns the container, proven as far as this request needs it; moves the container where nobody does. */
  async #owner(journey: Journey): Promise<Owner> {
    const { view, relocations } = this.#options;
    const { record, incoming } = journey;
    const { name, probe } = record.spec;
    if (relocations.underWay(name) !== undefined)
      await this.#move(journey, certainly("a move is under way", view.placement(name)?.epoch ?? 0));
    for (let turn = 1; turn <= hopLimit; turn++) {
      const placement = view.placement(name);
      if (placement === undefined) {
        await this.#move(journey, certainly("it had no host", 0));
        continue;
      }
      const host = view.host(placement.host);
      if (host === undefined) {
        await this.#move(journey, certainly(`${placement.host} has left the cluster`, placement.epoch));
        continue;
      }
      const reachability = this.#options.reachability(host);
      const owner = { host, placement, reachability };
      if (reachability.state === "trusted") {
        if (reachability.fresh && isSafe(incoming.method)) return owner;
        const asked = reachability.probe(probe.timeoutMs, probe.kind);
        // A safe request without a body goes along with the probe: should the host be dead, it is sent again.
        if (isSafe(incoming.method) && journey.body === undefined) return owner;
        const result = await this.#probed(asked, record, owner);
        if (result.kind === "alive" || result.kind === "unknown") return owner;
        const probedMs = result.kind === "timeout" ? result.afterMs : 0;
        const text = `${host.id}: ${describe(result)}`;
        const certain = result.kind === "refused";
        const move = await this.#move(journey, {
          reason: { text, proven: true, certain },
          epoch: placement.epoch,
          probedMs,
        });
        if (move.ended.kind === "damped") return { ...owner, damped: true };
        if (await this.#keptWaiting(journey, owner, move)) turn--;
        continue;
      }
      const proven = reachability.state === "unreachable";
      const text = `${host.id}: ${reachability.reason}`;
      const move = await this.#move(journey, {
        reason: { text, proven, certain: reachability.certain },
        epoch: placement.epoch,
        probedMs: 0,
      });
      if (move.ended.kind === "alive") return owner;
      if (move.ended.kind === "damped") return { ...owner, damped: true };
      if (await this.#keptWaiting(journey, owner, move)) turn--;
    }
    throw new HakobuError("UNAVAILABLE", `${name} moved ${hopLimit} times under one request`, { retryable: true });
  }

  /** Waits for the probe; another host prepares as soon as it is late. */
  async #probed(asked: Promise<ProbeResult>, record: SpecRecord, { host, reachability }: Owner): Promise<ProbeResult> {
    const unwatch = reachability.watch({
      probeTimeoutMs: record.spec.probe.timeoutMs,
      probeKind: record.spec.probe.kind,
      hostLate: () => this.#options.relocations.anticipate(record, host),
      hostSilent: () => {},
    });
    try {
      return await asked;
    } finally {
      unwatch();
    }
  }

  /** The owner keeps it: heard again, or found alive by the new host (`takeover: confirmed`), in which case this waits a moment. */
  async #keptWaiting(journey: Journey, { host, placement, reachability }: Owner, { ended }: Move): Promise<boolean> {
    if (ended.kind !== "taken" || ended.owner.epoch !== placement.epoch) return false;
    if (this.#options.clock.now() + keptPauseMs > journey.endMs) {
      const text = `${journey.record.spec.name} stays on ${host.id}, which answers other hosts and not this proxy`;
      throw new HakobuError("UNAVAILABLE", text, { retryable: true });
    }
    if (reachability.state !== "trusted") await delay(this.#options.clock, keptPauseMs);
    return true;
  }

  async #move(journey: Journey, trigger: Omit<Trigger, "request">): Promise<Move> {
    const { relocations, maxWaiting, clock } = this.#options;
    const { record, trace } = journey;
    if (this.#waiting >= maxWaiting)
      throw new HakobuError("OVERLOADED", `${maxWaiting} requests already wait for moves (maxWaiting)`, {
        retryable: true,
      });
    const span = trace.open({ "hakobu.container": record.spec.name });
    this.#waiting++;
    try {
      const leftMs = Math.max(0, journey.endMs - clock.now());
      const text = `${record.spec.name}: no host could take it in time (${trigger.reason.text})`;
      const limit = deadline(clock, leftMs, text, "UNAVAILABLE");
      const move = await within(relocations.move(record, { ...trigger, request: trace.context }), limit);
      span.link(move.context);
      journey.move = move;
      return move;
    } finally {
      this.#waiting--;
    }
  }

  async #attempt(journey: Journey, { host, placement, reachability, damped }: Owner): Promise<UpgradeOutcome> {
    const { pools, forwarded, clock, relocations } = this.#options;
    const { record, incoming, outgoing, body, head, trace } = journey;
    const { takeover } = record.spec;
    const cancellation = new Cancellation();
    const repeatable = isIdempotent(incoming.method);
    const unwatch = reachability.watch({
      probeTimeoutMs: record.spec.probe.timeoutMs,
      probeKind: record.spec.probe.kind,
      hostLate: () => relocations.anticipate(record, host),
      hostSilent: (state, reason) => {
        if (damped === true) return;
        const again = repeatable && (body?.replayable ?? true);
        // What does not move on suspicion may still be answered where it is.
        const lost =
          takeover === "fast"
            ? again || state === "unreachable"
            : state === "unreachable" && (again || reachability.certain);
        if (lost) cancellation.cancel(new HakobuError("UNAVAILABLE", `${host.id}: ${reason}`));
      },
    });
    try {
      const options: ForwardOptions = {
        headers: requestHeaders(incoming, {
          forwarded,
          via,
          set: {
            [header.container]: record.spec.name,
            [header.epoch]: String(placement.epoch),
            traceparent: trace.traceparent,
          },
        }),
        body,
        cancellation,
        headersTimeoutMs: Math.max(1, journey.endMs - clock.now()),
        bodyTimeoutMs: BODY_SILENCE_MS,
        onResponse: (_status, internal) => {
          unwatch();
          reachability.heard();
          if (internal[header.verdict] !== undefined) return "keep";
          journey.move?.answered();
          const how = internal[header.activation];
          if (how !== undefined) trace.open({ "hakobu.container": record.spec.name, "hakobu.woken": how });
          return "pass";
        },
      };
      const pool = pools.get(host);
      if (head !== undefined) return await forwardUpgrade(pool, incoming, outgoing, head, options);
      return await forward(pool, incoming, outgoing, options);
    } finally {
      unwatch();
    }
  }

  /** The host answered itself: it does not own the container (any more), or cannot serve it. @returns its reason */
  async #redirect(journey: Journey, owner: Owner, body: Buffer): Promise<string> {
    const { view, clock } = this.#options;
    const { record, trace } = journey;
    const parsed = verdictSchema.safeParse(JSON.parse(body.toString()));
    if (!parsed.success)
      throw new HakobuError("UNAVAILABLE", `${owner.host.id} answered in a way this version does not know`);
    const verdict = parsed.data;
    if (journey.body !== undefined && !journey.body.replayable)
      throw new HakobuError("UNAVAILABLE", `${record.spec.name} moved while a large request body was being sent`, {
        retryable: true,
      });
    switch (verdict.verdict) {
      case "moved": {
        trace.open({ "hakobu.moved": true });
        if (verdict.placement !== undefined) view.learn(verdict.placement);
        const { epoch } = owner.placement;
        const changed = (): boolean => view.placement(record.spec.name)?.epoch !== epoch;
        const lag = deadline(clock, viewLagMs, "the stream lags");
        try {
          await view.until(changed, lag);
        } catch {
          await this.#move(journey, certainly(`${owner.host.id} does not own it`, epoch));
        }
        return `${owner.host.id} does not own it`;
      }
      case "leaving": {
        trace.open({ "hakobu.moved": true });
        const { epoch } = owner.placement;
        const leftMs = Math.max(0, journey.endMs - clock.now());
        const text = `the planned move of ${record.spec.name} did not end in time`;
        const limit = deadline(clock, leftMs, text, "UNAVAILABLE");
        await view.until(() => view.placement(record.spec.name)?.epoch !== epoch, limit);
        return `${owner.host.id} hands it over`;
      }
      case "refused": {
        const { name, takeover } = record.spec;
        const text = `${owner.host.id}: ${verdict.reason}`;
        const certain = verdict.keeps !== true;
        // Who answers with a lease that holds is moved from by `fast` alone, and not without end.
        if (!certain && takeover !== "fast") throw new HakobuError("UNAVAILABLE", text, { retryable: true });
        const reason = { text, proven: true, certain };
        const { ended } = await this.#move(journey, { reason, epoch: owner.placement.epoch, probedMs: 0 });
        if (ended.kind === "damped")
          throw new HakobuError("UNAVAILABLE", `${name} stays where it is, ${tooOften}. ${text}`, { retryable: true });
        return verdict.reason;
      }
    }
  }

  /** Decides what a failed attempt means for the host and for the request. Returns where another attempt may be made. */
  async #recover(journey: Journey, owner: Owner, failure: ForwardFailure): Promise<void> {
    const { log, pools } = this.#options;
    const { incoming, record, trace, body } = journey;
    const { host, reachability } = owner;
    const span = trace.open({ "hakobu.container": record.spec.name, "hakobu.failure": failure.code });
    log.info(
      {
        container: record.spec.name,
        host: host.id,
        code: failure.code,
        sent: failure.sent,
        reason: failure.error.message,
      },
      "a host did not answer a request",
    );
    if (failure.responded) {
      span.end(failure.error);
      journey.outgoing.destroy();
      return;
    }
    if (failure.code === "invalid") throw new HakobuError("CONFIG_INVALID", failure.error.message);
    if (failure.code === "refused") reachability.refused("connection refused");
    else if (failure.code !== "aborted") {
      if (failure.code === "reset" || failure.code === "closed") reachability.interrupted();
      const { timeoutMs, kind } = record.spec.probe;
      await reachability.probe(timeoutMs, kind);
    }
    // A host that is only silent may be back in a moment, and with it the answers that others wait for.
    if (reachability.state === "unreachable" && reachability.certain) pools.destroy(host, reachability.reason);
    const repeatable = failure.sent === "nothing" || isIdempotent(incoming.method);
    if (failure.code === "timeout" && failure.sent === "something") {
      const text = `${record.spec.name} did not answer in time`;
      if (owner.damped === true && repeatable)
        throw new HakobuError("UNAVAILABLE", `${text}, and stays on ${host.id}: ${tooOften}`, { retryable: true });
      throw new HakobuError("DEADLINE_EXCEEDED", text);
    }
    if (!repeatable || (body !== undefined && !body.replayable))
      throw new HakobuError(
        "ABORTED",
        `${host.id} was lost while it worked on this request (${failure.error.message}). It was not sent again: ${incoming.method} may have taken effect.`,
      );
    if (failure.code === "aborted" && reachability.state === "suspected") {
      const text = `${host.id}: ${reachability.reason}`;
      const probedMs = reachability.lastProbeMs;
      await this.#move(journey, {
        reason: { text, proven: true, certain: false },
        epoch: owner.placement.epoch,
        probedMs,
      });
    }
  }
}

function certainly(text: string, epoch: number): Omit<Trigger, "request"> {
  return { reason: { text, proven: true, certain: true }, epoch, probedMs: 0 };
}
