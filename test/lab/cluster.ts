// A cluster in network namespaces for one test suite, and a client for it.
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { request } from "node:http";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { specRecord } from "../../runtime/config/spec.js";
import { canRestore, examine, missingToRestore } from "../../runtime/doctor/doctor.js";
import {
  createNamespacesCluster,
  type NamespacesCluster,
  type NamespacesOptions,
} from "../../runtime/local/namespaces.js";
import { packageRoot } from "../../runtime/package-root.js";
import { programLog } from "../../runtime/log.js";
import { specOf } from "./records.js";

export const fixtures = join(packageRoot(), "test/lab/fixtures");

export interface TestCluster {
  readonly cluster: NamespacesCluster;
  readonly directory: string;
  /** The journal application as a runc container, with a journal of its own. */
  journal(name: string, more?: Partial<ContainerSpec>): SpecRecord;
  /** Lines that the application of that name wrote. */
  lines(name: string): Promise<JournalLine[]>;
  /** Through the first proxy, or the one that is named. */
  send(hostname: string, options?: SendOptions, proxy?: number): Promise<Reply>;
  close(): Promise<void>;
}

export interface JournalLine {
  readonly event: "start" | "request" | "end" | "beat";
  /** CLOCK_REALTIME, ms. */
  readonly at: number;
  readonly pid: number;
  /** Another one for each copy. */
  readonly instance: string;
  readonly epoch: number;
  readonly host: string;
  readonly id: string;
  readonly method: string;
  readonly count: number;
}

export interface SendOptions {
  readonly method?: string;
  readonly path?: string;
  readonly body?: string;
  readonly id?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly timeoutMs?: number;
  /** Called when the whole request has been given to the kernel: it then waits in the receiver's socket, whether that runs or not. */
  readonly sent?: () => void;
}

export interface LabOptions
  extends Pick<NamespacesOptions, "ttlSeconds" | "callTimeoutMs" | "etcdMembers" | "hostSettings" | "proxySettings"> {
  /** Default 1. */
  readonly proxies?: number;
}

export interface Reply {
  /** 0: no response. */
  readonly status: number;
  readonly text: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly ms: number;
}

/** Why there can be no such cluster here; undefined: there can. */
export async function cannotRestore(): Promise<string | undefined> {
  const checks = await examine();
  return canRestore(checks) ? undefined : `needs ${missingToRestore(checks).join(", ")}`;
}

export async function openTestCluster(
  name: string,
  hosts: readonly string[],
  { proxies = 1, ...options }: LabOptions = {},
): Promise<TestCluster> {
  const directory = await mkdtemp(join(tmpdir(), `hakobu-${name}-`));
  const ports = await freePorts(2 * proxies);
  const place = (index: number) => ({
    proxy: { address: "127.0.0.1", port: ports[2 * index] as number },
    admin: { address: "127.0.0.1", port: ports[2 * index + 1] as number },
  });
  const { proxy } = place(0);
  const cluster = await createNamespacesCluster({
    name,
    hosts,
    directory,
    ...place(0),
    moreProxies: Array.from({ length: proxies - 1 }, (_, index) => place(index + 1)),
    log: programLog("silent"),
    ...options,
  });
  const journalOf = (container: string): string => join(cluster.shared, `${container}.journal`);
  return {
    cluster,
    directory,
    journal: (container, more = {}) =>
      specRecord(
        specOf(container, {
          engine: "runc",
          command: [process.execPath, "/app/journal.mjs"],
          mounts: [
            { source: fixtures, target: "/app", readOnly: true },
            { source: cluster.shared, target: "/shared", readOnly: false },
          ],
          ...more,
          env: { JOURNAL: `/shared/${container}.journal`, ...more.env },
        }),
      ),
    lines: async (container) => {
      const text = await readFile(journalOf(container), "utf8").catch(() => "");
      return text
        .split("\n")
        .filter((line) => line !== "")
        .map((line) => JSON.parse(line) as JournalLine);
    },
    send: (hostname, more, index) => send(index === undefined ? proxy : place(index).proxy, hostname, more),
    close: async () => {
      await cluster.close();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/** One request on a connection of its own. Never rejects. */
export function send(
  to: { readonly address: string; readonly port: number },
  hostname: string,
  { method = "GET", path = "/", body, id, headers = {}, timeoutMs = 30_000, sent }: SendOptions = {},
): Promise<Reply> {
  const begunMs = performance.now();
  return new Promise((resolve) => {
    const failed = (error: Error): void =>
      resolve({ status: 0, text: error.message, headers: {}, ms: performance.now() - begunMs });
    const call = request(
      {
        host: to.address,
        port: to.port,
        method,
        path,
        agent: false,
        signal: AbortSignal.timeout(timeoutMs),
        headers: {
          host: hostname,
          connection: "close",
          ...(id === undefined ? {} : { "x-request-id": id }),
          ...headers,
        },
      },
      (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => {
          text += chunk;
        });
        response.on("end", () =>
          resolve({
            status: response.statusCode ?? 0,
            text,
            headers: response.headers,
            ms: performance.now() - begunMs,
          }),
        );
        response.on("error", failed);
      },
    );
    call.on("error", failed);
    call.end(body, sent);
  });
}

/** Looks every 20 ms until `test` gives something. @throws after `limitMs`, naming what it waited for */
export async function eventually<T>(
  what: string,
  test: () => T | undefined | false | Promise<T | undefined | false>,
  limitMs = 15_000,
): Promise<T> {
  const end = performance.now() + limitMs;
  for (;;) {
    const value = await test();
    if (value !== undefined && value !== false) return value;
    if (performance.now() > end) throw new Error(`${what}: not within ${limitMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Held all at once, so that they differ. */
export async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, () => {
      const server = createServer();
      return new Promise<typeof server>((resolve, reject) => {
        server.once("error", reject);
        server.listen(0, "127.0.0.1", () => resolve(server));
      });
    }),
  );
  return Promise.all(
    servers.map((server) => {
      const { port } = server.address() as AddressInfo;
      return new Promise<number>((resolve) => server.close(() => resolve(port)));
    }),
  );
}
