// A container's network: a namespace joined by a veth pair to the namespace in which the agent runs.
//
//   container eth0  <address>/32, default via 169.254.1.1    <--->   hk<hash>  169.254.1.1/32, route to <address>/32
//
//   W1  The container's side is the same on every host: address, gateway, interface name.
//   W2  Outgoing traffic is masqueraded by the nft table `hakobu` of the agent's namespace, which stays.
import { existsSync, writeFileSync } from "node:fs";
import { runCommand } from "../command.js";
import type { Names } from "./names.js";
import { createShadowNetwork, gateway, outlets } from "./shadow-network.js";

const commandLimitMs = 10_000;

/** On the path of a relocation: one shell and two `ip`. A shadow's is another one (shadow-network.ts). */
export async function createNetwork(names: Names, signal: AbortSignal): Promise<void> {
  const { namespace, link, address, outlet } = names;
  if (outlet !== undefined) return createShadowNetwork(names, outlet, signal);
  const outside = [
    `netns add ${namespace}`,
    `link add ${link} type veth peer name eth0 netns ${namespace}`,
    `addr add ${gateway}/32 dev ${link}`,
    `link set ${link} up`,
    `route add ${address}/32 dev ${link}`,
  ];
  const inside = [
    "link set lo up",
    `addr add ${address}/32 dev eth0`,
    "link set eth0 up",
    `route add ${gateway} dev eth0`,
    `route add default via ${gateway} dev eth0`,
  ];
  const script = `printf '%s\\n' "$2" | ip -batch - && printf '%s\\n' "$3" | ip -n "$1" -batch -`;
  await runCommand(["/bin/sh", "-c", script, "sh", namespace, outside.join("\n"), inside.join("\n")], {
    failure: "START_FAILED",
    title: `the network of ${names.container}`,
    timeoutMs: commandLimitMs,
    signal,
  });
}

/** Idempotent. The veth pair goes with the namespace; its host end is removed first because the kernel does that part later. */
export async function removeNetwork(names: Names): Promise<void> {
  if (!hasNetwork(names)) return;
  // Somebody else may remove it at the same moment: all that matters is that it is gone.
  const script = 'ip link delete "$2" 2>/dev/null; ip netns delete "$1" || ! [ -e "$3" ]';
  await runCommand(["/bin/sh", "-c", script, "sh", names.namespace, names.link, names.namespaceFile], {
    failure: "STOP_FAILED",
    title: `removing the network of ${names.container}`,
    timeoutMs: commandLimitMs,
  });
}

export function hasNetwork(names: Names): boolean {
  return existsSync(names.namespaceFile);
}

/** Once per agent: forwarding and masquerading in its own namespace. Several agents in one namespace agree on the table. */
export async function openGateway(signal?: AbortSignal): Promise<void> {
  writeFileSync("/proc/sys/net/ipv4/ip_forward", "1");
  const table = `add table ip hakobu
add chain ip hakobu postrouting { type nat hook postrouting priority srcnat; }
flush chain ip hakobu postrouting
add rule ip hakobu postrouting ip saddr { 10.64.0.0/10, ${outlets} } oifname != "hk*" masquerade
`;
  await runCommand(["nft", "-f", "-"], {
    failure: "START_FAILED",
    title: "masquerading for containers",
    timeoutMs: commandLimitMs,
    input: table,
    ...(signal === undefined ? {} : { signal }),
  });
}
