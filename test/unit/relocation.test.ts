// What a proxy moves, and what it leaves where it is: over a view of its own, with hosts that answer as they are told.
import assert from "node:assert/strict";
import { SimulatedClock } from "xstate";
import { ClusterView } from "../../actors/cluster-view.js";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Clock } from "../../actors/ports/clock.js";
import type { ActivateReply, Claim, ClaimReply, HostClient } from "../../actors/ports/host-client.js";
import { noLog } from "../../actors/ports/log.js";
import { noTracing } from "../../actors/ports/tracer.js";
import { ReachabilityActor } from "../../actors/reachability.js";
import { ActorRegistry } from "../../actors/registry.js";
import { Relocations } from "../../actors/relocation.js";
import { hostOf, placementOf, recordOf } from "../lab/records.js";

describe("moves of a proxy", () => {
  function opened(answers: { claim?: (claim: Claim) => ClaimReply; activate?: ActivateReply } = {}) {
    const simulated = new SimulatedClock();
    const clock: Clock = Object.assign(simulated, { timestamp: () => "" });
    const registry = new ActorRegistry();
    const view = new ClusterView();
    const claims: (Claim & { readonly to: string })[] = [];
    let epoch = 100;
    const hosts: HostClient = {
      claim: (host, claim) => {
        claims.push({ ...claim, to: host.id });
        const won = { kind: "won", placement: placementOf(claim.container, host.id, ++epoch) } as const;
        return Promise.resolve(answers.claim?.(claim) ?? won);
      },
      activate: () =>
        Promise.resolve(answers.activate ?? { kind: "active", activation: { how: "cold", epoch, phases: [] } }),
      prepare: () => Promise.resolve(),
    };
    const prober = { probe: () => Promise.resolve({ kind: "alive", rttMs: 1 } as const) };
    const actors = new Map<string, ReachabilityActor>();
    const reachability = (host: { readonly id: string; readonly address: string; readonly port: number }) => {
      const options = { freshMs: 10, probeTimeoutMs: 100, probeFloorMs: 50 };
      const known = actors.get(host.id) ?? new ReachabilityActor({ clock, prober, registry }, host.id, host, options);
      actors.set(host.id, known);
      return known;
    };
    const limits = { deadlineMs: 60_000, movesPerMinute: 3 };
    const relocations = new Relocations({
      clock,
      view,
      hosts,
      reachability,
      tracer: noTracing,
      log: noLog,
      registry,
      ...limits,
    });
    view.apply({ kind: "connected" });
    for (const id of ["a", "b"]) view.apply({ kind: "host", id, record: hostOf(id) });
    const pass = async (ms: number) => {
      for (let at = 0; at < ms; at += 50) {
        simulated.increment(50);
        await new Promise(setImmediate);
      }
    };
    const owned = (host: string, at: number) =>
      view.apply({ kind: "placement", container: "blog", placement: placementOf("blog", host, at) });
    const close = () => {
      for (const each of actors.values()) each.stop();
    };
    return { relocations, view, claims, pass, owned, close };
  }

  const trigger = (epoch: number, certain: boolean, text = "planted") => ({
    reason: { text, proven: true, certain },
    epoch,
    probedMs: 0,
    request: undefined,
  });
  const unavailable = (words: RegExp) => (error: unknown) =>
    error instanceof HakobuError && error.code === "UNAVAILABLE" && words.test(error.message);

  it("are counted whoever makes them: beyond the budget a container stays where it is", async () => {
    const { relocations, owned, claims, close } = opened();
    for (const [index, host] of ["a", "b", "a", "b"].entries()) owned(host, index + 1);
    const { ended } = await relocations.move(recordOf("blog"), trigger(4, false));
    assert.deepEqual(ended, { kind: "damped", owner: { host: "b", epoch: 4 } });
    assert.deepEqual(claims, []);
    assert.equal((await relocations.move(recordOf("blog"), trigger(4, true))).ended.kind, "moved");
    close();
  });

  it("are allowed again a minute after the ones that were counted", async () => {
    const { relocations, owned, pass, close } = opened();
    for (const [index, host] of ["a", "b", "a", "b"].entries()) owned(host, index + 1);
    await pass(60_050);
    assert.equal((await relocations.move(recordOf("blog"), trigger(4, false))).ended.kind, "moved");
    close();
  });

  it("count each host on which a container was tried and did not start", async () => {
    const { relocations, owned, claims, close } = opened({ activate: { kind: "failed", reason: "exit code 1" } });
    owned("a", 1);
    for (let each = 0; each < 10; each++) {
      const { epoch } = claims.length === 0 ? { epoch: 1 } : { epoch: 100 + claims.length };
      await relocations.move(recordOf("blog"), trigger(epoch, false)).catch(() => {});
    }
    assert.ok(claims.length <= 5, `${claims.length} claims`);
    close();
  });

  it("end at once for an exclusive container that did not start where it was placed", async () => {
    const { relocations, claims, close } = opened({ activate: { kind: "failed", reason: "no database" } });
    const exclusive = recordOf("blog", { takeover: "exclusive" });
    await assert.rejects(relocations.move(exclusive, trigger(0, true)), unavailable(/no database[\s\S]*exclusive/));
    assert.equal(claims.length, 1);
    close();
  });

  it("wait for the lease of an exclusive container's new owner that went silent before it had started it", async () => {
    const { relocations, view, owned, pass, close } = opened({
      activate: { kind: "unreachable", reason: "no answer" },
    });
    const moving = relocations.move(recordOf("blog", { takeover: "exclusive" }), trigger(0, true));
    await pass(2000);
    const [first] = view.placements();
    assert.ok(first !== undefined);
    view.apply({ kind: "placement", container: "blog" });
    owned(first.host === "a" ? "b" : "a", 300);
    await pass(100);
    assert.deepEqual((await moving).ended, {
      kind: "taken",
      owner: { host: first.host === "a" ? "b" : "a", epoch: 300 },
    });
    close();
  });

  it("of an exclusive container end when the store that would tell the end of a lease is away", async () => {
    const { relocations, owned, view, claims, pass, close } = opened();
    owned("a", 1);
    const moving = relocations.move(recordOf("blog", { takeover: "exclusive" }), trigger(1, true));
    const refused = assert.rejects(moving, unavailable(/store.*: planted silence/));
    await pass(1000);
    view.apply({ kind: "disconnected", reason: "planted silence" });
    await pass(3500);
    await refused;
    assert.deepEqual(claims, []);
    close();
  });

  it("of an exclusive container outlast a short interruption of the stream", async () => {
    const { relocations, owned, view, pass, close } = opened();
    owned("a", 1);
    const moving = relocations.move(recordOf("blog", { takeover: "exclusive" }), trigger(1, true));
    view.apply({ kind: "disconnected", reason: "planted" });
    await pass(2000);
    view.apply({ kind: "connected" });
    await pass(2000);
    view.apply({ kind: "placement", container: "blog" });
    await pass(200);
    assert.equal((await moving).ended.kind, "moved");
    close();
  });

  it("are tried again for a moment when every host says that it could take the container soon", async () => {
    let joining = true;
    const refusal = { kind: "refused", reason: "host b is fenced", retryAfterMs: 1000 } as const;
    const won = (claim: Claim): ClaimReply => ({ kind: "won", placement: placementOf(claim.container, "b", 200) });
    const { relocations, owned, pass, close } = opened({ claim: (claim) => (joining ? refusal : won(claim)) });
    owned("a", 1);
    const moving = relocations.move(recordOf("blog"), trigger(1, true));
    await pass(500);
    joining = false;
    await pass(500);
    assert.deepEqual((await moving).ended, { kind: "moved", owner: { host: "b", epoch: 200 } });
    close();
  });

  it("are not tried again against an owner that another proxy has given the container meanwhile", async () => {
    const refusal = { kind: "refused", reason: "host b is fenced", retryAfterMs: 1000 } as const;
    const { relocations, owned, claims, pass, close } = opened({ claim: () => refusal });
    owned("a", 1);
    const moving = relocations.move(recordOf("blog"), trigger(1, true));
    await pass(100);
    owned("b", 50);
    await pass(500);
    assert.deepEqual((await moving).ended, { kind: "taken", owner: { host: "b", epoch: 50 } });
    assert.equal(claims.length, 1);
    close();
  });

  it("fail with what the hosts said when they could not take it in that moment, and at once where they are full", async () => {
    for (const retryAfterMs of [1000, undefined]) {
      const more = retryAfterMs === undefined ? {} : { retryAfterMs };
      const { relocations, owned, pass, claims, close } = opened({
        claim: () => ({ kind: "refused", reason: "planted refusal", ...more }),
      });
      owned("a", 1);
      const refused = assert.rejects(
        relocations.move(recordOf("blog"), trigger(1, true)),
        unavailable(/planted refusal/),
      );
      await pass(4000);
      await refused;
      if (retryAfterMs === undefined) assert.equal(claims.length, 1);
      else assert.ok(claims.length > 5 && claims.length < 20, `${claims.length} claims`);
      close();
    }
  });

  it("are asked for with a reason that hosts accept, however much the application had to say", async () => {
    const { relocations, owned, claims, close } = opened();
    owned("a", 1);
    await relocations.move(recordOf("blog"), trigger(1, true, "x".repeat(2000)));
    assert.equal(claims[0]?.reason.length, 500);
    close();
  });
});
