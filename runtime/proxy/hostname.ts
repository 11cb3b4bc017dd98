import type { IncomingMessage } from "node:http";

/** The host name that a request asks for, lower case, without port and trailing dot; "" where there is none. */
export function hostnameOf(incoming: IncomingMessage): string {
  const host = incoming.headers.host ?? "";
  const name = host.startsWith("[") ? host.slice(0, host.indexOf("]") + 1) : (host.split(":")[0] as string);
  return name.toLowerCase().replace(/\.$/, "");
}
