// What a member knows of the cluster, and whom it would choose.
import assert from "node:assert/strict";
import { candidates, weight } from "../../actors/candidates.js";
import { ClusterView } from "../../actors/cluster-view.js";
import { hostOf, placementOf, recordOf } from "../lab/records.js";

function viewWith(hosts: readonly string[]): ClusterView {
  const view = new ClusterView();
  view.apply({ kind: "reset", specs: [], hosts: hosts.map((id) => hostOf(id)), placements: [] });
  return view;
}

describe("the view of the cluster", () => {
  it("finds the application by exact host name, then by wildcard, then the one that takes everything", () => {
    const view = new ClusterView();
    view.apply({
      kind: "reset",
      specs: [
        recordOf("blog", { hostnames: ["blog.example"] }),
        recordOf("shops", { hostnames: ["*.shop.example"] }),
        recordOf("rest", { hostnames: ["*"] }),
      ],
      hosts: [],
      placements: [],
    });
    assert.equal(view.specForHostname("blog.example")?.spec.name, "blog");
    assert.equal(view.specForHostname("a.shop.example")?.spec.name, "shops");
    assert.equal(view.specForHostname("b.a.shop.example")?.spec.name, "rest");
    assert.equal(view.specForHostname("")?.spec.name, "rest");
  });

  it("gives a host name that two applications ask for to the first by name, whatever the order", () => {
    for (const names of [
      ["a", "b"],
      ["b", "a"],
    ]) {
      const view = new ClusterView();
      for (const name of names)
        view.apply({ kind: "spec", name, record: recordOf(name, { hostnames: ["x.example"] }) });
      assert.equal(view.specForHostname("x.example")?.spec.name, "a");
      view.apply({ kind: "spec", name: "a" });
      assert.equal(view.specForHostname("x.example")?.spec.name, "b");
    }
  });

  it("forgets on a reset what is no longer there, and tells its listeners", () => {
    const view = viewWith(["a", "b"]);
    view.apply({ kind: "placement", container: "blog", placement: placementOf("blog", "a", 3) });
    const told: string[] = [];
    view.onChange((noticed) => told.push(noticed.kind === "host" ? `host ${noticed.id}` : noticed.kind));
    view.apply({ kind: "reset", specs: [], hosts: [hostOf("b")], placements: [] });
    assert.equal(view.host("a"), undefined);
    assert.equal(view.placement("blog"), undefined);
    assert.equal(view.load("a"), 0);
    assert.ok(told.includes("host a") && told.includes("placement"));
  });

  it("learns only newer placements from elsewhere", () => {
    const view = viewWith(["a", "b"]);
    view.learn(placementOf("blog", "a", 5));
    view.learn(placementOf("blog", "b", 4));
    assert.equal(view.placement("blog")?.host, "a");
    view.learn(placementOf("blog", "b", 6));
    assert.equal(view.placement("blog")?.host, "b");
    assert.deepEqual([view.load("a"), view.load("b")], [0, 1]);
  });

  it("wakes who waits for a change, and lets go when the wait is over", async () => {
    const view = viewWith([]);
    const waiting = view.until(() => view.host("c") !== undefined, AbortSignal.timeout(5000));
    view.apply({ kind: "host", id: "c", record: hostOf("c") });
    await waiting;
    const given = new AbortController();
    const never = view.until(() => false, given.signal);
    given.abort(new Error("enough"));
    await assert.rejects(never, /enough/);
  });
});

describe("the choice of a host", () => {
  const none = new Set<string>();
  const trusted = (): boolean => false;

  it("is the same for every proxy, and moves only the containers of a host that leaves", () => {
    const all = viewWith(["a", "b", "c", "d"]);
    const fewer = viewWith(["a", "b", "d"]);
    let moved = 0;
    for (let i = 0; i < 400; i++) {
      const record = recordOf(`app-${i}`);
      const [before, next] = candidates(all, record, none, trusted);
      const [after] = candidates(fewer, record, none, trusted);
      if (before?.id === "c") {
        moved++;
        assert.equal(after?.id, next?.id, "the next-best was known in advance");
      } else assert.equal(after?.id, before?.id);
    }
    assert.ok(moved > 60 && moved < 140, `${moved} of 400 containers on one of four hosts`);
  });

  it("leaves out hosts that are full, draining, without the engine, or excluded, and puts suspected ones last", () => {
    const view = new ClusterView();
    const hosts = [
      hostOf("full", { capacity: 0 }),
      hostOf("draining", { draining: true }),
      hostOf("runc", { engines: ["runc"] }),
      hostOf("tried"),
      hostOf("suspected"),
      hostOf("good"),
    ];
    view.apply({ kind: "reset", specs: [], hosts, placements: [] });
    const ranked = candidates(view, recordOf("blog"), new Set(["tried"]), (id) => id === "suspected");
    assert.deepEqual(
      ranked.map(({ id }) => id),
      ["good", "suspected"],
    );
  });

  it("spreads near names over the whole range", () => {
    const buckets = Array.from({ length: 8 }, () => 0);
    for (let i = 0; i < 8000; i++) {
      const bucket = weight(`c${i}`, "h") >>> 29;
      buckets[bucket] = (buckets[bucket] as number) + 1;
    }
    for (const count of buckets) assert.ok(count > 800 && count < 1200, buckets.join(" "));
  });
});
