// The copies of a container, as its journal shows them: when each was alive, what it executed, and where two overlap.
import type { JournalLine } from "../lab/cluster.js";

/** One copy of a container: one process. */
export interface Copy {
  readonly key: string;
  readonly host: string;
  readonly epoch: number;
  readonly firstMs: number;
  lastMs: number;
}

export interface Execution {
  readonly id: string;
  readonly method: string;
  readonly copy: Copy;
  readonly beginMs: number;
  endMs: number;
}

export function copiesIn(lines: readonly JournalLine[]): { copies: Copy[]; runs: Execution[] } {
  const copies = new Map<string, Copy>();
  const open = new Map<string, Execution>();
  const runs: Execution[] = [];
  for (const line of [...lines].sort((a, b) => a.at - b.at)) {
    const key = `${line.host} epoch ${line.epoch} ${line.instance}`;
    let copy = copies.get(key);
    if (copy === undefined) {
      copy = { key, host: line.host, epoch: line.epoch, firstMs: line.at, lastMs: line.at };
      copies.set(key, copy);
    }
    copy.lastMs = line.at;
    if (line.event === "request" && line.id !== "") {
      const run = { id: line.id, method: line.method, copy, beginMs: line.at, endMs: line.at };
      open.set(`${key} ${line.id}`, run);
      runs.push(run);
    }
    const ended = line.event === "end" ? open.get(`${key} ${line.id}`) : undefined;
    if (ended !== undefined) ended.endMs = line.at;
  }
  return { copies: [...copies.values()].sort((a, b) => a.firstMs - b.firstMs), runs };
}

/** Pairs of copies of which the older one, by epoch, or by who began first, answered after the newer one had begun to. */
export function servingOverlaps(
  runs: readonly Execution[],
  sentAt: ReadonlyMap<string, number>,
  strict: boolean,
): { older: Copy; newer: Copy; atMs: number; ms: number /** When its newest request was sent. */; begunMs: number }[] {
  const served = new Map<Copy, { fromMs: number; begunMs: number; toMs: number }>();
  for (const { id, copy, beginMs, endMs } of runs) {
    const span = served.get(copy);
    const begunMs = sentAt.get(id) ?? beginMs;
    if (span === undefined) served.set(copy, { fromMs: beginMs, begunMs, toMs: endMs });
    else {
      span.begunMs = Math.max(span.begunMs, begunMs);
      span.toMs = Math.max(span.toMs, endMs);
    }
  }
  const byAge = [...served].sort(([a, x], [b, y]) => a.epoch - b.epoch || x.fromMs - y.fromMs);
  return byAge.flatMap(([newer, after], index) =>
    byAge.slice(0, index).flatMap(([older, before]) => {
      // Of an exclusive one every later answer counts, of others what it gave beside a newer copy that was alive.
      const ms = (strict ? before.toMs : Math.min(before.toMs, newer.lastMs)) - after.fromMs;
      return ms > 0 ? [{ older, newer, atMs: after.fromMs, ms, begunMs: before.begunMs }] : [];
    }),
  );
}

export function copyOverlaps(copies: readonly Copy[]): { older: Copy; newer: Copy; ms: number }[] {
  return copies.flatMap((newer, index) =>
    copies.slice(0, index).flatMap((older) => {
      const ms = Math.min(older.lastMs, newer.lastMs) - newer.firstMs;
      return ms > 0 ? [{ older, newer, ms }] : [];
    }),
  );
}
