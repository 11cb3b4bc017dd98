// The connection to etcd: validated settings, one client per endpoint, deadlines, and the translation of foreign errors.
//
//   C1  No unary call outlives `callTimeoutMs` (twice that where a password has to be exchanged for a token first).
//   C2  Nothing is retried behind the caller's back, except on another endpoint when no connection was made at all:
//       with etcd3's own retries an answer that was lost turns into `succeeded: false` although the write was applied.
//   C3  Every call asks for a member that sees a leader (`hasleader`, as in etcd's Go client): a member cut off from the
//       others ends our streams instead of going silent.
import { readFileSync } from "node:fs";
import { noop } from "cockatiel";
import {
  type CallOptionsFactory,
  ClientClosedError,
  Etcd3,
  EtcdLeaseInvalidError,
  GRPCAbortedError,
  GRPCCancelledError,
  GRPCDeadlineExceededError,
  GRPCInternalError,
  GRPCResourceExhastedError,
  GRPCUnavailableError,
  GRPCUnknownError,
  type IOptions,
} from "etcd3";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";

export interface EtcdTls {
  /**
   * Paths of PEM files. Without an authority, those that Node trusts count (its environment variable NODE_EXTRA_CA_CERTS adds one).
   * With a certificate and its key the client proves who it is (etcd: `--client-cert-auth`).
   */
  readonly caFile?: string;
  readonly certFile?: string;
  readonly keyFile?: string;
}

export interface EtcdOptions {
  /** `http://host:port` or `https://host:port`, one for each member. */
  readonly hosts: readonly string[];
  /** Start of every key, ending in a slash. Default `hakobu/`. */
  readonly prefix?: string;
  /** Time-to-live of a host's lease. Whole seconds, at least 2, the least that etcd keeps. */
  readonly ttlSeconds: number;
  /** From one keep-alive to the next; at most a third of the TTL. Default a quarter. */
  readonly renewEveryMs?: number;
  /** How long before the end of its lease a host stops trusting it; less than half of the TTL. Default 20 %. */
  readonly stopBudgetMs?: number;
  /** Deadline of one call. */
  readonly callTimeoutMs: number;
  readonly tls?: EtcdTls;
  readonly auth?: { readonly username: string; readonly password: string };
}

/** Options with every default filled in and every contradiction refused. */
export interface EtcdSettings {
  readonly hosts: readonly string[];
  readonly prefix: string;
  readonly ttlMs: number;
  readonly renewEveryMs: number;
  readonly stopBudgetMs: number;
  readonly callTimeoutMs: number;
  readonly tls?: EtcdTls;
  readonly auth?: { readonly username: string; readonly password: string };
}

const maxMessageBytes = 16 * 1024 * 1024;

/** @throws HakobuError CONFIG_INVALID naming the field */
export function etcdSettings(options: EtcdOptions): EtcdSettings {
  const { hosts, prefix = "hakobu/", ttlSeconds, callTimeoutMs, tls, auth } = options;
  const ttlMs = ttlSeconds * 1000;
  const { renewEveryMs = ttlMs / 4, stopBudgetMs = ttlMs / 5 } = options;
  if (hosts.length === 0) invalid("hosts", "names no etcd member; give at least one, like http://127.0.0.1:2379");
  for (const host of hosts)
    if (!/^https?:\/\/[^/\s]+:\d+$/.test(host))
      invalid("hosts", `has ${JSON.stringify(host)}; write http(s)://host:port`);
  const secure = hosts.filter((host) => host.startsWith("https:")).length;
  if (secure !== 0 && secure !== hosts.length)
    invalid("hosts", "mixes http and https; use one of them for all members");
  if (tls && secure === 0) invalid("tls", "is given but the hosts are http://; write https:// or leave tls out");
  if (tls && (tls.certFile === undefined) !== (tls.keyFile === undefined))
    invalid("tls", "needs certFile and keyFile together");
  if (auth && (auth.username === "" || auth.password === "")) invalid("auth", "needs a user name and a password");
  if (!/^([\w.-]+\/)+$/.test(prefix)) invalid("prefix", `is ${JSON.stringify(prefix)}; write one that ends in a slash`);
  if (!Number.isInteger(ttlSeconds) || ttlSeconds < 2)
    invalid("ttlSeconds", `is ${ttlSeconds}; etcd keeps leases of whole seconds, from 2`);
  if (!(renewEveryMs > 0 && renewEveryMs <= ttlMs / 3))
    invalid("renewEveryMs", `is ${renewEveryMs}; with a TTL of ${ttlSeconds} s use at most ${Math.floor(ttlMs / 3)}`);
  if (!(stopBudgetMs > 0 && stopBudgetMs < ttlMs / 2))
    invalid(
      "stopBudgetMs",
      `is ${stopBudgetMs}; with a TTL of ${ttlSeconds} s use more than 0 and less than ${ttlMs / 2}`,
    );
  if (!(callTimeoutMs >= 10)) invalid("callTimeoutMs", `is ${callTimeoutMs}; use at least 10`);
  const given = { ...(tls ? { tls } : {}), ...(auth ? { auth } : {}) };
  return Object.freeze({ hosts, prefix, ttlMs, renewEveryMs, stopBudgetMs, callTimeoutMs, ...given });
}

function invalid(field: string, problem: string): never {
  throw new HakobuError("CONFIG_INVALID", `etcd: ${field} ${problem}`);
}

export class EtcdConnection {
  readonly #settings: EtcdSettings;
  /** One for each endpoint, so that a call goes on being sent to the member that answers. */
  readonly #clients: readonly Etcd3[];
  #current = 0;
  #closed = false;

  /** Connects on first use. @throws HakobuError CONFIG_INVALID when a file of `tls` cannot be read */
  constructor(settings: EtcdSettings) {
    this.#settings = settings;
    const options = clientOptions(settings);
    this.#clients = settings.hosts.map((host) => new Etcd3({ ...options, hosts: host }));
  }

  /** The client that answered last. For streams; report their failures with `failed`. */
  get client(): Etcd3 {
    if (this.#closed) throw new HakobuError("STORE_UNAVAILABLE", "the placement store was closed by its user");
    return this.#clients[this.#current] as Etcd3;
  }

  /** Later calls go to the next endpoint, unless they do already. */
  failed(client: Etcd3): void {
    if (this.#clients[this.#current] === client) this.#current = (this.#current + 1) % this.#clients.length;
  }

  /** One unary call (C1, C2). @throws HakobuError STORE_UNAVAILABLE, STORE_REFUSED */
  async call<T>(what: string, run: (client: Etcd3) => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      const { client } = this;
      try {
        return await run(client);
      } catch (error) {
        if (error instanceof HakobuError) throw error;
        const refused = isRefusal(error);
        if (!refused) this.failed(client);
        if (neverSent(error) && attempt < this.#clients.length) continue;
        throw refused ? this.#refused(what, error) : this.#unavailable(what, error);
      }
    }
  }

  /** Idempotent. Calls that are under way end by their deadline. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const client of this.#clients) client.close();
  }

  #refused(what: string, cause: unknown): HakobuError {
    const reason = reasonOf(cause);
    const wayOut =
      cause instanceof GRPCResourceExhastedError
        ? "free space or raise its quota (etcdctl alarm list, compact, defrag), or write less at once"
        : cause instanceof EtcdLeaseInvalidError
          ? "the lease has ended; join again"
          : "check the etcd user, certificate and permissions that this program was given";
    return new HakobuError("STORE_REFUSED", `etcd refused ${what}: ${reason}; ${wayOut}`, { cause });
  }

  #unavailable(what: string, cause: unknown): HakobuError {
    const hosts = this.#settings.hosts.join(",");
    const message = `etcd did not answer ${what} within ${this.#settings.callTimeoutMs} ms: ${reasonOf(cause)}`;
    const wayOut = `check that it runs and has a leader (etcdctl --endpoints=${hosts} endpoint health)`;
    return new HakobuError("STORE_UNAVAILABLE", `${message}; ${wayOut}`, { cause, retryable: true });
  }
}

function clientOptions(settings: EtcdSettings): Omit<IOptions, "hosts"> {
  const { tls, auth, callTimeoutMs } = settings;
  return {
    ...(tls ? { credentials: credentials(tls) } : {}),
    ...(auth ? { auth } : {}),
    faultHandling: { global: noop, host: () => noop },
    defaultCallOptions: ({ isStream }) => ({
      interceptors: [requireLeader],
      ...(isStream ? {} : { deadline: Date.now() + callTimeoutMs }),
    }),
    grpcOptions: {
      // etcd tolerates one ping in 5 s, and none while nothing is being called (its flag --grpc-keepalive-min-time).
      "grpc.keepalive_time_ms": 5000,
      "grpc.keepalive_timeout_ms": 2000,
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 1000,
      // A TCP connection for each service: the lease's keep-alives never queue behind a listing.
      "grpc.use_local_subchannel_pool": 1,
      "grpc.max_receive_message_length": maxMessageBytes,
    },
  };
}

function credentials({ caFile, certFile, keyFile }: EtcdTls): NonNullable<IOptions["credentials"]> {
  const files = {
    ...(caFile === undefined ? {} : { rootCertificate: read("tls.caFile", caFile) }),
    ...(certFile && keyFile
      ? { certChain: read("tls.certFile", certFile), privateKey: read("tls.keyFile", keyFile) }
      : {}),
  };
  // Its type wants an authority; grpc-js, which gets it, does not.
  return files as NonNullable<IOptions["credentials"]>;
}

function read(field: string, path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw new HakobuError("CONFIG_INVALID", `etcd: ${field} cannot be read: ${reasonOf(cause)}`, { cause });
  }
}

type Interceptor = NonNullable<Extract<CallOptionsFactory, { interceptors?: unknown }>["interceptors"]>[number];

/** C3. */
const requireLeader: Interceptor = (options, nextCall) => {
  const call = nextCall(options);
  const start = call.start.bind(call);
  call.start = (metadata, listener) => {
    const marked = metadata.clone();
    marked.set("hasleader", "true");
    start(marked, listener);
  };
  return call as ReturnType<Interceptor>;
};

/** Whether etcd, rather than the way to it, said no. */
function isRefusal(error: unknown): boolean {
  return ![
    ClientClosedError,
    GRPCUnavailableError,
    GRPCDeadlineExceededError,
    GRPCCancelledError,
    GRPCUnknownError,
    GRPCInternalError,
    GRPCAbortedError,
  ].some((kind) => error instanceof kind);
}

/** grpc-js says so before it has given a request to any connection. */
function neverSent(error: unknown): boolean {
  return error instanceof GRPCUnavailableError && error.message.includes("No connection established");
}
