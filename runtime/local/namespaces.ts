// The cluster with root: every host an agent process in a network namespace of its own, a real etcd of one or more members,
// and proxies as processes of their own, so that each can be cut off, killed, stopped and started again.
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
import type { MoveReport } from "../../actors/move-report.js";
import type { HostStatus } from "../dispatcher/control.js";
import { path } from "../dispatcher/protocol.js";
import { containersIn, readInstance } from "../engines/instance-file.js";
import { isRunning } from "../engines/process-table.js";
import { RuncEngine } from "../engines/runc/engine.js";
import { EtcdPlacementStore } from "../placement/etcd.js";
import { type EtcdServer, startEtcdCluster } from "../placement/etcd-server.js";
import { systemClock } from "../system-clock.js";
import { Child } from "./child.js";
import type { LocalCluster } from "./cluster.js";
import { createNetwork, type LocalNetwork, removeLeftovers } from "./network.js";

export interface Endpoint {
  readonly address: string;
  readonly port: number;
}

export interface ProxyPlace {
  readonly proxy: Endpoint;
  readonly admin: Endpoint;
}

export interface NamespacesOptions {
  /** Lower-case letters and digits. Clusters of different names do not meet. */
  readonly name: string;
  readonly hosts: readonly string[];
  readonly directory: string;
  /** Of the first proxy. */
  readonly proxy: Endpoint;
  readonly admin: Endpoint;
  /** Further proxies beside the first. */
  readonly moreProxies?: readonly ProxyPlace[];
  readonly log: Log;
  /** TTL of the hosts' leases. Default 10. */
  readonly ttlSeconds?: number;
  /** Deadline of one call to etcd. Default 2000. */
  readonly callTimeoutMs?: number;
  /** Default 1. */
  readonly etcdMembers?: number;
  /** Further settings of every agent and every proxy, as in their configuration files. */
  readonly hostSettings?: Readonly<Record<string, unknown>>;
  readonly proxySettings?: Readonly<Record<string, unknown>>;
  /** Every agent's `images` section. */
  readonly imageSettings?: Readonly<Record<string, unknown>>;
}

export interface NamespacesCluster extends LocalCluster {
  readonly mode: "namespaces";
  readonly etcd: string;
  readonly network: LocalNetwork;
  /** The first member. */
  readonly etcdServer: EtcdServer;
  readonly etcdMembers: readonly EtcdServer[];
  readonly store: EtcdPlacementStore;
  /** All of them, the first one too. */
  readonly proxies: readonly ProxyPlace[];
  /** KILL for the agent alone: its containers go on. */
  killAgent(host: string): Promise<void>;
  /** KILL for the agent and everything that it runs. */
  killHost(host: string): Promise<void>;
  /** STOP and CONT for the agent; with `containers` for what it runs as well, as when the whole machine stands still. */
  pauseAgent(host: string, containers?: boolean): void;
  resumeAgent(host: string): void;
  agentPid(host: string): number | undefined;
  /** Where the agent answers: tenants' requests and control calls. */
  agent(host: string): Endpoint;
  /** The id that a host has in the placement store. */
  hostId(host: string): string;
  /** Starts an agent that was killed or stopped, and waits until it has joined. */
  startAgent(host: string): Promise<void>;
  /** TERM: it moves out, and ends. */
  stopAgent(host: string): Promise<void>;
  /** A planned move. */
  relocate(container: string, to: string): Promise<Placement>;
  /** Asks an agent to move everything away and take nothing; returns at once. */
  drain(host: string): Promise<void>;
  undrain(host: string): Promise<void>;
  /** KILL. Proxies are counted from 0. */
  killProxy(index?: number): Promise<void>;
  startProxy(index?: number): Promise<void>;
  /** STOP and CONT: a proxy whose table goes stale. */
  pauseProxy(index: number): void;
  resumeProxy(index: number): void;
  /** What a proxy knows of the hosts. */
  hostsSeen(index?: number): Promise<readonly (HostRecord & { readonly reachability: string })[]>;
  /** The owner as one proxy sees it. */
  placementSeen(container: string, index?: number): Promise<Placement | undefined>;
  /** Moves that one proxy drove. */
  movesOf(index: number): Promise<readonly MoveReport[]>;
  /** Process ids of what runs on a host, by container, from the engine's own records. */
  running(host: string): ReadonlyMap<string, number>;
  stateDir(host: string): string;
}

const agentPort = 7070;
const startLimitMs = 20_000;
const stopLimitMs = 20_000;
const program = fileURLToPath(new URL("../cli/main.js", import.meta.url));

export async function createNamespacesCluster(options: NamespacesOptions): Promise<NamespacesCluster> {
  const { name, hosts, directory, log, ttlSeconds = 10, callTimeoutMs = 2000, etcdMembers = 1 } = options;
  const places: readonly ProxyPlace[] = [
    { proxy: options.proxy, admin: options.admin },
    ...(options.moreProxies ?? []),
  ];
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
  // A new etcd counts its revisions, and with them the epochs that name images, from the start.
  for (const each of [join(directory, "etcd"), join(shared, "images")])
    await rm(each, { recursive: true, force: true });
  for (const each of [shared, logs]) await mkdir(each, { recursive: true });

  const agents = new Map<string, Child>();
  const undo: (() => Promise<void>)[] = [];
  let closed: Promise<void> | undefined;
  const close = (): Promise<void> =>
    (closed ??= (async () => {
      for (const step of undo.toReversed()) await step();
    })());

  try {
    const network = await createNetwork({ name, hosts });
    undo.push(() => network.close());
    const etcdCluster = await startEtcdCluster(etcdMembers, {
      dataDir: join(directory, "etcd"),
      listenAddress: network.gateway,
    });
    undo.push(() => etcdCluster.stop());
    const { endpoints } = etcdCluster;
    const store = new EtcdPlacementStore({ hosts: endpoints, ttlSeconds, callTimeoutMs }, { clock: systemClock, log });
    undo.push(() => store.close());
    undo.push(async () => {
      for (const agent of agents.values()) agent.signal("SIGCONT");
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
    const place = (index: number): ProxyPlace => {
      const found = places[index];
      if (found === undefined) throw new HakobuError("CONFIG_INVALID", `no proxy ${index}: there are ${places.length}`);
      return found;
    };
    const adminUrl = (index = 0): string => `http://${at(place(index).admin)}`;
    const hostsSeen = (index = 0) => get<(HostRecord & { reachability: string })[]>(`${adminUrl(index)}/hosts`);
    const containersSeen = (index = 0) =>
      get<(SpecRecord & { placement?: Placement })[]>(`${adminUrl(index)}/containers`);
    const placementSeen = async (container: string, index = 0): Promise<Placement | undefined> =>
      (await containersSeen(index)).find(({ spec }) => spec.name === container)?.placement;
    const ask = async (id: string, route: string, body: object = {}): Promise<unknown> => {
      const { statusCode, body: answer } = await request(url(id) + route, {
        method: "POST",
        body: JSON.stringify(body),
      });
      const text = await answer.text();
      if (statusCode >= 300) throw new HakobuError("UNAVAILABLE", text);
      return JSON.parse(text);
    };
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
    const etcdConfig = { endpoints, ttl: `${ttlSeconds}s`, callTimeout: `${callTimeoutMs}ms` };
    const startAgent = async (id: string): Promise<void> => {
      const host = network.host(id);
      const config = {
        etcd: etcdConfig,
        host: {
          id: hostId(id),
          listen: `${host.address}:${agentPort}`,
          stateDir: stateDir(id),
          images: join(shared, "images"),
          engines: ["runc", "process"],
          ...options.hostSettings,
        },
        images: { ...options.imageSettings },
      };
      const child = await start(`host-${id}`, config, "host", (command) => host.wrap(command));
      agents.set(id, child);
      await child.until(async () => (await status(id))?.state === "running", startLimitMs, "joins the cluster");
    };
    const proxies: (Child | undefined)[] = places.map(() => undefined);
    const startProxy = async (index = 0): Promise<void> => {
      const { proxy: listen, admin } = place(index);
      const config = { etcd: etcdConfig, proxy: { listen: at(listen), admin: at(admin), ...options.proxySettings } };
      const child = await start(index === 0 ? "proxy" : `proxy-${index}`, config, "proxy");
      proxies[index] = child;
      const joined = [...agents.values()].filter((agent) => agent.running).length;
      await child.until(async () => (await hostsSeen(index)).length >= joined, startLimitMs, "sees the hosts");
    };
    const proxyAt = (index: number): Child => {
      place(index);
      return proxies[index] as Child;
    };
    const runningProxies = (): number[] =>
      places.flatMap((_, index) => (proxies[index]?.running === true ? [index] : []));
    await Promise.all(hosts.map(startAgent));
    undo.push(async () => {
      for (const proxy of proxies) proxy?.signal("SIGCONT");
      await Promise.all(proxies.flatMap((proxy) => (proxy === undefined ? [] : [proxy.stop(stopLimitMs)])));
    });
    await Promise.all(places.map((_, index) => startProxy(index)));
    const child = (id: string): Child => {
      const found = agents.get(id);
      if (found === undefined) throw new HakobuError("CONFIG_INVALID", `no host ${id}: there are ${hosts.join(", ")}`);
      return found;
    };
    const paused = new Map<string, readonly number[]>();
    // Not find() of an engine, which clears away what does not run, and would take it from an agent that is starting it.
    const runningOn = (id: string): Map<string, number> => {
      const own = join(stateDir(id), "runc");
      const instances = containersIn(own).map((container) => readInstance(join(own, container)));
      return new Map(instances.flatMap((it) => (it !== undefined && isRunning(it) ? [[it.container, it.pid]] : [])));
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
      etcd: endpoints.join(","),
      shared,
      logs,
      network,
      etcdServer: etcdCluster.members[0] as EtcdServer,
      etcdMembers: etcdCluster.members,
      proxies: places,
      store,
      stateDir,
      apply: async (records: readonly SpecRecord[]) => {
        for (const record of records) await store.putSpec(record);
        const wanted = new Map(records.map(({ spec, hash }) => [spec.name, hash]));
        const knows = async (index: number): Promise<boolean> => {
          const known = new Map((await containersSeen(index)).map(({ spec, hash }) => [spec.name, hash]));
          return [...wanted].every(([container, hash]) => known.get(container) === hash);
        };
        await until(
          async () => (await Promise.all(runningProxies().map(knows))).every(Boolean),
          "the proxies learn of the specification",
        );
      },
      delete: async (container) => {
        await store.deleteSpec(container);
      },
      owner: async (container) => (await placementSeen(container))?.host.slice(name.length + 1),
      status,
      moves: () => get<MoveReport[]>(`${adminUrl()}/relocations`),
      cut: (id) => network.cut(id),
      heal: async (id) => {
        await network.heal(id);
        if (!child(id).running) await startAgent(id);
        const trusted = async (index: number): Promise<boolean> => {
          const seen = (await hostsSeen(index)).find((each) => each.id === hostId(id));
          return seen !== undefined && !/suspected|unreachable/.test(seen.reachability);
        };
        await until(async () => {
          if ((await status(id))?.state !== "running") return false;
          return (await Promise.all(runningProxies().map(trusted))).every(Boolean);
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
      pauseAgent: (id, containers = false) => {
        child(id).signal("SIGSTOP");
        if (!containers) return;
        const pids = [...runningOn(id).values()];
        paused.set(id, pids);
        for (const pid of pids) signalIfThere(pid, "SIGSTOP");
      },
      resumeAgent: (id) => {
        for (const pid of paused.get(id) ?? []) signalIfThere(pid, "SIGCONT");
        paused.delete(id);
        child(id).signal("SIGCONT");
      },
      agent: (id) => ({ address: network.host(id).address, port: agentPort }),
      hostId,
      relocate: async (container, to) => {
        const from = (await placementSeen(container))?.host.slice(name.length + 1);
        if (from === undefined) throw new HakobuError("UNAVAILABLE", `${container} has no host`);
        return (await ask(from, path.relocate, { container, to: hostId(to) })) as Placement;
      },
      drain: async (id) => {
        await ask(id, path.drain);
      },
      undrain: async (id) => {
        await ask(id, path.undrain);
      },
      killProxy: async (index = 0) => {
        proxyAt(index).signal("SIGKILL");
        await proxyAt(index).exited;
      },
      startProxy,
      pauseProxy: (index) => proxyAt(index).signal("SIGSTOP"),
      resumeProxy: (index) => proxyAt(index).signal("SIGCONT"),
      hostsSeen,
      placementSeen,
      movesOf: (index) => get<MoveReport[]>(`${adminUrl(index)}/relocations`),
      running: runningOn,
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

const at = ({ address, port }: Endpoint): string => `${address}:${port}`;

function signalIfThere(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}
