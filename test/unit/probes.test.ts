import assert from "node:assert/strict";
import type { Target } from "../../actors/ports/prober.js";
import { TcpProber } from "../../runtime/probes/tcp.js";
import { blackhole } from "../lab/blackhole.js";
import { closeAll, deadPort, tcpServer, until } from "../lab/hop.js";

describe("a TCP probe", () => {
  const prober = new TcpProber();
  afterEach(closeAll);

  it("finds a host alive, and closes by a reset", async () => {
    let reset = 0;
    let ended = 0;
    const target = await tcpServer((socket) => {
      socket.on("error", (error: NodeJS.ErrnoException) => {
        if (error.code === "ECONNRESET") reset += 1;
      });
      socket.on("end", () => {
        ended += 1;
      });
      socket.resume();
    });
    for (let i = 0; i < 100; i++) {
      const result = await prober.probe(target, 1000);
      assert.equal(result.kind, "alive");
      assert.ok(result.kind === "alive" && result.rttMs >= 0 && result.rttMs < 1000);
    }
    await until(() => target.sockets.size === 0, "all connections to close");
    // Most of them are reset before the listener has accepted them, and some kernels then show no error.
    assert.equal(ended, 0);
    assert.ok(reset <= 100);
  });

  it("tells a refusal and an unreachable network from silence", async () => {
    assert.deepEqual(await prober.probe(await deadPort(), 1000), { kind: "refused" });
    const broadcast = await prober.probe({ address: "255.255.255.255", port: 9 }, 1000);
    assert.equal(broadcast.kind, "unreachable");
  });

  it("is silent about a black hole until its limit, and not much longer", async () => {
    const hole = await blackhole();
    try {
      const took: number[] = [];
      for (let i = 0; i < 10; i++) {
        const result = await prober.probe(hole, 100);
        assert.ok(result.kind === "timeout", result.kind);
        assert.ok(result.afterMs >= 99, `${result.afterMs} ms`);
        took.push(result.afterMs);
      }
      took.sort((a, b) => a - b);
      assert.ok((took[5] as number) < 130, `median ${took[5]} ms`);
    } finally {
      hole.close();
    }
  });

  it("takes no live host for dead when this process stalls for 150 ms, of 20 times", async () => {
    const target = await tcpServer((socket) => socket.resume());
    const verdicts: string[] = [];
    for (let i = 0; i < 20; i++) {
      const result = prober.probe(target, 100);
      const end = performance.now() + 150;
      while (performance.now() < end);
      verdicts.push((await result).kind);
    }
    assert.deepEqual(new Set(verdicts), new Set(["alive"]));
  });

  it("resolves no names and never rejects", async () => {
    const odd: Target[] = [
      { address: "localhost", port: 80 },
      { address: "", port: 80 },
      { address: "127.0.0.1", port: 0 },
      { address: "127.0.0.1", port: 70_000 },
      { address: "127.0.0.1", port: Number.NaN },
    ];
    for (const target of odd) assert.equal((await prober.probe(target, 100)).kind, "unreachable");
  });
});
