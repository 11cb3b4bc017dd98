// What an exclusive container's next owner waits for.
import assert from "node:assert/strict";
import { SimulatedClock } from "xstate";
import { ClusterView } from "../../actors/cluster-view.js";
import type { Clock } from "../../actors/ports/clock.js";
import { noticeMs, Vacancies } from "../../actors/vacancies.js";

describe("vacancies", () => {
  const placement = (epoch: number) => ({ container: "blog", host: "a", epoch, since: "", reason: "test" });

  async function opened() {
    const simulated = new SimulatedClock();
    const clock: Clock = Object.assign(simulated, { timestamp: () => "" });
    const view = new ClusterView();
    const vacancies = new Vacancies(clock, view, Promise.resolve());
    await Promise.resolve();
    let settled = false;
    const ask = async () => {
      settled = false;
      void vacancies.settled("blog").then(() => (settled = true));
      await new Promise(setImmediate);
    };
    const after = async (ms: number) => {
      simulated.increment(ms);
      await new Promise(setImmediate);
      return settled;
    };
    return { view, ask, after };
  }

  it("lets wait until the owner has had the time to hear that it is none any more", async () => {
    const { view, ask, after } = await opened();
    view.apply({ kind: "placement", container: "blog", placement: placement(1) });
    await after(10_000);
    view.apply({ kind: "placement", container: "blog" });
    await after(200);
    await ask();
    assert.equal(await after(noticeMs - 201), false);
    assert.equal(await after(1), true);
    await ask();
    assert.equal(await after(0), true);
  });

  it("takes what had no owner at the first listing for just vacated, and lets nobody wait who has one", async () => {
    const { view, ask, after } = await opened();
    await ask();
    assert.equal(await after(noticeMs - 1), false);
    assert.equal(await after(1), true);
    view.apply({ kind: "placement", container: "blog", placement: placement(2) });
    await ask();
    assert.equal(await after(0), true);
  });
});
