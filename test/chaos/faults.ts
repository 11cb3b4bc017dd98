// The faults of one run: a plan made of nothing but its seed and its size, so that the seed gives the same kinds, targets and times.
//
//   F1  At no time are all hosts out: what takes a host out keeps it for the time of the fault and `recoveryMs`, and
//       one other is left whole for all of that.
//   F2  At most one proxy and one etcd member are out at a time, so that one of each, and etcd's quorum, are left.
//   F3  The kinds come in rounds: each once in a round, in random order, so that a short run has them all.
//   F4  Every fault ends within the run.
import type { Direction } from "../../runtime/local/network.js";
import { type Random, seeded } from "./random.js";

export type Fault = { readonly atMs: number; readonly forMs: number } & (
  | { readonly kind: "cut"; readonly host: string; readonly direction: Direction }
  | { readonly kind: "blind"; readonly host: string }
  | { readonly kind: "delay"; readonly host: string }
  | { readonly kind: "loss"; readonly host: string; readonly percent: number }
  | { readonly kind: "kill agent" | "kill host"; readonly host: string }
  | { readonly kind: "stop agent briefly" | "stop agent past the TTL"; readonly host: string }
  | { readonly kind: "stop host briefly" | "stop host past the TTL"; readonly host: string }
  | { readonly kind: "drain"; readonly host: string }
  | { readonly kind: "kill container"; readonly container: string }
  | { readonly kind: "relocate"; readonly container: string; readonly host: string }
  | { readonly kind: "kill proxy" | "stop proxy"; readonly proxy: number }
  | { readonly kind: "restart etcd member" | "hang etcd member"; readonly member: number }
);

export type FaultKind = Fault["kind"];

export interface PlanOptions {
  readonly seed: number;
  readonly durationMs: number;
  readonly hosts: readonly string[];
  readonly containers: readonly string[];
  readonly proxies: number;
  readonly etcdMembers: number;
  readonly ttlMs: number;
}

export const kinds: readonly FaultKind[] = [
  "cut",
  "blind",
  "delay",
  "loss",
  "kill agent",
  "kill host",
  "stop agent briefly",
  "stop agent past the TTL",
  "stop host briefly",
  "stop host past the TTL",
  "drain",
  "kill container",
  "relocate",
  "kill proxy",
  "stop proxy",
  "restart etcd member",
  "hang etcd member",
];

/** Shortest and longest pause between the beginnings of two faults. */
const pauseMs = [300, 2200] as const;
/** From the end of a fault until its host is certainly a member again, beyond the TTL. */
const recoveryMs = 3000;

interface Busy {
  readonly what: string;
  readonly fromMs: number;
  readonly toMs: number;
}

export function plan(options: PlanOptions): Fault[] {
  const { seed, durationMs, hosts, ttlMs } = options;
  const random = seeded(seed);
  const busy: Busy[] = [];
  const faults: Fault[] = [];
  let round: FaultKind[] = [];
  const free = (what: string, fromMs: number, toMs: number): boolean =>
    busy.every((it) => it.what !== what || it.toMs <= fromMs || it.fromMs >= toMs);
  /** Takes it for that time, if rule F1 or F2 lets it. */
  const take = (group: "host" | "proxy" | "etcd", names: readonly string[], fromMs: number, toMs: number) => {
    const can = names.filter((name) => free(`${group} ${name}`, fromMs, toMs));
    const left = group === "host" ? 1 : names.length - 1;
    if (can.length <= left) return undefined;
    const name = random.pick(can);
    busy.push({ what: `${group} ${name}`, fromMs, toMs });
    return name;
  };
  for (let atMs = 500; ; ) {
    atMs += random.whole(...pauseMs);
    if (round.length === 0) round = random.shuffled(kinds);
    const kind = round.shift() as FaultKind;
    const forMs = durationOf(kind, random, ttlMs);
    if (atMs + forMs > durationMs) return faults;
    const outUntilMs = atMs + forMs + ttlMs + recoveryMs;
    switch (kind) {
      case "kill container":
        faults.push({ atMs, forMs, kind, container: random.pick(options.containers) });
        break;
      case "relocate":
        faults.push({ atMs, forMs, kind, container: random.pick(options.containers), host: random.pick(hosts) });
        break;
      case "kill proxy":
      case "stop proxy": {
        const proxy = take("proxy", indexes(options.proxies), atMs, atMs + forMs + recoveryMs);
        if (proxy !== undefined) faults.push({ atMs, forMs, kind, proxy: Number(proxy) });
        break;
      }
      case "restart etcd member":
      case "hang etcd member": {
        const member = take("etcd", indexes(options.etcdMembers), atMs, atMs + forMs + recoveryMs);
        if (member !== undefined) faults.push({ atMs, forMs, kind, member: Number(member) });
        break;
      }
      case "cut":
      case "blind":
      case "delay":
      case "loss":
      case "kill agent":
      case "kill host":
      case "stop agent briefly":
      case "stop agent past the TTL":
      case "stop host briefly":
      case "stop host past the TTL":
      case "drain": {
        const host = take("host", hosts, atMs, outUntilMs);
        if (host === undefined) break;
        if (kind === "cut") faults.push({ atMs, forMs, kind, host, direction: random.pick(["both", "in", "out"]) });
        else if (kind === "loss") faults.push({ atMs, forMs, kind, host, percent: random.whole(1, 20) });
        else faults.push({ atMs, forMs, kind, host });
      }
    }
  }
}

function indexes(count: number): string[] {
  return Array.from({ length: count }, (_, index) => String(index));
}

function durationOf(kind: FaultKind, random: Random, ttlMs: number): number {
  switch (kind) {
    case "cut":
    case "blind":
      return random.whole(300, 1.8 * ttlMs);
    case "loss":
      return random.whole(1000, 5000);
    case "delay":
      return random.whole(150, 600);
    case "kill agent":
    case "kill host":
      return random.whole(0, 1.5 * ttlMs);
    case "stop agent briefly":
    case "stop host briefly":
      return random.whole(100, 0.5 * ttlMs);
    case "stop agent past the TTL":
    case "stop host past the TTL":
      return random.whole(ttlMs + 500, 1.6 * ttlMs);
    case "drain":
      return random.whole(1000, 4000);
    case "kill proxy":
    case "stop proxy":
      return random.whole(100, 2500);
    case "restart etcd member":
      return random.whole(0, 2000);
    case "hang etcd member":
      // Beyond the TTL too: a leader that stood still so long may revoke renewed leases when it wakes (docs/reference/faults.md).
      return random.whole(500, 1.6 * ttlMs);
    case "kill container":
    case "relocate":
      return 0;
  }
}

/** For people: what, whom, how long. */
export function describe(fault: Fault): string {
  const whom =
    "container" in fault
      ? "host" in fault
        ? `${fault.container} to ${fault.host}`
        : fault.container
      : "host" in fault
        ? fault.host
        : "proxy" in fault
          ? String(fault.proxy)
          : String(fault.member);
  const more = fault.kind === "cut" ? ` (${fault.direction})` : fault.kind === "loss" ? ` (${fault.percent} %)` : "";
  return `${fault.kind} ${whom}${more}${fault.forMs > 0 ? `, ${fault.forMs} ms` : ""}`;
}
