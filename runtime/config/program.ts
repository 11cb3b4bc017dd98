// The configuration of `hakobu host` and `hakobu proxy`. Each setting comes from the first of: option, environment, file, default.
// One table for all four: the schema. `settings` lists it for the command line; names of options and variables follow from
// the path of a setting (`host.stateDir` is `--state-dir` and `HAKOBU_HOST_STATE_DIR`).
//
//   G1  What is returned is complete, deep-frozen, and contradicts itself nowhere.
//   G2  A password never comes from a file or an option, where others can read it: only from the environment.
//   G3  Every problem is named at once, with the option, the variable or the line it comes from.
import { readFile } from "node:fs/promises";
import { isIP } from "node:net";
import { hostname } from "node:os";
import { z } from "zod";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { ProbeKind } from "../../actors/ports/prober.js";
import { deepFreeze, type Document, parseDocuments } from "./document.js";
import * as fields from "./fields.js";
import { formatSize } from "./size.js";
import { type Path, type Problem, problemsOf, refusal } from "./problem.js";

const SECOND = 1000;
const HOUR = 3_600_000;
const KiB = 2 ** 10;
const MiB = 2 ** 20;
const GiB = 2 ** 30;
const PiB = 2 ** 50;
/** Bodies that wait for their host, all together. */
const MOST_WAITING_BYTES = 4 * GiB;

export type { Endpoint } from "./fields.js";

const endpoint = fields.field<fields.Endpoint>(
  "an IP address and port, such as 10.0.0.1:8080 or [::1]:8080",
  (input) => {
    const match = typeof input === "string" ? /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(input) : null;
    if (match === null) return undefined;
    const address = match[1] ?? match[2] ?? "";
    const port = Number(match[3]);
    return isIP(address) === (match[1] === undefined ? 4 : 6) && port > 0 && port < 65_536
      ? { address, port }
      : undefined;
  },
);

function listOf<T>(item: z.ZodType<T>, expected: string): z.ZodType<T[]> {
  return fields.field(`a list of ${expected}`, (input) => {
    const parts: unknown = typeof input === "string" ? input.split(",").map((part) => part.trim()) : input;
    if (!Array.isArray(parts) || parts.length === 0) return undefined;
    const read = parts.map((part) => item.safeParse(part));
    return read.every((result) => result.success) ? read.map((result) => result.data) : undefined;
  });
}

const url = fields.text("a URL", /^https?:\/\/[^/\s@]+$/);
const file = fields.absolutePath.optional();

const etcd = fields.section({
  endpoints: listOf(url, "URLs such as http://10.0.0.1:2379")
    .default(["http://127.0.0.1:2379"])
    .describe("members of the etcd cluster"),
  prefix: fields
    .text("letters, digits, - _ . and /, with a / at the end", /^[\w.-]+(\/[\w.-]+)*\/$/)
    .default("hakobu/")
    .describe("start of every key"),
  ttl: fields
    .duration(2 * SECOND, 60 * SECOND)
    .default(10 * SECOND)
    .describe("lease of a host: how long a dead one keeps what it owns"),
  callTimeout: fields
    .duration(50, 30 * SECOND)
    .default(SECOND)
    .describe("deadline of one call"),
  tls: fields.section({
    ca: file.describe("certificate authority, PEM"),
    cert: file.describe("client certificate, PEM"),
    key: file.describe("key of the client certificate, PEM"),
  }),
});
const log = fields.section({
  level: fields.oneOf("debug", "info", "warn", "error").default("info").describe("least level that is written"),
});

const hostSchema = fields.block({
  etcd,
  log,
  host: fields.section({
    id: fields.name.optional().describe("name of this host in the cluster; default: the machine's"),
    listen: endpoint.default({ address: "127.0.0.1", port: 7070 }).describe("where it listens"),
    advertise: endpoint.optional().describe("where proxies reach it; default: where it listens"),
    stateDir: file.describe("its own files; default: /var/lib/hakobu/<id>"),
    images: fields.absolutePath.default("/var/lib/hakobu/images").describe("checkpoint images, shared by all hosts"),
    capacity: fields.whole(1, 10_000).default(100).describe("containers it may own at once"),
    probe: fields.section({
      kind: fields
        .oneOf("tcp", "icmp")
        .optional()
        .describe("how this host is asked whether it is there; default: as the proxies are configured"),
    }),
    startsAtOnce: fields
      .whole(1, 1000)
      .optional()
      .describe("containers that may come up at the same time, the rest wait; default: one per processor, at least 2"),
    warmImages: fields
      .size(0, PiB, "1GiB")
      .default(1024 * MiB)
      .describe("how much of the images that it would be asked for next is kept in memory; 0B: nothing"),
    engines: listOf(fields.oneOf("runc", "process", "haconiwa"), "runc, process and haconiwa")
      .default(["runc"])
      .describe("what it can run"),
  }),
  images: fields.section({
    keyFile: file.describe("key of the cluster, 32 random bytes or more: images without its MAC are refused"),
    encrypt: fields.flag.default(false).describe("images are encrypted with that key, and others refused"),
    quota: fields.size(MiB, PiB, "50GiB").optional().describe("of all images together; default: none"),
    keep: fields.whole(1, 100).default(2).describe("good images of each container that are kept"),
    keepBad: fields
      .duration(0, 365 * 24 * HOUR)
      .default(24 * HOUR)
      .describe("how long an image that failed is kept, for people to look at"),
  }),
});

const proxySchema = fields.block({
  etcd,
  log,
  proxy: fields.section({
    listen: endpoint.default({ address: "0.0.0.0", port: 8080 }).describe("where clients reach it"),
    admin: endpoint.default({ address: "127.0.0.1", port: 8081 }).describe("where operators reach it; not protected"),
    requestTimeout: fields
      .duration(SECOND, 24 * HOUR)
      .default(60 * SECOND)
      .describe("longest wait for the head of a response"),
    relocationTimeout: fields
      .duration(SECOND, HOUR)
      .default(60 * SECOND)
      .describe("longest move of a container"),
    probe: fields.section({
      kind: fields
        .oneOf("tcp", "icmp")
        .default("tcp")
        .describe("how a host is asked whether it is there, where a container does not say"),
      timeout: fields
        .duration(10, 10 * SECOND)
        .default(100)
        .describe("silence of a host that counts as its death"),
      floor: fields
        .duration(1, 10 * SECOND)
        .default(50)
        .describe("least time-out of a probe, however quick a host's answers are"),
      fresh: fields
        .duration(0, 10 * SECOND)
        .default(10)
        .describe("a host that was heard this recently is not probed"),
    }),
    replayLimit: fields
      .size(0, GiB, "256KiB")
      .default(256 * KiB)
      .describe("request body up to which it is kept, to be sent again"),
    maxWaiting: fields.whole(1, 1_000_000).default(1000).describe("requests that may wait for a container at once"),
    movesPerMinute: fields
      .whole(1, 10_000)
      .default(6)
      .describe("moves of one container from which on it does not move on suspicion"),
    trustForwarded: fields.flag
      .default(false)
      .describe("believe Forwarded and X-Forwarded-* of whoever connects: only behind a load balancer"),
  }),
});

export interface EtcdConfig {
  readonly endpoints: readonly string[];
  readonly prefix: string;
  readonly ttlMs: number;
  readonly callTimeoutMs: number;
  /** Paths of PEM files. */
  readonly tls?: { readonly ca?: string; readonly cert?: string; readonly key?: string };
  readonly auth?: { readonly username: string; readonly password: string };
}

interface ProgramConfig {
  readonly etcd: EtcdConfig;
  readonly log: { readonly level: "debug" | "info" | "warn" | "error" };
}

export interface HostConfig extends ProgramConfig {
  readonly host: {
    readonly id: string;
    readonly listen: fields.Endpoint;
    readonly advertise: fields.Endpoint;
    readonly stateDir: string;
    readonly images: string;
    readonly capacity: number;
    readonly probeKind?: ProbeKind;
    readonly startsAtOnce?: number;
    readonly warmBytes: number;
    readonly engines: readonly ("runc" | "process" | "haconiwa")[];
  };
  readonly images: {
    readonly keyFile?: string;
    readonly encrypt: boolean;
    readonly quotaBytes?: number;
    readonly keep: number;
    readonly keepBadMs: number;
  };
}

export interface ProxyConfig extends ProgramConfig {
  readonly proxy: {
    readonly listen: fields.Endpoint;
    readonly admin: fields.Endpoint;
    readonly requestTimeoutMs: number;
    readonly relocationTimeoutMs: number;
    readonly probe: {
      readonly kind: ProbeKind;
      readonly timeoutMs: number;
      readonly floorMs: number;
      readonly freshMs: number;
    };
    readonly replayLimitBytes: number;
    readonly maxWaiting: number;
    readonly movesPerMinute: number;
    readonly trustForwarded: boolean;
  };
}

/** One leaf of a schema. */
export interface Setting {
  /** `host.stateDir` */
  readonly path: string;
  /** `--state-dir` */
  readonly option: string;
  /** `HAKOBU_HOST_STATE_DIR` */
  readonly variable: string;
  readonly description: string;
}

export interface Sources {
  /** Path of a YAML file. */
  readonly file?: string | undefined;
  readonly env: NodeJS.ProcessEnv;
  /** What was given on the command line, by the path of the setting. */
  readonly options?: Readonly<Record<string, string | undefined>>;
}

const words = (name: string): string[] => name.split(/(?=[A-Z])/).map((word) => word.toLowerCase());

function settingsOf(schema: z.core.$ZodType, path: readonly string[] = [], description = ""): Setting[] {
  const { shape, innerType } = schema._zod.def as {
    readonly shape?: Record<string, z.core.$ZodType>;
    readonly innerType?: z.core.$ZodType;
  };
  const own = z.globalRegistry.get(schema)?.description ?? description;
  if (shape !== undefined) return Object.entries(shape).flatMap(([key, part]) => settingsOf(part, [...path, key]));
  if (innerType !== undefined) return settingsOf(innerType, path, own);
  const [first, ...rest] = path;
  const short = first === "host" || first === "proxy" ? rest : path;
  return [
    {
      path: path.join("."),
      option: `--${short.flatMap(words).join("-")}`,
      variable: `HAKOBU_${path.flatMap(words).join("_").toUpperCase()}`,
      description: own,
    },
  ];
}

export const hostSettings: readonly Setting[] = settingsOf(hostSchema);
export const proxySettings: readonly Setting[] = settingsOf(proxySchema);

interface Gathered {
  readonly value: Record<string, unknown>;
  readonly where: (path: Path) => string;
}

async function gather(settings: readonly Setting[], { file: path, env, options = {} }: Sources): Promise<Gathered> {
  const document = path === undefined ? undefined : await readDocument(path);
  if (document?.value !== undefined && (typeof document.value !== "object" || Array.isArray(document.value)))
    throw new HakobuError("CONFIG_INVALID", `${document.where([])}: expected sections such as "etcd:"`);
  const value = structuredClone((document?.value ?? {}) as Record<string, unknown>);
  const origins = new Map<string, string>();
  for (const setting of settings) {
    // An empty variable is one that was unset in a unit file or a shell.
    const given = options[setting.path] ?? (env[setting.variable] === "" ? undefined : env[setting.variable]);
    if (given === undefined) continue;
    origins.set(setting.path, options[setting.path] === undefined ? setting.variable : setting.option);
    put(value, setting.path.split("."), given);
  }
  for (const key of Object.keys(options))
    if (!settings.some((setting) => setting.path === key))
      throw new HakobuError("CONFIG_INVALID", `${key} is not a setting: this is a mistake in the program that gave it`);
  const where = (at: Path): string => origins.get(at.join(".")) ?? document?.where(at) ?? "configuration";
  return { value, where };
}

/** Sets a leaf; a section that is not one in the file stays as it is and is refused by the schema. */
function put(root: Record<string, unknown>, path: readonly string[], leaf: string): void {
  let section = root;
  for (const key of path.slice(0, -1)) {
    const next = (section[key] ??= {});
    if (typeof next !== "object" || next === null || Array.isArray(next)) return;
    section = next as Record<string, unknown>;
  }
  section[path.at(-1) as string] = leaf;
}

async function readDocument(path: string): Promise<Document> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    throw new HakobuError("CONFIG_INVALID", `${path}: cannot be read (${reasonOf(cause)}): check the path`, { cause });
  }
  const [document, another] = parseDocuments(text, path);
  if (another !== undefined)
    throw new HakobuError("CONFIG_INVALID", `${another.where([])}: expected one document only`);
  return document ?? { value: undefined, where: () => path };
}

function check<T extends z.ZodType>(schema: T, { value, where }: Gathered): z.output<T> {
  const result = schema.safeParse(value);
  if (!result.success) throw refusal(problemsOf(schema, result.error), where);
  return result.data;
}

function etcdOf(
  form: z.output<typeof etcd>,
  env: NodeJS.ProcessEnv,
  refuse: (path: string, message: string) => void,
): EtcdConfig {
  const { endpoints, prefix, ttl: ttlMs, callTimeout: callTimeoutMs, tls } = form;
  const secure = endpoints.filter((each) => each.startsWith("https:")).length;
  const { ca, cert, key } = tls;
  if (secure !== 0 && secure !== endpoints.length) refuse("etcd.endpoints", "are partly http and partly https");
  if (secure === 0 && (ca ?? cert ?? key) !== undefined)
    refuse("etcd.tls", "has no effect with http endpoints: write https, or leave it out");
  if ((cert === undefined) !== (key === undefined))
    refuse(cert === undefined ? "etcd.tls.key" : "etcd.tls.cert", "etcd.tls.cert and etcd.tls.key go together");
  if (ttlMs % SECOND !== 0) refuse("etcd.ttl", "must be whole seconds: etcd keeps leases so");
  if (callTimeoutMs * 2 > ttlMs)
    refuse("etcd.callTimeout", "must be at most half of etcd.ttl, or one slow call loses the lease");
  const { HAKOBU_ETCD_USERNAME: username, HAKOBU_ETCD_PASSWORD: password } = env;
  if ((username === undefined) !== (password === undefined))
    refuse("etcd", "HAKOBU_ETCD_USERNAME and HAKOBU_ETCD_PASSWORD go together");
  if (password !== undefined && secure === 0 && !endpoints.every((each) => /\/\/(127\.|\[::1\]|localhost)/.test(each)))
    refuse("etcd.endpoints", "would send the password of etcd in clear: write https");
  return {
    endpoints,
    prefix,
    ttlMs,
    callTimeoutMs,
    ...(secure === 0 ? {} : { tls: tls as NonNullable<EtcdConfig["tls"]> }),
    ...(username === undefined || password === undefined ? {} : { auth: { username, password } }),
  };
}

function collector(where: (path: Path) => string): {
  refuse: (path: string, message: string) => void;
  settle: () => void;
} {
  const problems: Problem[] = [];
  return {
    refuse: (path, message) => void problems.push({ path: path.split("."), message }),
    settle: () => {
      if (problems.length > 0) throw refusal(problems, where);
    },
  };
}

const isWildcard = ({ address }: fields.Endpoint): boolean => address === "0.0.0.0" || address === "::";
const isLoopback = ({ address }: fields.Endpoint): boolean => address.startsWith("127.") || address === "::1";

/** @throws HakobuError CONFIG_INVALID */
export async function readHostConfig(sources: Sources): Promise<HostConfig> {
  const gathered = await gather(hostSettings, sources);
  const form = check(hostSchema, gathered);
  const { refuse, settle } = collector(gathered.where);
  const { listen, images, capacity, probe, startsAtOnce, warmImages: warmBytes, engines } = form.host;
  const machine = hostname().split(".")[0]?.toLowerCase() ?? "";
  const id = form.host.id ?? machine;
  if (!fields.NAME.test(id)) refuse("host.id", `is missing, and the machine's name "${machine}" cannot be one: set it`);
  const advertise = form.host.advertise ?? listen;
  if (isWildcard(advertise))
    refuse(
      form.host.advertise === undefined ? "host.listen" : "host.advertise",
      "proxies cannot reach this: set host.advertise",
    );
  if (isLoopback(advertise) && !isLoopback(listen) && !isWildcard(listen))
    refuse("host.advertise", "is this machine only, and host.listen is not there");
  const stateDir = form.host.stateDir ?? `/var/lib/hakobu/${id}`;
  if (images === stateDir) refuse("host.images", "must not be host.stateDir: it is shared by all hosts");
  const { keyFile, encrypt, quota, keep, keepBad } = form.images;
  if (encrypt && keyFile === undefined) refuse("images.encrypt", "needs images.keyFile");
  if (keyFile?.startsWith(`${images}/`)) refuse("images.keyFile", "must not lie with the images that it protects");
  if (keyFile !== undefined && keyFile.split("/").length < 4)
    refuse("images.keyFile", "its directory is hidden from containers: use one of its own, such as /etc/hakobu");
  const config = {
    etcd: etcdOf(form.etcd, sources.env, refuse),
    log: form.log,
    host: {
      id,
      listen,
      advertise,
      stateDir,
      images,
      capacity,
      ...(probe.kind === undefined ? {} : { probeKind: probe.kind }),
      ...(startsAtOnce === undefined ? {} : { startsAtOnce }),
      warmBytes,
      engines: [...new Set(engines)],
    },
    images: {
      ...(keyFile === undefined ? {} : { keyFile }),
      encrypt,
      ...(quota === undefined ? {} : { quotaBytes: quota }),
      keep,
      keepBadMs: keepBad,
    },
  };
  settle();
  return deepFreeze(config);
}

/** @throws HakobuError CONFIG_INVALID */
export async function readProxyConfig(sources: Sources): Promise<ProxyConfig> {
  const gathered = await gather(proxySettings, sources);
  const form = check(proxySchema, gathered);
  const { refuse, settle } = collector(gathered.where);
  const {
    listen,
    admin,
    requestTimeout,
    relocationTimeout,
    probe,
    replayLimit,
    maxWaiting,
    movesPerMinute,
    trustForwarded,
  } = form.proxy;
  if (listen.port === admin.port && (listen.address === admin.address || isWildcard(listen) || isWildcard(admin)))
    refuse("proxy.admin", "is the same as proxy.listen");
  if (!isLoopback(admin))
    refuse("proxy.admin", "anybody who reaches it can move containers: use a loopback address, and a tunnel to it");
  if (relocationTimeout > requestTimeout)
    refuse("proxy.relocationTimeout", "is longer than proxy.requestTimeout, which would end the request before");
  if (probe.fresh > SECOND || probe.fresh * 2 > form.etcd.ttl)
    refuse("proxy.probe.fresh", "would take dead hosts for alive: at most 1s, and at most half of etcd.ttl");
  if (probe.timeout >= form.etcd.ttl)
    refuse("proxy.probe.timeout", "is not shorter than etcd.ttl: the lease would end before the probe does");
  if (replayLimit * maxWaiting > MOST_WAITING_BYTES)
    refuse(
      "proxy.replayLimit",
      `${maxWaiting} waiting requests could hold ${formatSize(replayLimit * maxWaiting)} of memory: at most ${formatSize(MOST_WAITING_BYTES)} for proxy.replayLimit x proxy.maxWaiting`,
    );
  const config = {
    etcd: etcdOf(form.etcd, sources.env, refuse),
    log: form.log,
    proxy: {
      listen,
      admin,
      requestTimeoutMs: requestTimeout,
      relocationTimeoutMs: relocationTimeout,
      probe: { kind: probe.kind, timeoutMs: probe.timeout, floorMs: probe.floor, freshMs: probe.fresh },
      replayLimitBytes: replayLimit,
      maxWaiting,
      movesPerMinute,
      trustForwarded,
    },
  };
  settle();
  return deepFreeze(config);
}
