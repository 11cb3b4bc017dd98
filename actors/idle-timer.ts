// Tells when nothing has happened for a time. What happens notes it, which costs one look at the clock and no timer.
import type { Clock } from "./ports/clock.js";

export class IdleTimer {
  readonly #clock: Clock;
  readonly #busy: () => boolean;
  readonly #idle: () => void;
  #lastMs: number;
  #timer: unknown;

  /** `busy`: what is under way keeps it from being idle. */
  constructor(clock: Clock, busy: () => boolean, idle: () => void) {
    this.#clock = clock;
    this.#busy = busy;
    this.#idle = idle;
    this.#lastMs = clock.now();
  }

  note(): void {
    this.#lastMs = this.#clock.now();
  }

  /** From now on with this time; 0: never. */
  arm(idleMs: number): void {
    this.stop();
    if (idleMs === 0) return;
    const sinceMs = this.#clock.now() - this.#lastMs;
    this.#timer = this.#clock.setTimeout(
      () => {
        if (!this.#busy() && this.#clock.now() - this.#lastMs >= idleMs) {
          this.note();
          this.#idle();
        }
        this.arm(idleMs);
      },
      Math.max(1, this.#busy() ? idleMs : idleMs - sinceMs),
    );
  }

  stop(): void {
    this.#clock.clearTimeout(this.#timer);
  }
}
