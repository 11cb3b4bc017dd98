// Hosts as network namespaces on one machine, joined by a bridge that can lose packets. Tests and `npm start` make and remove it.
//
//   root namespace (proxy, etcd)      hakobu-<name>-switch           hakobu-<name>-<host>
//   hakobu<x>  10.77.<x>.1/24  <----> root --- bridge --- h-<host> <----> eth0  10.77.<x>.11 and up
//
// Guarantees:
//   N1  Nothing is reachable from a host but the other hosts and the gateway address: no default route, no forwarding.
//   N2  A fault drops packets inside the switch. Neither end sees a link go down, an ICMP message or a reset. ARP always passes,
//       as with the paper's iptables rules: without it a peer would be told EHOSTUNREACH after three seconds.
//   N3  The kernel's refusal to make `hakobu<x>` twice reserves the subnet, and that of the switch reserves the name: networks may
//       be made at once, also by several processes.
//   N4  A creation that fails, and close(), leave nothing behind. After a crash removeLeftovers() finds everything by name.
import { readdir, readFile } from "node:fs/promises";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import { runCommand } from "../engines/command.js";

const COMMAND_DEADLINE_MS = 10_000;
const FIRST_HOST = 11;
const NAMESPACES = "/run/netns";
const LINKS = "/sys/class/net";

/** Seen from the host: `in` drops what is sent to it, `out` what it sends. */
export type Direction = "both" | "in" | "out";

/** `netem`: every packet to the host waits, until heal(). `window`: packets both ways are dropped for that time, once. */
export type DelayKind = "netem" | "window";

export interface Faults {
  readonly cut: Direction | "none";
  /** Of the packets each way, 0 to 100. */
  readonly lossPercent: number;
  readonly delay?: { readonly kind: DelayKind; readonly ms: number };
  /** TCP port that the gateway cannot reach. */
  readonly blindPort?: number;
}

export interface LocalHost {
  readonly id: string;
  readonly namespace: string;
  readonly address: string;
  /** The command that runs `command` in this host's network and in everything else of the caller's. */
  wrap(command: readonly string[]): string[];
}

export interface NetworkOptions {
  /** Lower-case letters and digits, at most 20. One network of a name exists at a time. */
  readonly name: string;
  /** Host ids: lower-case letters, digits and inner hyphens, at most 13. */
  readonly hosts: readonly string[];
  readonly signal?: AbortSignal;
}

export interface LocalNetwork {
  readonly name: string;
  /** The root namespace's address in the network: what the hosts use to reach the proxy and etcd. */
  readonly gateway: string;
  /** For example `10.77.0.0/24`. */
  readonly subnet: string;
  /** @throws HakobuError CONFIG_INVALID for an unknown id, as the functions below */
  host(id: string): LocalHost;
  /** Silently drops packets from now on, those of open connections too. The last call for a host counts. */
  cut(id: string, direction?: Direction): Promise<void>;
  /**
   * Drops what the gateway sends to one TCP port of the host, and nothing else: with the agent's port the proxies are blind,
   * while etcd and the other hosts go on reaching it.
   */
  blind(id: string, port: number): Promise<void>;
  /** Ends every fault of the host. */
  heal(id: string): Promise<void>;
  /**
   * Slows the host down: by sch_netem where the kernel has it. Without it (the development machine's has none) all its packets are
   * dropped for `ms` and pass again by themselves: TCP then retransmits, which makes about 200 ms more for an open
   * connection and one second for one being opened in that time.
   */
  delay(id: string, ms: number): Promise<DelayKind>;
  /** Drops packets at random each way; 100 is a cut, 0 ends it. */
  loss(id: string, percent: number): Promise<void>;
  /** The faults in force, by host id. */
  state(): Readonly<Record<string, Faults>>;
  /** Removes all namespaces and links. Idempotent. Processes inside go on, without a network: their owner stops them. */
  close(): Promise<void>;
}

/** @throws HakobuError UNAVAILABLE where namespaces, links or nft are not permitted, or the name is in use */
export async function createNetwork({ name, hosts, signal }: NetworkOptions): Promise<LocalNetwork> {
  check(name, hosts);
  try {
    await run(["ip", "-batch", "-"], `netns add ${switchOf(name)}\n`, signal).catch((error: unknown) => {
      throw refusedAsExisting(error) ? new NameInUse(name, error) : error;
    });
    await run(["ip", "-batch", "-"], lines(hosts.map((id) => `netns add ${namespaceOf(name, id)}`)), signal);
    const octet = await joinRoot(name, signal);
    await joinHosts(name, hosts, octet, signal);
    const network = new SwitchedNetwork(name, hosts, octet);
    await network.begin(signal);
    return network;
  } catch (error) {
    // What made the creation fail (no permission, no `ip`) makes the removal fail too, with less to say.
    if (!(error instanceof NameInUse)) await removeLeftovers(name).catch(() => undefined);
    throw error;
  }
}

/** Removes what a network of that name left when its owner was killed. Returns the names of what it removed. */
export async function removeLeftovers(name: string): Promise<readonly string[]> {
  check(name, []);
  const made = await namespacesOf(name);
  const links = await rootLinksOf(name);
  if (made.length + links.length > 0) {
    // Links first: a namespace with a process inside lives on, and would keep its end of the link.
    const commands = [...links.map((link) => `link del dev ${link}`), ...made.map((it) => `netns del ${it}`)];
    const failure = await run(["ip", "-force", "-batch", "-"], lines(commands)).then(
      () => undefined,
      (error: unknown) => error,
    );
    // Another remover may have been at it at the same time: what counts is that nothing is left.
    const left = [...(await rootLinksOf(name)), ...(await namespacesOf(name))];
    if (left.length > 0) {
      const message = `${left.join(", ")} could not be removed: ${reasonOf(failure)}`;
      throw new HakobuError("UNAVAILABLE", message, { cause: failure, retryable: true });
    }
  }
  return [...links, ...made];
}

class NameInUse extends HakobuError {
  constructor(name: string, cause: unknown) {
    const message = `a network named ${name} exists: close it, or removeLeftovers("${name}") if its owner crashed`;
    super("UNAVAILABLE", message, { cause });
  }
}

class SwitchedNetwork implements LocalNetwork {
  readonly name: string;
  readonly gateway: string;
  readonly subnet: string;
  readonly #hosts: ReadonlyMap<string, LocalHost>;
  readonly #faults = new Map<string, Faults & { readonly windowEndsAt?: number }>();
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(name: string, ids: readonly string[], octet: number) {
    this.name = name;
    this.gateway = `10.77.${octet}.1`;
    this.subnet = `10.77.${octet}.0/24`;
    this.#hosts = new Map(ids.map((id, index) => [id, hostOf(name, id, addressOf(octet, index))]));
    for (const id of ids) this.#faults.set(id, whole);
  }

  /** Puts the table without faults in place, which also proves that nft works here. */
  async begin(signal?: AbortSignal): Promise<void> {
    const sets = [...this.#hosts.keys()].map((id) => `set ${windowOf(id)} { type ifname; flags timeout; }`);
    const chain = "chain faults { type filter hook forward priority 0; policy accept; }";
    const table = `table bridge hakobu {\n${lines([...sets, chain])}}\n`;
    await run(this.#nft, table + lines(rulesFor(this.#faults)), signal);
  }

  host(id: string): LocalHost {
    const host = this.#hosts.get(id);
    if (host) return host;
    throw invalid(`no host ${id} in the network ${this.name}, which has ${[...this.#hosts.keys()].join(", ")}`);
  }

  cut(id: string, direction: Direction = "both"): Promise<void> {
    return this.#change(id, (faults) => this.#put(id, { ...faults, cut: direction }));
  }

  blind(id: string, port: number): Promise<void> {
    if (!(Number.isInteger(port) && port > 0 && port < 65_536)) throw invalid(`port ${port}: give one from 1 to 65535`);
    return this.#change(id, (faults) => this.#put(id, { ...faults, blindPort: port }));
  }

  loss(id: string, percent: number): Promise<void> {
    if (!(percent >= 0 && percent <= 100)) throw invalid(`loss of ${percent} percent: give a number from 0 to 100`);
    return this.#change(id, (faults) => this.#put(id, { ...faults, lossPercent: percent }));
  }

  heal(id: string): Promise<void> {
    return this.#change(id, async ({ delay }) => {
      if (delay?.kind === "netem") await run([...this.#tc, "del", "dev", portOf(id), "root"]);
      await this.#put(id, whole, `flush set bridge hakobu ${windowOf(id)}`);
    });
  }

  delay(id: string, ms: number): Promise<DelayKind> {
    if (!(Number.isInteger(ms) && ms > 0)) throw invalid(`delay of ${ms} ms: give a whole number above 0`);
    return this.#change(id, async (faults) => {
      const netem = [...this.#tc, "replace", "dev", portOf(id), "root", "netem", "delay", `${ms}ms`];
      const kind = await run(netem).then(
        () => "netem" as const,
        (error: unknown) => {
          if (/qdisc kind is unknown|No such file or directory/.test(reasonOf(error))) return "window" as const;
          throw error;
        },
      );
      const windowEndsAt = performance.now() + ms;
      if (kind === "window") {
        const set = `bridge hakobu ${windowOf(id)}`;
        const element = `{ "${portOf(id)}" timeout ${ms}ms }`;
        await this.#put(id, faults, `flush set ${set}`, `add element ${set} ${element}`);
      }
      this.#faults.set(id, { ...faults, delay: { kind, ms }, ...(kind === "window" && { windowEndsAt }) });
      return kind;
    });
  }

  state(): Readonly<Record<string, Faults>> {
    const now = performance.now();
    const entries = [...this.#faults].map(([id, { cut, lossPercent, delay, blindPort, windowEndsAt = Infinity }]) => {
      const blind = blindPort === undefined ? {} : { blindPort };
      return [id, { cut, lossPercent, ...blind, ...(delay && now < windowEndsAt && { delay }) }] as const;
    });
    return Object.fromEntries(entries);
  }

  close(): Promise<void> {
    this.#closed = true;
    return this.#queue(async () => {
      await removeLeftovers(this.name);
    });
  }

  get #nft(): string[] {
    return wrapIn(switchOf(this.name), ["nft", "-f", "-"]);
  }

  get #tc(): string[] {
    return wrapIn(switchOf(this.name), ["tc", "qdisc"]);
  }

  #nftRun(commands: readonly string[]): Promise<string> {
    return run(this.#nft, lines(commands));
  }

  /** One change at a time; the next one sees what the last one left. */
  async #change<T>(id: string, change: (faults: Faults) => Promise<T>): Promise<T> {
    this.host(id);
    return this.#queue(() => {
      if (this.#closed) throw new HakobuError("UNAVAILABLE", `the network ${this.name} is closed`);
      return change(this.#faults.get(id) ?? whole);
    });
  }

  #queue<T>(step: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(step);
    this.#last = turn.catch(() => undefined);
    return turn;
  }

  /** All rules of all hosts in one nft transaction: there is no moment with half of them. */
  async #put(id: string, faults: Faults, ...also: readonly string[]): Promise<void> {
    const all = new Map(this.#faults).set(id, faults);
    await this.#nftRun([...also, "flush chain bridge hakobu faults", ...rulesFor(all)]);
    this.#faults.set(id, faults);
  }
}

const whole: Faults = { cut: "none", lossPercent: 0 };

function rulesFor(faults: ReadonlyMap<string, Faults>): string[] {
  const rules = ["ether type arp accept", ...[...faults].flatMap(([id, its]) => rulesOfHost(id, its))];
  return rules.map((rule) => `add rule bridge hakobu faults ${rule}`);
}

function rulesOfHost(id: string, { cut, lossPercent, blindPort }: Faults): string[] {
  const port = `"${portOf(id)}"`;
  const window = `@${windowOf(id)}`;
  const rules = [`iifname ${window} drop`, `oifname ${window} drop`];
  if (cut === "both" || cut === "out") rules.push(`iifname ${port} drop`);
  if (cut === "both" || cut === "in") rules.push(`oifname ${port} drop`);
  if (blindPort !== undefined) rules.push(`iifname "root" oifname ${port} ether type ip tcp dport ${blindPort} drop`);
  if (lossPercent > 0) {
    const chance = lossPercent === 100 ? "" : `numgen random mod 10000 < ${Math.round(lossPercent * 100)} `;
    rules.push(`iifname ${port} ${chance}drop`, `oifname ${port} ${chance}drop`);
  }
  return rules;
}

/** Makes the link between the root namespace and the switch in a subnet that nothing uses. Returns its third octet. */
async function joinRoot(name: string, signal: AbortSignal | undefined): Promise<number> {
  const routes = await run(["ip", "-4", "route", "show", "root", "10.77.0.0/16", "table", "all"], "", signal);
  const used = new Set([...routes.matchAll(/\b10\.77\.(\d+)\./g)].map((match) => Number(match[1])));
  for (let octet = 0; octet < 256; octet++) {
    if (used.has(octet)) continue;
    const link = `hakobu${octet}`;
    const commands = [
      `link add name ${link} type veth peer name root netns ${switchOf(name)}`,
      `link set dev ${link} alias ${aliasOf(name)}`,
      `link set dev ${link} addrgenmode none up`,
      `addr add 10.77.${octet}.1/24 dev ${link}`,
    ];
    try {
      await run(["ip", "-batch", "-"], lines(commands), signal);
      return octet;
    } catch (error) {
      if (!refusedAsExisting(error)) throw error;
    }
  }
  throw new HakobuError("UNAVAILABLE", "no free subnet in 10.77.0.0/16: remove networks that are not used any more");
}

async function joinHosts(
  name: string,
  ids: readonly string[],
  octet: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const ports = ["root", ...ids.map(portOf)];
  await run(
    ["ip", "-netns", switchOf(name), "-batch", "-"],
    lines([
      "link set dev lo up",
      "link add name bridge type bridge",
      "link set dev bridge addrgenmode none up",
      ...ids.map((id) => `link add name ${portOf(id)} type veth peer name eth0 netns ${namespaceOf(name, id)}`),
      ...ports.map((port) => `link set dev ${port} addrgenmode none master bridge up`),
    ]),
    signal,
  );
  for (const [index, id] of ids.entries()) {
    await run(
      ["ip", "-netns", namespaceOf(name, id), "-batch", "-"],
      lines([
        "link set dev lo up",
        "link set dev eth0 addrgenmode none up",
        `addr add ${addressOf(octet, index)}/24 dev eth0`,
      ]),
      signal,
    );
  }
}

async function namespacesOf(name: string): Promise<string[]> {
  const all = await readdir(NAMESPACES).catch(() => []);
  return all.filter((entry) => entry.startsWith(namespaceOf(name, "")));
}

async function rootLinksOf(name: string): Promise<string[]> {
  const links = (await readdir(LINKS)).filter((link) => /^hakobu\d+$/.test(link));
  const aliases = await Promise.all(links.map((link) => readFile(`${LINKS}/${link}/ifalias`, "utf8").catch(() => "")));
  return links.filter((_, index) => aliases[index]?.trim() === aliasOf(name));
}

function check(name: string, hosts: readonly string[]): void {
  if (!/^[a-z0-9]{1,20}$/.test(name)) throw invalid(`network name ${name}: use 1 to 20 lower-case letters and digits`);
  for (const id of hosts) {
    const fits = /^[a-z0-9]([a-z0-9-]{0,11}[a-z0-9])?$/.test(id) && id !== "switch";
    if (!fits)
      throw invalid(`host id ${id}: use 1 to 13 lower-case letters, digits and inner hyphens, and not "switch"`);
  }
  if (new Set(hosts).size !== hosts.length || hosts.length > 200) {
    throw invalid("hosts: give each id once, and at most 200");
  }
}

function hostOf(name: string, id: string, address: string): LocalHost {
  const namespace = namespaceOf(name, id);
  return { id, namespace, address, wrap: (command) => wrapIn(namespace, command) };
}

/** nsenter and not `ip netns exec`, which makes a mount namespace of its own in which later mounts are not seen. */
function wrapIn(namespace: string, command: readonly string[]): string[] {
  return ["nsenter", `--net=${NAMESPACES}/${namespace}`, "--", ...command];
}

function aliasOf(name: string): string {
  return `hakobu-${name}`;
}

function namespaceOf(name: string, id: string): string {
  return `hakobu-${name}-${id}`;
}

function switchOf(name: string): string {
  return namespaceOf(name, "switch");
}

function portOf(id: string): string {
  return `h-${id}`;
}

function windowOf(id: string): string {
  return `window-${id}`;
}

function addressOf(octet: number, index: number): string {
  return `10.77.${octet}.${FIRST_HOST + index}`;
}

function lines(commands: readonly string[]): string {
  return commands.map((command) => `${command}\n`).join("");
}

function invalid(message: string): HakobuError {
  return new HakobuError("CONFIG_INVALID", message);
}

function refusedAsExisting(error: unknown): boolean {
  return /File exists/.test(reasonOf(error));
}

/** Runs one command with `input` on its standard input and resolves with its standard output. */
async function run(command: readonly string[], input = "", signal?: AbortSignal): Promise<string> {
  const options = {
    failure: "UNAVAILABLE",
    title: "hosts as network namespaces",
    timeoutMs: COMMAND_DEADLINE_MS,
  } as const;
  try {
    return await runCommand(command, { ...options, input, ...(signal && { signal }) });
  } catch (error) {
    const missing = whatIsMissing(reasonOf(error));
    throw missing === undefined
      ? error
      : new HakobuError("UNAVAILABLE", `${reasonOf(error).replaceAll("\n", "; ")}; ${missing}`, { cause: error });
  }
}

function whatIsMissing(message: string): string | undefined {
  if (/ENOENT|failed to execute/.test(message)) {
    return "install iproute2, nftables and util-linux, or run etc/setup.sh as root";
  }
  if (/not permitted|Permission denied/.test(message)) {
    return "they need root with CAP_NET_ADMIN and CAP_SYS_ADMIN (in Docker: --privileged)";
  }
  return undefined;
}
