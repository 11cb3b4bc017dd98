// Hooks: what is sent over HTTP, and what a container makes of the answers.
import assert from "node:assert/strict";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { Admission } from "../../actors/admission.js";
import { ContainerActor } from "../../actors/container.js";
import type { Engine, Instance } from "../../actors/ports/engine.js";
import type { Hook, Hooks } from "../../actors/ports/hooks.js";
import type { Image, ImageStore } from "../../actors/ports/image-store.js";
import { noLog } from "../../actors/ports/log.js";
import { noTracing } from "../../actors/ports/tracer.js";
import { ActorRegistry } from "../../actors/registry.js";
import { Standbys } from "../../actors/standbys.js";
import { httpHooks } from "../../runtime/dispatcher/hooks.js";
import { systemClock } from "../../runtime/system-clock.js";
import { recordOf } from "../lab/records.js";

describe("hooks over HTTP", () => {
  interface Seen {
    readonly method: string | undefined;
    readonly url: string | undefined;
    readonly headers: IncomingHttpHeaders;
    readonly body: Record<string, unknown>;
  }
  const seen: Seen[] = [];
  let status = 204;
  let silent = false;
  const server = createServer((incoming, outgoing) => {
    let text = "";
    incoming.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
    incoming.on("end", () => {
      const { method, url, headers } = incoming;
      seen.push({ method, url, headers, body: JSON.parse(text) as Record<string, unknown> });
      if (!silent) outgoing.writeHead(status).end(status === 204 ? undefined : "no database");
    });
  });
  const target = () => ({ address: "127.0.0.1", port: (server.address() as AddressInfo).port });
  const hook = (name: Hook["name"]): Hook => ({ name, path: "/hakobu?x=1", epoch: 7, reason: "golden" });
  const call = (name: Hook["name"], signal = AbortSignal.timeout(5000)) =>
    httpHooks("host-a").call(target(), "blog.example", hook(name), signal);

  before((done) => void server.listen(0, "127.0.0.1", done));
  after((done) => {
    server.close(done);
    server.closeAllConnections();
  });
  beforeEach(() => {
    seen.length = 0;
    status = 204;
    silent = false;
  });

  it("are a POST with the epoch, the host, the reason and, after a restore, a seed that is another one each time", async () => {
    await call("afterRestore");
    await call("afterRestore");
    await call("beforeCheckpoint");
    const [first, second, third] = seen as [Seen, Seen, Seen];
    assert.deepEqual([first.method, first.url, first.headers.host], ["POST", "/hakobu?x=1", "blog.example"]);
    assert.deepEqual(
      [first.headers["hakobu-hook"], first.headers["content-type"]],
      ["afterRestore", "application/json"],
    );
    const { seed, ...rest } = first.body;
    assert.match(String(seed), /^[0-9a-f]{64}$/);
    assert.notEqual(second.body["seed"], seed);
    assert.deepEqual(rest, { epoch: 7, host: "host-a", reason: "golden" });
    assert.equal(third.headers["hakobu-hook"], "beforeCheckpoint");
    assert.deepEqual(third.body, { epoch: 7, host: "host-a", reason: "golden" });
  });

  it("have failed when the answer is no success, when none comes in time, and when nothing listens", async () => {
    status = 503;
    await assert.rejects(call("afterRestore"), /hook afterRestore \(POST \/hakobu\?x=1\): .*503: no database/);
    status = 302;
    await assert.rejects(call("afterRestore"), /302/);
    silent = true;
    await assert.rejects(call("afterRestore", AbortSignal.timeout(50)), /hook afterRestore/);
    const nobody = { address: "127.0.0.1", port: 1 };
    await assert.rejects(
      httpHooks("a").call(nobody, "blog.example", hook("afterRestore"), AbortSignal.timeout(5000)),
      /ECONNREFUSED/,
    );
  });
});

describe("a container with hooks", () => {
  const record = recordOf("blog", {
    engine: "runc",
    hooks: { beforeCheckpoint: "/before", afterRestore: "/after", timeoutMs: 100 },
  });
  const instance: Instance = {
    container: "blog",
    engine: "runc",
    epoch: 1,
    specHash: "1",
    address: "127.0.0.1",
    port: 8000,
    pid: 1,
    startTime: 1,
  };
  const image = {
    directory: "/images/blog/1",
    bytes: 1,
    manifest: { container: "blog", epoch: 1 },
  } as unknown as Image;

  /** What was done, in order; the hooks answer as `answers` says. */
  function opened(found: Image | undefined, answers: Hooks["call"]) {
    const done: string[] = [];
    const note = (what: string) => Promise.resolve(void done.push(what));
    const launched = { instance, phases: [] };
    const engine: Engine = {
      name: "runc",
      capabilities: { checkpoint: true },
      fingerprint: () => Promise.resolve({}),
      start: () => note("start").then(() => launched),
      restore: () => note("restore").then(() => launched),
      checkpoint: () => note("checkpoint").then(() => []),
      renew: (renewed) => Promise.resolve(renewed),
      stop: () => note("stop"),
      alive: () => true,
      listening: () => Promise.resolve(true),
      find: () => Promise.resolve([]),
      output: () => Promise.resolve(""),
      boundOutput: () => Promise.resolve(),
      tidy: () => Promise.resolve(),
    };
    const images: Partial<ImageStore> = {
      takeSuspended: () => Promise.resolve({ skipped: [] }),
      find: () => Promise.resolve({ ...(found === undefined ? {} : { image: found }), skipped: [] }),
      begin: () =>
        Promise.resolve({
          directory: "/draft",
          publish: () => note("publish").then(() => image),
          discard: () => Promise.resolve(),
        }),
      use: ({ directory }) => Promise.resolve({ directory, phases: [], release: () => {} }),
      setAside: () => note("set aside"),
    };
    const admission = new Admission(1);
    const engines = new Map([[engine.name, engine]]);
    const standbys = new Standbys({
      clock: systemClock,
      log: noLog,
      images: images as ImageStore,
      engines,
      admission,
    });
    const container = new ContainerActor(
      {
        engine,
        images: images as ImageStore,
        standbys,
        content: { digest: () => Promise.resolve("") },
        readiness: { get: () => Promise.resolve(200) },
        hooks: {
          call: (target, hostname, hook, signal) => note(hook.name).then(() => answers(target, hostname, hook, signal)),
        },
        clock: systemClock,
        tracer: noTracing,
        log: noLog,
        registry: new ActorRegistry(),
        admission,
      },
      record,
      1,
    );
    return { container, done };
  }

  const succeed = () => Promise.resolve();
  const fail = () => Promise.reject(new Error("planted"));

  it("is told before an image is taken", async () => {
    const { container, done } = opened(undefined, succeed);
    await container.whenServing(undefined, AbortSignal.timeout(5000));
    assert.deepEqual(done, ["start", "beforeCheckpoint", "checkpoint", "publish"]);
    container.abandon();
  });

  it("serves without an image when it refuses to be imaged", async () => {
    const { container, done } = opened(undefined, fail);
    await container.whenServing(undefined, AbortSignal.timeout(5000));
    assert.deepEqual(done, ["start", "beforeCheckpoint"]);
    assert.equal(container.reason, "planted");
    container.abandon();
  });

  it("is told after a restore, before it serves", async () => {
    let release = (): void => {};
    const { container, done } = opened(image, () => new Promise((resolve) => (release = resolve)));
    const serving = container.whenServing(undefined, AbortSignal.timeout(5000));
    while (!done.includes("afterRestore")) await new Promise(setImmediate);
    assert.equal(container.serving, undefined);
    release();
    await serving;
    assert.deepEqual(done, ["restore", "afterRestore"]);
    assert.deepEqual(
      container.activation?.phases.map(({ name }) => name),
      ["find image", "afterRestore hook"],
    );
    container.abandon();
  });

  for (const [how, answers] of [
    ["fails", fail],
    [
      "does not answer in time",
      (_a, _b, _c, signal) =>
        new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason as Error))),
    ],
  ] satisfies [string, Hooks["call"]][])
    it(`is stopped and started cold when the hook after a restore ${how}`, async () => {
      const { container, done } = opened(image, (target, hostname, hook, signal) =>
        hook.name === "afterRestore" ? answers(target, hostname, hook, signal) : succeed(),
      );
      await container.whenServing(undefined, AbortSignal.timeout(5000));
      assert.deepEqual(done.slice(0, 5), ["restore", "afterRestore", "stop", "set aside", "start"]);
      assert.equal(container.activation?.how, "cold");
      assert.match(container.activation?.note ?? "", /planted|hooks\.timeout/);
      container.abandon();
    });
});
