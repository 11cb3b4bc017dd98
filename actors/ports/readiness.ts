// The requests that decide whether a started application is ready, and warm it up. Implemented over HTTP.
import type { Target } from "./prober.js";

export interface Readiness {
  /** One GET without cookies. @returns the status. Rejects when there was no answer. */
  get(target: Target, hostname: string, path: string, signal: AbortSignal): Promise<number>;
}
