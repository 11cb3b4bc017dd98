// What changes one container happens one after the other; what changes different ones, side by side.

export class Turns {
  readonly #last = new Map<string, Promise<unknown>>();

  /** Something is under way. */
  busy(container: string): boolean {
    return this.#last.has(container);
  }

  /** Begins `work` when all that was asked for the same container before has ended, however it did. */
  async inTurn<T>(container: string, work: () => Promise<T>): Promise<T> {
    const before = this.#last.get(container) ?? Promise.resolve();
    const turn = before.then(work, work);
    this.#last.set(container, turn);
    try {
      return await turn;
    } finally {
      if (this.#last.get(container) === turn) this.#last.delete(container);
    }
  }
}
