// A cluster whose agents die, or stand still, where they are told to (runtime/fault-points.ts), and what must hold afterwards: one
// owner, one copy, and nothing on the machine beside it, without any help.
import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { eventually, openTestCluster, type Reply, type TestCluster } from "./cluster.js";
import { straysAfter } from "./strays.js";

/** Longer than a standby waits for a claim. */
const strayLimitMs = 10_000;

export interface Subject {
  readonly name: string;
  readonly hostname: string;
  readonly owner: string;
}

export class CrashLab {
  readonly lab: TestCluster;
  readonly #title: string;
  readonly #faults: string;
  #count = 0;

  /** `title`: of the cluster and of its containers. */
  static async open(title: string, ttlSeconds: number): Promise<CrashLab> {
    const faults = await mkdtemp(join(tmpdir(), "hakobu-faults-"));
    process.env.HAKOBU_FAULTS = faults;
    try {
      // What is read ahead would pass the points too.
      const lab = await openTestCluster(title, ["a", "b", "c"], { ttlSeconds, hostSettings: { warmImages: "0B" } });
      return new CrashLab(title, faults, lab);
    } catch (error) {
      delete process.env.HAKOBU_FAULTS;
      await rm(faults, { recursive: true, force: true });
      throw error;
    }
  }

  private constructor(title: string, faults: string, lab: TestCluster) {
    this.#title = title;
    this.#faults = faults;
    this.lab = lab;
  }

  async close(): Promise<void> {
    delete process.env.HAKOBU_FAULTS;
    await this.lab.close();
    await rm(this.#faults, { recursive: true, force: true });
  }

  /** Whoever passes that point next dies there, or stands still. */
  order(point: string, what: "kill" | "stop"): Promise<void> {
    return writeFile(join(this.#faults, point), what);
  }

  /** Every order was obeyed. */
  async taken(): Promise<boolean> {
    return (await readdir(this.#faults)).length === 0;
  }

  /** For the end of a test that failed before its point was passed. */
  async withdraw(): Promise<void> {
    for (const point of await readdir(this.#faults)) await rm(join(this.#faults, point), { force: true });
  }

  /** Applied, and asked for by nobody yet. */
  async fresh(more: Partial<ContainerSpec> = {}): Promise<Omit<Subject, "owner">> {
    const name = `${this.#title}-${++this.#count}`;
    await this.lab.cluster.apply([this.lab.journal(name, more)]);
    return { name, hostname: `${name}.localhost` };
  }

  async ready(more: Partial<ContainerSpec> = {}): Promise<Subject> {
    const { name, hostname } = await this.fresh(more);
    const reply = await this.lab.send(hostname);
    assert.equal(reply.status, 200, reply.text);
    return { name, hostname, owner: (await this.lab.cluster.owner(name)) as string };
  }

  /** Resolves when it runs nowhere, and has its image. */
  async asleep({ name, owner }: Subject): Promise<void> {
    await eventually(`${name} sleeps`, async () => {
      const status = await this.lab.cluster.status(owner);
      return status?.containers.some((each) => each.name === name && each.state === "stopped");
    });
  }

  /** The host whose agent stands at its point. */
  standing(): Promise<string> {
    return eventually("a host stands at the point", async () => {
      for (const each of this.lab.cluster.hosts) {
        const pid = this.lab.cluster.agentPid(each);
        const stat = pid === undefined ? "" : await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
        if (stat.slice(stat.lastIndexOf(")") + 2).startsWith("T")) return each;
      }
      return undefined;
    });
  }

  /** Brings an answer to a point, does something there, and lets it go on. */
  async interrupted(
    point: string,
    hostname: string,
    act: (host: string) => Promise<unknown>,
  ): Promise<{ readonly reply: Promise<Reply> }> {
    await this.order(point, "stop");
    const reply = this.lab.send(hostname);
    const host = await this.standing();
    await act(host);
    this.resume(host);
    return { reply };
  }

  resume(host: string): void {
    process.kill(this.lab.cluster.agentPid(host) as number, "SIGCONT");
  }

  /** Processes in the control groups of a container on a host. */
  async processes(name: string, host: string): Promise<number[]> {
    const pids = new Set<number>();
    for (const root of ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"]) {
      const file = join(root, "hakobu", this.lab.cluster.hostId(host), name, "cgroup.procs");
      const text = await readFile(file, "utf8").catch(() => "");
      for (const line of text.split("\n")) if (line !== "") pids.add(Number(line));
    }
    return [...pids];
  }

  /** Everybody is back; then one owner, which runs it, and nobody else does; and nothing of it is anywhere else. */
  async settled({ name, hostname }: Omit<Subject, "owner">): Promise<void> {
    const { cluster } = this.lab;
    for (const host of cluster.hosts) await cluster.heal(host);
    const reply = await eventually("it is served", async () => {
      const answer = await this.lab.send(hostname);
      return answer.status === 200 && answer;
    });
    const owner = (await cluster.owner(name)) as string;
    await eventually("one copy runs, at the owner's", async () => {
      const counts = await Promise.all(cluster.hosts.map((host) => this.processes(name, host)));
      return cluster.hosts.every((host, index) => (counts[index]?.length ?? 0) > 0 === (host === owner));
    });
    assert.equal((JSON.parse(reply.text) as { host: string }).host, cluster.hostId(owner));
    await eventually("nobody else has it", async () => {
      const statuses = await Promise.all(cluster.hosts.map((host) => cluster.status(host)));
      const having = cluster.hosts.filter((_, index) => statuses[index]?.containers.some((each) => each.name === name));
      return having.length === 1 && having[0] === owner;
    });
    assert.deepEqual(await straysAfter(cluster, strayLimitMs), [], "the hosts cleaned up after themselves");
  }
}
