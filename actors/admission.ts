// How many containers may come up at once on one host: more at a time than there are processors makes every one late, and none
// early. The rest wait in the order in which they came, so who has waited longest is next.
export class Admission {
  readonly #limit: number;
  #running = 0;
  readonly #queue: (() => void)[] = [];

  constructor(limit: number) {
    this.#limit = limit;
  }

  get waiting(): number {
    return this.#queue.length;
  }

  /** Runs `work` when its turn comes. Rejects with the signal's reason where that aborts before. */
  async run<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    if (this.#running < this.#limit) this.#running++;
    else await this.#turn(signal);
    try {
      signal.throwIfAborted();
      return await work();
    } finally {
      const next = this.#queue.shift();
      if (next === undefined) this.#running--;
      else next();
    }
  }

  /** Runs `work` at once if there is a place and nobody waits for one; undefined: there is none. */
  runNow<T>(work: () => Promise<T>): Promise<T> | undefined {
    return this.#running < this.#limit ? this.run(new AbortController().signal, work) : undefined;
  }

  /** Whoever ends hands its place over, so `#running` stays as it is. */
  #turn(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const admit = (): void => {
        signal.removeEventListener("abort", onAbort);
        resolve();
      };
      const onAbort = (): void => {
        this.#queue.splice(this.#queue.indexOf(admit), 1);
        reject(signal.reason as Error);
      };
      if (signal.aborted) return reject(signal.reason as Error);
      signal.addEventListener("abort", onAbort, { once: true });
      this.#queue.push(admit);
    });
  }
}
