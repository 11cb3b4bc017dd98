// The placement store over etcd 3.4 or later: specifications, hosts and placements of everybody. One host's lease, record and
// claims are etcd-membership.ts.
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Clock } from "../../actors/ports/clock.js";
import type { Log } from "../../actors/ports/log.js";
import type {
  HostRecord,
  Membership,
  Placement,
  PlacementStore,
  SpecRecord,
  StoreChange,
} from "../../actors/ports/placement-store.js";
import { EtcdConnection, type EtcdOptions, etcdSettings } from "./etcd-client.js";
import { type KeyChange, followKeys } from "./etcd-follow.js";
import { EtcdLease, type LeaseDeps } from "./etcd-lease.js";
import { EtcdMembership } from "./etcd-membership.js";
import { decodeHost, decodePlacement, decodeSpec, encode, Keys, type KeyValue } from "./etcd-records.js";
import { changesAllTheTime, updateRounds } from "./spec-update.js";

export interface EtcdStoreDeps {
  readonly clock: Clock;
  readonly log: Log;
}

export class EtcdPlacementStore implements PlacementStore {
  readonly #deps: LeaseDeps;
  readonly #keys: Keys;
  readonly #closing = new AbortController();
  readonly #members = new Set<EtcdMembership>();

  /** Connects on first use. @throws HakobuError CONFIG_INVALID naming the field */
  constructor(options: EtcdOptions, { clock, log }: EtcdStoreDeps) {
    const settings = etcdSettings(options);
    this.#deps = { settings, connection: new EtcdConnection(settings), clock, log };
    this.#keys = new Keys(settings.prefix);
  }

  async *follow(signal: AbortSignal): AsyncGenerator<StoreChange, void, void> {
    const { connection, clock, settings } = this.#deps;
    const until = AbortSignal.any([signal, this.#closing.signal]);
    const options = { connection, clock, prefix: this.#keys.prefix, idleMs: 4 * settings.callTimeoutMs };
    for await (const change of followKeys(options, until)) {
      if (until.aborted) return;
      const translated = this.#translate(change);
      if (translated) yield translated;
    }
  }

  async putSpec(record: SpecRecord): Promise<void> {
    const request = { key: this.#keys.spec(record.spec.name), value: encode(record) };
    await this.#deps.connection.call("a specification", ({ kv }) => kv.put(request));
  }

  async updateSpec(
    name: string,
    change: (standing: SpecRecord) => Promise<SpecRecord>,
  ): Promise<SpecRecord | undefined> {
    const key = this.#keys.spec(name);
    const { connection } = this.#deps;
    for (let round = 1; round <= updateRounds; round++) {
      const { kvs } = await connection.call("a specification", ({ kv }) => kv.range({ key }));
      const [entry] = kvs;
      const standing = entry && this.#read(entry, decodeSpec(name, entry));
      if (entry === undefined || standing === undefined) return undefined;
      const record = await change(standing);
      const unchanged = { key, target: "Mod", result: "Equal", mod_revision: entry.mod_revision } as const;
      const put = { request_put: { key, value: encode(record) } };
      const answer = await connection.call("a specification", ({ kv }) =>
        kv.txn({ compare: [unchanged], success: [put], failure: [] }),
      );
      if (answer.succeeded) return record;
    }
    throw changesAllTheTime(name);
  }

  async deleteSpec(name: string): Promise<boolean> {
    const request = { key: this.#keys.spec(name) };
    const answer = await this.#deps.connection.call("a deletion", ({ kv }) => kv.deleteRange(request));
    return answer.deleted !== "0";
  }

  async join(record: HostRecord): Promise<Membership> {
    if (!/^[\w.-]+$/.test(record.id))
      throw new HakobuError("CONFIG_INVALID", `host id ${JSON.stringify(record.id)}: use letters, digits, - _ and .`);
    const lease = await EtcdLease.grant(this.#deps);
    const membership = new EtcdMembership(this.#deps, this.#keys, lease, () => this.#members.delete(membership));
    try {
      await membership.publish(record);
    } catch (error) {
      await membership.leave();
      throw error;
    }
    if (this.#closing.signal.aborted) {
      await membership.leave();
      throw new HakobuError("STORE_UNAVAILABLE", "the placement store was closed while the host joined");
    }
    this.#members.add(membership);
    return membership;
  }

  async read(container: string): Promise<Placement | undefined> {
    const request = { key: this.#keys.placement(container) };
    const { kvs } = await this.#deps.connection.call("a placement", ({ kv }) => kv.range(request));
    const [entry] = kvs;
    return entry && this.#read(entry, decodePlacement(container, entry));
  }

  async close(): Promise<void> {
    this.#closing.abort(new Error("the placement store was closed"));
    for (const member of this.#members) member.lose("the placement store was closed");
    this.#deps.connection.close();
  }

  #translate(change: KeyChange): StoreChange | undefined {
    switch (change.kind) {
      case "reset":
        return this.#reset(change.entries);
      case "put":
        return this.#entry(change.entry.key, change.entry);
      case "delete":
        return this.#entry(change.key);
      case "connected":
      case "disconnected":
        break;
    }
    return change;
  }

  #reset(entries: readonly KeyValue[]): StoreChange {
    const [specs, hosts, placements] = [[], [], []] as [SpecRecord[], HostRecord[], Placement[]];
    for (const entry of entries) {
      const change = this.#entry(entry.key, entry);
      if (change?.kind === "spec" && change.record) specs.push(change.record);
      if (change?.kind === "host" && change.record) hosts.push(change.record);
      if (change?.kind === "placement" && change.placement) placements.push(change.placement);
    }
    return { kind: "reset", specs, hosts, placements };
  }

  /** A value that cannot be read is as good as absent, for everybody alike. */
  #entry(key: Buffer, entry?: KeyValue): StoreChange | undefined {
    const parsed = this.#keys.parse(key);
    switch (parsed?.kind) {
      case "host":
        return { ...parsed, ...where("record", entry && this.#read(entry, decodeHost(parsed.id, entry))) };
      case "spec":
        return { ...parsed, ...where("record", entry && this.#read(entry, decodeSpec(parsed.name, entry))) };
      case "placement": {
        const placement = entry && this.#read(entry, decodePlacement(parsed.container, entry));
        return { ...parsed, ...where("placement", placement) };
      }
      case undefined:
        break;
    }
    this.#deps.log.warn({ key: key.toString() }, "foreign key in etcd: skipped");
    return undefined;
  }

  #read<T>({ key, mod_revision }: KeyValue, value: T | undefined): T | undefined {
    const details = { key: key.toString(), revision: mod_revision };
    if (value === undefined)
      this.#deps.log.warn(details, "value in etcd cannot be read: skipped; rewrite or delete it");
    return value;
  }
}

/** The property, or none: an absent record is not an undefined one. */
function where<K extends string, V>(name: K, value: V | undefined): { readonly [P in K]?: V } {
  return value === undefined ? {} : ({ [name]: value } as { readonly [P in K]: V });
}
