// What an application is told before an image of it is taken and after a copy of it was restored. Implemented over HTTP.
import type { Target } from "./prober.js";

/**
 * `golden`: the image that any number of copies start from, or a copy of it. `suspended`: the one image that keeps the memory
 * state, or what was restored from it, which has no twin.
 */
export type HookReason = "golden" | "suspended";

export interface Hook {
  readonly name: "beforeCheckpoint" | "afterRestore";
  /** Path and query of the request. */
  readonly path: string;
  readonly epoch: number;
  readonly reason: HookReason;
}

export interface Hooks {
  /** Resolves when the application said that it has done it. Rejects with what it said or did instead, also when it said nothing. */
  call(target: Target, hostname: string, hook: Hook, signal: AbortSignal): Promise<void>;
}
