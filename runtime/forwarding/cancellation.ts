// Cancels one forwarded request. An AbortSignal in small: one listener, no event objects, made for every request.

export class Cancellation {
  #reason: Error | undefined;
  #listener: ((reason: Error) => void) | undefined;

  /** Set once it was cancelled. */
  get reason(): Error | undefined {
    return this.#reason;
  }

  /** Idempotent; the first reason stays. */
  cancel(reason: Error): void {
    if (this.#reason !== undefined) return;
    this.#reason = reason;
    this.#listener?.(reason);
  }

  /** Called at once if it was cancelled before. Takes the place of the listener before; undefined removes it. */
  listen(listener: ((reason: Error) => void) | undefined): void {
    this.#listener = listener;
    if (this.#reason !== undefined) listener?.(this.#reason);
  }
}
