// What proxies and hosts say to each other over HTTP: header names, paths, and the shapes of the calls.
// A request with `hakobu-container` is a tenant's, for the dispatcher; any other is a call to the control API.
import { z } from "zod";

export const header = {
  container: "hakobu-container",
  epoch: "hakobu-epoch",
  /** On a response of the host's own (421, 503): `moved`, `leaving` or `refused`. A container's response never carries it. */
  verdict: "hakobu-verdict",
  /** On a response that had to wait for its container: how that came up. */
  activation: "hakobu-activation",
  /** On a call of the application's hooks: which one. Never on a client's request. */
  hook: "hakobu-hook",
} as const;

export const path = {
  claim: "/v1/claim",
  activate: "/v1/activate",
  prepare: "/v1/prepare",
  host: "/v1/host",
  relocate: "/v1/relocate",
  scale: "/v1/scale",
  drain: "/v1/drain",
  undrain: "/v1/undrain",
} as const;

const epoch = z.number().int().nonnegative();
/** It is written into etcd and into every record of the move. Longer ones are cut by whoever asks for the claim. */
export const reasonLimit = 500;

export const placementSchema = z.object({
  container: z.string(),
  host: z.string(),
  epoch,
  since: z.string(),
  from: z.string().exactOptional(),
  reason: z.string(),
});

export const claimSchema = z.object({
  container: z.string(),
  expected: epoch,
  from: z.string().exactOptional(),
  reason: z.string().max(reasonLimit),
  handover: z.boolean().exactOptional(),
});

export const relocateSchema = z.object({ container: z.string(), to: z.string().exactOptional() });

/** What is left out stays as it is. */
export const scaleSchema = z.object({
  container: z.string(),
  cpus: z.number().min(0.01).max(1024).exactOptional(),
  memoryMiB: z
    .int()
    .min(4)
    .max(2 ** 24)
    .exactOptional(),
});

export const activateSchema = z.object({ container: z.string(), epoch });

export const prepareSchema = z.object({ container: z.string() });

const activationSchema = z.object({
  how: z.enum(["running", "restored", "cold"]),
  epoch,
  image: z.string().exactOptional(),
  bytes: z.number().exactOptional(),
  note: z.string().exactOptional(),
  phases: z.array(
    z.object({
      name: z.string(),
      ms: z.number(),
      ahead: z.literal(true).exactOptional(),
      beside: z.literal(true).exactOptional(),
    }),
  ),
});

const moved = z.object({ kind: z.literal("moved"), placement: placementSchema.exactOptional() });

export const claimReplySchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("won"), placement: placementSchema }),
  moved,
  z.object({ kind: z.literal("refused"), reason: z.string(), retryAfterMs: z.number().exactOptional() }),
]);

export const activateReplySchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("active"), activation: activationSchema }),
  moved,
  z.object({ kind: z.literal("failed"), reason: z.string() }),
]);

/** Body of a response with `hakobu-verdict`. */
export const verdictSchema = z.discriminatedUnion("verdict", [
  z.object({ verdict: z.literal("moved"), placement: placementSchema.exactOptional() }),
  /** A planned move is under way: the owner changes within seconds. */
  z.object({ verdict: z.literal("leaving") }),
  z.object({
    verdict: z.literal("refused"),
    reason: z.string(),
    /** Its lease holds: it will answer for the container again. Absent: it cannot prove that, and somebody else may take it. */
    keeps: z.literal(true).exactOptional(),
    retryAfterMs: z.number().exactOptional(),
  }),
]);

export type VerdictBody = z.infer<typeof verdictSchema>;
