// The real clock: monotonic time of this process and Node's timers.
import type { Clock } from "../actors/ports/clock.js";

export const systemClock: Clock = {
  now: () => performance.now(),
  timestamp: () => new Date().toISOString(),
  setTimeout: (fn, ms) => setTimeout(fn, ms),
  clearTimeout: (id) => clearTimeout(id),
};
