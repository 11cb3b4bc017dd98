// What one fault at a time, or a few together, cost a client, for the table of docs/reference/faults.md: `node dist/test/chaos/measure.js`.
// Three containers, one of each takeover policy, on one host of three; requests every few milliseconds through two proxies.
import { join } from "node:path";
import { cannotRestore, eventually, openTestCluster, type TestCluster } from "../lab/cluster.js";
import { Clients } from "./clients.js";
import type { Fault } from "./faults.js";
import type { Exchange, Takeover } from "./history.js";
import { Injector } from "./injector.js";

const ttlSeconds = 5;
const policies: readonly Takeover[] = ["fast", "confirmed", "exclusive"];
const settleLimitMs = 30_000;
const at = { atMs: 0 };
const noMajority: readonly Fault[] = [0, 1].map((member) => ({ ...at, kind: "hang etcd member", member, forMs: 5000 }));
const faults: readonly (Fault | readonly Fault[])[] = [
  { ...at, kind: "cut", host: "a", direction: "both", forMs: 1000 },
  { ...at, kind: "cut", host: "a", direction: "both", forMs: 9000 },
  { ...at, kind: "cut", host: "a", direction: "in", forMs: 9000 },
  { ...at, kind: "cut", host: "a", direction: "out", forMs: 9000 },
  { ...at, kind: "blind", host: "a", forMs: 3000 },
  { ...at, kind: "delay", host: "a", forMs: 400 },
  { ...at, kind: "loss", host: "a", percent: 5, forMs: 5000 },
  { ...at, kind: "kill agent", host: "a", forMs: 0 },
  { ...at, kind: "kill agent", host: "a", forMs: 9000 },
  { ...at, kind: "kill host", host: "a", forMs: 9000 },
  { ...at, kind: "stop agent briefly", host: "a", forMs: 1000 },
  { ...at, kind: "stop agent past the TTL", host: "a", forMs: 9000 },
  { ...at, kind: "stop host past the TTL", host: "a", forMs: 9000 },
  { ...at, kind: "drain", host: "a", forMs: 3000 },
  ...policies.map((container): Fault => ({ ...at, kind: "kill container", container, forMs: 0 })),
  ...policies.map((container): Fault => ({ ...at, kind: "relocate", container, host: "b", forMs: 0 })),
  { ...at, kind: "kill proxy", proxy: 0, forMs: 1000 },
  { ...at, kind: "stop proxy", proxy: 0, forMs: 1000 },
  { ...at, kind: "restart etcd member", member: 0, forMs: 1000 },
  { ...at, kind: "hang etcd member", member: 0, forMs: 5000 },
  noMajority,
  [...noMajority, { ...at, kind: "cut", host: "a", direction: "both", forMs: 9000 }],
];

const why = await cannotRestore();
if (why !== undefined) throw new Error(`nothing to measure here: ${why}`);
const proxySettings = { requestTimeout: "30s", relocationTimeout: "30s", movesPerMinute: 1000 };
const lab = await openTestCluster("measure", ["a", "b", "c"], {
  ttlSeconds,
  callTimeoutMs: 1000,
  etcdMembers: 3,
  proxies: 2,
  proxySettings,
});
try {
  await lab.cluster.apply(policies.map((takeover) => lab.journal(takeover, { takeover })));
  const columns = policies.flatMap((takeover) => [`${takeover}: longest wait`, "failed GET / POST"]);
  console.log(`| fault | ${columns.join(" | ")} |\n|${" --- |".repeat(columns.length + 1)}`);
  for (const each of faults) console.log(await row(lab, Array.isArray(each) ? each : [each as Fault]));
} finally {
  await lab.close();
}

async function row(the: TestCluster, together: readonly Fault[]): Promise<string> {
  await allOn(the, "a");
  const clients = new Clients({
    seed: 1,
    count: 3,
    width: 1000,
    slow: false,
    containers: policies,
    proxies: the.cluster.proxies.map(({ proxy }) => proxy),
    pauseMs: [10, 40],
    giveUpMs: 60_000,
    journal: join(the.directory, "clients.jsonl"),
  });
  await clients.more(20);
  const injector = new Injector(the.cluster, () => {});
  await injector.run(together, new AbortController().signal);
  await clients.more(40);
  await clients.stop();
  const cells = policies.flatMap((takeover) =>
    cellsOf(clients.exchanges.filter(({ container }) => container === takeover)),
  );
  return `| ${together.map(nameOf).join(" and ")} | ${cells.join(" | ")} |`;
}

function nameOf(fault: Fault): string {
  const direction = fault.kind === "cut" && fault.direction !== "both" ? ` ${fault.direction}` : "";
  const container = "container" in fault ? ` (${fault.container})` : "";
  return `${fault.kind}${direction}${container}${fault.forMs > 0 ? `, ${fault.forMs / 1000} s` : ""}`;
}

/** The longest wait of a request that was answered, and what was not, of how many. */
function cellsOf(exchanges: readonly Exchange[]): [string, string] {
  const longest = Math.max(0, ...exchanges.filter(({ status }) => status === 200).map((it) => it.doneMs - it.sentMs));
  const failed = (method: string): string => {
    const all = exchanges.filter((it) => it.method === method);
    const statuses = all.flatMap(({ status }) => (status === 200 ? [] : [status === 0 ? "no answer" : String(status)]));
    return statuses.length === 0 ? "0" : `${statuses.length} of ${all.length} (${[...new Set(statuses)].join(", ")})`;
  };
  return [`${longest} ms`, `${failed("GET")} / ${failed("POST")}`];
}

/** Each container answers from there, and both proxies know. */
async function allOn(the: TestCluster, host: string): Promise<void> {
  const { cluster } = the;
  const there = async (container: string): Promise<boolean> => {
    if ((await the.send(`${container}.localhost`)).status !== 200) return false;
    if ((await cluster.owner(container)) !== host) await cluster.relocate(container, host);
    const seen = await Promise.all([0, 1].map((proxy) => cluster.placementSeen(container, proxy)));
    return seen.every((placement) => placement?.host === cluster.hostId(host));
  };
  for (const container of policies)
    await eventually(`${container} is on host ${host}`, () => there(container).catch(() => false), settleLimitMs);
}
