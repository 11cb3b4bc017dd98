// What is told of one move: to the table, the log, the admin API and the trace.
import type { Clock } from "./ports/clock.js";
import type { Phases } from "./ports/engine.js";
import type { Activation } from "./ports/host-client.js";
import type { Log } from "./ports/log.js";
import type { Span } from "./ports/tracer.js";

/** One move that ended with an owner, for the table, the log and the admin API. Milliseconds. */
export interface MoveReport {
  readonly container: string;
  readonly from: string | undefined;
  readonly to: string;
  readonly epoch: number;
  readonly reason: string;
  readonly at: string;
  readonly traceId: string;
  readonly how: Activation["how"] | undefined;
  readonly note: string | undefined;
  readonly image: string | undefined;
  readonly bytes: number | undefined;
  readonly probeMs: number;
  readonly claimMs: number;
  readonly activateMs: number;
  /** What the activation consisted of, on the host. `ahead: ...`: done while the proxy still probed, or the host claimed. */
  readonly phases: Readonly<Record<string, number>>;
  firstResponseMs: number | undefined;
}

export interface ReportDeps {
  readonly clock: Clock;
  readonly log: Log;
  /** Nobody waits longer for an answer. */
  readonly limitMs: number;
}

/** Milliseconds by name. */
export function named(phases: Phases): Readonly<Record<string, number>> {
  return Object.fromEntries(phases.map(({ name, ms, ahead }) => [ahead === true ? `ahead: ${name}` : name, ms]));
}

/** The move is over for the log and the trace with the first answer from the new owner. @returns what is to be called then; once counts */
export function untilFirstResponse({ clock, log, limitMs }: ReportDeps, report: MoveReport, span: Span): () => void {
  span.set({
    "hakobu.how": report.how,
    "hakobu.note": report.note,
    "hakobu.image": report.image,
    "hakobu.bytes": report.bytes,
  });
  const activeMs = clock.now();
  const first = span.child("first response");
  let over = false;
  const end = (answered: boolean): void => {
    if (over) return;
    over = true;
    clock.clearTimeout(timer);
    if (answered) report.firstResponseMs = clock.now() - activeMs;
    first.end(answered ? undefined : "nobody waited for it any more");
    span.end();
    const rounded = (ms: number): number => Math.round(ms * 10) / 10;
    const { container, from, to, epoch, how, note, reason, traceId, firstResponseMs } = report;
    log.info(
      {
        container,
        from,
        to,
        epoch,
        how,
        note,
        reason,
        probeMs: rounded(report.probeMs),
        claimMs: rounded(report.claimMs),
        activateMs: rounded(report.activateMs),
        firstResponseMs: firstResponseMs === undefined ? undefined : rounded(firstResponseMs),
        traceId,
      },
      from === undefined ? "placed" : "relocated",
    );
  };
  const timer: unknown = clock.setTimeout(() => end(false), limitMs);
  return () => end(true);
}
