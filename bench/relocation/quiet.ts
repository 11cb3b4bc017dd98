// Other work on this machine: what is measured in milliseconds waits for a moment without it, within limits.
import { cpus } from "node:os";
import { setTimeout as wait } from "node:timers/promises";

const windowMs = 120;
const windows = 2;
/** Of all processors together. */
const busyShare = 0.15;
const limitMs = 8_000;

/** Waits for two calm windows in a row. @returns false when there were none within the limit */
export async function quiet(signal: AbortSignal): Promise<boolean> {
  const end = performance.now() + limitMs;
  let calm = 0;
  let before = used();
  while (performance.now() < end) {
    await wait(windowMs, undefined, { signal });
    const now = used();
    calm = (now.busy - before.busy) / Math.max(1, now.all - before.all) < busyShare ? calm + 1 : 0;
    if (calm === windows) return true;
    before = now;
  }
  return false;
}

function used(): { readonly busy: number; readonly all: number } {
  const times = cpus().map((cpu) => cpu.times);
  const sum = (pick: (each: (typeof times)[number]) => number): number =>
    times.reduce((all, each) => all + pick(each), 0);
  const busy = sum((each) => each.user + each.nice + each.sys + each.irq);
  return { busy, all: busy + sum((each) => each.idle) };
}
