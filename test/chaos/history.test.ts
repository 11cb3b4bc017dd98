// The checker itself: every kind of violation, planted into a history that is right, is found, and nothing else is.
import assert from "node:assert/strict";
import type { JournalLine } from "../lab/cluster.js";
import { describe as describeFault, plan } from "./faults.js";
import { explain } from "./explanation.js";
import { check, type Exchange, type History, type Takeover, type ViolationKind } from "./history.js";
import { intersection, type Span } from "./spans.js";

const line = (event: JournalLine["event"], at: number, host: string, epoch: number, id = ""): JournalLine => ({
  event,
  at,
  pid: 1,
  instance: `pid:[${epoch}]`,
  epoch,
  host,
  id,
  method: "POST",
  count: 1,
});

const exchange = (id: string, sentMs: number, epoch: number, host: string, more: Partial<Exchange> = {}): Exchange => ({
  client: 0,
  proxy: 0,
  container: "app",
  method: "POST",
  id,
  sentMs,
  doneMs: sentMs + 20,
  status: 200,
  epoch,
  host,
  answeredId: id,
  ...more,
});

/** Host a answers two requests under epoch 5; at 1000 it is cut off, and from 6000 on host b answers under epoch 9. */
function clean(takeover: Takeover, more: Partial<History> = {}): History {
  return {
    policies: new Map([["app", takeover]]),
    lines: new Map([
      [
        "app",
        [
          line("start", 90, "a", 5),
          line("request", 100, "a", 5, "one"),
          line("end", 110, "a", 5, "one"),
          line("request", 900, "a", 5, "two"),
          line("end", 910, "a", 5, "two"),
          line("beat", 4000, "a", 5),
          line("start", 5900, "b", 9),
          line("request", 6000, "b", 9, "three"),
          line("end", 6010, "b", 9, "three"),
        ],
      ],
    ]),
    exchanges: [
      exchange("one", 95, 5, "a"),
      exchange("two", 895, 5, "a"),
      exchange("three", 1200, 9, "b", { doneMs: 6020 }),
    ],
    hostsOut: new Map([
      ["a", [{ fromMs: 1000, toMs: 9000, what: "cut a" }]],
      ["b", []],
    ]),
    etcdOut: [],
    proxiesKilled: new Map(),
    proxiesStopped: new Map(),
    agentsAway: new Map(),
    planned: new Map(),
    final: [{ container: "app", runsOn: ["b"], owner: "b" }],
    strays: [],
    leftovers: [],
    clockDriftMs: 0,
    bounds: { overlapMs: 3000, letGoMs: 2000, deadlineMs: 10_000 },
    ...more,
  };
}

const withLines = (history: History, ...lines: JournalLine[]): History => ({
  ...history,
  lines: new Map([["app", [...(history.lines.get("app") ?? []), ...lines]]]),
});
const withExchanges = (history: History, ...exchanges: Exchange[]): History => ({
  ...history,
  exchanges: [...history.exchanges, ...exchanges],
});
const kindsIn = (history: History): ViolationKind[] => check(history).violations.map(({ kind }) => kind);

describe("the history checker", () => {
  for (const takeover of ["fast", "confirmed", "exclusive"] as const)
    it(`finds nothing in a history that is right, with takeover ${takeover}`, () => {
      const { violations, summary } = check(clean(takeover));
      assert.deepEqual(violations, []);
      assert.deepEqual([summary.requests, summary.executions, summary.longestWaitMs], [3, 3, 4820]);
      assert.deepEqual(summary.failures, {});
    });

  it("finds an exclusive owner that takes a request after a newer one has", () => {
    const stale = withLines(
      clean("exclusive"),
      line("request", 6100, "a", 5, "late"),
      line("end", 6110, "a", 5, "late"),
    );
    assert.ok(kindsIn(stale).includes("two owners"));
    // Not excused by a stopped agent either: on waking it has to look before it serves.
    const away = new Map([["a", [{ fromMs: 1000, toMs: 7000, what: "stop agent a" }]]]);
    assert.deepEqual(kindsIn({ ...stale, agentsAway: away }), ["two owners"]);
    // What had been sent to it before it stood still lies in its socket when it wakes: nobody can look first.
    const sentBefore = withExchanges(stale, exchange("late", 950, 9, "b", { doneMs: 6120, method: "GET" }));
    assert.ok(kindsIn(sentBefore).includes("two owners"));
    assert.deepEqual(kindsIn({ ...sentBefore, agentsAway: away }), []);
  });

  it("finds an exclusive owner that is still at work when the next one begins, unless its agent stood still", () => {
    const history = withLines(
      clean("exclusive"),
      line("request", 950, "a", 5, "slow"),
      line("end", 6050, "a", 5, "slow"),
    );
    assert.deepEqual(kindsIn(history), ["two owners", "two copies"]);
    const away = new Map([["a", [{ fromMs: 1000, toMs: 7000, what: "stop agent a" }]]]);
    const { violations, summary } = check({ ...history, agentsAway: away });
    assert.deepEqual(violations, []);
    assert.equal(summary.overlapMs.exclusive, 50);
  });

  it("finds two live copies of an exclusive container, unless the agent of the older one stood still or was killed", () => {
    const history = withLines(clean("exclusive"), line("beat", 6200, "a", 5));
    assert.deepEqual(kindsIn(history), ["two copies"]);
    assert.equal(check(history).summary.twoCopiesMs.exclusive, 110);
    const away = new Map([["a", [{ fromMs: 1000, toMs: 7000, what: "kill agent a" }]]]);
    assert.deepEqual(kindsIn({ ...history, agentsAway: away }), []);
  });

  it("finds two copies on one host in one epoch that answer at the same time", () => {
    const copy = (each: JournalLine): JournalLine => ({ ...each, instance: "pid:[77]" });
    const history = withLines(
      clean("exclusive"),
      copy(line("request", 105, "a", 5, "other")),
      copy(line("end", 120, "a", 5, "other")),
    );
    assert.ok(kindsIn(history).includes("two owners"));
  });

  it("allows a fast container the documented overlap and finds a longer one", () => {
    const until = (at: number) =>
      withLines(
        clean("fast"),
        line("request", at - 10, "a", 5, "late"),
        line("end", at, "a", 5, "late"),
        line("beat", 20_000, "b", 9),
      );
    assert.deepEqual(kindsIn(until(8900)), []);
    assert.equal(check(until(8900)).summary.overlapMs.fast, 2900);
    assert.deepEqual(kindsIn(until(9100)), ["long overlap"]);
  });

  for (const takeover of ["fast", "confirmed"] as const) {
    const span = (fromMs: number, toMs: number) => [{ fromMs, toMs, what: "planted" }];
    const alive = (until: number, more: Partial<History>) =>
      kindsIn({
        ...withLines(clean(takeover), line("beat", until, "a", 5), line("beat", 60_000, "b", 9)),
        hostsOut: new Map(),
        ...more,
      });

    it(`finds a copy of a ${takeover} container that its host keeps longer than it has for letting go`, () => {
      assert.deepEqual(alive(7900, {}), [], "the newer one appeared at 5900");
      assert.deepEqual(alive(7910, {}), ["lingering copy"]);
      assert.deepEqual(alive(7910, { agentsAway: new Map([["b", span(5000, 20_000)]]) }), ["lingering copy"]);
    });

    it(`gives the host of a lost ${takeover} copy that time from when it is back`, () => {
      const cut = { hostsOut: new Map([["a", span(1000, 9000)]]) };
      assert.deepEqual(alive(11_000, cut), []);
      assert.deepEqual(alive(11_010, cut), ["lingering copy"]);
      assert.deepEqual(alive(11_000, { etcdOut: span(5000, 9000) }), [], "nobody tells it while etcd has no leader");
      const again = new Map([["a", [...span(1000, 9000), ...span(10_500, 15_000)]]]);
      assert.deepEqual(alive(16_000, { ...cut, agentsAway: again }), [], "its agent was killed while it let go");
      assert.deepEqual(alive(17_010, { ...cut, agentsAway: again }), ["lingering copy"]);
      assert.deepEqual(alive(16_000, { hostsOut: again }), ["lingering copy"], "a cut does not keep it from stopping");
    });
  }

  it("finds a copy that comes up late, under an epoch that is lost already, and stays", () => {
    const late = (until: number) =>
      withLines(
        clean("fast", { hostsOut: new Map() }),
        { ...line("start", 6500, "a", 7), instance: "pid:[70]" },
        { ...line("beat", until, "a", 7), instance: "pid:[70]" },
        line("beat", 20_000, "b", 9),
      );
    assert.deepEqual(kindsIn(late(8500)), []);
    assert.deepEqual(kindsIn(late(8510)), ["lingering copy"]);
  });

  it("finds an answer from an older epoch after one from a newer, through one proxy", () => {
    const old = (proxy: number) => exchange("four", 6100, 5, "a", { proxy, method: "GET" });
    const ran = withLines(clean("fast"), line("request", 6110, "a", 5, "four"));
    assert.deepEqual(kindsIn(withExchanges(ran, old(0))), ["epoch went back"]);
    assert.deepEqual(kindsIn(withExchanges(ran, old(1))), [], "another proxy may not know yet");
    const beside = exchange("four", 1300, 5, "a", { doneMs: 7000, method: "GET" });
    assert.deepEqual(kindsIn(withExchanges(ran, beside)), [], "both were under way at once");
  });

  it("finds a POST that was executed twice, and lets a GET be", () => {
    const again = line("request", 6100, "b", 9, "two");
    assert.deepEqual(kindsIn(withLines(clean("fast"), again)), ["executed twice"]);
    const history = clean("fast");
    const exchanges = history.exchanges.map((it) => (it.id === "two" ? { ...it, method: "GET" as const } : it));
    assert.deepEqual(kindsIn(withLines({ ...history, exchanges }, again)), []);
  });

  it("finds an answer that no container gave, and one that belongs to another request", () => {
    assert.deepEqual(kindsIn(withExchanges(clean("fast"), exchange("ghost", 6100, 9, "b"))), [
      "answered without execution",
    ]);
    const history = withLines(clean("fast"), line("request", 6110, "b", 9, "mine"));
    const mixed = withExchanges(history, exchange("mine", 6100, 9, "b", { answeredId: "yours" }));
    assert.deepEqual(kindsIn(mixed), ["foreign answer"]);
  });

  it("finds a GET that failed while a host with room was reachable, and no other", () => {
    const {
      epoch: _epoch,
      host: _host,
      answeredId: _id,
      ...failed
    } = exchange("lost", 2000, 0, "", {
      method: "GET",
      status: 503,
      text: "no host",
    });
    const history = withExchanges(clean("fast"), failed);
    assert.deepEqual(kindsIn(history), ["failed GET"]);
    assert.deepEqual(check(history).summary.failures, { "GET 503 no host": 1 });
    const span = (fromMs: number, toMs: number) => [{ fromMs, toMs, what: "planted" }];
    const bothOut = new Map([...history.hostsOut, ["b", span(1900, 2100)] as const]);
    assert.deepEqual(kindsIn({ ...history, hostsOut: bothOut }), []);
    assert.deepEqual(kindsIn({ ...history, proxiesKilled: new Map([[0, span(2010, 2500)]]) }), []);
    assert.deepEqual(kindsIn({ ...history, proxiesKilled: new Map([[1, span(2010, 2500)]]) }), ["failed GET"]);
    assert.deepEqual(kindsIn(withExchanges(clean("fast"), { ...failed, method: "POST" })), [], "a POST may fail");
  });

  it("finds a GET that failed while etcd had no leader and its container was on a host that worked", () => {
    const span = (fromMs: number, toMs: number) => [{ fromMs, toMs, what: "planted" }];
    const history = withExchanges(clean("fast", { hostsOut: new Map() }), {
      client: 0,
      proxy: 0,
      container: "app",
      method: "GET",
      id: "lost",
      sentMs: 2000,
      doneMs: 2020,
      status: 503,
      text: "no leader",
    });
    const etcdOut = span(1900, 2010);
    assert.deepEqual(kindsIn({ ...history, etcdOut }), ["failed GET"], "host a answered at 915, and went on working");
    const whole: [string, Span[]][] = ["a", "b"].map((host) => [host, []]);
    const out = (host: string, fromMs: number, toMs: number) => ({
      hostsOut: new Map([...whole, [host, span(fromMs, toMs)]]),
    });
    assert.deepEqual(kindsIn({ ...history, etcdOut, ...out("b", 1000, 9000) }), ["failed GET"], "another host's fault");
    assert.deepEqual(
      kindsIn({ ...history, etcdOut, ...out("a", 100, 800) }),
      ["failed GET"],
      "over before it answered",
    );
    assert.deepEqual(kindsIn({ ...history, etcdOut, ...out("a", 1000, 1500) }), [], "it may have lost the container");
    assert.deepEqual(kindsIn({ ...history, ...out("a", 1000, 1500), etcdOut: span(2100, 2500) }), ["failed GET"]);
    assert.deepEqual(kindsIn({ ...history, etcdOut, planned: new Map([["app", span(1000, 1900)]]) }), []);
    assert.deepEqual(kindsIn({ ...history, etcdOut, planned: new Map([["other", span(1000, 1900)]]) }), ["failed GET"]);
    const exchanges = history.exchanges.filter(({ id }) => id === "lost");
    assert.deepEqual(kindsIn({ ...history, exchanges, etcdOut }), [], "nobody knows who owned it");
  });

  it("finds a request that took longer than its deadline, less the time that its proxy itself stood still", () => {
    const history = withLines(clean("fast"), line("request", 20_000, "b", 9, "slow"));
    const late = withExchanges(history, exchange("slow", 6100, 9, "b", { doneMs: 20_100 }));
    assert.deepEqual(kindsIn(late), ["late"]);
    const stood = new Map([[0, [{ fromMs: 7000, toMs: 10_000, what: "stop proxy 0" }]]]);
    assert.deepEqual(kindsIn({ ...late, proxiesStopped: stood }), []);
  });

  it("finds what has not settled, what was left behind, and a clock that was set", () => {
    const final = [{ container: "app", runsOn: ["a", "b"], owner: "b" }];
    assert.deepEqual(kindsIn(clean("fast", { final })), ["not settled"]);
    const elsewhere = [{ container: "app", runsOn: ["a"], owner: "b" }];
    assert.deepEqual(kindsIn(clean("fast", { final: elsewhere })), ["not settled"]);
    assert.deepEqual(kindsIn(clean("fast", { strays: ["host a, namespace: x"] })), ["leaked"]);
    assert.deepEqual(kindsIn(clean("fast", { leftovers: ["cgroups: hakobu/x"] })), ["left behind"]);
    assert.deepEqual(kindsIn(clean("fast", { clockDriftMs: 900 })), ["clock was set"]);
  });

  it("shows a violation with what happened around it", () => {
    const history = withLines(clean("exclusive"), line("request", 6100, "a", 5, "late"));
    const { violations } = check(history);
    const text = explain(violations[0] as (typeof violations)[number], history);
    assert.match(text, /two owners of app: a epoch 5 .* answered until 100 ms after b epoch 9/);
    assert.match(text, /\+0 b epoch 9 .*request three\n\s+\+10 b epoch 9 .*end three/);
    assert.match(text, /\+100 a epoch 5 .*request late/);
  });

  it("knows when all of several were out", () => {
    const span = (fromMs: number, toMs: number) => ({ fromMs, toMs, what: "x" });
    const common = intersection([[span(0, 10), span(20, 30)], [span(5, 25)], [span(0, 100)]]);
    assert.deepEqual(
      common.map(({ fromMs, toMs }) => [fromMs, toMs]),
      [
        [5, 10],
        [20, 25],
      ],
    );
    assert.deepEqual(intersection([[span(0, 10)], []]), []);
  });
});

describe("a plan of faults", () => {
  const options = {
    seed: 7,
    durationMs: 120_000,
    hosts: ["a", "b", "c"],
    containers: ["x", "y"],
    proxies: 2,
    etcdMembers: 3,
    ttlMs: 4000,
  };

  it("is the same for the same seed and another for another", () => {
    assert.deepEqual(plan(options), plan(options));
    assert.notDeepEqual(plan(options), plan({ ...options, seed: 8 }));
  });

  it("leaves one host, one proxy and two members of etcd at every moment, and ends all faults in time", () => {
    for (let seed = 1; seed <= 50; seed++) {
      const faults = plan({ ...options, seed });
      const at = (ms: number) => faults.filter((fault) => fault.atMs <= ms && ms <= fault.atMs + fault.forMs);
      for (const fault of faults) {
        assert.ok(fault.atMs + fault.forMs <= options.durationMs, describeFault(fault));
        const same = at(fault.atMs);
        const hosts = same
          .filter((it) => "host" in it && it.kind !== "relocate")
          .map((it) => ("host" in it ? it.host : ""));
        assert.ok(new Set(hosts).size <= 2 && new Set(hosts).size === hosts.length, `seed ${seed}: ${hosts.join()}`);
        assert.ok(same.filter((it) => "proxy" in it).length <= 1);
        assert.ok(same.filter((it) => "member" in it).length <= 1);
      }
    }
  });

  it("has every kind of fault in two minutes", () => {
    const seen = new Set([1, 2, 3].flatMap((seed) => plan({ ...options, seed }).map(({ kind }) => kind)));
    assert.equal(seen.size, 17);
  });
});
