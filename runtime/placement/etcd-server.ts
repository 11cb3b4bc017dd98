// A private etcd server: one process on loopback, or a few that form a cluster, for one machine and for tests. Not how etcd is
// run for others: no TLS unless asked for, no supervision. Its processes end with this one, unless this one is killed.
import { type ChildProcess, spawn } from "node:child_process";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";

export interface EtcdServerOptions {
  /** Created if absent; never removed. */
  readonly dataDir: string;
  /** Default: a free one. */
  readonly clientPort?: number;
  /** IP address for clients and other members. Default 127.0.0.1. */
  readonly listenAddress?: string;
  /** Serve https and ask clients for a certificate of this authority. Paths of PEM files. */
  readonly tls?: { readonly caFile: string; readonly certFile: string; readonly keyFile: string };
  /** How long it may take to answer healthily. Default 10 s. */
  readonly startTimeoutMs?: number;
}

export interface EtcdServer {
  /** For `EtcdOptions.hosts`. */
  readonly endpoints: readonly string[];
  /** TERM, then KILL after 5 s; returns when it is gone. Idempotent. */
  stop(): Promise<void>;
  /** KILL. Idempotent. */
  kill(): Promise<void>;
  /** SIGSTOP and SIGCONT. */
  pause(): void;
  resume(): void;
  /** The same data and ports; kills it first if it runs. Resolves when it is healthy. */
  restart(): Promise<void>;
}

export interface EtcdCluster {
  readonly endpoints: readonly string[];
  readonly members: readonly EtcdServer[];
  stop(): Promise<void>;
}

/** @throws HakobuError START_FAILED with etcd's last lines */
export async function startEtcd(options: EtcdServerOptions): Promise<EtcdServer> {
  const [member] = await planMembers([options]);
  await (member as Member).restart();
  return member as Member;
}

/** Members on one address, each with a directory of its own inside `dataDir`. @throws HakobuError START_FAILED */
export async function startEtcdCluster(
  size: number,
  {
    dataDir,
    listenAddress,
    startTimeoutMs = 20_000,
  }: Pick<EtcdServerOptions, "dataDir" | "listenAddress" | "startTimeoutMs">,
): Promise<EtcdCluster> {
  const plans = Array.from({ length: size }, (_, index) => ({
    dataDir: `${dataDir}/m${index + 1}`,
    startTimeoutMs,
    ...(listenAddress === undefined ? {} : { listenAddress }),
  }));
  const members = await planMembers(plans);
  const stop = async (): Promise<void> => {
    await Promise.all(members.map((member) => member.stop()));
  };
  try {
    await Promise.all(members.map((member) => member.restart()));
  } catch (error) {
    await stop();
    throw error;
  }
  return { endpoints: members.flatMap((member) => member.endpoints), members, stop };
}

const stopGraceMs = 5000;
const keptLines = 20;

interface Ports {
  readonly client: number;
  readonly peer: number;
  readonly metrics: number;
}

async function planMembers(plans: readonly EtcdServerOptions[]): Promise<Member[]> {
  const free = await freePorts(3 * plans.length);
  const ports = plans.map(({ clientPort }, index): Ports => {
    const [client, peer, metrics] = free.slice(3 * index) as [number, number, number];
    return { client: clientPort ?? client, peer, metrics };
  });
  const peers = plans.map((plan, index) => `m${index + 1}=http://${addressOf(plan)}:${ports[index]?.peer}`).join(",");
  return plans.map((plan, index) => new Member(plan, `m${index + 1}`, ports[index] as Ports, peers));
}

function addressOf({ listenAddress = "127.0.0.1" }: EtcdServerOptions): string {
  return listenAddress;
}

/** Held all at once, so that they differ. Another process may still take one before etcd does; etcd's last lines then say so. */
async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer().listen(0, "127.0.0.1");
      await new Promise((resolve, reject) => server.once("listening", resolve).once("error", reject));
      return server;
    }),
  );
  return Promise.all(
    servers.map(async (server) => {
      const address = server.address();
      await new Promise((resolve) => server.close(resolve));
      return typeof address === "object" && address !== null ? address.port : 0;
    }),
  );
}

class Member implements EtcdServer {
  readonly endpoints: readonly string[];
  readonly #options: EtcdServerOptions;
  readonly #arguments: readonly string[];
  readonly #healthUrl: string;
  #child: ChildProcess | undefined;
  #exited: Promise<void> = Promise.resolve();
  #lines: string[] = [];

  constructor(options: EtcdServerOptions, name: string, ports: Ports, peers: string) {
    this.#options = options;
    const { dataDir, tls } = options;
    const clientUrl = `${tls ? "https" : "http"}://${addressOf(options)}:${ports.client}`;
    const peerUrl = `http://${addressOf(options)}:${ports.peer}`;
    const metricsUrl = `http://127.0.0.1:${ports.metrics}`;
    this.endpoints = [clientUrl];
    this.#healthUrl = `${metricsUrl}/health`;
    this.#arguments = [
      `--name=${name}`,
      `--data-dir=${dataDir}`,
      `--listen-client-urls=${clientUrl}`,
      `--advertise-client-urls=${clientUrl}`,
      `--listen-peer-urls=${peerUrl}`,
      `--initial-advertise-peer-urls=${peerUrl}`,
      `--initial-cluster=${peers}`,
      `--listen-metrics-urls=${metricsUrl}`,
      "--auto-compaction-retention=1h",
      "--logger=zap",
      "--log-level=warn",
      ...(tls
        ? [
            "--client-cert-auth",
            `--trusted-ca-file=${tls.caFile}`,
            `--cert-file=${tls.certFile}`,
            `--key-file=${tls.keyFile}`,
          ]
        : []),
    ];
  }

  async restart(): Promise<void> {
    await this.kill();
    this.#spawn();
    try {
      await this.#healthy();
    } catch (error) {
      await this.kill();
      throw error;
    }
  }

  async stop(): Promise<void> {
    const child = this.#child;
    if (!child) return;
    child.kill("SIGCONT");
    child.kill("SIGTERM");
    const kill = setTimeout(() => child.kill("SIGKILL"), stopGraceMs);
    await this.#exited;
    clearTimeout(kill);
  }

  async kill(): Promise<void> {
    this.#child?.kill("SIGKILL");
    await this.#exited;
  }

  pause(): void {
    this.#child?.kill("SIGSTOP");
  }

  resume(): void {
    this.#child?.kill("SIGCONT");
  }

  #spawn(): void {
    const child = spawn("etcd", this.#arguments, { stdio: ["ignore", "ignore", "pipe"] });
    this.#child = child;
    this.#lines = [];
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#lines = [...this.#lines, ...text.split("\n").filter((line) => line !== "")].slice(-keptLines);
    });
    const killWithUs = (): void => void child.kill("SIGKILL");
    process.once("exit", killWithUs);
    this.#exited = new Promise((resolve) => {
      const gone = (reason: string): void => {
        process.off("exit", killWithUs);
        this.#lines.push(reason);
        this.#child = undefined;
        resolve();
      };
      child.once("error", (error) => gone(reasonOf(error)));
      child.once("close", (code, signal) => gone(`etcd ended (${signal ?? code})`));
    });
  }

  async #healthy(): Promise<void> {
    const { startTimeoutMs = 10_000, dataDir } = this.#options;
    const until = performance.now() + startTimeoutMs;
    while (this.#child && performance.now() < until) {
      const signal = AbortSignal.timeout(1000);
      const healthy = await fetch(this.#healthUrl, { signal })
        .then(async (answer) => ((await answer.json()) as { health?: unknown }).health === "true")
        .catch(() => false);
      if (healthy) return;
      await sleep(25);
    }
    const last = this.#lines.join("\n");
    const message = `etcd in ${dataDir} was not healthy within ${startTimeoutMs} ms; its last lines:\n${last}`;
    throw new HakobuError("START_FAILED", message);
  }
}
