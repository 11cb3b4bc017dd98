// One run: a cluster, load, faults, and the verdict of the checker over what they wrote.
import { cp, mkdir, mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { reasonOf } from "../../actors/hakobu-error.js";
import { programLog } from "../../runtime/log.js";
import { EtcdPlacementStore } from "../../runtime/placement/etcd.js";
import { systemClock } from "../../runtime/system-clock.js";
import { openTestCluster, type TestCluster } from "../lab/cluster.js";
import { diff, snapshotMachine } from "../lab/leftovers.js";
import { straysAfter } from "../lab/strays.js";
import { Clients } from "./clients.js";
import { describe, type Fault, plan } from "./faults.js";
import { explain } from "./explanation.js";
import { check, type History, type Takeover, type Verdict } from "./history.js";
import { Injector } from "./injector.js";
import type { Span } from "./spans.js";

export interface RunOptions {
  /** Of the network namespaces; lower-case letters and digits. */
  readonly name: string;
  readonly seed: number;
  readonly durationMs: number;
  readonly progress: (line: string) => void;
  /** Stops the load and the faults early; what was done is judged. */
  readonly signal?: AbortSignal;
}

export interface RunResult extends Verdict {
  readonly history: History;
  readonly faults: ReadonlyMap<string, number>;
  /** Of the faults themselves. */
  readonly problems: readonly string[];
  /** Where plan, journals and logs were kept, if something was found. */
  readonly kept: string | undefined;
}

export const ttlSeconds = 4;
const hosts = ["a", "b", "c"];
const proxies = 2;
const etcdMembers = 3;
/** How many containers of each policy. */
const fleet: readonly (readonly [Takeover, number])[] = [
  ["fast", 8],
  ["confirmed", 6],
  ["exclusive", 6],
];
const deadlineSeconds = 20;
const beatMs = 250;
/** How long the drain (10 s, actors/container.ts), the stop, and the note of it may take together. */
const letGoMs = 10_000 + 3000;
/** The same, with the lease's end before it. */
const overlapMs = ttlSeconds * 1000 + letGoMs;
const settleLimitMs = 30_000;
/** Longer than the longest drain: what was lost last may still be answering. */
const strayLimitMs = 20_000;
const leftoverLimitMs = 10_000;
/** Requests that are still sent when the last fault is over. */
const afterwards = 50;

export async function runChaos({ name, seed, durationMs, progress, signal }: RunOptions): Promise<RunResult> {
  const machine = snapshotMachine();
  const clock = { wall: Date.now(), monotonic: performance.now() };
  const stopped = signal ?? new AbortController().signal;
  const lab = await openTestCluster(name, hosts, {
    ttlSeconds,
    callTimeoutMs: 1000,
    etcdMembers,
    proxies,
    proxySettings: {
      requestTimeout: `${deadlineSeconds}s`,
      relocationTimeout: `${deadlineSeconds}s`,
      movesPerMinute: 1000,
    },
  });
  let closed = false;
  try {
    const { cluster } = lab;
    const begunMs = performance.now();
    const say = (text: string): void =>
      progress(`${((performance.now() - begunMs) / 1000).toFixed(1).padStart(6)} s  ${text}`);
    const policies = new Map<string, Takeover>();
    for (const [takeover, count] of fleet)
      for (let each = 1; each <= count; each++) policies.set(`${takeover}-${each}`, takeover);
    const containers = [...policies.keys()];
    await cluster.apply(
      containers.map((container, index) =>
        lab.journal(container, {
          takeover: policies.get(container) as Takeover,
          limits: { cpus: 1, memoryMiB: 96, pids: 32 },
          env: { BEAT_MS: String(beatMs) },
          // Some sleep between requests, so that waking is under fire too.
          idleTimeoutMs: index % 4 === 3 ? 1000 : 0,
          startTimeoutMs: 15_000,
          checkpoint: { onReady: true, at: index % 5 === 4 ? "listen" : "warm", warmup: "/", timeoutMs: 15_000 },
        }),
      ),
    );
    const journal = join(lab.directory, "clients.jsonl");
    const load = {
      seed,
      containers,
      proxies: cluster.proxies.map(({ proxy }) => proxy),
      giveUpMs: 2 * deadlineSeconds * 1000,
      journal,
    };
    await warmUp(lab, containers);
    say(`${containers.length} containers run; seed ${seed}`);
    const faults = plan({
      seed,
      durationMs,
      hosts,
      containers,
      proxies,
      etcdMembers,
      ttlMs: ttlSeconds * 1000,
    });
    const injector = new Injector(cluster, say);
    const etcd = new EtcdWatch(lab);
    const clients = new Clients({ ...load, count: 4, width: 8, pauseMs: [20, 120] });
    const timer = setInterval(() => {
      const bad = clients.exchanges.filter(({ status }) => status !== 200).length;
      say(`${clients.exchanges.length} requests, ${bad} without 200, ${clients.underWay} under way`);
    }, 10_000);
    try {
      await injector.run(faults, stopped);
      await clients.more(afterwards).catch((error: unknown) => say(reasonOf(error)));
    } finally {
      clearInterval(timer);
      await clients.stop();
      await etcd.stop();
    }
    say("healed; asks every container once more");
    const final = await settle(lab, containers);
    const strays = await straysAfter(cluster, strayLimitMs);
    const history: Omit<History, "leftovers" | "clockDriftMs"> = {
      policies,
      lines: new Map(await Promise.all(containers.map(async (each) => [each, await lab.lines(each)] as const))),
      exchanges: clients.exchanges,
      hostsOut: injector.hostsOut,
      etcdOut: etcd.out,
      proxiesKilled: injector.proxiesKilled,
      proxiesStopped: injector.proxiesStopped,
      agentsAway: injector.agentsAway,
      planned: injector.planned,
      final,
      strays,
      bounds: { overlapMs, letGoMs, deadlineMs: deadlineSeconds * 1000 },
    };
    const judge = (leftovers: readonly string[]): History => ({
      ...history,
      leftovers,
      clockDriftMs: Math.round(Date.now() - clock.wall - (performance.now() - clock.monotonic)),
    });
    const early = check(judge(injector.problems.filter((problem) => problem.includes("not a member again"))));
    let kept: string | undefined;
    const keep = async (verdict: Verdict, whole: History): Promise<void> => {
      if (verdict.violations.length > 0) kept ??= await keepEvidence(lab, seed, faults, verdict, whole);
    };
    await keep(early, judge([]));
    closed = true;
    await lab.close();
    const whole = judge([
      ...injector.problems.filter((it) => it.includes("not a member again")),
      ...(await leftBehind(name, machine)),
    ]);
    return { ...check(whole), history: whole, faults: injector.applied, problems: injector.problems, kept };
  } finally {
    if (!closed) await lab.close();
  }
}

/** Each container once, so that it has an image; four at a time. */
async function warmUp(lab: TestCluster, containers: readonly string[]): Promise<void> {
  const left = [...containers];
  const next = async (): Promise<void> => {
    for (let name = left.pop(); name !== undefined; name = left.pop()) {
      const reply = await lab.send(`${name}.localhost`);
      if (reply.status !== 200) throw new Error(`${name} does not run before any fault: ${reply.status} ${reply.text}`);
    }
  };
  await Promise.all(Array.from({ length: 4 }, next));
}

/** V7: asks all through all proxies until each runs on its owner alone. */
async function settle(lab: TestCluster, containers: readonly string[]): Promise<History["final"]> {
  const { cluster } = lab;
  const end = performance.now() + settleLimitMs;
  const look = async () =>
    Promise.all(
      containers.map(async (container) => {
        const placement = await cluster.store.read(container);
        const runsOn = hosts.filter((host) => cluster.running(host).has(container)).map((host) => cluster.hostId(host));
        return { container, runsOn, ...(placement === undefined ? {} : { owner: placement.host }) };
      }),
    );
  for (;;) {
    const statuses = await Promise.all(
      containers.map(async (container, index) => {
        const reply = await lab.send(`${container}.localhost`, { id: `settle-${index}` }, index % proxies);
        return { container, status: reply.status };
      }),
    );
    const found = await look();
    const good =
      statuses.every(({ status }) => status === 200) &&
      found.every(({ runsOn, owner }) => owner !== undefined && runsOn.every((host) => host === owner));
    if (good) return found;
    if (performance.now() > end)
      return found.map((it) => {
        const { status } = statuses.find(({ container }) => container === it.container) as { status: number };
        return status === 200 ? it : { ...it, runsOn: [...it.runsOn, `nowhere that answers: ${status}`] };
      });
    await sleep(500);
  }
}

async function leftBehind(name: string, before: ReturnType<typeof snapshotMachine>): Promise<string[]> {
  const end = performance.now() + leftoverLimitMs;
  // Others may be at work on the machine, and nothing but its name says whose a namespace or a control group is.
  const ours = (): string[] =>
    diff(before, snapshotMachine()).filter((line) => line.includes(`hakobu-${name}-`) || line.includes(`/${name}-`));
  while (ours().length > 0 && performance.now() < end) await sleep(200);
  return ours();
}

async function keepEvidence(
  lab: TestCluster,
  seed: number,
  faults: readonly Fault[],
  verdict: Verdict,
  history: History,
): Promise<string> {
  const to = await mkdtemp(join(tmpdir(), `hakobu-chaos-seed-${seed}-`));
  await mkdir(join(to, "journals"));
  await cp(lab.cluster.logs, join(to, "logs"), { recursive: true });
  for (const container of history.policies.keys())
    await cp(join(lab.cluster.shared, `${container}.journal`), join(to, "journals", `${container}.jsonl`)).catch(
      () => {},
    );
  await cp(join(lab.directory, "clients.jsonl"), join(to, "clients.jsonl"));
  await writeFile(join(to, "plan.txt"), faults.map((each) => `${each.atMs} ms: ${describe(each)}\n`).join(""));
  const told = verdict.violations.map((violation) => explain(violation, history)).join("\n\n");
  await writeFile(join(to, "violations.txt"), `${told}\n`);
  return to;
}

/** Asks every member of etcd several times a second: while none answers, nobody can claim, and no proof of V5 is asked for. */
class EtcdWatch {
  readonly out: Span[] = [];
  readonly #stores: readonly EtcdPlacementStore[];
  readonly #timer: ReturnType<typeof setInterval>;
  #answeredMs = Date.now();
  #asking = false;

  constructor({ cluster }: TestCluster) {
    const deps = { clock: systemClock, log: programLog("silent") };
    this.#stores = cluster.etcdMembers.map(
      (member) => new EtcdPlacementStore({ hosts: member.endpoints, ttlSeconds, callTimeoutMs: 500 }, deps),
    );
    this.#timer = setInterval(() => void this.#ask(), etcdEveryMs);
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer);
    await Promise.all(this.#stores.map((store) => store.close()));
  }

  async #ask(): Promise<void> {
    if (this.#asking) return;
    this.#asking = true;
    const sentMs = Date.now();
    const answered = await Promise.any(this.#stores.map((store) => store.read("fast-1"))).then(
      () => true,
      () => false,
    );
    this.#asking = false;
    if (!answered) return;
    const gapMs = sentMs - this.#answeredMs;
    const toMs = Date.now() + claimMs;
    if (gapMs > etcdGapMs) this.out.push({ fromMs: this.#answeredMs, toMs, what: "etcd without a leader" });
    this.#answeredMs = Date.now();
  }
}

const etcdEveryMs = 200;
const etcdGapMs = 500;
/** How long a claim that was sent meanwhile may still take to fail, and take requests that joined it along. */
const claimMs = 4000;

/** The result for people. */
export function report({ summary, faults, problems, violations, history, kept }: RunResult, limit = 5): string {
  const sorted = [...faults].sort(([a], [b]) => a.localeCompare(b)).map(([kind, count]) => `${kind} ${count}`);
  const failures = Object.entries(summary.failures).sort(([, a], [, b]) => b - a);
  return [
    `requests ${summary.requests}, executions ${summary.executions}, longest wait ${summary.longestWaitMs} ms`,
    `faults: ${sorted.join(", ")}`,
    `an older copy answered beside a newer one, at most: ${perPolicy(summary.overlapMs)}`,
    `two copies alive, at most: ${perPolicy(summary.twoCopiesMs)}`,
    ...(failures.length === 0 ? ["no failed request"] : failures.map(([reason, count]) => `${count} x ${reason}`)),
    ...problems.map((problem) => `fault not as planned: ${problem}`),
    `${violations.length} violations${kept === undefined ? "" : `; logs, journals and plan: ${kept}`}`,
    ...violations.slice(0, limit).map((violation) => explain(violation, history)),
  ].join("\n");
}

function perPolicy(ms: Readonly<Record<Takeover, number>>): string {
  return Object.entries(ms)
    .map(([takeover, value]) => `${takeover} ${value} ms`)
    .join(", ");
}
