// What the faults of a run excuse, computed from when and where they were. Hosts are named as in the journals.
//
//   X1  A host that works learns of a lost container from etcd at once. One that is cut off learns it when it is back, all while etcd has
//       no leader, and one whose agent is dead or stands still cannot stop anything until that is back, however far it had come.
//   X2  A request needs a claim only where its container has no owner that works: since the last answer before it that host was
//       out, or the container was to be moved on purpose. Where nothing answered before, nothing is known.
import { meets, type Span } from "./spans.js";

interface Faults {
  readonly hostsOut: ReadonlyMap<string, readonly Span[]>;
  readonly agentsAway: ReadonlyMap<string, readonly Span[]>;
  readonly etcdOut: readonly Span[];
  readonly planned: ReadonlyMap<string, readonly Span[]>;
  readonly bounds: { readonly letGoMs: number };
}

interface Answer {
  readonly container: string;
  readonly sentMs: number;
  readonly doneMs: number;
  readonly epoch?: number;
  readonly host?: string;
}

/** From the loss of a container to the notice of it, where nothing is wrong. */
const noticeMs = 1000;

/** X1: when a host that lost a container at `lostMs` can begin to let it go. */
export function letsGoMs(faults: Faults, host: string, lostMs: number): number {
  const deaf = [...(faults.hostsOut.get(host) ?? []), ...faults.etcdOut];
  const away = faults.agentsAway.get(host) ?? [];
  for (let atMs = lostMs; ; ) {
    const holds = (span: Span, reachMs: number): boolean => span.fromMs <= atMs + reachMs && span.toMs > atMs;
    const later = [
      ...deaf.filter((span) => holds(span, noticeMs)),
      ...away.filter((span) => holds(span, faults.bounds.letGoMs)),
    ];
    if (later.length === 0) return atMs;
    atMs = Math.max(...later.map(({ toMs }) => toMs));
  }
}

/** X2. */
export function mayNeedClaim(
  { hostsOut, planned, exchanges }: Faults & { readonly exchanges: readonly Answer[] },
  { container, sentMs, doneMs }: Answer,
): boolean {
  const before = exchanges.filter((it) => it.container === container && it.epoch !== undefined && it.doneMs <= sentMs);
  const last = before.reduce<Answer | undefined>(
    (best, it) => (best === undefined || isNewer(it, best) ? it : best),
    undefined,
  );
  if (last?.host === undefined) return true;
  return meets(hostsOut.get(last.host), last.sentMs, doneMs) || meets(planned.get(container), last.sentMs, doneMs);
}

function isNewer(a: Answer, b: Answer): boolean {
  const [epoch = 0, other = 0] = [a.epoch, b.epoch];
  return epoch === other ? a.doneMs > b.doneMs : epoch > other;
}
