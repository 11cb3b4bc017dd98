// The cluster in one process: what runs without root, what services embed, and the traces of a move.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { containerMachine } from "../../machines/container.js";
import { hostMachine } from "../../machines/host.js";
import { reachabilityMachine } from "../../machines/reachability.js";
import { relocationMachine } from "../../machines/relocation.js";
import { noLog } from "../../actors/ports/log.js";
import { specRecord } from "../../runtime/config/spec.js";
import { createLoopbackCluster, type LoopbackCluster } from "../../runtime/local/loopback.js";
import { startTracing, type Tracing } from "../../runtime/tracing/opentelemetry.js";
import { eventually, fixtures, send } from "../lab/cluster.js";
import { type OtlpReceiver, otlpReceiver } from "../lab/otlp-receiver.js";
import { specOf } from "../lab/records.js";

interface SpecAndPlacement {
  readonly spec: { readonly name: string };
  readonly placement?: { readonly epoch: number };
}

const program = fileURLToPath(new URL("../../runtime/cli/main.js", import.meta.url));

describe("the cluster without root", function () {
  this.timeout(60_000);
  let directory: string;
  let collector: OtlpReceiver;
  let tracing: Tracing;
  let cluster: LoopbackCluster;
  const app = (name: string) =>
    specRecord(
      specOf(name, {
        command: [process.execPath, join(fixtures, "journal.mjs")],
        checkpoint: { onReady: false, at: "warm", warmup: "/", timeoutMs: 1000 },
      }),
    );

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-loopback-"));
    collector = await otlpReceiver();
    tracing = startTracing({
      service: "hakobu",
      instance: "test",
      endpoint: collector.endpoint,
      log: noLog,
      exportEveryMs: 50,
    });
    cluster = await createLoopbackCluster({
      hosts: ["a", "b"],
      directory,
      proxy: { address: "127.0.0.1", port: 0 },
      admin: { address: "127.0.0.1", port: 0 },
      log: noLog,
      tracer: tracing.tracer,
    });
  });
  after(async () => {
    await cluster?.close();
    await tracing?.close();
    await collector?.close();
    await rm(directory, { recursive: true, force: true });
  });

  it("places, serves, and moves a container when its host is gone, with a trace of the move linked both ways", async () => {
    await cluster.apply([app("blog")]);
    assert.equal((await send(cluster.proxy, "blog.localhost")).status, 200);
    const owner = (await cluster.owner("blog")) as string;
    await cluster.cut(owner);
    const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
    const parent = { traceparent: `00-${traceId}-00f067aa0ba902b7-01` };
    const reply = await send(cluster.proxy, "blog.localhost", { headers: parent });
    assert.equal(reply.status, 200, reply.text);
    const seen = (JSON.parse(reply.text) as { headers: Record<string, string> }).headers;
    assert.match(seen.traceparent ?? "", new RegExp(`^00-${traceId}-[0-9a-f]{16}-01$`));
    assert.equal(seen["x-forwarded-host"], "blog.localhost");
    assert.match(seen.forwarded ?? "", /for=127\.0\.0\.1;proto=http;host=blog\.localhost/);
    assert.equal(seen["hakobu-container"], undefined);

    const move = await eventually("the trace of the move", () =>
      collector.spans.find((span) => span.name === "relocation" && span.attributes["hakobu.from"] === owner),
    );
    const request = await eventually("the trace of the request", () =>
      collector.spans.find((span) => span.name === "request" && span.traceId === traceId),
    );
    assert.deepEqual(move.links, [{ traceId, spanId: request.spanId }]);
    assert.deepEqual(request.links, [{ traceId: move.traceId, spanId: move.spanId }]);
    assert.equal(request.parentSpanId, "00f067aa0ba902b7");
    const own = collector.spans.filter((span) => span.traceId === move.traceId);
    const names = own.map((span) => span.name);
    for (const name of ["choose", "claim", "activate", "first response", "cold start", "listen", "warm up"])
      assert.ok(names.includes(name), `${name} in ${names.join(", ")}`);
    assert.equal(move.attributes["hakobu.container"], "blog");
    assert.equal(move.attributes["hakobu.to"], await cluster.owner("blog"));
    assert.match(String(move.attributes["hakobu.reason"]), /refused/);
    assert.ok(Number(move.attributes["hakobu.epoch"]) > 0);
    await cluster.heal(owner);
  });

  it("makes no span for requests on the warm path", async () => {
    await cluster.apply([app("warm")]);
    await send(cluster.proxy, "warm.localhost");
    await eventually("the first request's trace", () =>
      collector.spans.some((span) => span.name === "request" && span.attributes["server.address"] === "warm.localhost"),
    );
    const before = collector.spans.length;
    for (let i = 0; i < 50; i++) assert.equal((await send(cluster.proxy, "warm.localhost")).status, 200);
    await cluster.apply([app("later")]);
    await send(cluster.proxy, "later.localhost");
    await eventually("a later trace has come", () =>
      collector.spans.some((span) => span.attributes["server.address"] === "later.localhost"),
    );
    const more = collector.spans.slice(before).filter((span) => span.attributes["server.address"] === "warm.localhost");
    assert.deepEqual(more, []);
  });

  it("answers 404 for a host name that nobody has, and 503 with the reason when no host can take a container", async () => {
    const unknown = await send(cluster.proxy, "nobody.localhost");
    assert.equal(unknown.status, 404);
    assert.match(unknown.text, /nobody\.localhost[\s\S]*Trace: [0-9a-f]{32}/);
    await cluster.apply([specRecord(specOf("needs-runc", { engine: "runc" }))]);
    const none = await send(cluster.proxy, "needs-runc.localhost");
    assert.equal(none.status, 503);
    assert.equal(none.headers["retry-after"], "1");
    assert.match(none.text, /engine runc/);
  });

  it("answers 503 with the application's own words when it does not start, and tries again after the back-off", async () => {
    const broken = specRecord(
      specOf("broken", { command: [process.execPath, "-e", "console.log('no database'); process.exit(1)"] }),
    );
    await cluster.apply([broken]);
    const reply = await send(cluster.proxy, "broken.localhost");
    assert.equal(reply.status, 503);
    assert.match(reply.text, /no database/);
    await cluster.apply([app("broken")]);
    await eventually(
      "it serves once it is mended",
      async () => (await send(cluster.proxy, "broken.localhost")).status === 200,
    );
  });

  it("says at once why an exclusive container does not start, and lets no other request wait for it", async () => {
    const says = ["-e", "console.log('no database'); process.exit(1)"];
    const broken = specOf("alone", { command: [process.execPath, ...says], takeover: "exclusive" });
    await cluster.apply([specRecord(broken)]);
    for (let each = 0; each < 3; each++) {
      const begunMs = performance.now();
      const reply = await send(cluster.proxy, "alone.localhost");
      assert.equal(reply.status, 503);
      assert.equal(reply.headers["retry-after"], "1");
      assert.match(reply.text, /no database/);
      assert.ok(performance.now() - begunMs < 5000, "it waited for the end of a lease that holds");
    }
    await cluster.apply([specRecord({ ...app("alone").spec, takeover: "exclusive" })]);
    await eventually(
      "it serves once it is mended",
      async () => (await send(cluster.proxy, "alone.localhost")).status === 200,
    );
  });

  it("does not try a container that starts nowhere on one host after the other for ever", async () => {
    const says = ["-e", "console.log('no licence'); process.exit(1)"];
    await cluster.apply([specRecord(specOf("nowhere", { command: [process.execPath, ...says] }))]);
    const epochs = new Set<number | undefined>();
    let last = "";
    for (let each = 0; each < 40; each++) {
      const reply = await send(cluster.proxy, "nowhere.localhost");
      assert.equal(reply.status, 503);
      last = reply.text;
      const { address, port } = cluster.admin;
      const known = (await (await fetch(`http://${address}:${port}/containers`)).json()) as SpecAndPlacement[];
      epochs.add(known.find(({ spec }) => spec.name === "nowhere")?.placement?.epoch);
    }
    assert.match(last, /no licence/);
    assert.match(last, /movesPerMinute/);
    assert.ok(epochs.size <= 10, `${epochs.size} claims`);
  });

  it("leaves a connection to a host usable when an upload came for a container that does not start", async () => {
    const body = "x".repeat(1024 * 1024);
    for (let each = 0; each < 5; each++) {
      const reply = await send(cluster.proxy, "alone-too.localhost", { method: "POST", body });
      assert.equal(reply.status, 404);
    }
    const says = ["-e", "process.exit(1)"];
    await cluster.apply([
      specRecord(specOf("uploads", { command: [process.execPath, ...says], takeover: "exclusive" })),
      app("other"),
    ]);
    assert.equal((await send(cluster.proxy, "other.localhost")).status, 200);
    for (let each = 0; each < 10; each++) {
      const refused = await send(cluster.proxy, "uploads.localhost", { method: "POST", body });
      assert.equal(refused.status, 503);
      assert.equal((await send(cluster.proxy, "other.localhost", { timeoutMs: 3000 })).status, 200);
    }
  });

  it("leaves no placeholder of a statechart in a live actor", () => {
    const bases = new Map(
      [containerMachine, hostMachine, reachabilityMachine, relocationMachine].map((machine) => [
        machine.id,
        machine.implementations as unknown as Record<string, Record<string, unknown>>,
      ]),
    );
    const live = cluster.actors();
    const kinds = new Set<string>();
    for (const { address, actor } of live) {
      const kind = address.split("/")[0] as string;
      kinds.add(kind);
      const base = bases.get(kind);
      const provided = (actor as unknown as { logic: { implementations: typeof base } }).logic.implementations;
      assert.ok(base && provided, address);
      for (const name of Object.keys(base.actors ?? {}))
        assert.notEqual(provided.actors?.[name], base.actors?.[name], `${address}: ${name}`);
      if (kind === "host") assert.notEqual(provided.actions?.fence, base.actions?.fence);
    }
    assert.ok(kinds.has("container") && kinds.has("host") && kinds.has("reachability"), [...kinds].join(" "));
  });
});

describe("hakobu experiment on a machine without CRIU", function () {
  this.timeout(60_000);

  it("says what is missing, runs the cold experiment, and exits with 0", async () => {
    const directory = await mkdtemp(join(tmpdir(), "hakobu-cold-"));
    try {
      const args = [program, "experiment", "--once", "--requests", "40", "--dir", directory];
      const ports = ["--listen", "127.0.0.1:18080", "--admin", "127.0.0.1:18081"];
      const child = spawn(process.execPath, [...args, ...ports], {
        env: { ...process.env, HAKOBU_CRIU: "/nonexistent/criu" },
        stdio: ["ignore", "pipe", "pipe"],
      });
      let out = "";
      child.stdout.on("data", (chunk: Buffer) => (out += chunk.toString()));
      child.stderr.on("data", (chunk: Buffer) => (out += chunk.toString()));
      const code = await new Promise((resolve) => child.once("exit", resolve));
      assert.equal(code, 0, out);
      assert.match(out, /missing: .*CRIU/);
      assert.match(out, /cold start/);
      assert.match(out, /▲/);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });
});
