import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import http from "node:http";
import net, { type Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { Target } from "../../actors/ports/prober.js";
import { Cancellation } from "../../runtime/forwarding/cancellation.js";
import { requestHeaders } from "../../runtime/forwarding/headers.js";
import { forwardUpgrade, type UpgradeOutcome, upgradeResponse } from "../../runtime/forwarding/upgrade.js";
import { Pools } from "../../runtime/forwarding/pools.js";
import { closeAll, deadPort, httpServer, type Listening, raw, until } from "../lab/hop.js";

const sha = (data: Buffer): string => createHash("sha256").update(data).digest("hex");

interface Front extends Listening {
  readonly outcomes: UpgradeOutcome[];
}

/** Forwards upgrades to the targets in turn. */
async function front(targets: readonly Target[], cancellation?: Cancellation): Promise<Front> {
  const pools = new Pools();
  const outcomes: UpgradeOutcome[] = [];
  const server = await httpServer(
    (_request, response) => response.end("plain"),
    (bare) => {
      bare.on("close", () => void pools.close());
      bare.on("upgrade", (incoming, socket, head) => {
        const outgoing = upgradeResponse(incoming, socket);
        const headers = requestHeaders(incoming, { forwarded: "replace" });
        void (async () => {
          for (const target of targets) {
            const outcome = await forwardUpgrade(pools.get(target), incoming, outgoing, head, {
              headersTimeoutMs: 5000,
              bodyTimeoutMs: 5000,
              headers,
              cancellation,
            });
            outcomes.push(outcome);
            if (outcome.kind !== "failed" || outcome.responded) return;
          }
          outgoing.writeHead(502).end();
        })();
      });
    },
  );
  return Object.assign(server, { outcomes });
}

/** Upgrades and sends back what it gets; `/refused` and `/large` are answered without. */
async function backend(seen: http.IncomingMessage[] = []): Promise<Listening> {
  return httpServer(
    (request, response) => {
      seen.push(request);
      if (request.url === "/large") response.end(Buffer.alloc(5_000_000, "x"));
      else response.writeHead(403, { "x-reason": "no" }).end("forbidden");
    },
    (server) => {
      server.on("upgrade", (request: http.IncomingMessage, socket: Duplex, head: Buffer) => {
        if (request.url !== "/ws") {
          server.emit("request", request, upgradeResponse(request, socket));
          return;
        }
        seen.push(request);
        socket.on("error", () => undefined);
        socket.write(
          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: abc\r\n\r\nhello ",
        );
        socket.write(head);
        socket.pipe(socket);
      });
    },
  );
}

const HANDSHAKE =
  "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\nhakobu-epoch: 1\r\n\r\n";

/** A client's side of the connection, with all that it received. */
function client(target: Target, text: string): { socket: Socket; received: () => Buffer; closed: () => boolean } {
  const chunks: Buffer[] = [];
  let closed = false;
  const socket = net.connect({ host: target.address, port: target.port });
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  socket.on("error", () => undefined);
  socket.on("close", () => {
    closed = true;
  });
  socket.write(text);
  return { socket, received: () => Buffer.concat(chunks), closed: () => closed };
}

describe("forwarding an upgrade", () => {
  afterEach(closeAll);

  it("carries the handshake under the same header rules, then all bytes of both sides", async () => {
    const seen: http.IncomingMessage[] = [];
    const target = await backend(seen);
    const hop = await front([target]);
    const { socket, received } = client(hop, `${HANDSHAKE}early`);
    await until(() => received().includes("hello early"), "the first bytes");
    const head = received().toString("latin1");
    assert.match(head, /^HTTP\/1\.1 101 Switching Protocols\r\n/);
    assert.match(head, /Sec-WebSocket-Accept: abc\r\n/);
    const { headers } = seen[0] as http.IncomingMessage;
    assert.equal(headers["sec-websocket-key"], "k");
    assert.equal(headers["x-forwarded-host"], "a.example");
    assert.equal(headers["hakobu-epoch"], undefined);
    assert.equal(headers.upgrade, "websocket");

    const start = received().length;
    const body = randomBytes(3_000_000);
    socket.write(body);
    await until(() => received().length >= start + body.length, "3 MB to come back");
    assert.equal(sha(received().subarray(start)), sha(body));
    socket.end();
    await until(() => hop.outcomes[0]?.kind === "tunnelled", "the end of the tunnel");
    await until(() => target.sockets.size === 0 && hop.sockets.size === 0, "both connections to close");
  });

  it("ends one side when the other does, in every way", async () => {
    for (const end of ["client reset", "target reset", "target end", "cancelled"]) {
      const target = await backend();
      const cancellation = new Cancellation();
      const hop = await front([target], cancellation);
      const { socket, received, closed } = client(hop, HANDSHAKE);
      await until(() => received().includes("hello"), "the tunnel");
      if (end === "client reset") socket.resetAndDestroy();
      else if (end === "cancelled") cancellation.cancel(new Error("the container is leaving"));
      else for (const side of target.sockets) (end === "target end" ? side.end("bye") : side.resetAndDestroy()).unref();
      await until(() => closed() && target.sockets.size === 0, `${end}: both sides to close`);
      if (end === "target end") assert.ok(received().toString().endsWith("bye"));
      await until(() => hop.outcomes[0]?.kind === "tunnelled", `${end}: the outcome`);
    }
  });

  it("goes on to the next target while nothing was sent, and passes on an answer without an upgrade", async () => {
    const hop = await front([await deadPort(), await backend()]);
    const refused = await raw(hop, HANDSHAKE.replace("/ws", "/refused"));
    assert.match(refused.text, /^HTTP\/1\.1 403 Forbidden\r\n[\s\S]*x-reason: no\r\n[\s\S]*forbidden/);
    const [first, second] = hop.outcomes;
    assert.ok(first?.kind === "failed" && first.sent === "nothing" && first.code === "refused");
    assert.deepEqual(second, { kind: "served", status: 403 });
    const large = await raw(hop, HANDSHAKE.replace("/ws", "/large"));
    assert.equal(large.text.length - large.text.indexOf("\r\n\r\n") - 4, 5_000_000);
    const nowhere = await front([await deadPort()]);
    assert.match((await raw(nowhere, HANDSHAKE)).text, /^HTTP\/1\.1 502 /);
  });

  it("does not open a tunnel for another protocol, another method or a request with a body", async () => {
    const seen: http.IncomingMessage[] = [];
    const hop = await front([await backend(seen)]);
    const h2c = await raw(
      hop,
      HANDSHAKE.replace("websocket", "h2c").replace("Upgrade\r\n", "Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\n"),
    );
    assert.match(h2c.text, /^HTTP\/1\.1 403 /);
    assert.equal(seen[0]?.headers.upgrade, undefined);
    assert.equal(seen[0]?.headers["http2-settings"], undefined);
    assert.match((await raw(hop, HANDSHAKE.replace("GET", "POST"))).text, /^HTTP\/1\.1 403 /);
    const body = await raw(hop, HANDSHAKE.replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nabc"));
    assert.match(body.text, /^HTTP\/1\.1 502 /);
    const last = hop.outcomes.at(-1);
    assert.ok(last?.kind === "failed" && last.code === "invalid");
  });

  it("tells the target when the client goes during the handshake", async () => {
    const silent = await httpServer(
      () => undefined,
      (server) => server.on("upgrade", (_request, socket: Duplex) => socket.on("error", () => undefined).resume()),
    );
    const hop = await front([silent]);
    const { socket } = client(hop, HANDSHAKE);
    await until(() => silent.sockets.size === 1, "the handshake at the target");
    socket.destroy();
    await until(() => hop.outcomes[0]?.kind === "client-gone", "the outcome");
    await until(
      () => [...silent.sockets].every((side) => side.readableEnded || side.destroyed),
      "the target to be told",
    );
  });
});
