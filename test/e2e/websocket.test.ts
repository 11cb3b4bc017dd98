// WebSocket connections through proxy and host: the handshake is carried like any request, and then the bytes.
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { noLog } from "../../actors/ports/log.js";
import { noTracing } from "../../actors/ports/tracer.js";
import { specRecord } from "../../runtime/config/spec.js";
import { createLoopbackCluster, type LoopbackCluster } from "../../runtime/local/loopback.js";
import { eventually } from "../lab/cluster.js";
import { specOf } from "../lab/records.js";

/** Answers every upgrade, and then every line with the same line in capitals. */
const echo = `
  require("node:http").createServer((q, s) => s.end("plain")).on("upgrade", (q, socket) => {
    socket.write("HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n");
    socket.on("data", (chunk) => socket.write(chunk.toString().toUpperCase())).on("error", () => {});
  }).listen(process.env.PORT, process.env.HOST)`;

describe("a WebSocket connection", function () {
  this.timeout(30_000);
  let directory: string;
  let cluster: LoopbackCluster;

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-ws-"));
    const any = { address: "127.0.0.1", port: 0 };
    cluster = await createLoopbackCluster({
      hosts: ["a", "b"],
      directory,
      proxy: any,
      admin: any,
      log: noLog,
      tracer: noTracing,
    });
    await cluster.apply([specRecord(specOf("echo", { command: [process.execPath, "-e", echo] }))]);
  });
  after(async () => {
    await cluster?.close();
    await rm(directory, { recursive: true, force: true });
  });

  /** Opens one, sends a line, and gives what came back. */
  async function shout(line: string): Promise<string> {
    const socket = connect(cluster.proxy.port, cluster.proxy.address);
    let got = "";
    socket.setEncoding("utf8").on("data", (chunk: string) => (got += chunk));
    socket.on("error", () => {});
    socket.write(
      "GET /chat HTTP/1.1\r\nHost: echo.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    await eventually("the handshake is answered", () => got.includes("\r\n\r\n"));
    assert.match(got, /^HTTP\/1\.1 101 /);
    got = "";
    socket.write(line);
    await eventually("the line comes back", () => got.length >= line.length);
    socket.destroy();
    return got;
  }

  it("wakes its container, carries bytes both ways, and finds the container again after its host is gone", async () => {
    assert.equal(await shout("hello"), "HELLO");
    const owner = (await cluster.owner("echo")) as string;
    await cluster.cut(owner);
    assert.equal(await shout("again"), "AGAIN");
    assert.notEqual(await cluster.owner("echo"), owner);
    await cluster.heal(owner);
  });
});
