// Shadows (Engine.shadow), on the engine that has them: what nobody reaches, and whose image is the container's.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Instance } from "../../actors/ports/engine.js";
import { noLog } from "../../actors/ports/log.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { httpHooks } from "../../runtime/dispatcher/hooks.js";
import { httpReadiness } from "../../runtime/dispatcher/readiness.js";
import { connectionTo } from "../../runtime/engines/inside.js";
import { RuncEngine } from "../../runtime/engines/runc/engine.js";
import { cannotRestore } from "../lab/cluster.js";
import { snapshotMachine } from "../lab/leftovers.js";
import { codeIs, counterPort, counterSpec, get, launchOf, limit, processesOf, whenListening } from "./engine.js";

const run = promisify(execFile);
/** Longer than the way to any process of this machine and back. */
const silenceMs = 700;
/** Says what answered. A network may accept connections to anywhere, so one that is accepted says nothing. */
const asks = `const end = (text) => { console.log(text); process.exit(); };
require("node:http").get({ host: process.argv[1], port: Number(process.argv[2]) }, (response) => {
  response.setEncoding("utf8").on("data", (text) => end("answered: " + text.trim()));
}).on("error", (error) => end(error.code));
setTimeout(end, ${silenceMs}, "silence");`;

describe("shadows of the runc engine", function () {
  this.timeout(60_000);
  const hostId = `s${process.pid}`;
  const hosts = [hostId, `${hostId}b`] as const;
  let directory: string;
  let engine: RuncEngine;
  let other: RuncEngine;
  let count = 0;
  const running = new Set<{ engine: RuncEngine; instance: Instance }>();
  const undo: (() => Promise<unknown>)[] = [];

  before(async function () {
    const why = await cannotRestore();
    if (why !== undefined) {
      console.log(`      skipped: ${why}`);
      this.skip();
    }
    directory = await mkdtemp(join(tmpdir(), "hakobu-shadow-"));
    [engine, other] = hosts.map(engineOf) as [RuncEngine, RuncEngine];
  });
  afterEach(async () => {
    for (const each of running) await each.engine.stop(each.instance, 0);
    running.clear();
    for (const each of undo.splice(0)) await each();
    for (const each of [engine, other]) assert.deepEqual(await each.find(), []);
    assert.deepEqual(leftOf(), []);
  });
  after(async () => {
    if (directory !== undefined) await rm(directory, { recursive: true, force: true });
  });

  const engineOf = (id: string): RuncEngine =>
    new RuncEngine({ hostId: id, stateDir: join(directory, id), log: noLog });
  const specOf = (more: Partial<ContainerSpec> = {}): ContainerSpec =>
    counterSpec(engine, `s${process.pid}-${++count}`, more);

  /** Nothing but what is the container's own. */
  function leftOf(): string[] {
    const { namespaces, mounts, cgroups, links } = snapshotMachine();
    const shadows = links.filter((each) => each.startsWith("hs"));
    const own = [...namespaces, ...mounts, ...cgroups].filter((each) => each.includes(hostId));
    const state = hosts.flatMap((id) => {
      const home = join(directory, id, "runc");
      return existsSync(home) ? readdirSync(home).filter((name) => name.endsWith(".shadow")) : [];
    });
    return [...shadows, ...own, ...state];
  }
  async function started(of: RuncEngine, spec: ContainerSpec): Promise<Instance> {
    const { instance } = await of.start(launchOf(spec), limit());
    running.add({ engine: of, instance });
    await whenListening(of, instance);
    return instance;
  }
  async function shadowOf(of: RuncEngine, spec: ContainerSpec): Promise<Instance> {
    const { instance, phases } = await of.shadow(launchOf(spec, 7), limit());
    running.add({ engine: of, instance });
    assert.ok(phases.length > 0);
    await whenListening(of, instance);
    return instance;
  }
  async function stop(of: RuncEngine, instance: Instance): Promise<void> {
    await of.stop(instance, 0);
    for (const each of running) if (each.instance === instance) running.delete(each);
  }
  async function restored(of: RuncEngine, spec: ContainerSpec, image: string): Promise<Instance> {
    const { instance } = await of.restore(launchOf(spec, 9), image, limit());
    running.add({ engine: of, instance });
    return instance;
  }
  /** As the agent does, from inside. */
  function inside(instance: Instance, path: string): Promise<string> {
    const { address, port } = instance;
    return new Promise((resolve, reject) => {
      const call = request({ host: address, port, path, ...connectionTo(instance), headers: { connection: "close" } });
      call.on("error", reject);
      call.on("response", (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
        response.on("end", () => resolve(text.trim()));
      });
      call.end();
    });
  }
  /** What a request to the port comes to, made in the namespace of that process or in this one. */
  async function attempt(address: string, from?: Instance): Promise<string> {
    const argv = [process.execPath, "-e", asks, address, String(counterPort)];
    if (from !== undefined) argv.unshift("nsenter", "--target", String(from.pid), "--net");
    const [program = "", ...args] = argv;
    return (await run(program, args)).stdout.trim();
  }
  const outletOf = async ({ pid }: Instance): Promise<string> => {
    const { stdout } = await run("nsenter", [
      "--target",
      String(pid),
      "--net",
      "ip",
      "-o",
      "-4",
      "addr",
      "show",
      "eth0",
    ]);
    return /inet (169\.254\.\S+)\/32/.exec(stdout)?.[1] ?? assert.fail(stdout);
  };
  const linkOfShadow = (): string =>
    readdirSync("/sys/class/net").find((name) => name.startsWith("hs")) ?? assert.fail("no link");

  it("have the container's own address, beside a copy that goes on serving there", async () => {
    const spec = specOf();
    const container = await started(engine, spec);
    assert.equal(await get(container, "/count"), "1");
    const shadow = await shadowOf(engine, spec);
    assert.equal(shadow.address, container.address);
    assert.notEqual(shadow.pid, container.pid);
    for (const expected of ["2", "3"]) assert.equal(await get(container, "/count"), expected);
    assert.equal(await inside(shadow, "/count"), "1", "its memory is its own");
    assert.equal(await inside(shadow, "/env?name=HAKOBU_CONTAINER"), spec.name);
    assert.equal(await inside(shadow, "/read?path=/run/hakobu/epoch"), "7");
    assert.deepEqual((await engineOf(hostId).output(shadow.container, 1)).trim(), "count 1");
    await stop(engine, shadow);
    assert.equal(engine.alive(container), true);
    assert.equal(await get(container, "/count"), "4");
  });

  it("are reached by the readiness request and the hooks of the agent", async () => {
    const shadow = await shadowOf(engine, specOf());
    assert.equal(await httpReadiness.get(shadow, "x.localhost", "/", limit()), 200);
    assert.equal(await httpReadiness.get(shadow, "x.localhost", "/unknown", limit()), 404);
    const hook = { name: "beforeCheckpoint", epoch: 1, reason: "golden" } as const;
    await httpHooks("h").call(shadow, "x.localhost", { ...hook, path: "/" }, limit());
    await assert.rejects(httpHooks("h").call(shadow, "x.localhost", { ...hook, path: "/unknown" }, limit()), /404/);
    const abort = new AbortController();
    const late = httpReadiness.get(shadow, "x.localhost", "/", abort.signal);
    abort.abort();
    await assert.rejects(late);
  });

  it("are reached by nobody else: not from the host's namespace, nor from another container", async () => {
    const spec = specOf();
    const neighbour = await started(engine, specOf());
    const shadow = await shadowOf(engine, spec);
    const outlet = await outletOf(shadow);
    for (const from of [undefined, neighbour])
      for (const address of [shadow.address, outlet])
        assert.doesNotMatch(
          await attempt(address, from),
          /counter/,
          `${address} from ${from?.container ?? "the host"}`,
        );
    assert.equal(await attempt(neighbour.address), "answered: counter", "the way there is known to work");
    const { stdout } = await run("ip", ["-o", "route", "get", shadow.address]).catch(() => ({ stdout: "" }));
    assert.doesNotMatch(stdout, / hs/);
    // Somebody on the host sets a route by hand.
    await run("ip", ["route", "add", `${shadow.address}/32`, "dev", linkOfShadow()]);
    assert.equal(await attempt(shadow.address), "silence");
    assert.equal(await attempt(shadow.address, neighbour), "silence");
    assert.equal(await inside(shadow, "/count"), "1");
  });

  it("reach others: the host, its containers, and machines that know no way back to them", async () => {
    const neighbour = await started(engine, specOf());
    const server = createServer((_, outgoing) => outgoing.end("host"));
    await new Promise<void>((resolve) => server.listen(0, "0.0.0.0", resolve));
    undo.push(() => new Promise((resolve) => server.close(resolve)));
    const far = `${hostId}-far`;
    undo.push(() => run("ip", ["netns", "delete", far]));
    await run("ip", ["netns", "add", far]);
    await run("ip", ["link", "add", "hf0", "type", "veth", "peer", "name", "eth0", "netns", far]);
    await run("ip", ["addr", "add", "10.79.251.1/30", "dev", "hf0"]);
    await run("ip", ["link", "set", "hf0", "up"]);
    for (const args of ["addr add 10.79.251.2/30 dev eth0", "link set eth0 up", "link set lo up"])
      await run("ip", ["-n", far, ...args.split(" ")]);
    const { port } = server.address() as AddressInfo;
    const program = 'require("node:http").createServer((_, o) => o.end("far")).listen(8124, () => console.log("up"))';
    const child = execFile("ip", ["netns", "exec", far, process.execPath, "-e", program]);
    undo.unshift(async () => child.kill("SIGKILL"));
    await new Promise((resolve) => child.stdout?.once("data", resolve));
    const shadow = await shadowOf(engine, specOf());
    const fetched = (url: string): Promise<string> => inside(shadow, `/fetch?url=${encodeURIComponent(url)}`);
    assert.equal(await fetched(`http://169.254.1.1:${port}/`), "host");
    assert.equal(await fetched(`http://${neighbour.address}:${counterPort}/`), "counter");
    assert.equal(await fetched("http://10.79.251.2:8124/"), "far");
  });

  it("leave an image that is restored as the container, on this host beside nothing of theirs and on another", async () => {
    const spec = specOf();
    const container = await started(engine, spec);
    for (let n = 1; n <= 3; n++) assert.equal(await get(container, "/count"), String(n));
    const image = await mkdtemp(join(directory, "image-"));
    const begunMs = performance.now();
    const shadow = await shadowOf(engine, spec);
    assert.equal(await httpReadiness.get(shadow, "x.localhost", "/", limit()), 200);
    assert.equal(await inside(shadow, "/write?path=/var/tmp/note&text=kept"), "written");
    await engine.checkpoint(shadow, spec, image, limit());
    await stop(engine, shadow);
    console.log(`      shadow start, image and stop: ${Math.round(performance.now() - begunMs)} ms`);
    await stop(engine, container);
    assert.deepEqual(leftOf(), []);
    assert.deepEqual(await processesOf(spec.name), []);
    for (const [host, of] of [
      [hosts[0], engine],
      [hosts[1], other],
    ] as const) {
      const copy = await restored(of, spec, image);
      assert.deepEqual([copy.container, copy.address, copy.within], [spec.name, container.address, undefined]);
      assert.equal(await get(copy, "/count"), "1", "nothing of what clients of the container did");
      assert.equal(await get(copy, "/read?path=/var/tmp/note"), "kept");
      assert.equal(await get(copy, "/read?path=/run/hakobu/host"), host);
      assert.equal(await get(copy, "/read?path=/run/hakobu/epoch"), "9");
      assert.match(readFileSync(`/proc/${copy.pid}/cgroup`, "utf8"), new RegExp(`/hakobu/${host}/${spec.name}$`, "m"));
      const again = await mkdtemp(join(directory, "image-"));
      await of.checkpoint(copy, spec, again, limit());
      await stop(of, copy);
    }
  });

  it("keep to the container's limits in a control group of their own", async () => {
    const spec = specOf({ limits: { cpus: 0.5, memoryMiB: 200, pids: 50 } });
    const shadow = await shadowOf(engine, spec);
    const group = `hakobu/${hostId}/${spec.name}.shadow`;
    const paths = [`/sys/fs/cgroup/memory/${group}/memory.limit_in_bytes`, `/sys/fs/cgroup/${group}/memory.max`];
    const path = paths.find((each) => existsSync(each)) ?? assert.fail("no limit of memory");
    assert.equal(readFileSync(path, "utf8").trim(), String(200 * 2 ** 20));
    assert.match(readFileSync(`/proc/${shadow.pid}/cgroup`, "utf8"), new RegExp(`/${group}$`, "m"));
  });

  it("are never found again: what a killed agent left of one goes, and the container stays", async () => {
    const spec = specOf();
    const container = await started(engine, spec);
    const shadow = await shadowOf(engine, spec);
    const again = engineOf(hostId);
    assert.deepEqual(await again.find(), [container]);
    assert.equal(again.alive(shadow), false);
    assert.equal(await get(container, "/count"), "1");
    assert.deepEqual(await processesOf(spec.name), [container.pid]);
    assert.deepEqual(
      leftOf().filter((each) => /\.shadow|^hs/.test(each)),
      [],
    );
    await stop(engine, shadow);
  });

  it("are of the root filesystem as it is now, which their engine tells apart from what it remembers", async () => {
    const rootfs = await mkdtemp(join(directory, "rootfs-"));
    await mkdir(join(rootfs, "etc"));
    await writeFile(join(rootfs, "etc/os-release"), "one");
    const [spec, neighbour] = [specOf({ rootfs }), specOf({ rootfs })];
    const before = await engine.fingerprint(spec);
    assert.deepEqual(await engine.fingerprint(spec, true), before);
    await writeFile(join(rootfs, "etc/os-release"), "another");
    const now = await engine.fingerprint(spec, true);
    assert.notEqual(now["rootfs"], before["rootfs"]);
    assert.deepEqual(await engine.fingerprint(spec), before);
    engine.remember(spec, now);
    assert.deepEqual(await engine.fingerprint(spec), now);
    assert.deepEqual(await engine.fingerprint(neighbour), before, "its image is of that still");
  });

  it("leave nothing when their start is aborted at any point, or cannot be", async () => {
    for (const afterMs of [0, 3, 10, 20, 30, 45, 60]) {
      const abort = new AbortController();
      const start = engine.shadow(launchOf(specOf()), abort.signal);
      const timer = setTimeout(() => abort.abort(), afterMs);
      const outcome = await start.catch((error: unknown) => error as Error);
      clearTimeout(timer);
      if (outcome instanceof Error) codeIs("ABORTED")(outcome);
      else await engine.stop(outcome.instance, 0);
    }
    const spec = specOf({ mounts: [{ source: "/nonexistent", target: "/x", readOnly: true }] });
    await assert.rejects(engine.shadow(launchOf(spec), limit()), codeIs("START_FAILED"));
    assert.deepEqual(leftOf(), []);
  });
});
