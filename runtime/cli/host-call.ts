// Calls of commands to the control API of a host.
import { request } from "undici";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { HostRecord } from "../../actors/ports/placement-store.js";

/** @throws HakobuError CONFIG_INVALID */
export function hostOf(host: HostRecord | undefined, id: string): HostRecord {
  if (host === undefined) throw new HakobuError("CONFIG_INVALID", `no host ${id} has joined; see: hakobu get hosts`);
  return host;
}

/** @throws HakobuError UNAVAILABLE with what the host said, or that it did not answer */
export async function call<T>(
  host: HostRecord,
  method: "GET" | "POST",
  to: string,
  limitMs: number,
  body?: object,
): Promise<T> {
  let statusCode: number;
  let text: string;
  try {
    const answer = await request(`http://${host.address}:${host.port}${to}`, {
      method,
      signal: AbortSignal.timeout(limitMs),
      // The signal is the limit.
      headersTimeout: 0,
      bodyTimeout: 0,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    statusCode = answer.statusCode;
    text = await answer.body.text();
  } catch (cause) {
    const where = `${host.address}:${host.port}`;
    const late = cause instanceof Error && cause.name === "TimeoutError";
    const message = late
      ? `host ${host.id} gave no answer within ${limitMs / 1000} s, and may go on with it; see: hakobu get`
      : `host ${host.id} does not answer at ${where}: ${reasonOf(cause)}; see: hakobu get hosts`;
    throw new HakobuError("UNAVAILABLE", message, { cause, retryable: true });
  }
  const value = parsed(text);
  if (statusCode < 300 && value !== undefined) return value as T;
  throw new HakobuError("UNAVAILABLE", `host ${host.id}: ${value?.error ?? text}`);
}

function parsed(text: string): { readonly error?: string } | undefined {
  try {
    return JSON.parse(text) as { error?: string };
  } catch {
    return undefined;
  }
}
