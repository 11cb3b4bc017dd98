// What an application is told before an image of it is taken and after a copy of it was restored. Implemented over HTTP.
import type { Tier } from "./image-store.js";
import type { Target } from "./prober.js";

export interface Hook {
  readonly name: "beforeCheckpoint" | "afterRestore";
  /** Path and query of the request. */
  readonly path: string;
  readonly epoch: number;
  /** Of the image: a copy of a golden one has twins, what a suspended one held goes on once. */
  readonly reason: Tier;
}

export interface Hooks {
  /** Resolves when the application said that it has done it. Rejects with what it said or did instead, also when it said nothing. */
  call(target: Target, hostname: string, hook: Hook, signal: AbortSignal): Promise<void>;
}
