// What a member knows of the cluster, kept in memory from the store's stream: specifications, hosts, placements.
// Reads are map look-ups: the request path never waits for the store.
import type { HostRecord, Placement, SpecRecord, StoreChange } from "./ports/placement-store.js";

export type Noticed =
  | { readonly kind: "spec"; readonly name: string; readonly record?: SpecRecord | undefined }
  | { readonly kind: "host"; readonly id: string; readonly record?: HostRecord | undefined }
  | {
      readonly kind: "placement";
      readonly container: string;
      readonly placement?: Placement | undefined;
      readonly before?: Placement | undefined;
    };

export class ClusterView {
  /** Whether the stream is live. What is known stays in use while it is not. */
  connected = false;
  /** Why it is not. */
  disconnectedReason: string | undefined = "not yet connected";
  readonly #specs = new Map<string, SpecRecord>();
  readonly #hosts = new Map<string, HostRecord>();
  readonly #placements = new Map<string, Placement>();
  readonly #byHostname = new Map<string, SpecRecord>();
  readonly #load = new Map<string, number>();
  readonly #listeners = new Set<(noticed: Noticed) => void>();

  apply(change: StoreChange): void {
    switch (change.kind) {
      case "connected":
        this.connected = true;
        this.disconnectedReason = undefined;
        return;
      case "disconnected":
        this.connected = false;
        this.disconnectedReason = change.reason;
        return;
      case "spec":
        return this.#setSpec(change.name, change.record);
      case "host":
        return this.#setHost(change.id, change.record);
      case "placement": {
        // The stream may lag behind what was learned from a claim's answer.
        const known = this.#placements.get(change.container);
        if (known !== undefined && change.placement !== undefined && change.placement.epoch < known.epoch) return;
        return this.#setPlacement(change.container, change.placement);
      }
      case "reset": {
        const specs = new Map(change.specs.map((record) => [record.spec.name, record]));
        const hosts = new Map(change.hosts.map((record) => [record.id, record]));
        const placements = new Map(change.placements.map((placement) => [placement.container, placement]));
        const names = new Set([...this.#specs.keys(), ...specs.keys()]);
        this.#specs.clear();
        for (const [name, record] of specs) this.#specs.set(name, record);
        this.#assignHostnames();
        for (const name of names) this.#notify({ kind: "spec", name, record: specs.get(name) });
        for (const id of new Set([...this.#hosts.keys(), ...hosts.keys()])) this.#setHost(id, hosts.get(id));
        for (const container of new Set([...this.#placements.keys(), ...placements.keys()]))
          this.#setPlacement(container, placements.get(container));
      }
    }
  }

  /** Takes in a placement that was learned on another way than the stream: a claim's answer, a 421. Newer wins. */
  learn(placement: Placement): void {
    const known = this.#placements.get(placement.container);
    if (known === undefined || known.epoch < placement.epoch) this.#setPlacement(placement.container, placement);
  }

  /** Takes in that the placement of that epoch is no more, which the stream has not said yet. */
  forget(container: string, epoch: number): void {
    if (this.#placements.get(container)?.epoch === epoch) this.#setPlacement(container, undefined);
  }

  spec(name: string): SpecRecord | undefined {
    return this.#specs.get(name);
  }

  /** The application that answers a host name: exact, then `*.parent`, then `*`. */
  specForHostname(hostname: string): SpecRecord | undefined {
    const exact = this.#byHostname.get(hostname);
    if (exact !== undefined) return exact;
    const dot = hostname.indexOf(".");
    return (dot > 0 ? this.#byHostname.get(`*${hostname.slice(dot)}`) : undefined) ?? this.#byHostname.get("*");
  }

  host(id: string): HostRecord | undefined {
    return this.#hosts.get(id);
  }

  placement(container: string): Placement | undefined {
    return this.#placements.get(container);
  }

  specs(): Iterable<SpecRecord> {
    return this.#specs.values();
  }

  hosts(): Iterable<HostRecord> {
    return this.#hosts.values();
  }

  placements(): Iterable<Placement> {
    return this.#placements.values();
  }

  /** How many containers are placed on a host. */
  load(host: string): number {
    return this.#load.get(host) ?? 0;
  }

  /** Called after each change of one item. @returns how to stop. */
  onChange(listener: (noticed: Noticed) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Resolves when `test` holds, looking again after each change; rejects when the signal aborts. */
  until(test: () => boolean, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (test()) return resolve();
      if (signal.aborted) return reject(signal.reason as Error);
      const end = (): void => {
        stop();
        signal.removeEventListener("abort", onAbort);
      };
      const onAbort = (): void => {
        end();
        reject(signal.reason as Error);
      };
      const stop = this.onChange(() => {
        if (!test()) return;
        end();
        resolve();
      });
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }

  #notify(noticed: Noticed): void {
    for (const listener of this.#listeners) listener(noticed);
  }

  #setSpec(name: string, record: SpecRecord | undefined): void {
    const before = this.#specs.get(name);
    if (before === undefined && record === undefined) return;
    if (record === undefined) this.#specs.delete(name);
    else this.#specs.set(name, record);
    this.#assignHostnames();
    this.#notify({ kind: "spec", name, record });
  }

  /** Two applications that ask for one host name: the first by name has it, on every member alike. */
  #assignHostnames(): void {
    this.#byHostname.clear();
    for (const each of [...this.#specs.values()].sort((a, b) => (a.spec.name < b.spec.name ? 1 : -1)))
      for (const hostname of each.spec.hostnames) this.#byHostname.set(hostname, each);
  }

  #setHost(id: string, record: HostRecord | undefined): void {
    if (record === undefined && !this.#hosts.has(id)) return;
    if (record === undefined) this.#hosts.delete(id);
    else this.#hosts.set(id, record);
    this.#notify({ kind: "host", id, record });
  }

  #setPlacement(container: string, placement: Placement | undefined): void {
    const before = this.#placements.get(container);
    if (before?.epoch === placement?.epoch) return;
    if (before !== undefined) this.#load.set(before.host, this.load(before.host) - 1);
    if (placement === undefined) this.#placements.delete(container);
    else {
      this.#placements.set(container, placement);
      this.#load.set(placement.host, this.load(placement.host) + 1);
    }
    this.#notify({ kind: "placement", container, placement, before });
  }
}
