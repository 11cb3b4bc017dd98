// The bound on containers that come up at once.
import assert from "node:assert/strict";
import { Admission } from "../../actors/admission.js";

describe("admission", () => {
  const never = new AbortController().signal;

  it("runs no more than its limit at once, and lets those in first that have waited longest", async () => {
    const admission = new Admission(2);
    const order: number[] = [];
    const ends: (() => void)[] = [];
    let running = 0;
    let most = 0;
    const all = Array.from({ length: 6 }, (_, index) =>
      admission.run(never, async () => {
        order.push(index);
        most = Math.max(most, ++running);
        await new Promise<void>((resolve) => ends.push(resolve));
        running--;
      }),
    );
    while (order.length < 6 || ends.length > 0) {
      ends.shift()?.();
      await new Promise(setImmediate);
    }
    await Promise.all(all);
    assert.equal(most, 2);
    assert.deepEqual(order, [0, 1, 2, 3, 4, 5]);
  });

  it("gives its place on when the work fails, and takes who gives up out of the queue", async () => {
    const admission = new Admission(1);
    let fail: (error: Error) => void = () => {};
    const first = admission.run(never, () => new Promise<void>((_, reject) => (fail = reject)));
    const given = new AbortController();
    const second = admission.run(given.signal, () => Promise.resolve("second"));
    const third = admission.run(never, () => Promise.resolve("third"));
    assert.equal(admission.waiting, 2);
    given.abort(new Error("enough"));
    await assert.rejects(second, /enough/);
    assert.equal(admission.waiting, 1);
    fail(new Error("planted"));
    await assert.rejects(first, /planted/);
    assert.equal(await third, "third");
    assert.equal(admission.waiting, 0);
    assert.equal(await admission.run(never, () => Promise.resolve("again")), "again");
  });

  it("runs what comes behind requests while there is room, and lets no request wait for it (A1)", async () => {
    const admission = new Admission(1);
    const said: string[] = [];
    const ends: (() => void)[] = [];
    const work = (name: string) => async (): Promise<void> => {
      said.push(name);
      await new Promise<void>((resolve) => ends.push(resolve));
    };
    const turns = async (): Promise<void> => {
      for (let n = 0; n < 5; n++) await new Promise(setImmediate);
    };
    const first = admission.run(never, work("first"));
    const behind = admission.runBehind(never, work("behind"));
    const given = new AbortController();
    const tired = admission.runBehind(given.signal, work("tired"));
    const second = admission.run(never, work("second"));
    given.abort(new Error("enough"));
    await assert.rejects(tired, /enough/);
    ends.shift()?.();
    await turns();
    assert.deepEqual(said, ["first", "second"], "who waits for a request comes first");
    ends.shift()?.();
    await turns();
    assert.deepEqual(said, ["first", "second", "behind"]);
    const third = admission.run(never, work("third"));
    await turns();
    assert.deepEqual(said, ["first", "second", "behind", "third"], "at once");
    for (const end of ends) end();
    await Promise.all([first, second, behind, third]);
  });
});
