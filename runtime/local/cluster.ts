// A whole cluster on one machine, for `hakobu up`, `npm start`, tests and benchmarks: a placement store, a proxy, and hosts.
// Two ways to the same interface: hosts as network namespaces (namespaces.ts) and, where that is not permitted, on loopback
// addresses in this process (loopback.ts).
import type { HostStatus } from "../dispatcher/control.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import type { MoveReport } from "../../actors/move-report.js";

export interface LocalCluster {
  readonly mode: "namespaces" | "loopback";
  readonly hosts: readonly string[];
  /** What containers may run on: the first is the best there is. */
  readonly engines: readonly string[];
  /** Of the proxy: requests, and the admin API. */
  readonly proxy: { readonly address: string; readonly port: number };
  readonly admin: { readonly address: string; readonly port: number };
  /** Absent in loopback mode, which has a store of its own in memory. */
  readonly etcd: string | undefined;
  /** A directory that all hosts see. */
  readonly shared: string;
  /** Where the members write their logs. */
  readonly logs: string;
  apply(records: readonly SpecRecord[]): Promise<void>;
  delete(name: string): Promise<void>;
  /** The host that owns a container. */
  owner(container: string): Promise<string | undefined>;
  status(host: string): Promise<HostStatus | undefined>;
  moves(): Promise<readonly MoveReport[]>;
  /** Takes a host away without a word: packets dropped (namespaces), or everything of its agent cut (loopback). */
  cut(host: string): Promise<void>;
  /** Brings it back, and waits until it is a member again and the proxy trusts it. */
  heal(host: string): Promise<void>;
  /** What a person can type to cut and heal a host. */
  byHand(host: string): { readonly cut: string; readonly heal: string } | undefined;
  /** Removes everything that it made. Idempotent. */
  close(): Promise<void>;
}
