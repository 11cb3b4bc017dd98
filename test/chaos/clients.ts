// The load of a run: clients that send through all proxies and note what they sent, when, and what came back.
import { appendFileSync } from "node:fs";
import { eventually, send } from "../lab/cluster.js";
import type { Exchange } from "./history.js";
import { seeded } from "./random.js";

export interface ClientsOptions {
  readonly seed: number;
  readonly count: number;
  /** Requests of one client that may be under way at once. */
  readonly width: number;
  readonly containers: readonly string[];
  readonly proxies: readonly { readonly address: string; readonly port: number }[];
  /** Longest and shortest pause of a client between two requests. */
  readonly pauseMs: readonly [number, number];
  /** Some requests take up to two seconds by themselves. Default true. */
  readonly slow?: boolean;
  /** A client gives up then; longer than the proxies' own limit, so that their breach of it is seen. */
  readonly giveUpMs: number;
  /** Lines of JSON, one for each exchange. */
  readonly journal: string;
}

export class Clients {
  readonly exchanges: Exchange[] = [];
  /** Requests that have not come back. */
  underWay = 0;
  readonly #options: ClientsOptions;
  readonly #loops: Promise<void>[];
  #stopped = false;

  /** Begins at once. */
  constructor(options: ClientsOptions) {
    this.#options = options;
    this.#loops = Array.from({ length: options.count }, (_, index) => this.#run(index));
  }

  /** Resolves when `count` more requests have come back. @throws after `giveUpMs` */
  async more(count: number): Promise<void> {
    const wanted = this.exchanges.length + count;
    const what = `${count} more requests have come back`;
    await eventually(what, () => this.exchanges.length >= wanted, this.#options.giveUpMs);
  }

  /** Sends no more and waits for what is under way. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#loops);
  }

  async #run(client: number): Promise<void> {
    const { seed, width, containers, proxies, pauseMs, slow = true } = this.#options;
    const random = seeded(seed + 7919 * (client + 1));
    const open = new Set<Promise<void>>();
    for (let count = 1; !this.#stopped; count++) {
      if (open.size >= width) await Promise.race(open);
      const roll = random.next();
      const ms = !slow || roll < 0.8 ? 0 : roll < 0.95 ? random.whole(50, 400) : random.whole(1000, 2000);
      const proxy = random.whole(0, proxies.length - 1);
      const method = random.next() < 0.7 ? ("GET" as const) : ("POST" as const);
      const what = { client, proxy, container: random.pick(containers), method, id: `c${client}-${count}`, ms };
      const exchange = this.exchange(what).finally(() => open.delete(exchange));
      open.add(exchange);
      await new Promise((resolve) => setTimeout(resolve, random.whole(...pauseMs)));
    }
    await Promise.all(open);
  }

  async exchange(
    what: Pick<Exchange, "client" | "proxy" | "container" | "method" | "id"> & { ms: number },
  ): Promise<void> {
    const { ms, ...rest } = what;
    const { proxies, giveUpMs, journal } = this.#options;
    const proxy = proxies[what.proxy] as { readonly address: string; readonly port: number };
    const sentMs = Date.now();
    this.underWay++;
    const reply = await send(proxy, `${what.container}.localhost`, {
      method: what.method,
      path: ms === 0 ? "/" : `/?ms=${ms}`,
      id: what.id,
      timeoutMs: giveUpMs,
      ...(what.method === "POST" ? { body: "x".repeat(1000) } : {}),
    });
    this.underWay--;
    const answer =
      reply.status === 200 ? (JSON.parse(reply.text) as { epoch: number; host: string; id: string }) : undefined;
    const exchange: Exchange = {
      ...rest,
      sentMs,
      doneMs: Date.now(),
      status: reply.status,
      ...(answer === undefined
        ? { text: reply.text }
        : { epoch: answer.epoch, host: answer.host, answeredId: answer.id }),
    };
    this.exchanges.push(exchange);
    appendFileSync(journal, `${JSON.stringify(exchange)}\n`);
  }
}
