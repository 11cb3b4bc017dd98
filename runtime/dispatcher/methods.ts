// Which requests may be sent a second time (RFC 9110 section 9.2).

const safe: ReadonlySet<string> = new Set(["GET", "HEAD", "OPTIONS", "TRACE"]);
const idempotent: ReadonlySet<string> = new Set([...safe, "PUT", "DELETE"]);

export function isSafe(method: string | undefined): boolean {
  return method !== undefined && safe.has(method);
}

export function isIdempotent(method: string | undefined): boolean {
  return method !== undefined && idempotent.has(method);
}
