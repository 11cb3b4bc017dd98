// Time as the actors see it. Injected, so that tests drive it and nothing in machines/ or actors/ reads the wall clock.
import { type ErrorCode, HakobuError } from "../hakobu-error.js";
import type { ActorOptions, AnyActorLogic } from "xstate";

/** XState's timer interface with a monotonic `now()`; one clock drives both `after` delays and deadlines. */
export interface Clock extends NonNullable<ActorOptions<AnyActorLogic>["clock"]> {
  /** Monotonic milliseconds; the origin has no meaning. */
  now(): number;
  /** Wall-clock time in ISO 8601, for records that people read. Compared only where hours matter: the age of an image. */
  timestamp(): string;
}

/** Resolves after `ms`, or rejects with the signal's reason as soon as it aborts. */
export function delay(clock: Clock, ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason as Error);
    const timer: unknown = clock.setTimeout(() => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    }, ms);
    function onAbort(): void {
      clock.clearTimeout(timer);
      reject(signal?.reason as Error);
    }
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}

/**
 * What `promise` comes to, unless the signal aborts first: for what takes no signal, or does not heed it in time.
 * `late` gets what it comes to after that. @throws the signal's reason
 */
export function within<T>(promise: Promise<T>, signal: AbortSignal, late?: (value: T) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    if (signal.aborted) onAbort();
    else signal.addEventListener("abort", onAbort, { once: true });
    promise
      .then((value) => {
        if (signal.aborted) late?.(value);
        else resolve(value);
      }, reject)
      .finally(() => signal.removeEventListener("abort", onAbort));
  });
}

/** Aborts with a HakobuError after `ms`; the timer does not keep a process alive. */
export function deadline(
  clock: Clock,
  ms: number,
  message: string,
  code: ErrorCode = "DEADLINE_EXCEEDED",
): AbortSignal {
  const controller = new AbortController();
  const timer: unknown = clock.setTimeout(() => controller.abort(new HakobuError(code, message)), ms);
  if (typeof timer === "object" && timer !== null && "unref" in timer) (timer as { unref(): void }).unref();
  return controller.signal;
}
