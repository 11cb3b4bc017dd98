// What keeps an event loop from its work, as asked for by the probe benchmark.

/** `load`: 7 ms of every 10 are taken. `stalls`: 150 ms of every 400, which is longer than the probe's limit. */
export type Strain = "none" | "load" | "stalls";

const patterns = { load: { everyMs: 10, takenMs: 7 }, stalls: { everyMs: 400, takenMs: 150 } } as const;

/** Begins at once; returns how to end it. */
export function strain(how: Strain): () => void {
  if (how === "none") return () => undefined;
  const { everyMs, takenMs } = patterns[how];
  const timer = setInterval(() => {
    const end = performance.now() + takenMs;
    while (performance.now() < end);
  }, everyMs);
  return () => clearInterval(timer);
}
