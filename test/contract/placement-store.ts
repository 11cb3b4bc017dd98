// What every placement store does, as a suite: P1-P5 of actors/ports/placement-store.ts.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import type {
  HostRecord,
  Membership,
  Placement,
  PlacementStore,
  SpecRecord,
  StoreChange,
} from "../../actors/ports/placement-store.js";

export interface Bench {
  readonly ttlMs: number;
  now(): number;
  /** A client of the bench's one store: what one of them writes, all of them see. */
  client(): PlacementStore;
  /** Closes every client. */
  dispose(): Promise<void>;
}

export function placementStoreContract(name: string, setUp: () => Promise<Bench>): void {
  describe(`placement store: ${name}`, () => {
    let bench: Bench;
    let views: View[];
    beforeEach(async () => {
      bench = await setUp();
      views = [];
    });
    afterEach(async () => {
      for (const view of views) await view.close();
      await bench.dispose();
    });
    const view = async (store: PlacementStore): Promise<View> => {
      const opened = new View(store);
      views.push(opened);
      await opened.until(() => opened.log.some(({ kind }) => kind === "connected"));
      return opened;
    };

    it("delivers everything as a reset, says that it is connected, then delivers every change in order", async () => {
      const store = bench.client();
      await store.putSpec(specNamed("old"));
      const { log, until } = await view(bench.client());
      const { spec, hash } = specNamed("new", "second");
      const second = { hash, spec: { ...spec, checkpoint: { ...spec.checkpoint, warmup: ["/", "/login"] } } };
      await store.putSpec(specNamed("new"));
      await store.putSpec(second);
      assert.equal(await store.deleteSpec("old"), true);
      assert.equal(await store.deleteSpec("old"), false);
      await until(() => log.length >= 5);
      assert.deepEqual(log, [
        { kind: "reset", specs: [specNamed("old")], hosts: [], placements: [] },
        { kind: "connected" },
        { kind: "spec", name: "new", record: specNamed("new") },
        { kind: "spec", name: "new", record: second },
        { kind: "spec", name: "old" },
      ]);
    });

    it("changes a specification as it stands, whatever was written meanwhile, and loses none of many changes", async () => {
      const [store, other] = [bench.client(), bench.client()];
      assert.equal(await store.updateSpec("blog", (standing) => Promise.resolve(standing)), undefined);
      await store.putSpec(specNamed("blog"));
      const seen: string[] = [];
      const written = await store.updateSpec("blog", async (standing) => {
        seen.push(standing.hash);
        // Somebody applies a new one in between.
        if (seen.length === 1) await other.putSpec(specNamed("blog", "second"));
        return { ...standing, spec: { ...standing.spec, cwd: "/changed" } };
      });
      assert.deepEqual([seen, written?.hash, written?.spec.cwd], [["first", "second"], "second", "/changed"]);
      await Promise.all(
        [store, other, bench.client()].map((each, n) =>
          each.updateSpec("blog", ({ spec, hash }) =>
            Promise.resolve({ hash, spec: { ...spec, env: { ...spec.env, [`N${n}`]: "1" } } }),
          ),
        ),
      );
      await assert.rejects(
        store.updateSpec("blog", () => Promise.reject(new Error("refused"))),
        /refused/,
      );
      const { specs } = await view(bench.client());
      assert.deepEqual(specs.get("blog")?.spec.env, { A: "1", N0: "1", N1: "1", N2: "1" });
      assert.equal(specs.get("blog")?.spec.cwd, "/changed");
    });

    it("gives up on a specification that is written again each time, or is deleted meanwhile", async () => {
      const store = bench.client();
      await store.putSpec(specNamed("blog"));
      const again = store.updateSpec("blog", async (standing) => {
        await store.putSpec(standing);
        return standing;
      });
      await assert.rejects(again, { code: "STORE_UNAVAILABLE" });
      const gone = await store.updateSpec("blog", async (standing) => {
        await store.deleteSpec("blog");
        return standing;
      });
      assert.equal(gone, undefined);
    });

    it("lets a claim of a free container win, under an epoch that followers see", async () => {
      const store = bench.client();
      const followed = await view(bench.client());
      const a = await store.join(hostNamed("a"));
      const won = await win(a, "blog", 0, { from: "z" });
      assert.equal(won.host, "a");
      assert.equal(won.from, "z");
      assert.ok(won.epoch > 0);
      await followed.until(() => followed.placements.has("blog"));
      assert.deepEqual(followed.placements.get("blog"), won);
    });

    it("refuses a claim whose claimer has not read what stands, and says what stands (P1)", async () => {
      const [a, b] = await joined(bench, "a", "b");
      const first = await win(a, "blog", 0);
      assert.deepEqual(await b.claim(claimOf("blog", 0)), { kind: "lost", placement: first });
      assert.deepEqual(await b.claim(claimOf("blog", first.epoch - 1)), { kind: "lost", placement: first });
      const second = await win(b, "blog", first.epoch);
      assert.deepEqual(await a.claim(claimOf("blog", first.epoch)), { kind: "lost", placement: second });
    });

    it("tells a claimer that expected an owner that there is none", async () => {
      const [a] = await joined(bench, "a");
      assert.deepEqual(await a.claim(claimOf("blog", 1)), { kind: "lost" });
    });

    it("lets exactly one of many concurrent claims win", async () => {
      const members = await joined(bench, "a", "b", "c", "d", "e");
      for (let round = 0, expected = 0; round < 5; round++) {
        const outcomes = await Promise.all(members.map((member) => member.claim(claimOf("blog", expected))));
        const won = outcomes.flatMap((outcome) => (outcome.kind === "won" ? [outcome.placement] : []));
        assert.equal(won.length, 1);
        for (const outcome of outcomes) if (outcome.kind === "lost") assert.deepEqual(outcome.placement, won[0]);
        expected = (won[0] as Placement).epoch;
      }
    });

    it("gives every claim of a container a higher epoch, across owners, releases and specifications (P2)", async () => {
      const [a, b] = await joined(bench, "a", "b");
      const first = await win(a, "blog", 0);
      await a.release("blog", first.epoch);
      const second = await win(b, "blog", 0);
      const third = await win(a, "blog", second.epoch);
      const fourth = await win(a, "blog", third.epoch);
      const epochs = [first, second, third, fourth].map(({ epoch }) => epoch);
      assert.deepEqual(
        epochs,
        [...new Set(epochs)].sort((x, y) => x - y),
      );
    });

    it("lets an owner that claims again without knowing so win what it has", async () => {
      const [a] = await joined(bench, "a");
      const first = await win(a, "blog", 0);
      assert.deepEqual(await a.claim(claimOf("blog", 0)), { kind: "won", placement: first });
    });

    it("releases a placement only of the epoch that is meant", async () => {
      const [a, b] = await joined(bench, "a", "b");
      const followed = await view(bench.client());
      const first = await win(a, "blog", 0);
      const second = await win(b, "blog", first.epoch);
      await a.release("blog", first.epoch);
      assert.deepEqual(await a.claim(claimOf("blog", 0)), { kind: "lost", placement: second });
      await b.release("blog", second.epoch);
      await followed.until(() => followed.log.at(-1)?.kind === "placement" && followed.placements.size === 0);
      assert.deepEqual(followed.log.at(-1), { kind: "placement", container: "blog" });
    });

    it("removes a host and its placements when it leaves, and only those", async () => {
      const [a, b] = await joined(bench, "a", "b");
      const followed = await view(bench.client());
      await win(a, "blog", 0);
      await win(b, "shop", 0);
      await Promise.all([a.leave(), a.leave()]);
      await followed.until(() => !followed.hosts.has("a") && !followed.placements.has("blog"));
      assert.deepEqual([...followed.hosts.keys()], ["b"]);
      assert.deepEqual([...followed.placements.keys()], ["shop"]);
      assert.ok(a.provenUntil <= bench.now());
      assert.equal(await Promise.race([a.lost, Promise.resolve("not lost")]), "not lost");
      assert.equal((await a.claim(claimOf("blog", 0))).kind, "unavailable");
      await assert.rejects(a.update(hostNamed("a")), { code: "LEASE_LOST" });
    });

    it("keeps the host and placements of a crashed agent for as long as it trusted its lease, then removes them (P3)", async () => {
      const [a] = await joined(bench, "a");
      const followed = await view(bench.client());
      await win(a, "blog", 0);
      await followed.until(() => followed.placements.has("blog"));
      a.abandon();
      a.abandon();
      const trusted = a.provenUntil;
      await followed.until(() => followed.placements.size === 0 && followed.hosts.size === 0, 3 * bench.ttlMs + 3000);
      assert.ok(bench.now() > trusted);
    });

    it("keeps a lease for longer than its TTL while its holder lives", async () => {
      const [a] = await joined(bench, "a");
      const followed = await view(bench.client());
      const until = bench.now() + 2 * bench.ttlMs;
      const started = a.provenUntil;
      await followed.until(() => bench.now() > until, 3 * bench.ttlMs);
      assert.ok(a.provenUntil > bench.now());
      assert.ok(a.provenUntil > started);
      assert.ok(followed.hosts.has("a"));
    });

    it("refuses a second live host of the same id at another address", async () => {
      await joined(bench, "a");
      const twin = bench.client().join({ ...hostNamed("a"), port: 9999 });
      await assert.rejects(twin, { code: "HOST_ID_TAKEN" });
    });

    it("lets a restarted agent take its record over and renew its claims; the old one wins nothing more", async () => {
      const [before] = await joined(bench, "a");
      const followed = await view(bench.client());
      const first = await win(before, "blog", 0);
      const after = await bench.client().join({ ...hostNamed("a"), incarnation: "second" });
      const second = await win(after, "blog", first.epoch);
      assert.equal((await before.claim(claimOf("shop", 0))).kind, "unavailable");
      before.abandon();
      const until = bench.now() + 1.5 * bench.ttlMs + 1000;
      await followed.until(() => bench.now() > until, 3 * bench.ttlMs + 3000);
      assert.deepEqual(followed.placements.get("blog"), second);
      assert.equal(followed.hosts.get("a")?.incarnation, "second");
    });

    it("publishes the updates of a host in their order", async () => {
      const [a] = await joined(bench, "a");
      const followed = await view(bench.client());
      await Promise.all([1, 2, 3, 4, 5].map((capacity) => a.update({ ...hostNamed("a"), capacity })));
      await followed.until(() => followed.hosts.get("a")?.capacity === 5);
      const seen = followed.log.flatMap((change) => (change.kind === "host" ? [change.record?.capacity] : []));
      assert.deepEqual(seen, [1, 2, 3, 4, 5]);
    });

    it("misses nothing for a follower that is slow (P5)", async () => {
      const store = bench.client();
      const abort = new AbortController();
      const stream = bench.client().follow(abort.signal)[Symbol.asyncIterator]();
      await stream.next();
      await stream.next();
      for (let n = 0; n < 300; n++) await store.putSpec(specNamed(`s${n}`));
      const names: string[] = [];
      while (names.length < 300) {
        const { value } = (await stream.next()) as { value: StoreChange };
        if (value.kind === "spec") names.push(value.name);
      }
      assert.deepEqual(
        names,
        Array.from({ length: 300 }, (_, n) => `s${n}`),
      );
      abort.abort();
      assert.equal((await stream.next()).done, true);
    });

    it("shows the same to a follower of the first hour and to one that comes late", async () => {
      const members = await joined(bench, "a", "b", "c");
      const early = await view(bench.client());
      let seed = 7;
      const pick = (below: number): number => (seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648) % below;
      for (let step = 0; step < 120; step++) {
        const container = `c${pick(4)}`;
        const member = members[pick(3)] as Membership;
        const standing = early.placements.get(container)?.epoch ?? 0;
        if (pick(4) === 0) await member.release(container, standing);
        else await member.claim(claimOf(container, standing));
      }
      const store = bench.client();
      await store.putSpec(specNamed("last"));
      const late = await view(store);
      await early.until(() => early.specs.has("last"));
      assert.deepEqual(sorted(early.placements), sorted(late.placements));
      assert.deepEqual(sorted(early.hosts), sorted(late.hosts));
    });

    it("ends its followers and tells its members when it is closed, however often", async () => {
      const store = bench.client();
      const member = await store.join(hostNamed("a"));
      const followed = await view(store);
      await Promise.all([store.close(), store.close()]);
      await followed.ended;
      assert.match(await member.lost, /closed/);
      assert.ok(member.provenUntil <= bench.now());
      await assert.rejects(store.putSpec(specNamed("late")), { code: "STORE_UNAVAILABLE" });
      for await (const change of store.follow(new AbortController().signal)) assert.fail(change.kind);
    });
  });
}

/** The tables that a follower builds, and every change that it got. */
export class View {
  readonly log: StoreChange[] = [];
  readonly specs = new Map<string, SpecRecord>();
  readonly hosts = new Map<string, HostRecord>();
  readonly placements = new Map<string, Placement>();
  readonly ended: Promise<void>;
  readonly #abort = new AbortController();
  readonly #waiting = new Set<() => void>();

  constructor(store: PlacementStore) {
    this.ended = this.#follow(store);
  }

  /** Resolves when it holds; checked at each change, and now and then. Rejects after `timeoutMs`. */
  readonly until = async (holds: () => boolean, timeoutMs = 5000): Promise<void> => {
    const deadline = performance.now() + timeoutMs;
    while (!holds()) {
      if (performance.now() > deadline) assert.fail(`not within ${timeoutMs} ms: ${holds.toString()}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(done, 50);
        const waiting = this.#waiting;
        waiting.add(done);
        function done(): void {
          clearTimeout(timer);
          waiting.delete(done);
          resolve();
        }
      });
    }
  };

  count(kind: StoreChange["kind"]): number {
    return this.log.filter((change) => change.kind === kind).length;
  }

  async close(): Promise<void> {
    this.#abort.abort();
    await this.ended;
  }

  async #follow(store: PlacementStore): Promise<void> {
    for await (const change of store.follow(this.#abort.signal)) {
      this.log.push(change);
      this.#apply(change);
      for (const wake of this.#waiting) wake();
    }
  }

  #apply(change: StoreChange): void {
    switch (change.kind) {
      case "reset":
        replace(
          this.specs,
          change.specs.map((record) => [record.spec.name, record]),
        );
        replace(
          this.hosts,
          change.hosts.map((record) => [record.id, record]),
        );
        replace(
          this.placements,
          change.placements.map((placement) => [placement.container, placement]),
        );
        break;
      case "spec":
        put(this.specs, change.name, change.record);
        break;
      case "host":
        put(this.hosts, change.id, change.record);
        break;
      case "placement":
        put(this.placements, change.container, change.placement);
        break;
      case "connected":
      case "disconnected":
        break;
    }
  }
}

export function hostNamed(id: string): HostRecord {
  return {
    id,
    address: "192.0.2.1",
    port: 7000 + (id.codePointAt(0) ?? 0),
    incarnation: "first",
    capacity: 10,
    engines: ["process"],
    fingerprint: { kernel: "6.1" },
    draining: false,
  };
}

export function specNamed(name: string, hash = "first"): SpecRecord {
  return {
    hash,
    spec: {
      name,
      hostnames: [`${name}.example`],
      engine: "process",
      rootfs: "host",
      command: ["serve"],
      cwd: "/",
      env: { A: "1" },
      user: { uid: 1000, gid: 1000 },
      port: 8080,
      mounts: [{ source: "/srv", target: "/srv", readOnly: true }],
      limits: { cpus: 1, memoryMiB: 256, pids: 100 },
      idleTimeoutMs: 0,
      startTimeoutMs: 30_000,
      stopGraceMs: 5000,
      checkpoint: { onReady: true, at: "warm", warmup: "/", timeoutMs: 10_000 },
      takeover: "fast",
      probe: { timeoutMs: 100, kind: "icmp" },
    },
  };
}

export function claimOf(container: string, expected: number): { container: string; expected: number; reason: string } {
  return { container, expected, reason: `a test ${randomUUID()}` };
}

/** Claims and asserts that it won. */
export async function win(member: Membership, container: string, expected: number, more = {}): Promise<Placement> {
  const outcome = await member.claim({ ...claimOf(container, expected), ...more });
  assert.equal(outcome.kind, "won", JSON.stringify(outcome));
  return (outcome as { placement: Placement }).placement;
}

async function joined<const Ids extends readonly string[]>(
  bench: Bench,
  ...ids: Ids
): Promise<{ [K in keyof Ids]: Membership }> {
  const members = await Promise.all(ids.map((id) => bench.client().join(hostNamed(id))));
  return members as unknown as { [K in keyof Ids]: Membership };
}

export function sorted<T>(table: ReadonlyMap<string, T>): [string, T][] {
  return [...table].sort(([a], [b]) => (a < b ? -1 : 1));
}

function replace<T>(table: Map<string, T>, entries: [string, T][]): void {
  table.clear();
  for (const [key, value] of entries) table.set(key, value);
}

function put<T>(table: Map<string, T>, key: string, value: T | undefined): void {
  if (value === undefined) table.delete(key);
  else table.set(key, value);
}
