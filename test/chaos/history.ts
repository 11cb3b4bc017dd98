// What happened in a run, and the proof that it was right. Knows nothing of how it was made: a history can be planted.
//
//   V1  An exclusive container never has two owners: no copy takes a request after a newer one has, or is at work on one beside
//       it, or is alive beside it. Excused, and measured: a copy whose agent stood still or was killed finishes what was sent to it
//       before and stays alive until that agent looks after it again. Only what it writes to can keep it off then, by its epoch.
//   V2  A fast or confirmed one has two that answer for at most `bounds.overlapMs`, and the one that lost it is gone
//       `bounds.letGoMs` after its host could know that (excuses.ts, X1).
//   V3  One after the other through one proxy, answers never come from an older epoch than before.
//   V4  A POST is executed at most once, and a POST that was answered with 200 was executed.
//   V5  A GET fails only when in its time no host with room was reachable, its proxy was killed, or etcd had no leader and it may
//       have needed a claim (excuses.ts, X2): what is on a host that works needs none.
//   V6  No request takes longer than its deadline. Only a proxy that stood still itself may add that time.
//   V7  Afterwards each container runs on its owner and nowhere else; the hosts have nothing beside what they say they run, before
//       anything is closed; and then nothing is left on the machine.
//
// All times are CLOCK_REALTIME of the one machine, in ms. A clock that was set during a run would make it worthless:
// `clockDriftMs` tells (against CLOCK_MONOTONIC, in one process).
import type { JournalLine } from "../lab/cluster.js";
import { copiesIn, type Copy, copyOverlaps, type Execution, servingOverlaps } from "./copies.js";
import { letsGoMs, mayNeedClaim } from "./excuses.js";
import { intersection, meets, type Span } from "./spans.js";

export type Takeover = "fast" | "confirmed" | "exclusive";

export interface Exchange {
  readonly client: number;
  readonly proxy: number;
  readonly container: string;
  readonly method: "GET" | "POST";
  readonly id: string;
  readonly sentMs: number;
  readonly doneMs: number;
  /** 0: no response. */
  readonly status: number;
  /** Where the status is not 200: the body, or the error. */
  readonly text?: string;
  readonly epoch?: number;
  readonly host?: string;
  /** Of the request that the container says it answered. */
  readonly answeredId?: string;
}

export interface History {
  readonly policies: ReadonlyMap<string, Takeover>;
  /** What each container's copies wrote. */
  readonly lines: ReadonlyMap<string, readonly JournalLine[]>;
  readonly exchanges: readonly Exchange[];
  /** By host id as in the journals: times in which it was not, or not certainly, reachable with room. */
  readonly hostsOut: ReadonlyMap<string, readonly Span[]>;
  readonly etcdOut: readonly Span[];
  readonly proxiesKilled: ReadonlyMap<number, readonly Span[]>;
  readonly proxiesStopped: ReadonlyMap<number, readonly Span[]>;
  /** By host id: its agent could not watch over containers. */
  readonly agentsAway: ReadonlyMap<string, readonly Span[]>;
  /** By container: it was being moved on purpose, or somebody tried to. */
  readonly planned: ReadonlyMap<string, readonly Span[]>;
  /** After everything was healed and had settled: where copies run, and the owner. */
  readonly final: readonly {
    readonly container: string;
    readonly runsOn: readonly string[];
    readonly owner?: string;
  }[];
  /** What the hosts had beside what they said they ran, when all was healed and nothing closed (test/lab/strays.ts). */
  readonly strays: readonly string[];
  /** What the machine had that it did not have before, when all was closed. */
  readonly leftovers: readonly string[];
  readonly clockDriftMs: number;
  readonly bounds: {
    /** V2: of answers. */
    readonly overlapMs: number;
    /** The longest drain, the stop, and the note of it. */
    readonly letGoMs: number;
    readonly deadlineMs: number;
  };
}

export type ViolationKind =
  | "two owners"
  | "two copies"
  | "long overlap"
  | "lingering copy"
  | "epoch went back"
  | "executed twice"
  | "answered without execution"
  | "foreign answer"
  | "failed GET"
  | "late"
  | "not settled"
  | "leaked"
  | "left behind"
  | "clock was set";

export interface Violation {
  readonly kind: ViolationKind;
  readonly container?: string;
  readonly atMs?: number;
  readonly text: string;
}

export interface Verdict {
  readonly violations: readonly Violation[];
  readonly summary: Summary;
}

export interface Summary {
  readonly requests: number;
  readonly failures: Readonly<Record<string, number>>;
  readonly executions: number;
  readonly longestWaitMs: number;
  /** By policy: how long an older copy answered after a newer one had begun to. */
  readonly overlapMs: Readonly<Record<Takeover, number>>;
  /** By policy: how long two copies were alive. */
  readonly twoCopiesMs: Readonly<Record<Takeover, number>>;
}

/** Scheduling between the end of a wait and the note of it, on a busy machine. */
const slackMs = 2000;
const clockToleranceMs = 250;

export function check(history: History): Verdict {
  const violations: Violation[] = [];
  const found = (violation: Violation): void => void violations.push(violation);
  const overlapMs: Record<Takeover, number> = { fast: 0, confirmed: 0, exclusive: 0 };
  const twoCopiesMs: Record<Takeover, number> = { fast: 0, confirmed: 0, exclusive: 0 };
  const executed = new Map<string, Execution[]>();
  const sentAt = new Map(history.exchanges.map((exchange) => [exchange.id, exchange.sentMs]));
  let executions = 0;
  for (const [container, takeover] of history.policies) {
    const { copies, runs } = copiesIn(history.lines.get(container) ?? []);
    executions += runs.length;
    for (const run of runs) executed.set(run.id, [...(executed.get(run.id) ?? []), run]);
    const unguarded = (copy: Copy, atMs: number): boolean => meets(history.agentsAway.get(copy.host), atMs, atMs);
    for (const { older, newer, atMs, ms, begunMs } of servingOverlaps(runs, sentAt, takeover === "exclusive")) {
      overlapMs[takeover] = Math.max(overlapMs[takeover], ms);
      const text = `${older.key} answered until ${ms} ms after ${newer.key} had begun to`;
      if (takeover === "exclusive") {
        if (begunMs > atMs || !unguarded(older, atMs)) found({ kind: "two owners", container, atMs, text });
      } else if (ms > history.bounds.overlapMs) found({ kind: "long overlap", container, atMs, text });
    }
    for (const { older, newer, ms } of copyOverlaps(copies)) {
      twoCopiesMs[takeover] = Math.max(twoCopiesMs[takeover], ms);
      const atMs = newer.firstMs;
      if (takeover !== "exclusive") {
        // Who comes up late may be the one that has lost it already.
        const loser = newer.epoch < older.epoch ? newer : older;
        const lateMs = atMs + ms - letsGoMs(history, loser.host, atMs) - history.bounds.letGoMs;
        const text = `${loser.key} was alive ${ms} ms beside another copy, ${lateMs} ms longer than its host had for letting go`;
        if (lateMs > 0) found({ kind: "lingering copy", container, atMs, text });
      } else if (!unguarded(older, atMs)) {
        const text = `${older.key} was alive until ${ms} ms after ${newer.key} had appeared`;
        found({ kind: "two copies", container, atMs, text });
      }
    }
  }
  checkEpochs(history.exchanges, found);
  checkExecutions(history.exchanges, executed, found);
  checkAnswers(history, found);
  for (const { container, runsOn, owner } of history.final)
    if (runsOn.length > 1 || (owner !== undefined && runsOn.some((host) => host !== owner)))
      found({ kind: "not settled", container, text: `owned by ${owner ?? "nobody"}, runs on ${runsOn.join(", ")}` });
  for (const text of history.strays) found({ kind: "leaked", text });
  for (const text of history.leftovers) found({ kind: "left behind", text });
  if (Math.abs(history.clockDriftMs) > clockToleranceMs)
    found({ kind: "clock was set", text: `by ${history.clockDriftMs} ms: the run proves nothing` });
  const failures: Record<string, number> = {};
  for (const exchange of history.exchanges)
    if (exchange.status !== 200) {
      const reason = reasonOf(exchange);
      failures[reason] = (failures[reason] ?? 0) + 1;
    }
  return {
    violations,
    summary: {
      requests: history.exchanges.length,
      failures,
      executions,
      longestWaitMs: Math.max(0, ...history.exchanges.map(({ sentMs, doneMs }) => doneMs - sentMs)),
      overlapMs,
      twoCopiesMs,
    },
  };
}

/** A failure in words that are the same for all of its sort. */
function reasonOf({ method, status, text = "" }: Exchange): string {
  const first = (text.split("\n")[0] as string)
    .replace(/\d+(\.\d+)*/g, "N")
    .replace(/\b[\w-]*(app|chaos)[\w-]*\b/g, "X");
  return `${method} ${status} ${first.slice(0, 160)}`;
}

/** V3. */
function checkEpochs(exchanges: readonly Exchange[], found: (violation: Violation) => void): void {
  const answered = exchanges.filter((it): it is Exchange & { epoch: number } => it.epoch !== undefined);
  const groups = new Map<string, typeof answered>();
  for (const it of answered) {
    const key = `${it.proxy} ${it.container}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [it]);
    else group.push(it);
  }
  for (const group of groups.values()) {
    const bySent = [...group].sort((a, b) => a.sentMs - b.sentMs);
    const byDone = [...group].sort((a, b) => a.doneMs - b.doneMs);
    let newest: (typeof answered)[number] | undefined;
    let index = 0;
    for (const exchange of bySent) {
      for (; (byDone[index]?.doneMs ?? Infinity) < exchange.sentMs; index++) {
        const done = byDone[index] as (typeof answered)[number];
        if (newest === undefined || done.epoch > newest.epoch) newest = done;
      }
      if (newest === undefined || exchange.epoch >= newest.epoch) continue;
      found({
        kind: "epoch went back",
        container: exchange.container,
        atMs: exchange.sentMs,
        text: `proxy ${exchange.proxy} answered ${exchange.id} from epoch ${exchange.epoch} after ${newest.id} from ${newest.epoch}`,
      });
    }
  }
}

/** V4. */
function checkExecutions(
  exchanges: readonly Exchange[],
  executed: ReadonlyMap<string, readonly Execution[]>,
  found: (violation: Violation) => void,
): void {
  for (const { id, method, container, status, sentMs, answeredId } of exchanges) {
    const runs = executed.get(id) ?? [];
    if (method === "POST" && runs.length > 1) {
      const where = runs.map(({ copy, beginMs }) => `${copy.key} at +${beginMs - sentMs} ms`).join(", ");
      found({ kind: "executed twice", container, atMs: sentMs, text: `${id}: ${where}` });
    }
    if (status === 200 && runs.length === 0)
      found({ kind: "answered without execution", container, atMs: sentMs, text: id });
    if (answeredId !== undefined && answeredId !== id)
      found({ kind: "foreign answer", container, atMs: sentMs, text: `${id} got the answer to ${answeredId}` });
  }
}

/** V5, V6. */
function checkAnswers(history: History, found: (violation: Violation) => void): void {
  const noHost = intersection([...history.hostsOut.values()]);
  for (const exchange of history.exchanges) {
    const { id, method, container, proxy, status, sentMs, doneMs, text = "" } = exchange;
    const excused = (): boolean =>
      meets(noHost, sentMs, doneMs) ||
      meets(history.proxiesKilled.get(proxy), sentMs, doneMs) ||
      (meets(history.etcdOut, sentMs, doneMs) && mayNeedClaim(history, exchange));
    if (method === "GET" && status !== 200 && !excused()) {
      const what = `${id} through proxy ${proxy}: ${status} after ${doneMs - sentMs} ms: ${text.trim()}`;
      found({ kind: "failed GET", container, atMs: sentMs, text: what });
    }
    const stood = (history.proxiesStopped.get(proxy) ?? []).reduce(
      (sum, it) => sum + Math.max(0, Math.min(it.toMs, doneMs) - Math.max(it.fromMs, sentMs)),
      0,
    );
    const tookMs = doneMs - sentMs - stood;
    if (tookMs > history.bounds.deadlineMs + slackMs)
      found({
        kind: "late",
        container,
        atMs: sentMs,
        text: `${method} ${id} through proxy ${proxy} took ${tookMs} ms`,
      });
  }
}
