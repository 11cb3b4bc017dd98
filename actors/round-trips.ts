// How long an answer of one host may take before its silence means something: measured, as TCP does for its retransmissions
// (RFC 6298), with more room, because a false alarm moves containers.
const samplesNeeded = 8;
/** What a busy machine takes now and then. */
const lateFloorMs = 10;

export class RoundTrips {
  #count = 0;
  #meanMs = 0;
  #deviationMs = 0;

  note(rttMs: number): void {
    this.#count++;
    if (this.#count === 1) {
      this.#meanMs = rttMs;
      this.#deviationMs = rttMs / 2;
      return;
    }
    this.#deviationMs = 0.75 * this.#deviationMs + 0.25 * Math.abs(this.#meanMs - rttMs);
    this.#meanMs = 0.875 * this.#meanMs + 0.125 * rttMs;
  }

  /** After which an answer is late: the mean and four deviations, at least 10 ms; half of the cap while too little is known. */
  lateMs(capMs: number): number {
    if (this.#count < samplesNeeded) return capMs / 2;
    return Math.max(lateFloorMs, Math.ceil(this.#meanMs + 4 * this.#deviationMs));
  }

  /** The mean and eight deviations, never under the floor nor over the cap; the cap while too little is known. */
  timeoutMs(floorMs: number, capMs: number): number {
    if (this.#count < samplesNeeded) return capMs;
    return Math.min(capMs, Math.max(floorMs, Math.ceil(this.#meanMs + 8 * this.#deviationMs)));
  }
}
