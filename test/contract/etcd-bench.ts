// An etcd of its own behind a connection that can be cut, for the suites of the store under faults. Everything is removed by itself.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { PlacementStore } from "../../actors/ports/placement-store.js";
import { EtcdConnection, type EtcdOptions, etcdSettings } from "../../runtime/placement/etcd-client.js";
import { type EtcdServer, startEtcd } from "../../runtime/placement/etcd-server.js";
import { EtcdPlacementStore } from "../../runtime/placement/etcd.js";
import { systemClock } from "../../runtime/system-clock.js";
import { TcpProxy } from "../lab/tcp-proxy.js";
import { View } from "./placement-store.js";

export const now = (): number => performance.now();
export const callTimeoutMs = 500;

/** To be called in a `describe`: one server for all its tests, a prefix and a connection for each. */
export class EtcdBench {
  directory = "";
  server!: EtcdServer;
  proxy!: TcpProxy;
  prefix = "";
  /** What stores have warned of in this test. */
  warnings: object[] = [];
  readonly cleanups: (() => unknown)[] = [];

  constructor() {
    let tests = 0;
    before(async () => {
      this.directory = await mkdtemp(join(tmpdir(), "hakobu-etcd-"));
      this.server = await startEtcd({ dataDir: join(this.directory, "data") });
    });
    after(async () => {
      await this.server?.kill();
      await rm(this.directory, { recursive: true, force: true });
    });
    beforeEach(async () => {
      this.prefix = `faults${++tests}/`;
      this.warnings = [];
      this.proxy = await TcpProxy.start(this.server.endpoints[0] as string);
    });
    afterEach(async () => {
      this.server.resume();
      for (const cleanup of this.cleanups.splice(0).toReversed()) await cleanup();
      await this.proxy.close();
    });
  }

  storeAt(hosts: readonly string[], options: Partial<EtcdOptions> = {}): EtcdPlacementStore {
    const warn = (details: object): void => void this.warnings.push(details);
    const log = { debug() {}, info() {}, warn, error() {} };
    const all = { hosts, prefix: this.prefix, ttlSeconds: 3, callTimeoutMs, ...options };
    const store = new EtcdPlacementStore(all, { clock: systemClock, log });
    this.cleanups.push(() => store.close());
    return store;
  }

  async viewOf(store: PlacementStore): Promise<View> {
    const view = new View(store);
    this.cleanups.push(() => view.close());
    await view.until(() => view.count("connected") > 0);
    return view;
  }

  /** Raw access beside the store, to etcd itself. */
  raw(hosts: readonly string[] = this.server.endpoints): EtcdConnection {
    const options = { hosts, prefix: this.prefix, ttlSeconds: 3, callTimeoutMs: 5000 };
    const connection = new EtcdConnection(etcdSettings(options));
    this.cleanups.push(() => connection.close());
    return connection;
  }

  /** When etcd no longer has the host. */
  async dropped(store: PlacementStore, id: string): Promise<number> {
    const view = await this.viewOf(store);
    await view.until(() => !view.hosts.has(id), 10_000);
    return now();
  }
}

/** Until it does not reject. */
export async function eventually<T>(run: () => Promise<T>, timeoutMs = 8000): Promise<T> {
  const deadline = now() + timeoutMs;
  for (;;) {
    try {
      return await run();
    } catch (error) {
      if (now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

/** For people. */
export function ms(value: number): string {
  return `${Math.round(value)} ms`;
}
