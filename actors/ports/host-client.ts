// The calls that a proxy makes to a host when a container has to come to life there. Implemented over HTTP.
import type { HostRecord, Placement } from "./placement-store.js";
import type { Phases } from "./engine.js";
import type { TraceContext } from "./tracer.js";

export interface Claim {
  readonly container: string;
  /** Epoch that the proxy saw; 0: none. */
  readonly expected: number;
  readonly from?: string;
  readonly reason: string;
  /** The owner itself asks, in a planned move: it has stopped the container or will as soon as it sees the claim. */
  readonly handover?: boolean;
}

export type ClaimReply =
  | { readonly kind: "won"; readonly placement: Placement }
  /** Owned by somebody else (HTTP 421). */
  | { readonly kind: "moved"; readonly placement?: Placement }
  /** It will not, for now: full, draining, fenced, no such engine, the previous owner's lease still holds (HTTP 503). */
  | { readonly kind: "refused"; readonly reason: string; readonly retryAfterMs?: number }
  /** No answer. Whether it claimed is not known; the watch will tell. */
  | { readonly kind: "unreachable"; readonly reason: string };

export interface Activation {
  /** How the container came to run: from which image, or cold and why. */
  readonly how: "running" | "restored" | "cold";
  readonly epoch: number;
  readonly image?: string;
  readonly bytes?: number;
  /** Why no image was used, where that was so. */
  readonly note?: string;
  readonly phases: Phases;
}

export type ActivateReply =
  | { readonly kind: "active"; readonly activation: Activation }
  | { readonly kind: "moved"; readonly placement?: Placement }
  | { readonly kind: "failed"; readonly reason: string }
  | { readonly kind: "unreachable"; readonly reason: string };

export interface HostClient {
  /** Asks the host to own the container. A host that wins starts to bring it up at once. */
  claim(host: HostRecord, claim: Claim, trace: TraceContext, signal: AbortSignal): Promise<ClaimReply>;
  /** Tells the host that it may be asked to own the container soon. Nobody waits for it; never rejects. */
  prepare(host: HostRecord, container: string, signal: AbortSignal): Promise<void>;
  /** Waits until the container serves there. */
  activate(host: HostRecord, placement: Placement, trace: TraceContext, signal: AbortSignal): Promise<ActivateReply>;
}
