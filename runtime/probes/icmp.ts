// Asks a host by an ICMP echo (RFC 792, RFC 4443): its kernel answers, whatever its processes do. One raw socket per address family
// serves all probes. A raw socket hears every echo reply that reaches the machine, those to other processes too.
//
//   P1  A probe is answered only by its own reply: identifier (drawn per prober), sequence number and 128 random bits all match.
//   P2  As tcp.ts T1 and T2. A reply that lies unread in the socket counts, also behind those of others: before a verdict of
//       silence the socket is read empty. The echo is sent within probe(), so that a stall right after it delays no question.
//   P3  At most `mostOutstanding` probes are under way; nothing is kept of a probe once it has its verdict.
//   P4  An open prober keeps the process alive until close().
import { randomFillSync, randomInt } from "node:crypto";
import { createRequire } from "node:module";
import { isIP } from "node:net";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { Prober, ProbeResult, Target } from "../../actors/ports/prober.js";

const mostOutstanding = 4096;
/** More than fit into the socket's buffer, and few enough that a flood of foreign replies delays no verdict for long. */
const mostReads = 4096;
const bufferBytes = 1024 * 1024;
const headerBytes = 8;
const tokenBytes = 16;

/** What Hakobu uses of npm's raw-socket 1.8.1. Its own `send` waits for a turn of the event loop, and its own reading takes one packet a turn: hence `wrap`. */
interface RawSocket {
  readonly wrap: {
    /** @throws Error with the system's message */
    send(buffer: Buffer, offset: number, length: number, address: string, sent: () => void): void;
    /** Does not wait. @throws Error with the system's message */
    recv(buffer: Buffer, read: (buffer: Buffer, bytes: number) => void): void;
  };
  setOption(level: number, option: number, value: Buffer | number, length?: number): void;
  on(event: "message", listener: (packet: Buffer) => void): void;
  on(event: "error", listener: (error: Error) => void): void;
  close(): void;
}

interface RawSocketPackage {
  createSocket(options: { readonly protocol: number; readonly addressFamily: number }): RawSocket;
  createChecksum(...parts: readonly Buffer[]): number;
}

interface Family {
  /** Of raw-socket. */
  readonly addressFamily: 1 | 2;
  readonly protocol: number;
  readonly request: number;
  readonly reply: number;
  /** `setsockopt` that drops all but echo replies in the kernel: icmp(7), RFC 3542 section 3.2. A set bit blocks a type. */
  readonly filter: { readonly level: number; readonly words: number };
}

const families: Readonly<Record<4 | 6, Family>> = {
  4: { addressFamily: 1, protocol: 1, request: 8, reply: 0, filter: { level: 255, words: 1 } },
  6: { addressFamily: 2, protocol: 58, request: 128, reply: 129, filter: { level: 58, words: 8 } },
};

interface Outstanding {
  readonly token: Buffer;
  readonly began: number;
  settle(result: ProbeResult): void;
}

export class IcmpProber implements Prober {
  readonly #raw: RawSocketPackage;
  readonly #sockets: { 4: RawSocket; 6?: RawSocket };
  readonly #identifier = randomInt(0x10000);
  readonly #outstanding = new Map<number, Outstanding>();
  readonly #buffer = Buffer.alloc(2048);
  #sequence = randomInt(0x10000);
  #closed = false;

  /** @throws HakobuError CONFIG_INVALID where the package is not installed or raw sockets are not permitted */
  constructor() {
    this.#raw = load();
    try {
      this.#sockets = { 4: this.#open(4) };
    } catch (cause) {
      throw impossible(`a raw socket: ${reasonOf(cause)}`, cause);
    }
    try {
      this.#sockets[6] = this.#open(6);
    } catch {
      // A kernel without IPv6: its addresses are then unreachable, as they are.
    }
  }

  /** The port is not used. */
  probe(target: Target, timeoutMs: number): Promise<ProbeResult> {
    const version = isIP(target.address) as 0 | 4 | 6;
    const unreachable = (code: string): Promise<ProbeResult> => Promise.resolve({ kind: "unreachable", code });
    if (version === 0) return unreachable("NOT_AN_IP_ADDRESS");
    const unknown = (code: string): Promise<ProbeResult> => Promise.resolve({ kind: "unknown", code });
    if (this.#closed) return unknown("PROBER_CLOSED");
    if (this.#outstanding.size >= mostOutstanding) return unknown("TOO_MANY_PROBES");
    const socket = this.#sockets[version];
    if (socket === undefined) return unreachable("EAFNOSUPPORT");
    while (this.#outstanding.has(this.#sequence)) this.#sequence = (this.#sequence + 1) & 0xffff;
    const sequence = this.#sequence;
    this.#sequence = (this.#sequence + 1) & 0xffff;
    return new Promise((resolve) => {
      const packet = this.#request(version, sequence);
      const began = performance.now();
      const onSilence = (): void => {
        this.#readAll(version, () => this.#outstanding.get(sequence) === own);
        own.settle({ kind: "timeout", afterMs: performance.now() - began });
      };
      const timer = setTimeout(() => setImmediate(() => setImmediate(onSilence)), timeoutMs);
      const own: Outstanding = {
        token: packet.subarray(headerBytes),
        began,
        settle: (result) => {
          // After this the sequence number may be another probe's.
          if (this.#outstanding.get(sequence) === own) this.#outstanding.delete(sequence);
          clearTimeout(timer);
          resolve(result);
        },
      };
      this.#outstanding.set(sequence, own);
      try {
        socket.wrap.send(packet, 0, packet.length, target.address, () => undefined);
      } catch (error) {
        const code = codeOf(error);
        own.settle({ kind: code === "ENOBUFS" ? "unknown" : "unreachable", code });
      }
    });
  }

  /** Ends the probes under way, as unknown. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#sockets[4].close();
    this.#sockets[6]?.close();
    for (const probe of this.#outstanding.values()) probe.settle({ kind: "unknown", code: "PROBER_CLOSED" });
  }

  #open(version: 4 | 6): RawSocket {
    const { addressFamily, protocol, reply, filter } = families[version];
    const socket = this.#raw.createSocket({ addressFamily, protocol });
    if (process.platform === "linux") {
      // Words in the machine's own byte order.
      const blocked = new Uint32Array(filter.words).fill(0xffff_ffff);
      blocked[reply >> 5] = ~(1 << (reply & 31));
      socket.setOption(filter.level, 1, Buffer.from(blocked.buffer), blocked.byteLength);
      // Echoes to hosts that do not answer ARP lie in the send buffer for three seconds; full, it would silence the others.
      enlarge(socket, SO_SNDBUFFORCE, SO_SNDBUF);
      enlarge(socket, SO_RCVBUFFORCE, SO_RCVBUF);
    }
    socket.on("message", (packet) => {
      this.#take(version, packet);
      this.#readAll(version, () => this.#outstanding.size > 0);
    });
    // Of reading alone: whose reply is lost by it is asked again by the caller. The package opens a lost socket again when it sends.
    socket.on("error", () => undefined);
    return socket;
  }

  #request(version: 4 | 6, sequence: number): Buffer {
    const packet = Buffer.alloc(headerBytes + tokenBytes);
    packet.writeUInt8(families[version].request, 0);
    packet.writeUInt16BE(this.#identifier, 4);
    packet.writeUInt16BE(sequence, 6);
    randomFillSync(packet, headerBytes);
    // For ICMPv6 the kernel does it.
    if (version === 4) packet.writeUInt16BE(this.#raw.createChecksum(packet), 2);
    return packet;
  }

  /** Reads what lies in the socket, as long as somebody waits for it. */
  #readAll(version: 4 | 6, wanted: () => boolean): void {
    for (let read = 0; read < mostReads && !this.#closed && wanted(); read++) {
      try {
        this.#sockets[version]?.wrap.recv(this.#buffer, (buffer, bytes) =>
          this.#take(version, buffer.subarray(0, bytes)),
        );
      } catch {
        return;
      }
    }
  }

  /** P1 */
  #take(version: 4 | 6, packet: Buffer): void {
    // IPv4 comes with its header (raw(7)), IPv6 without.
    const start = version === 4 ? ((packet[0] ?? 0) & 0x0f) * 4 : 0;
    if (packet.length < start + headerBytes + tokenBytes || packet[start] !== families[version].reply) return;
    if (packet.readUInt16BE(start + 4) !== this.#identifier) return;
    const asked = this.#outstanding.get(packet.readUInt16BE(start + 6));
    const token = packet.subarray(start + headerBytes, start + headerBytes + tokenBytes);
    if (asked?.token.equals(token)) asked.settle({ kind: "alive", rttMs: performance.now() - asked.began });
  }
}

/** socket(7), Linux. */
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_RCVBUF = 8;
const SO_SNDBUFFORCE = 32;
const SO_RCVBUFFORCE = 33;

/** Beyond the system's limit where CAP_NET_ADMIN permits it, else up to it. */
function enlarge(socket: RawSocket, forced: number, modest: number): void {
  try {
    socket.setOption(SOL_SOCKET, forced, bufferBytes);
  } catch {
    socket.setOption(SOL_SOCKET, modest, bufferBytes);
  }
}

function load(): RawSocketPackage {
  try {
    return createRequire(import.meta.url)("raw-socket") as RawSocketPackage;
  } catch (cause) {
    throw impossible(`raw-socket: ${reasonOf(cause).split("\n", 1)[0]}`, cause);
  }
}

function impossible(what: string, cause: unknown): HakobuError {
  const message =
    "probe.kind icmp needs root (or CAP_NET_RAW) and the raw-socket package (python3, make and g++, then npm install); use tcp";
  return new HakobuError("CONFIG_INVALID", `${message} (${what})`, { cause });
}

/** The package throws the system's message alone. */
function codeOf(error: unknown): string {
  const message = reasonOf(error);
  const codes: Readonly<Record<string, string>> = {
    "Network is unreachable": "ENETUNREACH",
    "No route to host": "EHOSTUNREACH",
    "Permission denied": "EACCES",
    "Operation not permitted": "EPERM",
    "No buffer space available": "ENOBUFS",
  };
  return codes[message] ?? message;
}
