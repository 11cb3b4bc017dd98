// A TCP proxy on loopback that fails on command, between a client and a server that know nothing of it.
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * `pass`; `blackhole`: bytes of both directions vanish, connections stay up; `dropResponses`: requests arrive, what comes back
 * vanishes; `refuse`: new connections are closed at once, those that are open go on.
 */
export type ProxyMode = "pass" | "blackhole" | "dropResponses" | "refuse";

export class TcpProxy {
  mode: ProxyMode = "pass";
  /** How long each piece of data for the client waits, while it is passed on. */
  delayMs = 0;
  /** Called with every piece of data for the client, before it is passed on. */
  onResponse: ((data: Buffer) => void) | undefined;
  readonly #server: Server;
  readonly #pairs = new Set<readonly [Socket, Socket]>();

  /** Listens on a free port; `to` is `host:port`, with or without `http://`. */
  static async start(to: string): Promise<TcpProxy> {
    const { hostname, port } = new URL(to.includes("://") ? to : `http://${to}`);
    const proxy = new TcpProxy(hostname, Number(port));
    await new Promise((resolve, reject) => proxy.#server.once("listening", resolve).once("error", reject));
    return proxy;
  }

  private constructor(host: string, port: number) {
    this.#server = createServer((client) => this.#join(client, host, port)).listen(0, "127.0.0.1");
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Closes what is open now; the mode stays. */
  cut(): void {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
  }

  async close(): Promise<void> {
    this.cut();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #join(client: Socket, host: string, port: number): void {
    if (this.mode === "refuse") {
      client.on("error", () => undefined).destroy();
      return;
    }
    const server = connect(port, host);
    const pair = [client, server] as const;
    this.#pairs.add(pair);
    const end = (): void => {
      client.destroy();
      server.destroy();
      this.#pairs.delete(pair);
    };
    for (const socket of pair) socket.setNoDelay(true).on("error", end).on("close", end);
    client.on("data", (data) => {
      if (this.mode !== "blackhole") server.write(data);
    });
    // Each waits from when it came, and none overtakes another when the delay changes.
    let last: Promise<void> | undefined;
    server.on("data", (data) => {
      this.onResponse?.(data);
      if (this.mode === "blackhole" || this.mode === "dropResponses") return;
      if (this.delayMs === 0 && last === undefined) return void client.write(data);
      const turn = Promise.all([last, sleep(this.delayMs)]).then(() => {
        client.write(data);
        if (last === turn) last = undefined;
      });
      last = turn;
    });
  }
}
