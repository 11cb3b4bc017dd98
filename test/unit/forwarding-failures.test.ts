import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import http from "node:http";
import net, { type Socket } from "node:net";
import type { Target } from "../../actors/ports/prober.js";
import type { ForwardFailure, ForwardOutcome } from "../../runtime/forwarding/outcome.js";
import { Pools } from "../../runtime/forwarding/pools.js";
import { blackhole } from "../lab/blackhole.js";
import { ask, closeAll, deadPort, hop, type Hop, httpServer, raw, tcpServer, until } from "../lab/hop.js";

const sha = (data: Buffer): string => createHash("sha256").update(data).digest("hex");

const REQUEST = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

function failure(outcome: ForwardOutcome | undefined): Pick<ForwardFailure, "sent" | "responded" | "code"> {
  assert.ok(outcome?.kind === "failed", `expected a failure, got ${JSON.stringify(outcome)}`);
  const { sent, responded, code } = outcome;
  return { sent, responded, code };
}

/** Gives back the digest of the body it was sent. */
function digester(): ReturnType<typeof httpServer> {
  return httpServer((request, response) => {
    const hash = createHash("sha256");
    request.on("data", (chunk: Buffer) => hash.update(chunk));
    request.on("end", () => response.end(hash.digest("hex")));
  });
}

/** Calls back when so many bytes have come in on a connection. */
function after(bytes: number, then: (socket: Socket) => void): (socket: Socket) => void {
  return (socket) => {
    let received = 0;
    let done = false;
    socket.on("data", (chunk: Buffer) => {
      received += chunk.length;
      if (done || received < bytes) return;
      done = true;
      then(socket);
    });
  };
}

describe("a failed attempt", () => {
  afterEach(closeAll);

  describe("sends the body again, whole, to the next target", () => {
    const size = 2_000_000;
    const failing: Record<string, () => Promise<Target>> = {
      "after a refusal": deadPort,
      "after a reset on accept": () => tcpServer((socket) => socket.resetAndDestroy()),
      "after a reset behind the head": () => tcpServer(after(1, (socket) => socket.resetAndDestroy())),
      "after a reset within the body": () => tcpServer(after(1_000_000, (socket) => socket.resetAndDestroy())),
      "after the whole body and no answer": () => tcpServer(after(size + 100, (socket) => socket.resetAndDestroy())),
      "after an end without an answer": () => tcpServer(after(1000, (socket) => socket.end())),
      "after garbage": () => tcpServer(after(1000, (socket) => socket.end("SSH-2.0-x\r\n"))),
    };
    for (const [name, make] of Object.entries(failing)) {
      it(name, async () => {
        const dead = await make();
        const live = await digester();
        const front = await hop([dead, dead, live], { replayLimitBytes: 3_000_000 });
        for (const framing of [{ "content-length": size }, { "transfer-encoding": "chunked" }]) {
          const body = randomBytes(size);
          const answer = await ask(front, { method: "POST", body, headers: framing });
          assert.equal(answer.body.toString(), sha(body));
        }
        for (const index of [0, 1, 3, 4]) {
          const { responded, sent } = failure(front.outcomes[index]);
          assert.equal(responded, false);
          if (name === "after a refusal") assert.equal(sent, "nothing");
        }
      });
    }

    it("for any size up to the limit", async () => {
      const dead = await tcpServer(after(150, (socket) => socket.resetAndDestroy()));
      const front = await hop([dead, await digester()]);
      for (let i = 0; i < 20; i++) {
        const body = randomBytes(1 + Math.floor(Math.random() * 256 * 1024));
        const answer = await ask(front, { method: "PUT", body, headers: { "transfer-encoding": "chunked" } });
        assert.equal(answer.body.toString(), sha(body), `${body.length} bytes`);
      }
    });
  });

  it("never sends a part of a body that is larger than the limit", async () => {
    let reached = 0;
    const live = await httpServer((request, response) => {
      reached += 1;
      request.resume().on("end", () => response.end());
    });
    const dead = await tcpServer(after(1_500_000, (socket) => socket.resetAndDestroy()));
    const front = await hop([dead, live]);
    const answer = await ask(front, {
      method: "POST",
      body: randomBytes(4_000_000),
      headers: { "content-length": 4_000_000 },
    });
    assert.equal(answer.status, 502);
    assert.equal(reached, 0);
    assert.equal(front.bodies[0]?.replayable, false);
    assert.throws(() => front.bodies[0]?.open(), { code: "ABORTED" });
  });

  it("sends a body of any size on after a refusal, for nothing of it was read", async () => {
    const front = await hop([await deadPort(), await digester()]);
    const body = randomBytes(5_000_000);
    const answer = await ask(front, { method: "POST", body, headers: { "content-length": body.length } });
    assert.equal(answer.body.toString(), sha(body));
    assert.deepEqual(failure(front.outcomes[0]), { sent: "nothing", responded: false, code: "refused" });
  });

  it("says that something was sent as soon as a connection stood, also for one that was kept alive and died", async () => {
    const resetting = await tcpServer(after(1, (socket) => socket.resetAndDestroy()));
    const front = await hop([resetting]);
    await ask(front);
    assert.deepEqual(failure(front.outcomes[0]), { sent: "something", responded: false, code: "reset" });

    let requests = 0;
    const once = await tcpServer((socket) => {
      socket.on("data", () => {
        requests += 1;
        if (requests === 1) socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        else socket.resetAndDestroy();
      });
    });
    const kept = await hop([once]);
    assert.equal((await ask(kept)).status, 200);
    assert.equal((await ask(kept, { method: "POST", body: "x" })).status, 502);
    assert.equal(requests, 2);
    assert.deepEqual(failure(kept.outcomes[1]), { sent: "something", responded: false, code: "reset" });
  });

  it("ends a connection attempt in a black hole on time, with nothing sent", async () => {
    const hole = await blackhole();
    try {
      const live = await digester();
      const front = await hop([hole, live], { pools: { connectTimeoutMs: 100 } });
      for (const body of [undefined, randomBytes(2_000_000)]) {
        const began = performance.now();
        const answer = await ask(
          front,
          body === undefined ? {} : { method: "POST", body, headers: { "content-length": body.length } },
        );
        const ms = performance.now() - began;
        assert.equal(answer.body.toString(), sha(body ?? Buffer.alloc(0)));
        assert.ok(ms >= 95 && ms < 400, `${ms} ms`);
      }
      assert.deepEqual(failure(front.outcomes[0]), { sent: "nothing", responded: false, code: "timeout" });
      assert.equal(front.pools.sockets(hole), 0);
    } finally {
      hole.close();
    }
  });

  it("does not take a stall of its own for a black hole", async () => {
    const live = await digester();
    const pools = new Pools({ connectTimeoutMs: 20 });
    try {
      for (let i = 0; i < 20; i++) {
        const response = pools.get(live).request({ path: "/", method: "GET", reset: true });
        const end = performance.now() + 40;
        while (performance.now() < end);
        assert.equal((await response).statusCode, 200);
        await (await response).body.dump();
      }
    } finally {
      await pools.close();
    }
  });

  it("gives up a silent target after headersTimeoutMs, but not for a client that uploads slowly", async () => {
    const silent = await tcpServer((socket) => socket.resume());
    const front = await hop([silent], { headersTimeoutMs: 150 });
    const began = performance.now();
    assert.equal((await ask(front)).status, 502);
    assert.ok(performance.now() - began < 1000);
    assert.deepEqual(failure(front.outcomes[0]), { sent: "something", responded: false, code: "timeout" });
    await until(() => silent.sockets.size === 0, "the connection to be closed");

    const slow = await hop([await digester()], { headersTimeoutMs: 100 });
    const request = http.request({ host: slow.address, port: slow.port, method: "POST", agent: false });
    const status = new Promise((resolve) =>
      request.on("response", (response) => resolve(response.resume().statusCode)),
    );
    for (let i = 0; i < 4; i++) {
      request.write("part");
      await new Promise((resolve) => setTimeout(resolve, 150));
    }
    request.end();
    assert.equal(await status, 200);
  });

  it("gives up a client whose upload has stopped, after bodyTimeoutMs", async () => {
    const target = await digester();
    const front = await hop([target], { headersTimeoutMs: 50, bodyTimeoutMs: 200 });
    const { reset } = await raw(front, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf");
    assert.equal(reset, true);
    await until(() => front.outcomes[0]?.kind === "client-gone" && target.sockets.size === 0, "the end of it");
  });

  it("waits for a free connection no longer than headersTimeoutMs, and never sends what it gave up", async () => {
    const asked: string[] = [];
    let answer: (() => void) | undefined;
    const busy = await httpServer((request, response) => {
      asked.push(request.url ?? "");
      answer = () => response.end("ok");
    });
    const front = await hop([busy], { pools: { connections: 1 }, headersTimeoutMs: 300 });
    const first = ask(front, { path: "/first" });
    await until(() => asked.length === 1, "the first request");
    const second = await ask(front, { method: "POST", path: "/second", body: "x" });
    assert.equal(second.status, 502);
    // The first one times out as well; what matters is what was sent for the second.
    const queued = front.outcomes.filter((outcome) => outcome.kind === "failed" && outcome.sent === "nothing");
    assert.equal(queued.length, 1);
    answer?.();
    await first;
    const third = ask(front, { path: "/third" });
    await until(() => asked.length === 2, "the third request");
    answer?.();
    await third;
    assert.deepEqual(asked, ["/first", "/third"]);
  });

  it("breaks the client's connection when a response breaks, whatever its framing", async () => {
    const heads = {
      length: "content-length: 100000\r\n\r\n",
      chunked: "transfer-encoding: chunked\r\n\r\n7\r\n",
      closing: "connection: close\r\n\r\n",
    };
    for (const [name, head] of Object.entries(heads)) {
      const target = await tcpServer(
        after(1, (socket) => {
          socket.write(`HTTP/1.1 200 OK\r\n${head}partial`);
          setTimeout(() => socket.resetAndDestroy(), 30);
        }),
      );
      const front = await hop([target]);
      await assert.rejects(ask(front), Error, name);
      const old = await raw(front, "GET / HTTP/1.0\r\nhost: a\r\n\r\n");
      assert.equal(old.reset, true, `${name}: an HTTP/1.0 client must see a reset`);
      assert.deepEqual(failure(front.outcomes[0]), { sent: "something", responded: true, code: "reset" }, name);
    }
  });

  it("accepts the close, but not the silence, of a target as the end of a body without length", async () => {
    const target = await tcpServer(
      after(1, (socket) => {
        socket.write("HTTP/1.1 200 OK\r\n\r\nall of it");
        setTimeout(() => socket.end(), 20);
      }),
    );
    assert.equal((await ask(await hop([target]))).body.toString(), "all of it");
    const silent = await tcpServer(after(1, (socket) => void socket.write("HTTP/1.1 200 OK\r\n\r\npart of it")));
    const front = await hop([silent], { bodyTimeoutMs: 300 });
    await assert.rejects(ask(front));
    assert.deepEqual(failure(front.outcomes[0]), { sent: "something", responded: true, code: "timeout" });
  });

  it("does not write an answer that is shorter or longer than it says", async () => {
    const short = await tcpServer(
      after(1, (socket) => socket.end("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort")),
    );
    const front = await hop([short]);
    await assert.rejects(ask(front));
    assert.deepEqual(failure(front.outcomes[0]), { sent: "something", responded: true, code: "closed" });

    const long = await tcpServer(
      after(1, (socket) =>
        socket.end("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nevil!"),
      ),
    );
    const next = await hop([long]);
    for (let i = 0; i < 3; i++) assert.doesNotMatch((await raw(next, REQUEST)).text, /evil/);
  });
});

describe("pools", () => {
  afterEach(closeAll);

  async function busy(): Promise<{
    front: Hop;
    target: Awaited<ReturnType<typeof httpServer>>;
    asked: Promise<number>[];
  }> {
    const target = await httpServer(() => undefined);
    const front = await hop([target]);
    const asked = Array.from({ length: 5 }, async () => (await ask(front)).status);
    await until(() => target.sockets.size === 5, "5 connections");
    return { front, target, asked };
  }

  it("cut every connection of a target at once, and start afresh after that", async () => {
    const { front, target, asked } = await busy();
    assert.equal(front.pools.sockets(target), 5);
    front.pools.destroy(target, "its lease has expired");
    front.pools.destroy(target, "said twice");
    assert.deepEqual(await Promise.all(asked), [502, 502, 502, 502, 502]);
    for (const outcome of front.outcomes)
      assert.deepEqual(failure(outcome), { sent: "something", responded: false, code: "closed" });
    await until(() => target.sockets.size === 0, "no connection");
    const again = ask(front);
    await until(() => target.sockets.size === 1, "a new connection");
    front.pools.destroy(target, "the end");
    await again;
  });

  it("cut connections that are still being made", async () => {
    const hole = await blackhole();
    try {
      const front = await hop([hole], { pools: { connectTimeoutMs: 5000 } });
      const asked = ask(front);
      await until(() => front.pools.sockets(hole) === 1, "a connection attempt");
      front.pools.destroy(hole, "dead");
      assert.equal((await asked).status, 502);
      assert.deepEqual(failure(front.outcomes[0]), { sent: "nothing", responded: false, code: "closed" });
    } finally {
      hole.close();
    }
  });

  it("close within their grace though a request never ends, twice and in any order with destroy", async () => {
    const { front, target, asked } = await busy();
    const began = performance.now();
    await Promise.all([front.pools.close(50), front.pools.close(50)]);
    assert.ok(performance.now() - began < 1000);
    assert.deepEqual(await Promise.all(asked), [502, 502, 502, 502, 502]);
    front.pools.destroy(target, "after close");
    await front.pools.close();
    assert.throws(() => front.pools.get(target), { code: "UNAVAILABLE" });
  });

  it("reach an IPv6 address", async function () {
    const server = http.createServer((_request, response) => response.end("six"));
    const listening = await new Promise<boolean>((resolve) => {
      server.once("error", () => resolve(false)).listen(0, "::1", () => resolve(true));
    });
    if (!listening) this.skip();
    const pools = new Pools();
    try {
      const { port } = server.address() as net.AddressInfo;
      const response = await pools.get({ address: "::1", port }).request({ path: "/", method: "GET" });
      assert.equal(await response.body.text(), "six");
    } finally {
      await pools.close();
      server.close();
    }
  });
});
