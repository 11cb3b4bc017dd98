// The cluster with root: every host an agent process in a network namespace of its own, a real etcd, and the proxy as a
// process of its own, so that each can be cut off, killed and started again.
//
//   S1  Whatever was made is in the network (network.ts), among the children, or below `directory`: close() removes it all,
//       containers of agents that were killed too.
//   S2  What a run that was killed left behind is removed before the next one of the same name begins.
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { request } from "undici";
import { stringify } from "yaml";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Log } from "../../actors/ports/log.js";
import type { HostRecord, Placement, SpecRecord } from "../../actors/ports/placement-store.js";
import type { MoveReport } from "../../actors/relocation.js";
import type { HostStatus } from "../dispatcher/control.js";
import { path } from "../dispatcher/protocol.js";
import { RuncEngine } from "../engines/runc/engine.js";
import { EtcdPlacementStore } from "../placement/etcd.js";
import { type EtcdServer, startEtcd } from "../placement/etcd-server.js";
import { systemClock } from "../system-clock.js";
import { Child } from "./child.js";
import type { LocalCluster } from "./cluster.js";
import { createNetwork, type LocalNetwork, removeLeftovers } from "./network.js";

export interface NamespacesOptions {
  /** Lower-case letters and digits. Clusters of different names do not meet. */
  readonly name: string;
  readonly hosts: readonly string[];
  readonly directory: string;
  readonly proxy: { readonly address: string; readonly port: number };
  readonly admin: { readonly address: string; readonly port: number };
  readonly log: Log;
  /** TTL of the hosts' leases. */
  readonly ttlSeconds?: number;
}

export interface NamespacesCluster extends LocalCluster {
  readonly mode: "namespaces";
  readonly etcd: string;
  readonly network: LocalNetwork;
  readonly etcdServer: EtcdServer;
  readonly store: EtcdPlacementStore;
  /** KILL for the agent alone: its containers go on. */
  killAgent(host: string): Promise<void>;
  /** KILL for the agent and everything that it runs. */
  killHost(host: string): Promise<void>;
  agentPid(host: string): number | undefined;
  /** Starts an agent that was killed or stopped, and waits until it has joined. */
  startAgent(host: string): Promise<void>;
  /** TERM: it moves out, and ends. */
  stopAgent(host: string): Promise<void>;
  /** A planned move. */
  relocate(container: string, to: string): Promise<Placement>;
  killProxy(): Promise<void>;
  startProxy(): Promise<void>;
  stateDir(host: string): string;
}

const agentPort = 7070;
const startLimitMs = 20_000;
const stopLimitMs = 20_000;
const program = fileURLToPath(new URL("../cli/main.js", import.meta.url));

export async function createNamespacesCluster(options: NamespacesOptions): Promise<NamespacesCluster> {
  const { name, hosts, directory, log, ttlSeconds = 10 } = options;
  const stateDir = (id: string): string => join(directory, "hosts", id);
  const shared = join(directory, "shared");
  const logs = join(directory, "logs");
  const hostId = (id: string): string => `${name}-${id}`;
  const purge = async (id: string): Promise<void> => {
    const engine = new RuncEngine({ hostId: hostId(id), stateDir: stateDir(id), log });
    for (const instance of await engine.find()) await engine.stop(instance, 0);
  };
  await removeLeftovers(name);
  for (const id of hosts) await purge(id);
  await rm(join(directory, "etcd"), { recursive: true, force: true });
  for (const each of [shared, logs]) await mkdir(each, { recursive: true });

  const agents = new Map<string, Child>();
  const undo: (() => Promise<void>)[] = [];
  let closed: Promise<void> | undefined;
  const close = (): Promise<void> =>
    (closed ??= (async () => {
      for (const step of undo.reverse()) await step();
    })());

  try {
    const network = await createNetwork({ name, hosts });
    undo.push(() => network.close());
    const etcdServer = await startEtcd({ dataDir: join(directory, "etcd"), listenAddress: network.gateway });
    undo.push(() => etcdServer.stop());
    const [etcd] = etcdServer.endpoints as [string];
    const store = new EtcdPlacementStore(
      { hosts: [etcd], ttlSeconds, callTimeoutMs: 2000 },
      { clock: systemClock, log },
    );
    undo.push(() => store.close());
    undo.push(async () => {
      await Promise.all([...agents.values()].map((agent) => agent.stop(stopLimitMs, "SIGINT")));
      for (const id of hosts) await purge(id);
    });

    const url = (id: string): string => `http://${network.host(id).address}:${agentPort}`;
    const get = async <T>(from: string): Promise<T> => {
      const { statusCode, body } = await request(from, { signal: AbortSignal.timeout(2000) });
      const text = await body.text();
      if (statusCode !== 200) throw new HakobuError("UNAVAILABLE", `${from} answered ${statusCode}: ${text}`);
      return JSON.parse(text) as T;
    };
    const adminUrl = `http://${options.admin.address}:${options.admin.port}`;
    const status = (id: string): Promise<HostStatus | undefined> =>
      get<HostStatus>(url(id) + path.host).catch(() => undefined);

    const start = async (title: string, config: object, command: "host" | "proxy", wrap = (c: string[]) => c) => {
      const file = join(directory, `${title}.yaml`);
      await writeFile(file, stringify(config));
      return new Child(title, wrap([process.execPath, program, command, "--config", file]), {
        logFile: join(logs, `${title}.log`),
        env: { OTEL_SERVICE_INSTANCE_ID: title },
      });
    };
    const etcdConfig = { endpoints: [etcd], ttl: `${ttlSeconds}s`, callTimeout: "2s" };
    const startAgent = async (id: string): Promise<void> => {
      const { address, wrap } = network.host(id);
      const config = {
        etcd: etcdConfig,
        host: {
          id: hostId(id),
          listen: `${address}:${agentPort}`,
          stateDir: stateDir(id),
          images: join(shared, "images"),
          engines: ["runc", "process"],
        },
      };
      const child = await start(`host-${id}`, config, "host", (command) => wrap(command));
      agents.set(id, child);
      await child.until(async () => (await status(id))?.state === "running", startLimitMs, "joins the cluster");
    };
    let proxy: Child;
    const startProxy = async (): Promise<void> => {
      const at = (on: { address: string; port: number }): string => `${on.address}:${on.port}`;
      const config = { etcd: etcdConfig, proxy: { listen: at(options.proxy), admin: at(options.admin) } };
      proxy = await start("proxy", config, "proxy");
      await proxy.until(
        async () => (await get<HostRecord[]>(`${adminUrl}/hosts`)).length === hosts.length,
        startLimitMs,
        "sees the hosts",
      );
    };
    await Promise.all(hosts.map(startAgent));
    undo.push(async () => proxy?.stop(stopLimitMs));
    await startProxy();
    const child = (id: string): Child => {
      const found = agents.get(id);
      if (found === undefined) throw new HakobuError("CONFIG_INVALID", `no host ${id}: there are ${hosts.join(", ")}`);
      return found;
    };
    const killAgent = async (id: string): Promise<void> => {
      child(id).signal("SIGKILL");
      await child(id).exited;
    };

    return {
      mode: "namespaces",
      hosts,
      engines: ["runc", "process"],
      proxy: options.proxy,
      admin: options.admin,
      etcd,
      shared,
      logs,
      network,
      etcdServer,
      store,
      stateDir,
      apply: async (records: readonly SpecRecord[]) => {
        for (const record of records) await store.putSpec(record);
        await until(async () => {
          const known = await get<SpecRecord[]>(`${adminUrl}/containers`);
          return records.every(({ spec, hash }) =>
            known.some((each) => each.spec.name === spec.name && each.hash === hash),
          );
        }, "the proxy learns of the specification");
      },
      delete: async (container) => {
        await store.deleteSpec(container);
      },
      owner: async (container) => {
        const known = await get<(SpecRecord & { placement?: Placement })[]>(`${adminUrl}/containers`);
        return known.find(({ spec }) => spec.name === container)?.placement?.host.slice(name.length + 1);
      },
      status,
      moves: () => get<MoveReport[]>(`${adminUrl}/relocations`),
      cut: (id) => network.cut(id),
      heal: async (id) => {
        await network.heal(id);
        if (!child(id).running) await startAgent(id);
        await until(async () => {
          const { state } = (await status(id)) ?? {};
          const known = await get<(HostRecord & { reachability: string })[]>(`${adminUrl}/hosts`);
          const seen = known.find((each) => each.id === hostId(id));
          return state === "running" && seen !== undefined && !/suspected|unreachable/.test(seen.reachability);
        }, `host ${id} is a member again`);
      },
      byHand: (id) => {
        const nft = `nsenter --net=/run/netns/hakobu-${name}-switch nft`;
        return {
          cut: `${nft} 'add rule bridge hakobu faults iifname "h-${id}" drop'`,
          heal: `${nft} flush chain bridge hakobu faults`,
        };
      },
      agentPid: (id) => agents.get(id)?.pid,
      killAgent,
      killHost: async (id) => {
        await killAgent(id);
        await purge(id);
      },
      startAgent,
      stopAgent: (id) => child(id).stop(stopLimitMs),
      relocate: async (container, to) => {
        const known = await get<(SpecRecord & { placement?: Placement })[]>(`${adminUrl}/containers`);
        const from = known
          .find(({ spec }) => spec.name === container)
          ?.placement?.host.slice(name.length + 1) as string;
        const { statusCode, body } = await request(url(from) + path.relocate, {
          method: "POST",
          body: JSON.stringify({ container, to: hostId(to) }),
        });
        const text = await body.text();
        if (statusCode !== 200) throw new HakobuError("UNAVAILABLE", text);
        return JSON.parse(text) as Placement;
      },
      killProxy: async () => {
        proxy.signal("SIGKILL");
        await proxy.exited;
      },
      startProxy,
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

async function until(test: () => Promise<boolean>, what: string, limitMs = startLimitMs): Promise<void> {
  const end = performance.now() + limitMs;
  while (!(await test().catch(() => false))) {
    if (performance.now() > end) throw new HakobuError("DEADLINE_EXCEEDED", `${what}: not within ${limitMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}
