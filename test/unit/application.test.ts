// The requests that make an application ready, made by the real client to a real server.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { type ApplicationDeps, whenAnswering } from "../../actors/application.js";
import type { Engine, Instance } from "../../actors/ports/engine.js";
import { httpReadiness } from "../../runtime/dispatcher/readiness.js";
import { systemClock } from "../../runtime/system-clock.js";
import { specOf } from "../lab/records.js";

describe("the warm-up of an application", () => {
  let server: Server;
  let instance: Instance;
  let asked: IncomingMessage[];
  /** By path, the statuses to come; then 200. */
  let statuses: Record<string, number[]>;
  let alive: boolean;

  beforeEach(async () => {
    asked = [];
    statuses = {};
    alive = true;
    server = createServer((request, response) => {
      asked.push(request);
      const status = statuses[request.url as string]?.shift() ?? 200;
      response.writeHead(status, { "set-cookie": "session=1" }).end();
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    instance = {
      container: "blog",
      engine: "runc",
      epoch: 1,
      specHash: "1",
      address: "127.0.0.1",
      port,
      pid: 1,
      startTime: 1,
    };
  });
  afterEach(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });

  function warm(warmup: string | readonly string[], limitMs = 5000): Promise<void> {
    const engine: Partial<Engine> = { alive: () => alive, output: async () => "" };
    const deps = { engine, readiness: httpReadiness, clock: systemClock } as ApplicationDeps;
    const spec = specOf("blog", { checkpoint: { onReady: true, at: "warm", warmup, timeoutMs: 1000 } });
    return whenAnswering(deps, spec, instance, AbortSignal.timeout(limitMs));
  }
  const paths = () => asked.map(({ url }) => url);

  it("is one GET for the host name, where one path is given", async () => {
    await warm("/health");
    assert.deepEqual(
      asked.map(({ method, url, headers }) => [method, url, headers.host]),
      [["GET", "/health", "blog.localhost"]],
    );
  });

  it("makes several requests in their order, none with the cookie of the one before", async () => {
    await warm(["/", "/login?next=/", "/"]);
    assert.deepEqual(paths(), ["/", "/login?next=/", "/"]);
    assert.ok(asked.every(({ headers }) => headers.cookie === undefined));
  });

  it("is over when each was answered below 500, and asks again until then", async () => {
    statuses = { "/": [503, 500], "/missing": [404], "/login": [502] };
    await warm(["/", "/missing", "/login"]);
    assert.deepEqual(paths(), ["/", "/", "/", "/missing", "/login", "/login"]);
  });

  it("does not succeed with all but one", async () => {
    statuses = { "/broken": Array.from({ length: 1000 }, () => 500) };
    await assert.rejects(warm(["/", "/broken", "/never"], 200), { name: "TimeoutError" });
    assert.ok(!paths().includes("/never"));
  });

  it("ends when the process does", async () => {
    statuses = { "/b": [500] };
    alive = false;
    await assert.rejects(warm(["/a", "/b"]), { code: "START_FAILED" });
  });
});
