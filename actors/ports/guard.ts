// Who kills exclusive containers when the agent itself cannot: because it was killed, or stands still. Implemented in runtime/guard.ts.
import type { Instance } from "./engine.js";

export interface Guard {
  /** These are to be killed when nothing more was said for `remainingMs`, or when this process is gone. Replaces what was said before. */
  watch(remainingMs: number, instances: readonly Instance[]): void;
  /** Watches nothing any more. Idempotent. */
  close(): void;
}
