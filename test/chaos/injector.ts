// Applies the faults of a plan to a cluster, each at its time, and ends each; notes when what was out, so that the checker knows
// what could be expected of the cluster at that time.
//
//   I1  A host counts as out from just before a fault until it has its lease and every proxy that works trusts it again.
//   I2  Where the plan's time for that was not enough, a fault that would take the last host waits for it, up to
//       `waitLimitMs`; then it is left out, and said so.
import { setTimeout as sleep } from "node:timers/promises";
import { reasonOf } from "../../actors/hakobu-error.js";
import type { NamespacesCluster } from "../../runtime/local/namespaces.js";
import { describe, type Fault } from "./faults.js";
import type { Span } from "./spans.js";

const waitLimitMs = 15_000;
const recoverLimitMs = 30_000;
const pollMs = 50;

export class Injector {
  /** By host id, as in the journals; `agentsAway` too. */
  readonly hostsOut = new Map<string, Span[]>();
  readonly agentsAway = new Map<string, Span[]>();
  /** Planned moves, by container. */
  readonly planned = new Map<string, Span[]>();
  readonly proxiesKilled = new Map<number, Span[]>();
  readonly proxiesStopped = new Map<number, Span[]>();
  /** Faults that were applied, by kind. */
  readonly applied = new Map<string, number>();
  /** What went wrong with the faults themselves: not with the cluster's answers, but a host that does not come back is one. */
  readonly problems: string[] = [];
  readonly #cluster: NamespacesCluster;
  readonly #note: (text: string) => void;
  readonly #out = new Set<string>();
  readonly #proxiesAway = new Set<number>();

  constructor(cluster: NamespacesCluster, note: (text: string) => void) {
    this.#cluster = cluster;
    this.#note = note;
    for (const host of cluster.hosts) this.hostsOut.set(cluster.hostId(host), []);
  }

  /** Resolves when all are over and everything is whole again. */
  async run(faults: readonly Fault[], signal: AbortSignal): Promise<void> {
    const begunMs = performance.now();
    const underWay: Promise<void>[] = [];
    for (const fault of faults) {
      await sleep(Math.max(0, fault.atMs - (performance.now() - begunMs)), undefined, { signal }).catch(() => {});
      if (signal.aborted) break;
      if (takesHost(fault) && !(await this.#mayTake(fault.host))) {
        this.problems.push(`left out, since no other host was whole: ${describe(fault)}`);
        continue;
      }
      this.#note(describe(fault));
      this.applied.set(fault.kind, (this.applied.get(fault.kind) ?? 0) + 1);
      underWay.push(
        this.#apply(fault).catch((error: unknown) => {
          this.problems.push(`${describe(fault)}: ${reasonOf(error)}`);
          this.#note(`${describe(fault)}: ${reasonOf(error)}`);
        }),
      );
    }
    await Promise.all(underWay);
  }

  async #mayTake(host: string): Promise<boolean> {
    const end = performance.now() + waitLimitMs;
    const others = this.#cluster.hosts.filter((each) => each !== host);
    while (this.#out.has(host) || others.every((each) => this.#out.has(each))) {
      if (performance.now() > end) return false;
      await sleep(pollMs);
    }
    return true;
  }

  async #apply(fault: Fault): Promise<void> {
    const { network, etcdMembers } = this.#cluster;
    const cluster = this.#cluster;
    switch (fault.kind) {
      case "cut":
        return this.#onHost(
          fault,
          () => network.cut(fault.host, fault.direction),
          () => network.heal(fault.host),
        );
      case "blind":
        return this.#onHost(
          fault,
          () => network.blind(fault.host, cluster.agent(fault.host).port),
          () => network.heal(fault.host),
        );
      case "delay":
        return this.#onHost(
          fault,
          () => network.delay(fault.host, fault.forMs),
          () => network.heal(fault.host),
        );
      case "loss":
        return this.#onHost(
          fault,
          () => network.loss(fault.host, fault.percent),
          () => network.heal(fault.host),
        );
      case "kill agent":
        return this.#onHost(
          fault,
          () => cluster.killAgent(fault.host),
          () => cluster.startAgent(fault.host),
          true,
        );
      case "kill host":
        return this.#onHost(
          fault,
          () => cluster.killHost(fault.host),
          () => cluster.startAgent(fault.host),
          true,
        );
      case "stop agent briefly":
      case "stop agent past the TTL":
        return this.#onHost(
          fault,
          async () => cluster.pauseAgent(fault.host),
          async () => cluster.resumeAgent(fault.host),
          true,
        );
      case "stop host briefly":
      case "stop host past the TTL":
        return this.#onHost(
          fault,
          async () => cluster.pauseAgent(fault.host, true),
          async () => cluster.resumeAgent(fault.host),
          true,
        );
      case "drain":
        return this.#onHost(
          fault,
          () => cluster.drain(fault.host),
          () => cluster.undrain(fault.host),
        );
      case "kill container": {
        for (const host of cluster.hosts) {
          const pid = cluster.running(host).get(fault.container);
          if (pid !== undefined) process.kill(pid, "SIGKILL");
        }
        return;
      }
      case "relocate": {
        const span = open(this.planned, fault.container, { fromMs: Date.now(), what: describe(fault) });
        // Refused where it has no owner now, is there already, or that host is out: all as they should.
        await cluster.relocate(fault.container, fault.host).catch((error: unknown) => {
          this.#note(`not relocated: ${reasonOf(error).slice(0, 200)}`);
        });
        span.toMs = Date.now();
        return;
      }
      case "kill proxy":
        return this.#onProxy(
          fault,
          this.proxiesKilled,
          () => cluster.killProxy(fault.proxy),
          () => cluster.startProxy(fault.proxy),
        );
      case "stop proxy":
        return this.#onProxy(
          fault,
          this.proxiesStopped,
          async () => cluster.pauseProxy(fault.proxy),
          async () => cluster.resumeProxy(fault.proxy),
        );
      case "restart etcd member": {
        const member = etcdMembers[fault.member];
        await member?.kill();
        await sleep(fault.forMs);
        await member?.restart();
        return;
      }
      case "hang etcd member": {
        const member = etcdMembers[fault.member];
        member?.pause();
        await sleep(fault.forMs);
        member?.resume();
        return;
      }
    }
  }

  /** I1. */
  async #onHost(
    fault: Extract<Fault, { host: string }>,
    begin: () => Promise<unknown>,
    end: () => Promise<unknown>,
    agentAway = false,
  ): Promise<void> {
    const { host } = fault;
    const what = describe(fault);
    const fromMs = Date.now();
    this.#out.add(host);
    const hostId = this.#cluster.hostId(host);
    const out = open(this.hostsOut, hostId, { fromMs, what });
    const away = agentAway ? open(this.agentsAway, hostId, { fromMs, what }) : undefined;
    try {
      await begin();
      await sleep(fault.forMs);
      await end();
      await this.#recovered(host);
      this.#note(`${host} is back ${Date.now() - fromMs - fault.forMs} ms after the end of: ${what}`);
    } finally {
      this.#out.delete(host);
      out.toMs = Date.now();
      if (away !== undefined) away.toMs = Date.now();
    }
  }

  async #onProxy(
    fault: Extract<Fault, { proxy: number }>,
    spans: Map<number, Span[]>,
    begin: () => Promise<unknown>,
    end: () => Promise<unknown>,
  ): Promise<void> {
    this.#proxiesAway.add(fault.proxy);
    const span = open(spans, fault.proxy, { fromMs: Date.now(), what: describe(fault) });
    try {
      await begin();
      await sleep(fault.forMs);
      await end();
    } finally {
      span.toMs = Date.now();
      this.#proxiesAway.delete(fault.proxy);
    }
  }

  async #recovered(host: string): Promise<void> {
    const cluster = this.#cluster;
    const end = performance.now() + recoverLimitMs;
    const trusted = async (proxy: number): Promise<boolean> => {
      if (this.#proxiesAway.has(proxy)) return true;
      const seen = (await cluster.hostsSeen(proxy)).find(({ id }) => id === cluster.hostId(host));
      return seen !== undefined && !seen.draining && !/suspected|unreachable/.test(seen.reachability);
    };
    const whole = async (): Promise<boolean> => {
      const status = await cluster.status(host);
      if (status?.state !== "running" || !status.leaseProven) return false;
      return (await Promise.all(cluster.proxies.map((_, index) => trusted(index)))).every(Boolean);
    };
    while (!(await whole().catch(() => false))) {
      if (performance.now() > end) throw new Error(`${host} was not a member again within ${recoverLimitMs} ms`);
      await sleep(pollMs);
    }
  }
}

type HostFault = Extract<Fault, { host: string }>;

/** Whether it takes a host out: a planned move does not. */
function takesHost(fault: Fault): fault is HostFault {
  return "host" in fault && fault.kind !== "relocate";
}

function open<K>(spans: Map<K, Span[]>, key: K, begun: Omit<Span, "toMs">): { toMs: number } {
  const span = { ...begun, toMs: Number.POSITIVE_INFINITY };
  spans.set(key, [...(spans.get(key) ?? []), span]);
  return span;
}
