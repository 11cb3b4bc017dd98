// The network of a shadow: a copy of a container beside the one that clients reach, started to be imaged. It has the container's own
// address, for the sockets of its image are bound to that, and nobody but itself knows it under this address.
//
//   shadow eth0  <address>/32 and <outlet>/32, nft below   <--->   hs<hash>  169.254.1.1/32, route to <outlet>/32
//
//   S1  No way in: the agent's namespace has no route to <address> over this link, and what comes in from the link without having
//       been asked for is dropped, whatever it is addressed to. The rules stand before the link is up, and the container, which
//       has no CAP_NET_ADMIN, cannot change them.
//   S2  A way out, for databases: what the shadow sends leaves as <outlet>, which the agent's namespace masquerades like the
//       addresses of containers (network.ts).
//   S3  The agent's own requests (readiness, hooks) are made from inside the namespace (inside.ts).
import { runCommand } from "../command.js";
import type { Names } from "./names.js";

export const gateway = "169.254.1.1";
/** Of outlets (names.ts). Link-local and none that clouds give a meaning to (169.254.169.254, 169.254.1.1). */
export const outlets = "169.254.64.0/18";
const commandLimitMs = 10_000;

export async function createShadowNetwork(names: Names, outlet: string, signal: AbortSignal): Promise<void> {
  const { namespace, link, address } = names;
  const rules = `table inet hakobu {
  chain input {
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
  }
  chain output {
    type filter hook output priority filter; policy accept;
    ct state invalid drop
  }
}
table ip hakobu {
  chain outlet {
    type nat hook postrouting priority srcnat;
    oifname "eth0" snat to ${outlet}
  }
}`;
  const outside = [
    `link add ${link} type veth peer name eth0 netns ${namespace}`,
    `addr add ${gateway}/32 dev ${link}`,
    `link set ${link} up`,
    `route add ${outlet}/32 dev ${link}`,
  ];
  const inside = [
    "link set lo up",
    `addr add ${address}/32 dev eth0`,
    `addr add ${outlet}/32 dev eth0`,
    "link set eth0 up",
    `route add ${gateway} dev eth0`,
    `route add default via ${gateway} dev eth0 src ${address}`,
  ];
  const script = `ip netns add "$1" && printf '%s\\n' "$2" | nsenter "--net=$5" nft -f - &&
printf '%s\\n' "$3" | ip -batch - && printf '%s\\n' "$4" | ip -n "$1" -batch -`;
  const args = [namespace, rules, outside.join("\n"), inside.join("\n"), names.namespaceFile];
  await runCommand(["/bin/sh", "-c", script, "sh", ...args], {
    failure: "START_FAILED",
    title: `the network of ${names.container}`,
    timeoutMs: commandLimitMs,
    signal,
  });
}
