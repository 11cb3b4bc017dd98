// Which header fields cross a hop, in both directions, and which the hop adds.
//
//   H1  Hop-by-hop fields never cross (RFC 9110 section 7.6.1), nor what `Connection` names. undici and node:http frame
//       the message anew on the other side; `Host` and `Content-Length` cannot be removed by naming them.
//   H2  `hakobu-*` fields speak between a proxy and a host only. They are taken off whatever arrives: from a request for
//       good, from a response into `internal`. A client or a container can therefore not forge one.
//   H3  A field that says where a request comes from is one that Hakobu wrote, unless the front is trusted. `_` counts as
//       `-` here, because CGI-style applications cannot tell `X_Forwarded_For` from `X-Forwarded-For`.
//   H4  Everything else crosses as it came: order, case of names, repeated fields.
import type { IncomingMessage } from "node:http";
import { isIPv6 } from "node:net";

/**
 * What to do with `Forwarded` (RFC 7239), `X-Forwarded-*` and `X-Real-IP` of a request that comes in.
 * `replace`: drop them and write our own, for clients. `append`: continue the list, for a trusted load balancer in front.
 * `keep`: hand on unchanged, for the second hop inside Hakobu.
 */
export type ForwardedPolicy = "replace" | "append" | "keep";

export interface RequestHeaderRules {
  readonly forwarded: ForwardedPolicy;
  /** Fields to set, by lower-case name, in the place of fields of that name that came in. */
  readonly set?: Readonly<Record<string, string>>;
  /** Name of this hop in `Via` (RFC 9110 section 7.6.3); absent: no `Via` of ours. */
  readonly via?: string;
}

export interface ResponseHead {
  /** Flat: name, value, name, value. */
  readonly headers: string[];
  /** The `hakobu-*` fields by lower-case name; absent when there were none. */
  readonly internal?: Readonly<Record<string, string>>;
  /** -1 where the response does not say. */
  readonly contentLength: number;
}

const HOP_BY_HOP: ReadonlySet<string> = new Set([
  "connection",
  "expect",
  "keep-alive",
  "proxy-authenticate",
  "proxy-authentication-info",
  "proxy-authorization",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
]);
const INTERNAL_PREFIX = "hakobu-";

/** First letters, as a bit mask, of every field that some rule is about; most fields are done after one look at this. */
const LETTERS = mask("cefhkptuvx");

function mask(letters: string): number {
  let bits = 0;
  for (const letter of letters) bits |= 1 << (letter.charCodeAt(0) - 97);
  return bits;
}

function ruled(name: string): boolean {
  const letter = (name.charCodeAt(0) | 0x20) - 97;
  return letter >= 0 && letter < 26 && (LETTERS & (1 << letter)) !== 0;
}

/** The fields that `Connection` names (H1); undefined for the usual `keep-alive`, `close` and `upgrade`. */
function namedByConnection(value: string): Set<string> | undefined {
  let names: Set<string> | undefined;
  for (const part of value.toLowerCase().split(",")) {
    const name = part.trim();
    if (name === "keep-alive" || name === "close" || name === "upgrade" || name === "") continue;
    if (name === "host" || name === "content-length") continue;
    (names ??= new Set()).add(name);
  }
  return names;
}

function isOrigin(name: string): boolean {
  return name === "forwarded" || name === "x-real-ip" || name.startsWith("x-forwarded-");
}

/** Whether a body follows the head of this request (RFC 9112 section 6.3). */
export function hasBody(incoming: IncomingMessage): boolean {
  const { headers } = incoming;
  if (headers["transfer-encoding"] !== undefined) return true;
  const length = headers["content-length"];
  return length !== undefined && length !== "0" && Number(length) > 0;
}

/** Whether this request has passed a hop of that name before: it runs in a circle. */
export function hasPassed(incoming: IncomingMessage, via: string): boolean {
  const value = incoming.headers.via;
  return value !== undefined && value.split(",").some((hop) => hop.trim().split(/\s+/)[1] === via);
}

/** The fields of a request for the next hop, flat. */
export function requestHeaders(incoming: IncomingMessage, rules: RequestHeaderRules): string[] {
  const raw = incoming.rawHeaders;
  const { set } = rules;
  const chunked = incoming.headers["transfer-encoding"] !== undefined;
  const connection = incoming.headers.connection;
  const named = connection === undefined ? undefined : namedByConnection(connection);
  const out: string[] = [];
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i] as string;
    const value = raw[i + 1] as string;
    if (ruled(name)) {
      const lower = name.toLowerCase();
      if (HOP_BY_HOP.has(lower)) continue;
      // Chunked overrules a length (RFC 9112 section 6.1). node:http has refused such a request already.
      if (chunked && lower === "content-length") continue;
      if (rules.via !== undefined && lower === "via") continue;
      const plain = lower.includes("_") ? lower.replaceAll("_", "-") : lower;
      if (plain.startsWith(INTERNAL_PREFIX)) continue;
      if (rules.forwarded !== "keep" && isOrigin(plain)) continue;
    }
    if (named?.has(name.toLowerCase())) continue;
    if (set !== undefined && Object.hasOwn(set, name.toLowerCase())) continue;
    out.push(name, value);
  }
  if (incoming.headers.te !== undefined && /(^|,)\s*trailers\s*(,|;|$)/i.test(incoming.headers.te as string))
    out.push("te", "trailers");
  if (rules.forwarded !== "keep") addOrigin(out, incoming, rules.forwarded);
  if (rules.via !== undefined) {
    const before = incoming.headers.via;
    const own = `${incoming.httpVersion} ${rules.via}`;
    out.push("via", before === undefined ? own : `${before}, ${own}`);
  }
  if (set !== undefined) for (const name in set) out.push(name, set[name] as string);
  return out;
}

function addOrigin(out: string[], incoming: IncomingMessage, policy: "replace" | "append"): void {
  const { headers, socket } = incoming;
  const address = plainAddress(socket.remoteAddress ?? "");
  const proto = "encrypted" in socket ? "https" : "http";
  const { host } = headers;
  let forwarded = `for=${address === "" ? "unknown" : nodeName(address)};proto=${proto}`;
  if (host !== undefined) forwarded += `;host=${quoted(host)}`;
  if (policy === "replace") {
    out.push("forwarded", forwarded);
    if (address !== "") out.push("x-forwarded-for", address);
    out.push("x-forwarded-proto", proto);
    if (host !== undefined) out.push("x-forwarded-host", host);
    return;
  }
  const seenFor = single(headers["x-forwarded-for"]);
  const seenProto = single(headers["x-forwarded-proto"]);
  const seenHost = single(headers["x-forwarded-host"]);
  const before = headers.forwarded ?? translated(seenFor, seenProto, seenHost);
  out.push("forwarded", before === undefined ? forwarded : `${before}, ${forwarded}`);
  const chain = [seenFor, address].filter((part) => part !== undefined && part !== "").join(", ");
  if (chain !== "") out.push("x-forwarded-for", chain);
  out.push("x-forwarded-proto", seenProto ?? proto);
  const name = seenHost ?? host;
  if (name !== undefined) out.push("x-forwarded-host", name);
}

/** `X-Forwarded-*` in the words of RFC 7239 section 7.4. */
function translated(from?: string, proto?: string, host?: string): string | undefined {
  if (from === undefined) return undefined;
  const elements = from.split(",").map((address) => `for=${nodeName(plainAddress(address.trim()))}`);
  if (proto !== undefined) elements[0] += `;proto=${quoted(proto)}`;
  if (host !== undefined) elements[0] += `;host=${quoted(host)}`;
  return elements.join(", ");
}

function single(value: string | string[] | undefined): string | undefined {
  return Array.isArray(value) ? value.join(", ") : value;
}

/** An IPv4 address that a dual-stack socket shows as `::ffff:192.0.2.1`, without that. */
function plainAddress(address: string): string {
  return address.startsWith("::ffff:") && address.includes(".") ? address.slice(7) : address;
}

function nodeName(address: string): string {
  return isIPv6(address) ? `"[${address}]"` : quoted(address);
}

function quoted(text: string): string {
  return /^[\w!#$%&'*+.^`|~-]+$/.test(text) ? text : `"${text.replaceAll(/["\\]/g, "\\$&")}"`;
}

/** The fields of a response for the client, from undici's raw form. */
export function responseHead(raw: readonly Buffer[]): ResponseHead {
  const headers: string[] = [];
  let internal: Record<string, string> | undefined;
  let named: Set<string> | undefined;
  let contentLength = -1;
  for (let i = 0; i < raw.length; i += 2) {
    const name = (raw[i] as Buffer).toString("latin1");
    const value = (raw[i + 1] as Buffer).toString("latin1");
    if (ruled(name)) {
      const lower = name.toLowerCase();
      if (lower === "content-length") contentLength = Number(value);
      else if (lower === "connection") named = namedByConnection(value);
      if (HOP_BY_HOP.has(lower)) continue;
      if (lower.startsWith(INTERNAL_PREFIX)) {
        (internal ??= {})[lower] = value;
        continue;
      }
    }
    headers.push(name, value);
  }
  const kept = named === undefined ? headers : without(headers, named);
  return internal === undefined ? { headers: kept, contentLength } : { headers: kept, contentLength, internal };
}

/** The fields of a trailer section that may cross: not those that frame or route (RFC 9110 section 6.5.1). */
export function trailerFields(raw: readonly Buffer[]): [string, string][] {
  const fields: [string, string][] = [];
  for (let i = 0; i < raw.length; i += 2) {
    const name = (raw[i] as Buffer).toString("latin1");
    const lower = name.toLowerCase();
    if (HOP_BY_HOP.has(lower) || lower.startsWith(INTERNAL_PREFIX)) continue;
    if (lower === "content-length" || lower === "host" || lower === "set-cookie") continue;
    fields.push([name, (raw[i + 1] as Buffer).toString("latin1")]);
  }
  return fields;
}

function without(headers: readonly string[], names: ReadonlySet<string>): string[] {
  const out: string[] = [];
  for (let i = 0; i < headers.length; i += 2) {
    const name = headers[i] as string;
    if (!names.has(name.toLowerCase())) out.push(name, headers[i + 1] as string);
  }
  return out;
}

/**
 * The origin form of a request's target (RFC 9112 section 3.2), or undefined where the request must be refused with 400:
 * an absolute form whose authority is not the `Host` by which the request was routed, `OPTIONS *`, or something odd.
 */
export function requestTarget(incoming: IncomingMessage): string | undefined {
  const url = incoming.url ?? "";
  if (url.charCodeAt(0) === 47) return url;
  const absolute = /^https?:\/\/([^/?#]*)(.*)$/i.exec(url);
  if (absolute === null) return undefined;
  const [, authority, rest] = absolute as unknown as [string, string, string];
  if (authority.toLowerCase() !== incoming.headers.host?.toLowerCase()) return undefined;
  return rest.startsWith("/") ? rest : `/${rest}`;
}
