// Probes by ICMP against kernels, and against a host whose kernel is silent and in whose place a script answers what it likes.
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { reasonOf } from "../../actors/hakobu-error.js";
import type { ProbeKind, Prober, ProbeResult, Target } from "../../actors/ports/prober.js";
import { ReachabilityActor } from "../../actors/reachability.js";
import { ActorRegistry } from "../../actors/registry.js";
import { runCommand } from "../../runtime/engines/command.js";
import { createNetwork, type LocalHost, type LocalNetwork } from "../../runtime/local/network.js";
import { IcmpProber } from "../../runtime/probes/icmp.js";
import { TcpProber } from "../../runtime/probes/tcp.js";
import { systemClock } from "../../runtime/system-clock.js";
import { blackhole } from "../lab/blackhole.js";
import { closeAll, deadPort, tcpServer, until } from "../lab/hop.js";

const children: ChildProcess[] = [];

/** A Python program that says when it is ready and lives until its standard input ends. */
async function python(program: string, options: { in?: LocalHost; args?: readonly string[] } = {}): Promise<void> {
  const command = ["python3", "-c", program, ...(options.args ?? [])];
  const [file = "", ...args] = options.in?.wrap(command) ?? command;
  const child = spawn(file, args, { stdio: ["pipe", "pipe", "inherit"] });
  children.push(child);
  await new Promise<void>((resolve, reject) => {
    child.once("error", reject).once("exit", () => reject(new Error("the script ended early")));
    child.stdout.once("data", () => resolve());
  });
}

async function endChildren(): Promise<void> {
  await Promise.all(
    children.splice(0).map(async (child) => {
      const ended = new Promise((resolve) => child.once("exit", resolve));
      if (child.exitCode === null && child.signalCode === null && child.kill("SIGKILL")) await ended;
    }),
  );
}

const rawSocket = `
import os, socket, struct, sys, threading, time
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
def send(to, type, id, seq, body):
    data = struct.pack("!BBHHH", type, 0, 0, id, seq) + body
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    s.sendto(data[:2] + struct.pack("!H", ~total & 0xffff) + data[4:], (to, 0))
`;

/** Silences the kernel's own answers. What follows it takes `echoes()` and answers by `reply(address, id, seq, body)`. */
const inPlaceOfTheKernel = `${rawSocket}
open("/proc/sys/net/ipv4/icmp_echo_ignore_all", "w").write("1")
def reply(to, id, seq, body, type=0): send(to, type, id, seq, body)
def echoes():
    while True:
        packet, (source, _) = s.recvfrom(2048)
        echo = packet[(packet[0] & 15) * 4:]
        if echo[0] == 8: yield (source, *struct.unpack("!HH", echo[4:8]), echo[8:])
print("ready", flush=True)
`;

/** What `ping` does, 2000 times a second. */
const pinger = `${rawSocket}
for seq in range(10**9):
    send(sys.argv[1], 8, 4711, seq & 0xffff, bytes(16))
    if seq == 100: print("ready", flush=True)
    time.sleep(0.0005)
`;

function stall(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end);
}

const kinds = (results: readonly ProbeResult[]): string[] => results.map((result) => result.kind);

describe("an ICMP probe", function () {
  this.timeout(20_000);
  let network: LocalNetwork;
  let prober: IcmpProber;
  let alive: Target;
  let other: Target;

  before(async function () {
    try {
      prober = new IcmpProber();
      network = await createNetwork({ name: `icmp${process.pid}`, hosts: ["a", "b", "script"] });
    } catch (error) {
      process.stdout.write(`    skipped: ${reasonOf(error)}\n`);
      prober?.close();
      return this.skip();
    }
    alive = { address: network.host("a").address, port: 1 };
    other = { address: network.host("b").address, port: 1 };
  });
  after(async () => {
    prober?.close();
    await network?.close();
  });
  afterEach(async () => {
    await endChildren();
    await closeAll();
    for (const id of ["a", "b", "script"]) await network.heal(id);
  });

  it("finds a host alive, whether or not anything listens there", async () => {
    for (let i = 0; i < 100; i++) {
      const result = await prober.probe(alive, 1000);
      assert.ok(result.kind === "alive" && result.rttMs >= 0 && result.rttMs < 1000, JSON.stringify(result));
    }
  });

  it("is silent about a host that was cut off until its limit, and not much longer", async () => {
    await network.cut("a");
    const took: number[] = [];
    for (let i = 0; i < 10; i++) {
      const result = await prober.probe(alive, 100);
      assert.ok(result.kind === "timeout", result.kind);
      assert.ok(result.afterMs >= 99, `${result.afterMs} ms`);
      took.push(result.afterMs);
    }
    took.sort((a, b) => a - b);
    assert.ok((took[5] as number) < 150, `median ${took[5]} ms`);
    assert.equal((await prober.probe(other, 1000)).kind, "alive");
    await network.heal("a");
    assert.equal((await prober.probe(alive, 1000)).kind, "alive");
  });

  it("is answered by its own reply alone (P1): of two probers at once, each reply with the wrong half is ignored", async () => {
    // Answers every second echo, in reverse order. The rest gets each part of a right answer, and never all of it.
    const program = `${inPlaceOfTheKernel}
asked = []
for echo in echoes():
    asked.append(echo)
    if len(asked) < 40: continue
    for i in range(len(asked) - 1, -1, -1):
        to, id, seq, token = asked[i]
        _, id2, seq2, token2 = asked[i - 1]
        if id2 == id: id2 = id ^ 1
        if seq2 == seq: seq2 = seq ^ 1
        reply(to, id, seq, token2)
        reply(to, id, seq2, token)
        reply(to, id2, seq, token)
        reply(to, id, seq, bytes(16))
        reply(to, id, seq, b"")
        reply(to, id, seq, token[:15] + bytes([token[15] ^ 1]))
        reply(to, id, seq, token, type=8)
        reply(to, id, seq, token, type=13)
        if i % 2: reply(to, id, seq, token); reply(to, id, seq, token)
    asked = []
`;
    await python(program, { in: network.host("script") });
    const second = new IcmpProber();
    try {
      const target = { address: network.host("script").address, port: 1 };
      for (let round = 0; round < 3; round++) {
        const probes = Array.from({ length: 40 }, (_, i) => ((i >> 1) % 2 ? prober : second).probe(target, 400));
        // Echoes of two sockets may arrive in another order than they were sent: how many are answered is what counts.
        const results = kinds(await Promise.all(probes));
        assert.equal(results.filter((kind) => kind === "alive").length, 20, results.join(" "));
        assert.equal(results.filter((kind) => kind === "timeout").length, 20, results.join(" "));
      }
    } finally {
      second.close();
    }
  });

  it("ignores a reply that comes after the verdict, while the next probe waits for its own", async () => {
    const program = `${inPlaceOfTheKernel}
gen = echoes()
while True:
    first, second = next(gen), next(gen)
    reply(*first)
    third = next(gen)
    reply(*first); reply(*second); reply(*third)
`;
    await python(program, { in: network.host("script") });
    const target = { address: network.host("script").address, port: 1 };
    for (let round = 0; round < 3; round++) {
      const results = [
        await prober.probe(target, 50),
        await prober.probe(target, 50),
        await prober.probe(target, 1000),
      ];
      assert.deepEqual(kinds(results), ["timeout", "timeout", "alive"]);
    }
  });

  it("takes the replies to another process's ping for nothing, and finds its own among them", async () => {
    await python(pinger, { args: [alive.address] });
    await network.cut("b");
    for (let i = 0; i < 10; i++) assert.equal((await prober.probe(other, 50)).kind, "timeout");
    for (let i = 0; i < 50; i++) assert.equal((await prober.probe(alive, 1000)).kind, "alive");
    // Its own reply lies behind hundreds of foreign ones when the time is up.
    for (let i = 0; i < 10; i++) {
      stall(100);
      const result = prober.probe(alive, 100);
      stall(150);
      assert.equal((await result).kind, "alive");
    }
  });

  it("takes no live host for dead when this process stalls for 150 ms, of 20 times", async () => {
    const verdicts: string[] = [];
    for (let i = 0; i < 20; i++) {
      // Many at once: their replies lie in the socket together, and the package alone would read one a turn.
      const probes = Array.from({ length: 50 }, () => prober.probe(alive, 100));
      stall(150);
      verdicts.push(...kinds(await Promise.all(probes)));
    }
    assert.deepEqual(new Set(verdicts), new Set(["alive"]));
  });

  it("is not fooled by a full accept queue, which a TCP probe takes for a death", async () => {
    const hole = await blackhole();
    try {
      assert.equal((await new TcpProber().probe(hole, 100)).kind, "timeout");
      assert.equal((await prober.probe(hole, 100)).kind, "alive");
    } finally {
      hole.close();
    }
  });

  it("hears of live hosts while hundreds of echoes wait for hosts that answer no ARP", async () => {
    const nobody = [90, 91, 92, 93].map((last) => alive.address.replace(/\d+$/, String(last)));
    const waiting = nobody.flatMap((address) =>
      Array.from({ length: 250 }, () => prober.probe({ address, port: 1 }, 300)),
    );
    assert.equal((await prober.probe(alive, 100)).kind, "alive");
    assert.ok(kinds(await Promise.all(waiting)).every((kind) => kind !== "alive"));
  });

  it("keeps a bounded number of probes (P3), and goes on when they are over", async () => {
    await network.cut("a");
    const probes = Array.from({ length: 4097 }, () => prober.probe(alive, 200));
    assert.deepEqual(await probes.at(-1), { kind: "unknown", code: "TOO_MANY_PROBES" });
    assert.deepEqual(new Set(kinds(await Promise.all(probes.slice(0, -1)))), new Set(["timeout"]));
    assert.equal((await prober.probe(other, 1000)).kind, "alive");
  });

  it("asks IPv6 addresses too", async function () {
    const server = createServer();
    const six = await new Promise<boolean>((resolve) => {
      server.once("error", () => resolve(false)).listen(0, "::1", () => resolve(true));
    });
    server.close();
    if (!six) return this.skip();
    for (let i = 0; i < 20; i++) {
      const probes = Array.from({ length: 20 }, () => prober.probe({ address: "::1", port: 1 }, 50));
      if (i % 2) stall(75);
      assert.deepEqual(new Set(kinds(await Promise.all(probes))), new Set(["alive"]));
    }
    assert.notEqual((await prober.probe({ address: "2001:db8::1", port: 1 }, 50)).kind, "alive");
  });

  it("resolves no names, never rejects, and names what the network said", async () => {
    for (const address of ["localhost", "", "10.0.0", "::g"])
      assert.deepEqual(await prober.probe({ address, port: 1 }, 100), {
        kind: "unreachable",
        code: "NOT_AN_IP_ADDRESS",
      });
    assert.deepEqual(await prober.probe({ address: "255.255.255.255", port: 1 }, 100), {
      kind: "unreachable",
      code: "EACCES",
    });
  });

  it("ends what is under way when it is closed, and may be closed twice", async () => {
    await network.cut("a");
    const closing = new IcmpProber();
    const underWay = [closing.probe(alive, 10_000), closing.probe(alive, 10_000)];
    closing.close();
    closing.close();
    for (const probe of [...underWay, closing.probe(alive, 10_000)])
      assert.deepEqual(await probe, { kind: "unknown", code: "PROBER_CLOSED" });
  });
});

describe("ICMP where it cannot be used", () => {
  const compiled = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));
  const say = `(error) => console.log(error.code, error.message.includes("use tcp"))`;

  it("is refused at once without the raw-socket package", async () => {
    const directory = await mkdtemp(join(tmpdir(), "hakobu-icmp-"));
    try {
      await writeFile(join(directory, "package.json"), '{ "type": "module" }');
      for (const path of ["actors/hakobu-error.js", "runtime/probes/icmp.js"]) {
        await mkdir(join(directory, path, ".."), { recursive: true });
        await copyFile(compiled(path), join(directory, path));
      }
      const program = `import("${directory}/runtime/probes/icmp.js").then((m) => new m.IcmpProber()).catch(${say})`;
      const command = [process.execPath, "-e", program];
      const output = await runCommand(command, { failure: "UNAVAILABLE", title: "a child", timeoutMs: 10_000 });
      assert.equal(output.trim(), "CONFIG_INVALID true");
    } finally {
      await rm(directory, { recursive: true });
    }
  });

  it("is refused at once without the right to open a raw socket, and a container that asks for it is watched by TCP", async () => {
    const program = `
      const { ProberByKind } = await import("${compiled("runtime/probes/by-kind.js")}");
      try { new ProberByKind("icmp", {}) } catch (error) { (${say})(error) }
      let warned = 0;
      const prober = new ProberByKind("tcp", { warn: () => warned++ });
      const target = { address: "127.0.0.1", port: 1 };
      const asked = await Promise.all(["icmp", "icmp", "tcp", undefined].map((kind) => prober.probe(target, 1000, kind)));
      console.log(asked.map(({ kind }) => kind).join(), warned);
      prober.close();`;
    const drop = process.getuid?.() === 0 ? ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", "--"] : [];
    const command = [...drop, process.execPath, "--input-type=module", "-e", program];
    const output = await runCommand(command, { failure: "UNAVAILABLE", title: "a child", timeoutMs: 10_000 });
    assert.equal(output.trim(), "CONFIG_INVALID true\nrefused,refused,refused,refused 1");
  });
});

describe("a host that is asked by both kinds", () => {
  const tcp = new TcpProber();
  const actors: ReachabilityActor[] = [];
  const servers: Server[] = [];

  function reachability(target: Target, asked: ProbeKind[]): ReachabilityActor {
    // The kernel of this machine answers every echo: the answer is taken as given here, so that it needs no root.
    const prober: Prober = {
      probe(to, timeoutMs, kind = "tcp") {
        asked.push(kind);
        return kind === "icmp" ? Promise.resolve({ kind: "alive", rttMs: 0 }) : tcp.probe(to, timeoutMs);
      },
    };
    const deps = { clock: systemClock, prober, registry: new ActorRegistry() };
    const options = { freshMs: 20, probeTimeoutMs: 100, probeFloorMs: 100, probeKind: "icmp" } as const;
    const actor = new ReachabilityActor(deps, `host-${actors.length}`, target, options);
    actors.push(actor);
    return actor;
  }

  afterEach(async () => {
    for (const actor of actors.splice(0)) actor.stop();
    for (const server of servers.splice(0)) server.close();
    await closeAll();
  });

  it("has one probe under way of each kind and time-out (L3)", async () => {
    const asked: ProbeKind[] = [];
    const host = reachability(await tcpServer((socket) => socket.resume()), asked);
    await Promise.all([
      host.probe(100, "tcp"),
      host.probe(100, "tcp"),
      host.probe(50, "tcp"),
      host.probe(100, "icmp"),
      host.probe(100),
    ]);
    assert.deepEqual(asked, ["tcp", "tcp", "icmp"]);
  });

  it("stays unreachable after a refusal, whatever its kernel echoes, until its agent is back (L4)", async () => {
    const asked: ProbeKind[] = [];
    const target = await deadPort();
    const host = reachability(target, asked);
    assert.equal((await host.probe(100)).kind, "alive");
    assert.equal(host.state, "trusted");
    host.refused("connection refused");
    assert.equal(host.state, "unreachable");
    assert.ok(host.certain);
    assert.equal((await host.probe(100)).kind, "alive");
    assert.equal(host.state, "unreachable");
    await until(() => asked.includes("tcp"), "the agent itself to be asked");
    assert.equal(host.state, "unreachable");
    const server = createServer((socket) => socket.on("error", () => undefined).resume());
    servers.push(server);
    server.listen(target.port, target.address);
    await until(() => host.state === "trusted", "the agent to be heard");
  });
});
