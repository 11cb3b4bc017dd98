// One question to a host: are you there? Implemented in runtime/probes/.

/**
 * Both of the paper's. `tcp`: a connection to the agent, closed by a reset. `icmp`: an echo, which the host's kernel answers: it tells
 * whether the host is there and says nothing about the agent.
 */
export type ProbeKind = "tcp" | "icmp";

export interface Target {
  readonly address: string;
  readonly port: number;
  /** Where it is reached from inside its network namespace only: the path of that. */
  readonly within?: string;
}

export type ProbeResult =
  | { readonly kind: "alive"; readonly rttMs: number }
  /** The machine answered that nothing listens: the agent is gone. */
  | { readonly kind: "refused" }
  /** Nothing came back within the limit. */
  | { readonly kind: "timeout"; readonly afterMs: number }
  /** The network answered for it, for example "no route to host". */
  | { readonly kind: "unreachable"; readonly code: string }
  /** This machine could not ask, for example for want of file descriptors: it says nothing about the host. */
  | { readonly kind: "unknown"; readonly code: string };

export interface Prober {
  /** Never rejects. The verdict survives a stall of the event loop: a late answer that has arrived counts. */
  probe(target: Target, timeoutMs: number, kind?: ProbeKind): Promise<ProbeResult>;
}
