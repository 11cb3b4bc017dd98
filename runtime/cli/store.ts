// The commands that read and write the placement store: apply, get, delete.
import type { Command } from "commander";
import Table from "cli-table3";
import { request } from "undici";
import { ClusterView } from "../../actors/cluster-view.js";
import { HakobuError } from "../../actors/hakobu-error.js";
import { noLog } from "../../actors/ports/log.js";
import type { HostRecord } from "../../actors/ports/placement-store.js";
import { readSpecFile } from "../config/spec-file.js";
import type { HostStatus } from "../dispatcher/control.js";
import { path } from "../dispatcher/protocol.js";
import { EtcdPlacementStore } from "../placement/etcd.js";
import { systemClock } from "../system-clock.js";
import { plain } from "./output.js";
import { etcdFrom, type Given, withEtcd } from "./settings.js";

const readLimitMs = 5000;
const askLimitMs = 1000;

export function storeCommands(program: Command): void {
  withEtcd(program.command("apply").description("create or change applications from a YAML file"))
    .requiredOption("-f, --file <spec.yaml>", "one or more applications, separated by ---")
    .action(async ({ file, ...flags }: Given & { file: string }) => {
      const records = await readSpecFile(file, process.env);
      await withStore(flags, async (store) => {
        for (const record of records) {
          await store.putSpec(record);
          console.log(`${record.spec.name} applied: ${record.spec.hostnames.join(", ")}`);
        }
      });
    });

  withEtcd(program.command("delete").description("remove an application; its container is stopped"))
    .argument("<name>")
    .action(async (name: string, flags: Given) => {
      await withStore(flags, async (store) => {
        if (await store.deleteSpec(name)) console.log(`${name} deleted`);
        else throw new HakobuError("CONFIG_INVALID", `no application ${name}; see: hakobu get`);
      });
    });

  withEtcd(program.command("get").description("list applications and hosts, with what each host says of them"))
    .argument("[what]", "containers or hosts", "containers")
    .option("--json", "print as JSON")
    .action(async (what: string, flags: Given & { json?: string }) => {
      if (what !== "containers" && what !== "hosts")
        throw new HakobuError("CONFIG_INVALID", `cannot list ${what}: use containers or hosts`);
      const view = await withStore(flags, read);
      const hosts = [...view.hosts()];
      const asked = new Map(await Promise.all(hosts.map(async (host) => [host.id, await ask(host)] as const)));
      const rows = what === "hosts" ? hostRows(view, asked) : containerRows(view, asked);
      if (flags.json !== undefined) console.log(JSON.stringify(rows, null, 2));
      else if (rows.length === 0) console.log(what === "hosts" ? "No host has joined." : "Nothing applied yet.");
      else print(rows);
    });
}

export async function withStore<T>(flags: Given, use: (store: EtcdPlacementStore) => Promise<T>): Promise<T> {
  const store = new EtcdPlacementStore(await etcdFrom(flags), { clock: systemClock, log: noLog });
  try {
    return await use(store);
  } finally {
    await store.close();
  }
}

/** The cluster as it is now. @throws HakobuError STORE_UNAVAILABLE */
export async function read(store: EtcdPlacementStore): Promise<ClusterView> {
  const view = new ClusterView();
  let trouble = "no answer";
  const limit = AbortSignal.timeout(readLimitMs);
  for await (const change of store.follow(limit)) {
    if (change.kind === "disconnected") trouble = change.reason;
    view.apply(change);
    if (change.kind === "reset") return view;
  }
  throw new HakobuError(
    "STORE_UNAVAILABLE",
    `etcd cannot be read: ${trouble}. Check --etcd-endpoints and: hakobu doctor`,
  );
}

async function ask(host: HostRecord): Promise<HostStatus | undefined> {
  try {
    const url = `http://${host.address}:${host.port}${path.host}`;
    const { body } = await request(url, { signal: AbortSignal.timeout(askLimitMs) });
    return (await body.json()) as HostStatus;
  } catch {
    return undefined;
  }
}

type Row = Readonly<Record<string, string | number>>;

function containerRows(view: ClusterView, asked: ReadonlyMap<string, HostStatus | undefined>): Row[] {
  return [...view.specs()].map(({ spec }) => {
    const placement = view.placement(spec.name);
    const status = placement && asked.get(placement.host);
    const live = status?.containers.find(({ name }) => name === spec.name);
    const unknown = placement === undefined ? "not placed" : "host does not answer";
    return {
      name: spec.name,
      hostnames: spec.hostnames.join(" "),
      host: placement?.host ?? "",
      epoch: placement?.epoch ?? "",
      state: live?.state ?? unknown,
      since: placement?.since ?? "",
      why: placement?.reason ?? "",
      // Of the host: why it was started cold, or failed, or has no fresh image.
      note: live?.reason ?? live?.imageTrouble ?? "",
    };
  });
}

function hostRows(view: ClusterView, asked: ReadonlyMap<string, HostStatus | undefined>): Row[] {
  return [...view.hosts()].map((host) => {
    const status = asked.get(host.id);
    return {
      id: host.id,
      address: `${host.address}:${host.port}`,
      state: host.draining ? "draining" : (status?.state ?? "does not answer"),
      containers: `${view.load(host.id)}/${host.capacity}`,
      engines: host.engines.join(" "),
    };
  });
}

function print(rows: readonly Row[]): void {
  const columns = Object.keys(rows[0] as Row).filter((name) => name !== "note" || rows.some(({ note }) => note !== ""));
  const table = new Table({
    head: columns.map((name) => name.toUpperCase()),
    chars: plain,
    style: { "padding-left": 0, "padding-right": 2, head: [], border: [] },
  });
  for (const row of rows) table.push(columns.map((name) => row[name] ?? ""));
  console.log(table.toString());
}
