// The local network on the real kernel: namespaces, links and nft, and TCP servers inside that are reached or are not.
import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import type { HakobuError } from "../../actors/hakobu-error.js";
import { createNetwork, type LocalNetwork, removeLeftovers } from "../../runtime/local/network.js";

const PORT = 7700;
/** Far above a round trip in one kernel, far below the second after which TCP repeats a SYN. */
const PATIENCE_MS = 400;
const DEADLINE_MS = 8_000;

type Reached = "reached" | "timed out" | { readonly failed: string };

function reach(host: string, port: number, timeoutMs = PATIENCE_MS): Promise<Reached> {
  return new Promise((resolve) => {
    const socket = connect({ host, port });
    const timer = setTimeout(() => end("timed out"), timeoutMs);
    function end(reached: Reached): void {
      clearTimeout(timer);
      socket.destroy();
      resolve(reached);
    }
    socket.on("connect", () => end("reached"));
    socket.on("error", (error: NodeJS.ErrnoException) => end({ failed: error.code ?? error.message }));
  });
}

const children = new Set<ChildProcess>();

function run(command: readonly string[]): ChildProcess {
  const [program = "", ...args] = command;
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
  children.add(child);
  child.once("close", () => children.delete(child));
  return child;
}

async function stop(child: ChildProcess): Promise<void> {
  if (!children.has(child)) return;
  const closed = once(child, "close", { signal: AbortSignal.timeout(DEADLINE_MS) });
  child.kill("SIGKILL");
  await closed;
}

/** A TCP server on the host that echoes, ready when this resolves. */
async function serve(network: LocalNetwork, id: string): Promise<void> {
  const program = `require("net").createServer((s) => { s.on("error", () => {}); s.pipe(s); })
    .listen(${PORT}, "${network.host(id).address}", () => console.log("ready"))`;
  const child = run(network.host(id).wrap([process.execPath, "-e", program]));
  assert.ok(child.stdout);
  await once(child.stdout, "data", { signal: AbortSignal.timeout(DEADLINE_MS) });
}

/** What a connect from inside the host comes to. */
async function reachFrom(network: LocalNetwork, id: string, address: string, port: number): Promise<string> {
  const program = `const s = require("net").connect({ host: "${address}", port: ${port} });
    const end = (said) => { console.log(said); process.exit(); };
    s.on("connect", () => end("reached")).on("error", (e) => end(e.code)); setTimeout(end, ${PATIENCE_MS}, "timed out");`;
  const child = run(network.host(id).wrap([process.execPath, "-e", program]));
  assert.ok(child.stdout);
  const [said] = (await once(child.stdout, "data", { signal: AbortSignal.timeout(DEADLINE_MS) })) as [Buffer];
  return said.toString().trim();
}

const ip = (...args: string[]): string => execFileSync("ip", args, { encoding: "utf8" });

/** What is there of a network: its namespaces and whether the root namespace has a link to it. */
function partsOf(name: string): string[] {
  const namespaces = ip("netns", "list").split("\n");
  const mine = namespaces.filter((line) => line.startsWith(`hakobu-${name}-`)).map((line) => line.split(" ")[0] ?? "");
  const linked = ip("link", "show", "type", "veth").includes(`alias hakobu-${name}\n`);
  return [...mine.sort(), ...(linked ? ["link"] : [])];
}

/** An open connection to the host's server that tells whether a byte comes back. */
class Echo {
  readonly #socket: Socket;
  constructor(host: string) {
    this.#socket = connect({ host, port: PORT });
  }
  async answers(timeoutMs: number): Promise<boolean> {
    this.#socket.write("x");
    return once(this.#socket, "data", { signal: AbortSignal.timeout(timeoutMs) }).then(
      () => true,
      () => false,
    );
  }
  close(): void {
    this.#socket.destroy();
  }
}

describe("local network", function () {
  this.timeout(30_000);
  const name = `net${process.pid}`;
  const other = `other${process.pid}`;
  let network: LocalNetwork;
  let a: string;
  let b: string;

  before("needs root", function () {
    const effective = /^CapEff:\s*(\w+)/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0";
    const has = (bit: bigint): boolean => ((BigInt(`0x${effective}`) >> bit) & 1n) === 1n;
    if (has(12n) && has(21n)) return;
    process.stdout.write("    skipped: network namespaces need root with CAP_NET_ADMIN and CAP_SYS_ADMIN\n");
    this.skip();
  });

  beforeEach(async () => {
    network = await createNetwork({ name, hosts: ["a", "b"] });
    a = network.host("a").address;
    b = network.host("b").address;
    await Promise.all([serve(network, "a"), serve(network, "b")]);
  });

  afterEach(async () => {
    await Promise.all([...children].map(stop));
    await Promise.all([removeLeftovers(name), removeLeftovers(other)]);
  });

  it("joins the hosts with each other and with the root namespace, and with nothing else", async () => {
    assert.equal(await reach(a, PORT), "reached");
    assert.equal(await reach(b, PORT), "reached");
    assert.equal(await reachFrom(network, "a", b, PORT), "reached");
    assert.equal(await reachFrom(network, "a", "127.0.0.1", PORT), "ECONNREFUSED");
    assert.equal(await reachFrom(network, "a", "192.0.2.1", PORT), "ENETUNREACH");
    const server = createServer((socket) => socket.destroy()).listen(0, network.gateway);
    try {
      await once(server, "listening");
      assert.equal(await reachFrom(network, "a", network.gateway, (server.address() as AddressInfo).port), "reached");
    } finally {
      server.close();
    }
  });

  it("drops silently what goes to and from a host that is cut, and lets the other host be", async () => {
    const open = new Echo(a);
    assert.ok(await open.answers(DEADLINE_MS));
    const ownEnd = ip("-netns", network.host("a").namespace, "-brief", "link");
    await network.cut("a");
    assert.equal(await reach(a, PORT), "timed out");
    assert.equal(await reachFrom(network, "b", a, PORT), "timed out");
    assert.equal(await reachFrom(network, "a", b, PORT), "timed out");
    assert.equal(await open.answers(PATIENCE_MS), false);
    assert.equal(await reach(b, PORT), "reached");
    assert.equal(await reachFrom(network, "b", network.gateway, PORT), "ECONNREFUSED");
    assert.equal(ip("-netns", network.host("a").namespace, "-brief", "link"), ownEnd);
    assert.deepEqual(network.state().a, { cut: "both", lossPercent: 0 });
    open.close();
  });

  it("tells nobody that a host is cut, however long that lasts (N2)", async () => {
    await network.cut("a");
    // The kernel gives up on an address that nothing answers for after three seconds.
    assert.equal(await reach(a, PORT, 4_000), "timed out");
  });

  it("ends every fault of a host when it heals, so that open connections go on", async () => {
    const open = new Echo(a);
    assert.ok(await open.answers(DEADLINE_MS));
    await network.cut("a");
    await network.loss("a", 50);
    await network.delay("a", 20_000);
    assert.equal(await open.answers(PATIENCE_MS), false);
    await network.heal("a");
    assert.equal(await reach(a, PORT, DEADLINE_MS), "reached");
    assert.ok(await open.answers(DEADLINE_MS));
    assert.deepEqual(network.state().a, { cut: "none", lossPercent: 0 });
    open.close();
  });

  for (const direction of ["in", "out"] as const) {
    it(`drops one direction alone when the cut is "${direction}"`, async () => {
      const passed = async (): Promise<{ in: boolean; out: boolean }> => {
        const before = received(network, "a");
        const heard = received(network, "b");
        // A datagram each way: TCP needs both for anything.
        await sendDatagram(network, "b", a);
        await sendDatagram(network, "a", b);
        return { in: received(network, "a") > before, out: received(network, "b") > heard };
      };
      assert.deepEqual(await passed(), { in: true, out: true });
      await network.cut("a", direction);
      assert.deepEqual(await passed(), { in: direction !== "in", out: direction !== "out" });
      assert.equal(await reach(a, PORT), "timed out");
      await network.cut("a", direction === "in" ? "out" : "in");
      assert.deepEqual(await passed(), { in: direction === "in", out: direction === "out" });
    });
  }

  it("takes a loss of 100 percent for a cut, and one of 0 for none", async () => {
    await network.loss("a", 100);
    assert.equal(await reach(a, PORT), "timed out");
    assert.equal(await reach(b, PORT), "reached");
    await network.loss("a", 0);
    assert.equal(await reach(a, PORT, DEADLINE_MS), "reached");
  });

  it("loses about the share of packets that was asked for", async () => {
    await network.loss("a", 50);
    const before = received(network, "a");
    await sendDatagram(network, "b", a, 400);
    const share = (received(network, "a") - before) / 400;
    assert.ok(share > 0.35 && share < 0.65, `${share} of the packets arrived`);
  });

  it("delays a host: what is sent meanwhile arrives later, and by itself", async () => {
    const open = new Echo(a);
    assert.ok(await open.answers(DEADLINE_MS));
    const delayMs = 300;
    const kind = await network.delay("a", delayMs);
    const begun = performance.now();
    assert.deepEqual(network.state().a?.delay, { kind, ms: delayMs });
    assert.ok(await open.answers(DEADLINE_MS));
    const took = performance.now() - begun;
    assert.ok(took > delayMs * 0.9, `answered after ${took} ms`);
    if (kind === "window") assert.equal(network.state().a?.delay, undefined);
    open.close();
  });

  it("refuses host ids, directions of a host and numbers that make no sense", async () => {
    const invalid = { code: "CONFIG_INVALID" };
    await assert.rejects(network.cut("c"), invalid);
    assert.throws(() => network.host("c"), invalid);
    assert.throws(() => network.loss("a", 101), invalid);
    assert.throws(() => network.delay("a", Number.NaN), invalid);
    await assert.rejects(createNetwork({ name: "../x", hosts: ["a"] }), invalid);
    await assert.rejects(createNetwork({ name: other, hosts: ["a", "a"] }), invalid);
    await assert.rejects(createNetwork({ name: other, hosts: ["switch"] }), invalid);
  });

  it("gives networks that are made at once subnets of their own (N3)", async () => {
    const names = [other, `${other}x`, `${other}y`];
    const made = await Promise.all(names.map((each) => createNetwork({ name: each, hosts: ["a"] })));
    try {
      assert.equal(new Set([network, ...made].map((each) => each.subnet)).size, 4);
      assert.equal(await reachFrom(network, "a", made[0]?.gateway ?? "", PORT), "ENETUNREACH");
      assert.equal(await reach(a, PORT), "reached");
    } finally {
      await Promise.all(made.map((each) => each.close()));
    }
    assert.deepEqual(names.map(partsOf), [[], [], []]);
  });

  it("refuses a name in use and leaves that network as it is", async () => {
    await assert.rejects(createNetwork({ name, hosts: ["z"] }), { code: "UNAVAILABLE" });
    assert.deepEqual(partsOf(name), [`hakobu-${name}-a`, `hakobu-${name}-b`, `hakobu-${name}-switch`, "link"]);
    assert.equal(await reach(a, PORT), "reached");
  });

  it("leaves nothing when it is closed, also twice, and takes no changes after that (N4)", async () => {
    const second = await createNetwork({ name: other, hosts: ["a", "b"] });
    assert.equal(partsOf(other).length, 4);
    await second.cut("a");
    await Promise.all([second.close(), second.close()]);
    await second.close();
    assert.deepEqual(partsOf(other), []);
    assert.ok(!ip("-4", "route", "show", "table", "all").includes(second.gateway));
    await assert.rejects(second.heal("a"), { code: "UNAVAILABLE" });
  });

  it("leaves nothing of a creation that was aborted at any point (N4)", async () => {
    for (const afterMs of [0, 5, 10, 20]) {
      const aborter = new AbortController();
      const made = createNetwork({ name: other, hosts: ["a", "b"], signal: aborter.signal });
      const timer = setTimeout(() => aborter.abort(), afterMs);
      await made.then(
        (it) => it.close(),
        (error: unknown) => assert.equal((error as HakobuError).code, "ABORTED"),
      );
      clearTimeout(timer);
      assert.deepEqual(partsOf(other), []);
    }
  });

  it("is found by its name and removed after its owner was killed (N4)", async () => {
    const url = new URL("../../runtime/local/network.js", import.meta.url).href;
    const program = `import { createNetwork } from "${url}";
      const network = await createNetwork({ name: "${other}", hosts: ["a", "b"] });
      await network.cut("a");
      console.log("made");
      setInterval(() => {}, 1000);`;
    const owner = run([process.execPath, "--input-type=module", "-e", program]);
    assert.ok(owner.stdout);
    await once(owner.stdout, "data", { signal: AbortSignal.timeout(DEADLINE_MS) });
    await stop(owner);
    assert.equal(partsOf(other).length, 4);
    assert.equal((await removeLeftovers(other)).length, 4);
    assert.deepEqual(partsOf(other), []);
    assert.deepEqual(await removeLeftovers(other), []);
    assert.equal(await reach(a, PORT), "reached");
  });
});

/** Datagrams that the host has received, whether or not anything listens. */
function received(network: LocalNetwork, id: string): number {
  const [program = "", ...args] = network.host(id).wrap(["cat", "/proc/net/snmp"]);
  const [names = "", values = ""] = execFileSync(program, args, { encoding: "utf8" })
    .split("\n")
    .filter((line) => line.startsWith("Udp:"));
  const value = (name: string): number => Number(values.split(" ")[names.split(" ").indexOf(name)]);
  return value("InDatagrams") + value("NoPorts");
}

/** Sends from inside the host, and returns when all of it has left. On one machine what is not dropped has then arrived. */
async function sendDatagram(network: LocalNetwork, id: string, to: string, count = 1): Promise<void> {
  const program = `const socket = require("dgram").createSocket("udp4");
    const send = (left) => left === 0 ? socket.close() : socket.send("x", ${PORT}, "${to}", () => send(left - 1));
    send(${count});`;
  const child = run(network.host(id).wrap([process.execPath, "-e", program]));
  await once(child, "close", { signal: AbortSignal.timeout(DEADLINE_MS) });
}
