// The host actor: what it claims, what it holds, and how it joins and leaves, whatever happens meanwhile.
import assert from "node:assert/strict";
import type { ContainerActor } from "../../actors/container.js";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { HostClient } from "../../actors/ports/host-client.js";
import { noticeMs } from "../../actors/vacancies.js";
import { FakeEngine } from "../lab/fake-engine.js";
import { hostBench, turns } from "../lab/host-bench.js";
import { recordOf } from "../lab/records.js";

describe("a host that leaves", () => {
  it("does not win a claim that was still waiting when it began to leave", async () => {
    const bench = hostBench({ specs: [recordOf("shop", { takeover: "exclusive" })] });
    await bench.join();
    const reply = bench.claim("shop");
    await bench.pass(noticeMs / 2);
    await bench.going(bench.host.close());
    assert.equal((await bench.going(reply)).kind, "refused");
    assert.deepEqual(bench.engine.events, []);
  });

  it("stops also what a claim won that was under way, before it gives up its lease", async () => {
    const bench = hostBench({ specs: [recordOf("shop")] });
    await bench.join();
    bench.store.hold("claim");
    const reply = bench.claim("shop");
    await turns();
    const closed = bench.host.close();
    await bench.pass(1000);
    assert.equal(bench.host.state, "relocating");
    bench.store.release();
    assert.equal((await bench.going(reply)).kind, "won");
    await bench.going(closed);
    assert.equal(bench.engine.running.size, 0);
    assert.equal(await bench.store.read("shop"), undefined);
  });
});

describe("a host that joins", () => {
  it("joins again when it has lost its lease before it was done", async () => {
    const bench = hostBench({ specs: [recordOf("blog")] });
    await bench.join();
    await bench.claim("blog");
    bench.store.hold("claim");
    bench.store.revoke("a");
    await turns();
    assert.equal(bench.host.state, "fenced", "it adopts what it has");
    bench.store.revoke("a");
    bench.store.release();
    await turns();
    assert.equal(bench.host.state, "fenced");
    await bench.pass(300);
    assert.equal(bench.host.state, "running");
    assert.equal(bench.host.proven, true);
  });

  it("is kept from that by no container whose engine it does not have: that is stopped and given up", async () => {
    const bench = hostBench({ specs: [recordOf("blog"), recordOf("shop")] });
    await bench.join();
    await bench.claim("blog");
    await bench.claim("shop");
    await turns();
    const crashed = bench.restarted();
    await bench.store.putSpec(recordOf("shop", { engine: "haconiwa" }, "2"));
    await bench.going(crashed.host.join(new AbortController().signal));
    await bench.pass(600);
    assert.equal(crashed.host.container("blog")?.state, "running.serving");
    assert.equal(crashed.host.container("shop"), undefined);
    assert.deepEqual(
      [...bench.engine.running].map(({ container }) => container),
      ["blog"],
    );
    assert.equal(await bench.store.read("shop"), undefined);
  });

  it("is kept from that by no engine that cannot say what survived", async () => {
    const bench = hostBench({ specs: [recordOf("blog")] });
    bench.engine.findError = new Error("planted");
    await bench.join();
    assert.equal(bench.warnings.filter((each) => each.includes("what survived: planted")).length, 3);
  });

  it("pauses between its attempts when another agent has taken its id while it was fenced", async () => {
    const bench = hostBench();
    await bench.join();
    bench.store.revoke("a");
    const twin = await bench.other("a");
    await bench.pass(600);
    assert.equal(bench.host.state, "fenced");
    assert.equal(bench.warnings.filter((each) => each.includes("is taken")).length, 2);
    await twin.leave();
    await bench.pass(1000);
    assert.equal(bench.host.state, "running");
  });

  it("has nothing in the store when it was closed before the store had answered", async () => {
    const bench = hostBench({ specs: [recordOf("blog")] });
    bench.store.hold("join");
    void bench.host.join(new AbortController().signal);
    await turns();
    const closed = bench.host.close();
    await turns();
    assert.equal(bench.host.state, "relocating");
    bench.store.release();
    await bench.going(closed);
    assert.ok(await bench.other("a"), "nobody has its id");
  });
});

describe("a host's capacity", () => {
  it("counts the claims that are under way", async () => {
    const bench = hostBench({ specs: [recordOf("blog"), recordOf("shop")], record: { capacity: 1 } });
    await bench.join();
    bench.store.hold("claim");
    const replies = [bench.claim("blog"), bench.claim("shop")];
    await turns();
    bench.store.release();
    const kinds = (await bench.going(Promise.all(replies))).map(({ kind }) => kind);
    assert.deepEqual(kinds, ["won", "refused"]);
  });
});

describe("a container whose specification names another engine", () => {
  it("leaves, is given up, and comes up on the other engine when it is claimed again", async () => {
    const [first, second] = [new FakeEngine("process"), new FakeEngine("runc")];
    const bench = hostBench({ specs: [recordOf("blog")], engines: [first, second] });
    await bench.join();
    await bench.claim("blog");
    await turns();
    await bench.store.putSpec(recordOf("blog", { engine: "runc" }, "2"));
    await bench.pass(100);
    assert.equal(await bench.store.read("blog"), undefined);
    assert.equal((await bench.claim("blog")).kind, "won");
    await turns();
    assert.deepEqual([first.events, second.events], [["start blog", "stop blog 1000"], ["start blog"]]);
  });
});

describe("a host whose view lags behind what a proxy saw", () => {
  it("asks the store who owns an exclusive container, and leaves it to a live owner", async () => {
    const bench = hostBench({ specs: [recordOf("blog", { takeover: "exclusive" })] });
    await bench.join();
    await bench.pass(noticeMs);
    const other = await bench.other("b");
    await other.claim({ container: "blog", expected: 0, reason: "planted" });
    await turns();
    const expected = bench.view.placement("blog")?.epoch ?? 0;
    bench.view.forget("blog", expected);
    assert.equal((await bench.going(bench.claim("blog", { expected }))).kind, "refused");
    assert.equal((await bench.store.read("blog"))?.host, "b");
  });

  it("waits also then until the owner of an exclusive container has had the time to hear that it is none any more", async () => {
    const bench = hostBench({ specs: [recordOf("blog", { takeover: "exclusive" })] });
    await bench.join();
    await bench.pass(noticeMs);
    bench.view.learn({ container: "blog", host: "b", epoch: 1, since: "", reason: "planted" });
    const begunMs = bench.clock.now();
    assert.equal((await bench.going(bench.claim("blog"))).kind, "won");
    assert.ok(bench.clock.now() - begunMs >= noticeMs);
  });
});

describe("a container that comes back while its old copy ends", () => {
  it("is renewed where it only stops for being idle or gone", async () => {
    const bench = hostBench({ specs: [recordOf("blog")] });
    await bench.join();
    await bench.claim("blog");
    await turns();
    const container = bench.host.container("blog");
    const end = bench.engine.holdStops();
    for (const { pid } of bench.engine.running) bench.engine.die(pid);
    container?.check();
    assert.equal(container?.state, "stopping");
    bench.store.revoke("a");
    await bench.pass(500);
    assert.equal(bench.host.state, "running", "joined again, though the stop is not over");
    assert.equal(bench.host.container("blog"), container);
    end();
    await turns();
    assert.equal(container?.state, "stopped");
    assert.equal(container?.epoch, (await bench.store.read("blog"))?.epoch);
  });

  it("has one actor after two claims that both waited for the old one to leave", async () => {
    const bench = hostBench({ specs: [recordOf("blog")] });
    await bench.join();
    await bench.claim("blog");
    await turns();
    const old = bench.host.container("blog");
    const end = bench.engine.holdStops();
    old?.loseOwnership("planted");
    await turns();
    const replies = [bench.claim("blog", { expected: 999 }), bench.claim("blog", { expected: 998 })];
    await turns();
    end();
    const kinds = (await bench.going(Promise.all(replies))).map(({ kind }) => kind);
    await bench.pass(100);
    assert.deepEqual(kinds, ["won", "won"]);
    assert.equal(bench.engine.running.size, 1);
    assert.deepEqual(bench.engine.events, ["start blog", "stop blog 1000", "start blog"]);
  });
});

describe("a planned move", () => {
  async function withOthers() {
    const bench = hostBench({ specs: [recordOf("blog", { takeover: "exclusive" })] });
    await bench.join();
    await bench.pass(noticeMs);
    const members = new Map([
      [2, await bench.other("b", { port: 2 })],
      [3, await bench.other("c", { port: 3 })],
    ]);
    const asked: number[] = [];
    /** The first one that is asked wins, and does not say so. */
    const silently: HostClient["claim"] = async ({ port }, claim, _trace, signal) => {
      asked.push(port);
      const outcome = await members.get(port)?.claim(claim);
      if (outcome?.kind === "won" && asked.length > 1) return outcome;
      if (outcome?.kind === "lost") return { ...outcome, kind: "moved" };
      await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
      return { kind: "unreachable", reason: "it is frozen" };
    };
    await bench.going(bench.claim("blog"));
    await turns();
    return { bench, asked, silently };
  }

  it("stops nothing where no host answers that could take the container", async () => {
    const { bench } = await withOthers();
    bench.probe = () => Promise.resolve({ kind: "timeout", afterMs: 100 });
    await assert.rejects(bench.going(bench.host.relocate("blog", undefined, "test")), { code: "UNAVAILABLE" });
    assert.equal(bench.host.container("blog")?.state, "running.serving");
  });

  it("asks the next host within seconds when one does not answer, and finds out that the first one has won", async () => {
    const { bench, asked, silently } = await withOthers();
    bench.hosts.claim = silently;
    const begunMs = bench.clock.now();
    const placement = await bench.going(bench.host.relocate("blog", undefined, "test"));
    assert.ok(bench.clock.now() - begunMs < 10_000);
    assert.equal(asked.length, 2);
    assert.equal(placement.host, asked[0] === 2 ? "b" : "c");
    assert.equal(bench.engine.running.size, 0);
  });

  it("that has not begun when a drain is taken back is not made, and a drain afterwards begins anew", async () => {
    const names = ["a", "b", "c", "d", "e", "f"];
    const bench = hostBench({ specs: names.map((name) => recordOf(name)) });
    await bench.join();
    await bench.other("b");
    for (const name of names) await bench.claim(name);
    await turns();
    const asked = new Set<string>();
    let answer = (): void => {};
    const answered = new Promise<void>((resolve) => (answer = resolve));
    bench.hosts.claim = async (_host, { container }) => {
      asked.add(container);
      await answered;
      return { kind: "refused", reason: "planted" };
    };
    const drained = bench.host.drain();
    await turns();
    await bench.host.undrain();
    const again = bench.host.drain();
    await turns();
    assert.equal(asked.size, 4);
    answer();
    await drained;
    assert.equal(asked.size, 4);
    asked.clear();
    await bench.going(again);
    assert.deepEqual([...asked].sort(), names);
    assert.equal(bench.host.moving, false);
  });

  it("that cannot be announced does not keep a host from shutting down", async () => {
    const { bench } = await withOthers();
    bench.store.updateError = new HakobuError("STORE_UNAVAILABLE", "planted");
    await bench.going(bench.host.close(true));
    assert.equal(bench.engine.running.size, 0);
    assert.equal(await bench.store.read("blog"), undefined);
  });
});

describe("a host that did not run for a while (O5)", () => {
  async function waking() {
    const bench = hostBench({ specs: [recordOf("blog")] });
    await bench.join();
    await bench.claim("blog");
    await turns();
    const container = bench.host.container("blog") as ContainerActor;
    bench.sleep(3000);
    return { bench, container };
  }

  it("serves a container again when the store has said that it still owns it", async () => {
    const { bench, container } = await waking();
    assert.equal(await bench.host.mayServe(container), true);
  });

  it("serves nothing of which the store could not say who owns it, and asks again after a moment", async () => {
    const { bench, container } = await waking();
    bench.store.readError = new HakobuError("STORE_UNAVAILABLE", "planted");
    assert.equal(await bench.host.mayServe(container), false);
    assert.equal(await bench.host.mayServe(container), false);
    assert.equal(bench.warnings.filter((each) => each.startsWith("cannot look")).length, 1);
    await bench.pass(500);
    assert.equal(await bench.host.mayServe(container), false);
    bench.store.readError = undefined;
    await bench.pass(500);
    assert.equal(await bench.host.mayServe(container), true);
  });

  it("lets go of what was taken meanwhile", async () => {
    const { bench, container } = await waking();
    const other = await bench.other("b");
    bench.store.hold("read");
    await other.claim({ container: "blog", expected: container.epoch, reason: "planted" });
    const may = bench.host.mayServe(container);
    bench.store.release();
    await bench.going(may);
    await bench.pass(100);
    assert.equal(container.left, true);
  });
});
