// What users see while etcd answers, but not as it should: it refuses its user, is slow, has compacted what somebody missed, gets
// another leader. Members are processes of the program on loopback. (Away and hung: ownership.test.ts; no space: etcd-trouble.test.ts.)
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { noLog } from "../../actors/ports/log.js";
import { specRecord } from "../../runtime/config/spec.js";
import { findProgram } from "../../runtime/doctor/criu-binary.js";
import { EtcdConnection, type EtcdOptions, etcdSettings } from "../../runtime/placement/etcd-client.js";
import { Keys } from "../../runtime/placement/etcd-records.js";
import { type EtcdCluster, type EtcdServer, startEtcd, startEtcdCluster } from "../../runtime/placement/etcd-server.js";
import { EtcdPlacementStore } from "../../runtime/placement/etcd.js";
import { systemClock } from "../../runtime/system-clock.js";
import { eventually, fixtures, type Reply, send } from "../lab/cluster.js";
import { hakobu, type Members, startMembers } from "../lab/program.js";
import { specOf } from "../lab/records.js";
import { TcpProxy } from "../lab/tcp-proxy.js";

const ttlSeconds = 3;
const ttlMs = ttlSeconds * 1000;
const root = { username: "root", password: "root's own" };
const user = { username: "hakobu", password: "correct horse" };

const epochOf = (reply: Reply): number => (JSON.parse(reply.text) as { epoch: number }).epoch;

interface BenchOptions {
  readonly direct: readonly string[];
  /** Where the members find it; default the same. */
  readonly members?: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
  readonly auth?: EtcdOptions["auth"];
}

function optionsFor(hosts: readonly string[], auth: EtcdOptions["auth"]): EtcdOptions {
  return { hosts, ttlSeconds, callTimeoutMs: 5000, ...(auth === undefined ? {} : { auth }) };
}

/** One cluster for the tests of a suite, and what each of them asserts. */
class Bench {
  readonly #members: Members;
  /** For the test itself, past what stands between etcd and the members. */
  readonly #store: EtcdPlacementStore;
  readonly #directory: string;

  static async open(name: string, { direct, members = direct, env = {}, auth }: BenchOptions): Promise<Bench> {
    const directory = await mkdtemp(join(tmpdir(), `hakobu-${name}-`));
    const store = new EtcdPlacementStore(optionsFor(direct, auth), { clock: systemClock, log: noLog });
    const settings = {
      ...env,
      HAKOBU_ETCD_TTL: `${ttlSeconds}s`,
      HAKOBU_ETCD_CALL_TIMEOUT: "1s",
      HAKOBU_ETCD_ENDPOINTS: members.join(","),
    };
    try {
      return new Bench(directory, store, await startMembers(["a", "b"], directory, settings));
    } catch (error) {
      await store.close();
      await rm(directory, { recursive: true, force: true });
      throw error;
    }
  }

  private constructor(directory: string, store: EtcdPlacementStore, members: Members) {
    this.#directory = directory;
    this.#store = store;
    this.#members = members;
  }

  async close(): Promise<void> {
    await this.#members.close();
    await this.#store.close();
    await rm(this.#directory, { recursive: true, force: true });
  }

  async apply(...names: readonly string[]): Promise<void> {
    const command = [process.execPath, join(fixtures, "journal.mjs")];
    for (const name of names) await this.#store.putSpec(specRecord(specOf(name, { command })));
  }

  send(name: string): Promise<Reply> {
    return send(this.#members.proxy, `${name}.localhost`);
  }

  /** Applied, known to the proxy, and served. @returns its epoch */
  async served(name: string): Promise<number> {
    return epochOf(
      await eventually(`${name} is served`, async () => {
        const reply = await this.send(name);
        return reply.status === 200 && reply;
      }),
    );
  }

  async serves(name: string, epoch: number): Promise<void> {
    const reply = await this.send(name);
    assert.equal(reply.status, 200, reply.text);
    assert.equal(epochOf(reply), epoch, "the same owner");
  }

  async refuses(name: string, why: RegExp): Promise<void> {
    const reply = await this.send(name);
    assert.equal(reply.status, 503, reply.text);
    assert.match(reply.text, why);
    assert.ok(Number(reply.headers["retry-after"]) > 0, "Retry-After");
  }
}

function needsEtcd(this: Mocha.Context): void {
  if (findProgram("etcd") !== undefined) return;
  console.log("      skipped: needs etcd");
  this.skip();
}

function connectionTo(hosts: readonly string[], auth?: EtcdOptions["auth"]): EtcdConnection {
  return new EtcdConnection(etcdSettings(optionsFor(hosts, auth)));
}

describe("an etcd with users, through a connection that fails", function () {
  this.timeout(90_000);
  const prefix = Buffer.from("hakobu/");
  const permission = { key: prefix, range_end: Buffer.from("hakobu0") };
  let directory: string;
  let etcd: EtcdServer;
  let admin: EtcdConnection;
  let between: TcpProxy;
  let bench: Bench;

  before(needsEtcd);
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-users-"));
    etcd = await startEtcd({ dataDir: directory });
    const first = connectionTo(etcd.endpoints);
    await first.call("the users", async ({ auth }) => {
      for (const { username, password } of [root, user]) {
        await auth.userAdd({ name: username, password });
        await auth.roleAdd({ name: username });
        await auth.userGrantRole({ user: username, role: username });
      }
      await auth.roleGrantPermission({ name: user.username, perm: { permType: "Readwrite", ...permission } });
      await auth.authEnable();
    });
    first.close();
    admin = connectionTo(etcd.endpoints, root);
    between = await TcpProxy.start(etcd.endpoints[0] as string);
    const env = { HAKOBU_ETCD_USERNAME: user.username, HAKOBU_ETCD_PASSWORD: user.password };
    bench = await Bench.open("degraded", { direct: etcd.endpoints, members: [between.url], env, auth: root });
  });
  after(async () => {
    await bench?.close();
    await between?.close();
    admin?.close();
    await etcd?.stop();
    if (directory !== undefined) await rm(directory, { recursive: true, force: true });
  });

  const permit = () =>
    admin.call("a permission", ({ auth }) =>
      auth.roleGrantPermission({ name: user.username, perm: { permType: "Readwrite", ...permission } }),
    );
  const forbid = () =>
    admin.call("a permission", ({ auth }) => auth.roleRevokePermission({ role: user.username, ...permission }));
  const setPassword = (password: string) =>
    admin.call("a password", ({ auth }) => auth.userChangePassword({ name: user.username, password }));
  const refusals = [
    {
      title: "takes its user's permission away",
      name: "permitted",
      reason: /permission denied; check the etcd user, certificate and permissions/,
      take: forbid,
      give: permit,
    },
    {
      title: "has another password for its user",
      name: "known",
      reason: /invalid user ID or password; check the etcd user, certificate and permissions/,
      take: () => setPassword("another"),
      give: () => setPassword(user.password),
    },
    {
      title: "has another password for its user, whose connections are cut",
      name: "parted",
      reason: /invalid user ID or password; check the etcd user, certificate and permissions/,
      take: async () => {
        await setPassword("another");
        between.cut();
      },
      give: () => setPassword(user.password),
    },
    {
      title: "takes its user's permission away, whose connections are cut",
      name: "barred",
      reason: /permission denied; check the etcd user, certificate and permissions/,
      take: async () => {
        await forbid();
        between.cut();
      },
      give: permit,
    },
  ];
  for (const { title, name, reason, take, give } of refusals)
    it(`${title}: what runs is served, what needs a claim is told so, and all is well when it is undone`, async () => {
      const waits = `${name}-waits`;
      await bench.apply(name, waits);
      const epoch = await bench.served(name);
      await take();
      try {
        // Longer than a lease.
        const end = performance.now() + ttlMs + 1000;
        while (performance.now() < end) {
          await bench.serves(name, epoch);
          await bench.refuses(waits, reason);
        }
      } finally {
        await give();
      }
      await bench.served(waits);
      // Hosts that could not open their streams again have lost their leases, and own it anew.
      assert.ok((await bench.served(name)) >= epoch);
    });

  it("refuses a command, which ends with etcd's reason and what to check", async () => {
    const env = {
      HAKOBU_ETCD_ENDPOINTS: etcd.endpoints[0],
      HAKOBU_ETCD_USERNAME: user.username,
      HAKOBU_ETCD_PASSWORD: "wrong",
    };
    const { code, out, err } = await hakobu(["get"], env);
    assert.deepEqual([code, out], [1, ""]);
    assert.match(err, /^hakobu: etcd cannot be read: etcd refused .*invalid user ID or password; check the etcd user/);
  });

  it("answers each call 300 ms late: no host is lost, what runs is as fast as ever, and a claim only takes longer", async () => {
    await bench.apply("steady", "patient");
    const epoch = await bench.served("steady");
    between.delayMs = 300;
    try {
      const end = performance.now() + ttlMs + 1000;
      const tookMs: number[] = [];
      while (performance.now() < end) {
        const reply = await bench.send("steady");
        assert.deepEqual([reply.status, epochOf(reply)], [200, epoch], reply.text);
        tookMs.push(reply.ms);
      }
      const reply = await bench.send("patient");
      assert.equal(reply.status, 200, reply.text);
      assert.ok(reply.ms > 300, `${reply.ms} ms: it was placed by way of etcd`);
      assert.ok(reply.ms < 10_000, `${reply.ms} ms`);
      const median = tookMs.sort((a, b) => a - b)[tookMs.length >> 1] as number;
      assert.ok(median < 300, `${median} ms: what runs does not wait for etcd`);
    } finally {
      between.delayMs = 0;
    }
    await bench.serves("steady", epoch);
  });

  it("has compacted what its members missed while they were cut off: they read all anew, and go on", async () => {
    await bench.apply("constant", "unplaced");
    const epoch = await bench.served("constant");
    const key = new Keys("hakobu/").placement("constant");
    const revision = async (): Promise<string> =>
      (await admin.call("a read", ({ kv }) => kv.range({ key }))).header.revision;
    between.mode = "refuse";
    between.cut();
    try {
      const seen = await revision();
      await bench.apply("missed", "missed-too");
      const newest = await revision();
      await admin.call("a compaction", ({ kv }) => kv.compact({ revision: newest, physical: true }));
      const next = String(Number(seen) + 1);
      await assert.rejects(
        admin.call("what they missed", ({ kv }) => kv.range({ key, revision: next })),
        /compacted/,
      );
      await bench.serves("constant", epoch);
      await bench.refuses("unplaced", /etcd did not answer|the placement store: .*UNAVAILABLE/);
    } finally {
      between.mode = "pass";
    }
    for (const name of ["missed", "missed-too", "unplaced"]) await bench.served(name);
    await bench.serves("constant", epoch);
  });
});

describe("an etcd of three members", function () {
  this.timeout(90_000);
  let directory: string;
  let etcd: EtcdCluster;
  let bench: Bench;

  before(needsEtcd);
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-leader-"));
    etcd = await startEtcdCluster(3, { dataDir: directory });
    bench = await Bench.open("leader", { direct: etcd.endpoints });
  });
  after(async () => {
    await bench?.close();
    await etcd?.stop();
    if (directory !== undefined) await rm(directory, { recursive: true, force: true });
  });

  interface Leadership {
    readonly leader: EtcdServer;
    readonly id: string;
    readonly others: readonly string[];
  }

  /** As its members see it, once they agree. */
  async function leadership(): Promise<Leadership> {
    return eventually("a leader is known to all", async () => {
      const seen = await Promise.all(
        etcd.members.map(async (member) => {
          const connection = connectionTo(member.endpoints);
          try {
            const { header, leader } = await connection.call("a status", ({ maintenance }) => maintenance.status());
            return { member, id: header.member_id, leader };
          } finally {
            connection.close();
          }
        }),
      ).catch(() => []);
      const id = seen[0]?.leader;
      const leader = seen.find((each) => each.id === id)?.member;
      if (id === undefined || leader === undefined || seen.some((each) => each.leader !== id)) return undefined;
      return { leader, id, others: seen.filter((each) => each.id !== id).map((each) => each.id) };
    });
  }

  for (const [title, name, change, undo] of [
    [
      "hands leadership over",
      "handed",
      async ({ leader, others }: Leadership) => {
        const connection = connectionTo(leader.endpoints);
        try {
          const targetID = others[0] as string;
          await connection.call("a new leader", ({ maintenance }) => maintenance.moveLeader({ targetID }));
        } finally {
          connection.close();
        }
      },
      () => Promise.resolve(),
    ],
    [
      "loses its leader",
      "orphaned",
      ({ leader }: Leadership) => leader.kill(),
      ({ leader }: Leadership) => leader.restart(),
    ],
  ] as const)
    it(`${title}: what runs is served throughout, and what needs a claim as soon as there is another`, async () => {
      const waits = `${name}-waits`;
      await bench.apply(name, waits);
      const epoch = await bench.served(name);
      const before = await leadership();
      await change(before);
      try {
        let placed: Reply | undefined;
        const end = performance.now() + 10_000;
        while (placed === undefined && performance.now() < end) {
          await bench.serves(name, epoch);
          const reply = await bench.send(waits);
          if (reply.status === 200) placed = reply;
          else {
            assert.equal(reply.status, 503, reply.text);
            assert.match(reply.text, /etcd|placement store|lease/);
            assert.ok(Number(reply.headers["retry-after"]) > 0, "Retry-After");
          }
        }
        assert.ok(placed !== undefined, "it was not placed");
      } finally {
        await undo(before);
      }
      assert.notEqual((await leadership()).id, before.id);
      await bench.serves(name, epoch);
    });
});
