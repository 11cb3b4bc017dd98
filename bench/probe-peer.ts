// One process of the probe benchmark in the network of its own host: the `agent` is what is probed, the `candidate` probes once more
// before it takes a container over (`takeover: confirmed`). Speaks with bench/probes.ts over IPC, and ends when that does.
import { createServer } from "node:http";
import type { ProbeKind, ProbeResult, Target } from "../actors/ports/prober.js";
import { noLog } from "../actors/ports/log.js";
import { listen } from "../runtime/http-server.js";
import { ProberByKind } from "../runtime/probes/by-kind.js";
import { strain, type Strain } from "./strain.js";

export const agentPort = 7070;

export type ToPeer =
  | { readonly do: "strain"; readonly how: Strain }
  | {
      readonly do: "probe";
      readonly id: number;
      readonly target: Target;
      readonly timeoutMs: number;
      readonly kind: ProbeKind;
    };
export type FromPeer = { readonly ready: true } | { readonly id: number; readonly result: ProbeResult };

const role = process.argv[2];
if (role === "agent" || role === "candidate") {
  const send = (message: FromPeer): void => void process.send?.(message);
  process.once("disconnect", () => process.exit());
  if (role === "agent") {
    const server = createServer((_incoming, outgoing) => outgoing.end()).on("clientError", (_error, socket) =>
      socket.destroy(),
    );
    await listen(server, { address: "0.0.0.0", port: agentPort });
  } else {
    const prober = new ProberByKind("icmp", noLog);
    let relieve = strain("none");
    process.on("message", (message: ToPeer) => {
      switch (message.do) {
        case "strain":
          relieve();
          relieve = strain(message.how);
          return;
        case "probe":
          void prober
            .probe(message.target, message.timeoutMs, message.kind)
            .then((result) => send({ id: message.id, result }));
      }
    });
  }
  send({ ready: true });
}
