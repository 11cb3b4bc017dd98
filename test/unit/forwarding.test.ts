import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import http from "node:http";
import net from "node:net";
import * as fc from "fast-check";
import { Cancellation } from "../../runtime/forwarding/cancellation.js";
import { type Answer, ask, closeAll, hop, httpServer, raw, tcpServer, until } from "../lab/hop.js";

const sha = (data: Buffer): string => createHash("sha256").update(data).digest("hex");

/** Answers with what it was asked, as JSON. */
function echo(): Promise<Awaited<ReturnType<typeof httpServer>>> {
  return httpServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const body = Buffer.concat(chunks);
      const { method, url, rawHeaders } = request;
      response.end(JSON.stringify({ method, url, rawHeaders, length: body.length, sha: sha(body) }));
    });
  });
}

interface Echo {
  readonly method: string;
  readonly url: string;
  readonly rawHeaders: string[];
  readonly length: number;
  readonly sha: string;
}

function echoed(answer: Answer): Echo & { header(name: string): string | undefined; names: string[] } {
  const parsed = JSON.parse(answer.body.toString()) as Echo;
  const names = parsed.rawHeaders.filter((_, index) => index % 2 === 0);
  const header = (name: string): string | undefined => {
    const index = names.findIndex((candidate) => candidate.toLowerCase() === name);
    return index < 0 ? undefined : parsed.rawHeaders[index * 2 + 1];
  };
  return { ...parsed, names, header };
}

describe("forwarding a request", () => {
  afterEach(closeAll);

  it("keeps target, case of field names, order and repeated fields", async () => {
    const front = await hop([await echo()]);
    const answer = await ask(front, {
      path: "/a/b?c=%20d&&e",
      headers: ["Host", "blog.example", "X-One", "1", "x-ONE", "2", "Cookie", "a=b; c=d", "Accept", "*/*"],
    });
    const seen = echoed(answer);
    assert.equal(seen.url, "/a/b?c=%20d&&e");
    assert.equal(seen.header("host"), "blog.example");
    assert.deepEqual(
      seen.names.filter((name) => /^(x-one|cookie|accept)$/i.test(name)),
      ["X-One", "x-ONE", "Cookie", "Accept"],
    );
  });

  it("removes hop-by-hop fields and what Connection names, but never Host or Content-Length", async () => {
    const front = await hop([await echo()]);
    const answer = await ask(front, {
      method: "POST",
      body: "hello",
      headers: {
        connection: "close, X-Secret, Host, Content-Length",
        "x-secret": "1",
        "keep-alive": "timeout=9",
        "proxy-authorization": "Basic eA==",
        "Proxy-Connection": "keep-alive",
        te: "trailers, deflate",
        expect: "100-continue",
        "x-kept": "1",
        host: "blog.example",
        "content-length": "5",
      },
    });
    const seen = echoed(answer);
    for (const name of ["x-secret", "keep-alive", "proxy-authorization", "proxy-connection", "expect"])
      assert.equal(seen.header(name), undefined, name);
    assert.equal(seen.header("te"), "trailers");
    assert.equal(seen.header("connection"), "keep-alive");
    assert.equal(seen.header("x-kept"), "1");
    assert.equal(seen.header("host"), "blog.example");
    assert.equal(seen.length, 5);
  });

  it("takes hakobu-* fields off what a client and a container send, however they are written", async () => {
    const target = await httpServer((request, response) => {
      response.setHeader("Hakobu-Verdict", "moved");
      response.end(JSON.stringify({ rawHeaders: request.rawHeaders, length: 0, sha: "" }));
    });
    const seenInternal: unknown[] = [];
    const front = await hop([target], {
      rules: { forwarded: "replace", set: { "hakobu-epoch": "7", traceparent: "ours" } },
      responseHeaders: ["hakobu-activation", "restored"],
      onResponse: (_status, internal) => {
        seenInternal.push(internal);
        return "pass";
      },
    });
    const answer = await ask(front, {
      headers: { "Hakobu-Epoch": "9", hakobu_container: "other", HAKOBU_EPOCH: "8", traceparent: "theirs" },
    });
    const seen = echoed(answer);
    assert.deepEqual(
      seen.names.filter((name) => /hakobu|traceparent/i.test(name)),
      ["hakobu-epoch", "traceparent"],
    );
    assert.equal(seen.header("hakobu-epoch"), "7");
    assert.equal(seen.header("traceparent"), "ours");
    assert.equal(answer.headers["hakobu-verdict"], undefined);
    assert.equal(answer.headers["hakobu-activation"], "restored");
    assert.deepEqual(seenInternal, [{ "hakobu-verdict": "moved" }]);
  });

  describe("says where it comes from", () => {
    const incoming = {
      host: "blog.example:8080",
      "x-forwarded-for": "203.0.113.7, 2001:db8::1",
      X_Forwarded_For: "6.6.6.6",
      "x-forwarded-proto": "https",
      "x-forwarded-host": "front.example",
      "x-real-ip": "203.0.113.7",
    };

    it("replacing what a client claims", async () => {
      const front = await hop([await echo()], { rules: { forwarded: "replace" } });
      const seen = echoed(await ask(front, { headers: { ...incoming, forwarded: "for=1.1.1.1" } }));
      assert.equal(seen.header("forwarded"), 'for=127.0.0.1;proto=http;host="blog.example:8080"');
      assert.equal(seen.header("x-forwarded-for"), "127.0.0.1");
      assert.equal(seen.header("x-forwarded-proto"), "http");
      assert.equal(seen.header("x-forwarded-host"), "blog.example:8080");
      assert.equal(seen.header("x-real-ip"), undefined);
      assert.equal(seen.header("x_forwarded_for"), undefined);
    });

    it("continuing the list of a trusted front, in both notations", async () => {
      const front = await hop([await echo()], { rules: { forwarded: "append" } });
      const seen = echoed(await ask(front, { headers: incoming }));
      assert.equal(
        seen.header("forwarded"),
        'for=203.0.113.7;proto=https;host=front.example, for="[2001:db8::1]", for=127.0.0.1;proto=http;host="blog.example:8080"',
      );
      assert.equal(seen.header("x-forwarded-for"), "203.0.113.7, 2001:db8::1, 127.0.0.1");
      assert.equal(seen.header("x-forwarded-proto"), "https");
      assert.equal(seen.header("x-forwarded-host"), "front.example");
    });

    it("and unchanged on the second hop", async () => {
      const inner = await hop([await echo()], { rules: { forwarded: "keep" } });
      const front = await hop([inner], { rules: { forwarded: "replace", via: "hakobu" } });
      const seen = echoed(await ask(front, { headers: { host: "blog.example", via: "1.0 cache" } }));
      assert.equal(seen.header("x-forwarded-for"), "127.0.0.1");
      assert.equal(seen.header("forwarded"), "for=127.0.0.1;proto=http;host=blog.example");
      assert.equal(seen.header("via"), "1.0 cache, 1.1 hakobu");
    });
  });

  it("brings bodies across whole, with a length or chunked, in both directions", async () => {
    const target = await httpServer((request, response) => {
      if (request.headers["x-chunked"] === undefined && request.headers["content-length"] !== undefined)
        response.setHeader("content-length", request.headers["content-length"]);
      request.pipe(response);
    });
    const front = await hop([target]);
    for (const size of [0, 1, 200, 16_384, 16_385, 65_536, 300_000, 2_000_000]) {
      for (const framing of [{ "content-length": size }, { "transfer-encoding": "chunked" }]) {
        const body = randomBytes(size);
        const answer = await ask(front, { method: "POST", headers: framing, body });
        assert.equal(answer.status, 200);
        assert.equal(sha(answer.body), sha(body), `${size} ${JSON.stringify(framing)}`);
      }
    }
    await until(() => front.outcomes.length === 16, "16 outcomes");
    assert.ok(front.outcomes.every((outcome) => outcome.kind === "served"));
  });

  it("frames a chunked DELETE and a GET with a body anew, so that no byte of them becomes a request", async () => {
    const front = await hop([await echo()]);
    for (const method of ["DELETE", "GET", "OPTIONS", "PATCH"]) {
      const answer = await ask(front, {
        method,
        headers: { "transfer-encoding": "chunked" },
        body: "GET /x HTTP/1.1\r\n\r\n",
      });
      const seen = echoed(answer);
      assert.deepEqual([seen.method, seen.length], [method, 19]);
    }
  });

  it("passes HEAD, 204 and 304 without a body, and their fields", async () => {
    const target = await httpServer((request, response) => {
      const status = Number(request.url?.slice(1));
      if (status === 200) response.setHeader("content-length", "5");
      response.writeHead(status, { etag: '"x"' });
      response.end(status === 200 ? "hello" : undefined);
    });
    const front = await hop([target]);
    const head = await ask(front, { method: "HEAD", path: "/200" });
    assert.deepEqual([head.status, head.headers["content-length"], head.body.length], [200, "5", 0]);
    for (const status of [204, 304]) {
      const answer = await ask(front, { path: `/${status}` });
      assert.deepEqual([answer.status, answer.headers.etag, answer.body.length], [status, '"x"', 0]);
      assert.equal(answer.headers["transfer-encoding"], undefined);
    }
  });

  it("passes reason phrases, and drops those that cannot be written", async () => {
    const target = await tcpServer((socket) => {
      socket.on("data", (data) => {
        const phrase = data.includes("/odd") ? "\u65e5\u672c" : "Fine Thanks";
        socket.end(`HTTP/1.1 200 ${phrase}\r\ncontent-length: 0\r\n\r\n`);
      });
    });
    const front = await hop([target]);
    const get = (path: string) => raw(front, `GET ${path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n`);
    assert.match((await get("/")).text, /^HTTP\/1\.1 200 Fine Thanks\r\n/);
    assert.match((await get("/odd")).text, /^HTTP\/1\.1 200 OK\r\n/);
  });

  it("passes trailers and Early Hints, without what must not be in them", async () => {
    const target = await httpServer((_request, response) => {
      response.writeEarlyHints({ link: ["</a.css>; rel=preload", "</b.js>; rel=preload"] });
      response.writeHead(200, { trailer: "x-sum" });
      response.write("part");
      response.addTrailers([
        ["X-Sum", "1"],
        ["x-sum", "2"],
        ["hakobu-verdict", "moved"],
      ]);
      response.end();
    });
    const front = await hop([target]);
    const answer = await ask(front);
    assert.deepEqual(answer.rawTrailers, ["X-Sum", "1", "x-sum", "2"]);
    assert.equal(answer.body.toString(), "part");
    assert.equal(answer.hints[0]?.["link"], "</a.css>; rel=preload, </b.js>; rel=preload");
  });

  it("answers an HTTP/1.0 client with a body that ends by closing, and no interim response", async () => {
    const target = await httpServer((_request, response) => {
      response.writeEarlyHints({ link: "</a.css>; rel=preload" });
      response.write("one ");
      response.end("two");
    });
    const front = await hop([target]);
    const { text, reset } = await raw(front, "GET / HTTP/1.0\r\nhost: a\r\n\r\n");
    assert.equal(reset, false);
    assert.match(text, /^HTTP\/1\.1 200 OK\r\n/);
    assert.doesNotMatch(text, /transfer-encoding|103/i);
    assert.ok(text.endsWith("\r\n\r\none two"), text);
  });

  it("answers Expect: 100-continue before the body is sent", async () => {
    const front = await hop([await echo()]);
    const body = await new Promise<string>((resolve, reject) => {
      const request = http.request(
        {
          host: front.address,
          port: front.port,
          method: "PUT",
          agent: false,
          headers: { expect: "100-continue", "content-length": 5 },
        },
        (response) => response.setEncoding("utf8").on("data", resolve),
      );
      request.on("error", reject);
      request.on("continue", () => request.end("hello"));
      request.flushHeaders();
    });
    assert.equal((JSON.parse(body) as Echo).length, 5);
  });

  it("sends the head of a stream at once, though no byte of the body follows", async () => {
    const target = await httpServer((_request, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.flushHeaders();
    });
    const front = await hop([target]);
    await new Promise<void>((resolve, reject) => {
      const request = http.get({ host: front.address, port: front.port, agent: false }, (response) => {
        assert.equal(response.headers["content-type"], "text/event-stream");
        request.destroy();
        resolve();
      });
      request.setTimeout(3000, () => reject(new Error("no head within 3 s")));
    });
    await until(() => front.outcomes[0]?.kind === "client-gone", "the outcome");
    await until(() => target.sockets.size === 0, "the connection to the target to be closed");
  });

  it("serves an answer that comes before the upload is over, and uses the client's connection again", async () => {
    const target = await httpServer((_request, response) => response.writeHead(413).end("too large"));
    const front = await hop([target]);
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const put = (size: number) =>
      new Promise<number>((resolve, reject) => {
        const request = http.request({ host: front.address, port: front.port, method: "PUT", agent }, (response) => {
          response.resume().on("end", () => resolve(response.statusCode ?? 0));
        });
        request.on("error", reject);
        request.end(randomBytes(size));
      });
    try {
      for (let i = 0; i < 3; i++) assert.equal(await put(3_000_000), 413);
    } finally {
      agent.destroy();
    }
    assert.equal(front.outcomes.filter((outcome) => outcome.kind === "served").length, 3);
  });

  it("keeps a response from the client when asked, up to 64 KiB", async () => {
    const target = await httpServer((request, response) => {
      response.writeHead(421, { "hakobu-verdict": "moved", "x-a": "1" });
      response.end(request.url === "/large" ? Buffer.alloc(70_000) : '{"to":"b"}');
    });
    const live = await echo();
    const front = await hop([target, live], {
      onResponse: (_status, internal) => (internal["hakobu-verdict"] === undefined ? "pass" : "keep"),
    });
    assert.equal((await ask(front)).status, 502);
    const [kept] = front.outcomes;
    assert.ok(kept?.kind === "intercepted");
    assert.equal(kept.status, 421);
    assert.deepEqual(kept.internal, { "hakobu-verdict": "moved" });
    assert.ok(kept.headers.includes("x-a") && !kept.headers.includes("hakobu-verdict"));
    assert.equal(kept.body.toString(), '{"to":"b"}');
    assert.equal((await ask(front, { path: "/large" })).status, 200);
    const failed = front.outcomes[1];
    assert.ok(failed?.kind === "failed" && failed.code === "protocol" && !failed.responded);
  });

  it("is cancelled by its caller, whether before a connection, before the head or within the body", async () => {
    const target = await httpServer((request, response) => {
      if (request.url === "/body") response.write("part");
    });
    for (const path of ["/waiting", "/body"]) {
      const cancellation = new Cancellation();
      const front = await hop([target], { cancellation });
      const asked = ask(front, { path }).then(
        (answer) => answer.status,
        () => "broken",
      );
      await until(() => target.sockets.size === 1, "a connection to the target");
      if (path === "/body") await until(() => front.outcomes.length === 0 && target.sockets.size === 1, "the body");
      await new Promise((resolve) => setTimeout(resolve, 30));
      cancellation.cancel(new Error("the host is dead"));
      assert.equal(await asked, path === "/body" ? "broken" : 502);
      const [outcome] = front.outcomes;
      assert.ok(outcome?.kind === "failed" && outcome.code === "aborted" && outcome.sent === "something");
      await until(() => target.sockets.size === 0, "the connection to be closed");
    }
    const before = new Cancellation();
    before.cancel(new Error("too late"));
    const front = await hop([target], { cancellation: before });
    assert.equal((await ask(front)).status, 502);
    const [outcome] = front.outcomes;
    assert.ok(outcome?.kind === "failed" && outcome.code === "aborted" && outcome.sent === "nothing");
  });

  it("leaves no connection to the target open after 100 aborted requests", async () => {
    const target = await httpServer((request, response) => {
      if (request.url === "/body") response.write(Buffer.alloc(1000));
    });
    const front = await hop([target]);
    const clients = Array.from({ length: 100 }, (_, index) => {
      const socket = net.connect(front.port, front.address);
      socket.on("error", () => undefined);
      socket.write(`GET ${index % 2 ? "/body" : "/"} HTTP/1.1\r\nhost: a\r\n\r\n`);
      return socket;
    });
    await until(() => target.sockets.size === 100, "100 connections to the target");
    for (const [index, socket] of clients.entries()) (index % 3 ? socket.destroy() : socket.resetAndDestroy()).unref();
    await until(() => target.sockets.size === 0, "no connection to the target");
    const { accepted } = target;
    assert.equal(accepted(), 100, "an aborted request must not open another connection");
    assert.equal(front.outcomes.filter((outcome) => outcome.kind === "client-gone").length, 100);
  });

  it("tells a target when an upload breaks off", async () => {
    const target = await httpServer((request) => request.resume());
    const front = await hop([target]);
    const socket = net.connect(front.port, front.address);
    socket.write("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf");
    await until(() => target.sockets.size === 1, "a connection to the target");
    socket.destroy();
    await until(() => target.sockets.size === 0 && front.outcomes.length === 1, "the end of it");
    assert.equal(front.outcomes[0]?.kind, "client-gone");
  });

  it("holds a bounded part of a body, however slow the reader, in both directions", async () => {
    const size = 64 * 1024 * 1024;
    let written = 0;
    const source = await httpServer((_request, response) => {
      const chunk = Buffer.alloc(256 * 1024);
      const write = (): void => {
        while (written < size) {
          written += chunk.length;
          if (!response.write(chunk)) return void response.once("drain", write);
        }
        response.end();
      };
      write();
    });
    const down = await hop([source], { bodyTimeoutMs: 0 });
    const reader = net.connect(down.port, down.address);
    reader.write("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    reader.pause();
    await settled(() => written);
    assert.ok(written < 32 * 1024 * 1024, `${written} bytes taken from the source`);
    let received = 0;
    reader.on("data", (chunk: Buffer) => {
      received += chunk.length;
    });
    reader.resume();
    await until(() => received >= size, "the whole body", 15_000);
    reader.destroy();

    let resume: (() => void) | undefined;
    const sink = await httpServer((request, response) => {
      request.pause();
      resume = () => request.resume().on("end", () => response.end("done"));
    });
    const up = await hop([sink]);
    const writer = net.connect(up.port, up.address);
    writer.write(`POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: ${size}\r\n\r\n`);
    let offered = 0;
    const offer = (): void => {
      const chunk = Buffer.alloc(256 * 1024);
      while (offered < size) {
        offered += chunk.length;
        if (!writer.write(chunk)) return void writer.once("drain", offer);
      }
    };
    offer();
    await settled(() => offered);
    assert.ok(offered < 32 * 1024 * 1024, `${offered} bytes taken from the client`);
    let answer = "";
    writer.setEncoding("latin1").on("data", (text: string) => {
      answer += text;
    });
    resume?.();
    await until(() => answer.endsWith("done\r\n0\r\n\r\n") || answer.endsWith("done"), "the answer", 15_000);
  });
});

/** Waits until a number has stopped growing. */
async function settled(value: () => number): Promise<void> {
  for (let last = -1; value() !== last || last === 0; ) {
    last = value();
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

describe("request smuggling", () => {
  afterEach(closeAll);

  it("is refused before anything reaches the target", async () => {
    let reached = 0;
    const target = await httpServer((_request, response) => {
      reached += 1;
      response.end("ok");
    });
    const front = await hop([target]);
    const attempts = {
      "length and chunked": "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
      "two lengths": "content-length: 4\r\ncontent-length: 9\r\n\r\nabcdefghi",
      "list of lengths": "content-length: 4, 9\r\n\r\nabcdefghi",
      "odd length": "content-length: +4\r\n\r\nabcd",
      "odd coding": "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
      "coding behind a space": "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
      "bare line feed in chunk": "transfer-encoding: chunked\r\n\r\n4\nabcd\n0\n\n",
      "obsolete fold": "x-a: 1\r\n content-length: 4\r\n\r\nabcd",
      "two hosts": "host: other\r\n\r\n",
    };
    for (const [name, rest] of Object.entries(attempts)) {
      const { text } = await raw(front, `POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n${rest}`);
      assert.match(text, /^HTTP\/1\.1 (400|502) /, name);
    }
    assert.equal(reached, 0);
  });

  it("does not happen with a target in absolute form that names another host", async () => {
    const target = await echo();
    const front = await hop([target]);
    const get = (line: string) => raw(front, `${line} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n`);
    assert.match((await get("GET http://a.example/x?y")).text, /"url":"\/x\?y"/);
    assert.match((await get("GET http://a.example?y")).text, /"url":"\/\?y"/);
    assert.match((await get("GET http://b.example/x")).text, /^HTTP\/1\.1 502 /);
    assert.match((await get("OPTIONS *")).text, /^HTTP\/1\.1 502 /);
    const last = front.outcomes.at(-1);
    assert.ok(last?.kind === "failed" && last.code === "invalid" && last.sent === "nothing");
  });

  it("does not happen with any field that a client may send", async () => {
    const target = await echo();
    const front = await hop([target]);
    const token = fc.string({
      unit: fc.constantFrom("a", "b", "X", "Z", "-", "_", "0", "9"),
      minLength: 1,
      maxLength: 20,
    });
    const value = fc.string({ unit: fc.constantFrom("a", "b", ",", ";", " ", "=", '"', "\t", "\xe9"), maxLength: 30 });
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(token, value), { maxLength: 8 }), async (fields) => {
        const reserved = /^(host|content-length|transfer-encoding|connection|expect|upgrade|te)$/i;
        const flat = fields.filter(([name]) => !reserved.test(name)).flat();
        const answer = await ask(front, {
          method: "POST",
          body: "abc",
          headers: ["host", "a", "content-length", "3", ...flat],
        });
        assert.equal(answer.status, 200);
        assert.equal(echoed(answer).length, 3);
      }),
      { numRuns: 50 },
    );
  });
});
