// How many containers may come up at once on one host: more at a time than there are processors makes every one late, and none
// early. The rest wait in the order in which they came, so who has waited longest is next.
//
//   A1  What runs behind requests begins only while there is room and nobody waits, and takes nobody's place: no request waits for it.
export class Admission {
  readonly #limit: number;
  #running = 0;
  readonly #queue: (() => void)[] = [];
  /** Those behind. */
  readonly #last: (() => void)[] = [];

  constructor(limit: number) {
    this.#limit = limit;
  }

  get waiting(): number {
    return this.#queue.length;
  }

  /** Runs `work` when its turn comes. Rejects with the signal's reason where that aborts before. */
  async run<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    if (this.#running < this.#limit) this.#running++;
    else await turn(this.#queue, signal);
    try {
      signal.throwIfAborted();
      return await work();
    } finally {
      const next = this.#queue.shift();
      // Whoever ends hands its place over, so `#running` stays as it is.
      if (next === undefined) {
        this.#running--;
        for (const admit of this.#last.splice(0)) admit();
      } else next();
    }
  }

  /** Runs `work` at once if there is a place and nobody waits for one; undefined: there is none. */
  runNow<T>(work: () => Promise<T>): Promise<T> | undefined {
    return this.#running < this.#limit ? this.run(new AbortController().signal, work) : undefined;
  }

  /** A1. Rejects with the signal's reason where that aborts before. */
  async runBehind<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    while (this.#running >= this.#limit) await turn(this.#last, signal);
    signal.throwIfAborted();
    return work();
  }
}

function turn(queue: (() => void)[], signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const admit = (): void => {
      signal.removeEventListener("abort", onAbort);
      resolve();
    };
    const onAbort = (): void => {
      queue.splice(queue.indexOf(admit), 1);
      reject(signal.reason as Error);
    };
    if (signal.aborted) return reject(signal.reason as Error);
    signal.addEventListener("abort", onAbort, { once: true });
    queue.push(admit);
  });
}
