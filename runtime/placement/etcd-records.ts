// What stands in etcd: the keys under the prefix, and the JSON under each key.
//
//   hosts/<id>                    HostRecord, under the host's lease
//   containers/<name>/spec        SpecRecord
//   containers/<name>/placement   host, since, from, reason, under the owner's lease; the epoch is the key's mod revision
//
// A value that does not read as one of these is as good as absent; unknown fields are left out.
import { z } from "zod";
import type { HostRecord, Placement, SpecRecord } from "../../actors/ports/placement-store.js";

export interface KeyValue {
  readonly key: Buffer;
  readonly value: Buffer;
  /** Decimal. */
  readonly mod_revision: string;
}

export type ParsedKey =
  | { readonly kind: "host"; readonly id: string }
  | { readonly kind: "spec"; readonly name: string }
  | { readonly kind: "placement"; readonly container: string };

export class Keys {
  readonly prefix: Buffer;
  readonly #prefix: string;

  constructor(prefix: string) {
    this.#prefix = prefix;
    this.prefix = Buffer.from(prefix);
  }

  host(id: string): Buffer {
    return Buffer.from(`${this.#prefix}hosts/${id}`);
  }

  spec(name: string): Buffer {
    return Buffer.from(`${this.#prefix}containers/${name}/spec`);
  }

  placement(container: string): Buffer {
    return Buffer.from(`${this.#prefix}containers/${container}/placement`);
  }

  /** Undefined for keys that are not ours. */
  parse(key: Buffer): ParsedKey | undefined {
    const [folder, name, leaf, ...rest] = key.toString().slice(this.#prefix.length).split("/");
    if (name === undefined || name === "" || rest.length > 0) return undefined;
    if (folder === "hosts") return leaf === undefined ? { kind: "host", id: name } : undefined;
    if (folder !== "containers") return undefined;
    if (leaf === "spec") return { kind: "spec", name };
    return leaf === "placement" ? { kind: "placement", container: name } : undefined;
  }
}

const strings = z.record(z.string(), z.string());
const port = z.int().min(1).max(65_535);
const duration = z.number().min(0);

const hostSchema = z.object({
  id: z.string().min(1),
  address: z.string().min(1),
  port,
  incarnation: z.string(),
  probeKind: z.enum(["tcp", "icmp"]).exactOptional(),
  capacity: z.int().min(0),
  engines: z.array(z.string()),
  fingerprint: strings,
  draining: z.boolean(),
}) satisfies z.ZodType<HostRecord>;

/**
 * What every specification has had from the start. Loose: fields that came later pass through as they were written, and whoever wrote
 * them had them checked (runtime/config/spec.ts).
 */
const specSchema = z.looseObject({
  hash: z.string().min(1),
  spec: z.looseObject({
    name: z.string().min(1),
    hostnames: z.array(z.string()),
    engine: z.string().min(1),
    rootfs: z.string(),
    command: z.array(z.string()),
    cwd: z.string(),
    env: strings,
    user: z.looseObject({ uid: z.int(), gid: z.int() }),
    port,
    mounts: z.array(z.looseObject({ source: z.string(), target: z.string(), readOnly: z.boolean() })),
    limits: z.looseObject({ cpus: z.number(), memoryMiB: z.number(), pids: z.number() }),
    idleTimeoutMs: duration,
    startTimeoutMs: duration,
    stopGraceMs: duration,
    checkpoint: z.looseObject({
      onReady: z.boolean(),
      at: z.enum(["listen", "warm"]),
      warmup: z.union([z.string(), z.array(z.string())]),
      timeoutMs: duration,
    }),
    takeover: z.enum(["fast", "confirmed", "exclusive"]),
    probe: z.looseObject({ timeoutMs: duration }),
  }),
});

const placementSchema = z.object({
  host: z.string().min(1),
  since: z.string(),
  from: z.string().exactOptional(),
  reason: z.string(),
}) satisfies z.ZodType<Omit<Placement, "container" | "epoch">>;

export function encode(value: HostRecord | SpecRecord | Omit<Placement, "container" | "epoch">): Buffer {
  return Buffer.from(JSON.stringify(value));
}

export function decodeHost(id: string, { value }: KeyValue): HostRecord | undefined {
  const record = read(hostSchema, value);
  return record?.id === id ? record : undefined;
}

export function decodeSpec(name: string, { value }: KeyValue): SpecRecord | undefined {
  const record = read(specSchema, value) as SpecRecord | undefined;
  return record?.spec.name === name ? record : undefined;
}

export function decodePlacement(container: string, { value, mod_revision }: KeyValue): Placement | undefined {
  const placement = read(placementSchema, value);
  return placement && { container, epoch: Number(mod_revision), ...placement };
}

function read<T>(schema: z.ZodType<T>, value: Buffer): T | undefined {
  try {
    return schema.safeParse(JSON.parse(value.toString())).data;
  } catch {
    return undefined;
  }
}
