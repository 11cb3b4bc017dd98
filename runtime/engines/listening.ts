// Whether something listens on a port, read from /proc/<pid>/net/tcp{,6} (proc(5)): no packet, no change to the application.
import { readFile } from "node:fs/promises";

const stateListen = "0A";

/**
 * In the network namespace of `pid`. With `address` (IPv4) only a socket bound to exactly that address counts: in a namespace
 * that is shared, a wildcard socket may be somebody else's.
 */
export async function isListening(pid: number, port: number, address?: string): Promise<boolean> {
  const suffix = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const wanted = address === undefined ? undefined : littleEndian(address);
  const tables = await Promise.all(
    ["tcp", "tcp6"].map((table) => readFile(`/proc/${pid}/net/${table}`, "latin1").catch(() => "")),
  );
  for (const line of tables.join("\n").split("\n")) {
    const [, local, , state] = line.trim().split(/\s+/, 4);
    if (state !== stateListen || local === undefined || !local.endsWith(suffix)) continue;
    // In tcp6 an IPv4 address is the last word of a mapped one.
    if (wanted === undefined || local.slice(0, -suffix.length).endsWith(wanted)) return true;
  }
  return false;
}

function littleEndian(address: string): string {
  const bytes = address.split(".").map((byte) => Number(byte).toString(16).toUpperCase().padStart(2, "0"));
  return bytes.toReversed().join("");
}
