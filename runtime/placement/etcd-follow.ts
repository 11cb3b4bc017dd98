// List-and-watch of one key prefix, on etcd's raw watch stream. etcd3's own watcher moves its position when the server
// acknowledges the watch, before the backlog has come, and loses that backlog if the connection is cut there.
//
//   F1  The position moves only past what was delivered, and never into the middle of a revision: what a cut interrupted is
//       delivered again. A batch of a backlog carries the store's revision in its header, not its own, so the
//       position comes from the events themselves.
//   F2  Where the position is lost (compacted, or a store whose history is shorter than what was seen), everything is
//       listed again and delivered as a `reset`.
//   F3  A stream that is silent for long is asked for a sign of life, and dropped without one.
//   F4  Memory is bounded: the stream is read as fast as its consumer takes, etcd keeps the rest; listings are paged.
import { GRPCResourceExhastedError, type Etcd3, type IWatchRequest, type IWatchResponse } from "etcd3";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import { type Clock, delay } from "../../actors/ports/clock.js";
import type { EtcdConnection } from "./etcd-client.js";
import type { KeyValue } from "./etcd-records.js";

export type KeyChange =
  | { readonly kind: "reset"; readonly entries: readonly KeyValue[] }
  | { readonly kind: "put"; readonly entry: KeyValue }
  | { readonly kind: "delete"; readonly key: Buffer }
  | { readonly kind: "connected" }
  | { readonly kind: "disconnected"; readonly reason: string };

export interface FollowOptions {
  readonly connection: EtcdConnection;
  readonly clock: Clock;
  /** Every key that starts with it. */
  readonly prefix: Buffer;
  /** A stream that says nothing for this long, and then not when asked, is dropped. */
  readonly idleMs: number;
  /** Keys in one page of a listing. */
  readonly pageSize?: number;
}

const backoff = { firstMs: 50, lastMs: 2000 };

/**
 * Everything there is, then every change. Ends when the signal aborts, at the latest after the deadline of one call. Never throws;
 * outages are delivered, once each, and once more where etcd refuses instead of not answering, or no longer does.
 */
export async function* followKeys(options: FollowOptions, signal: AbortSignal): AsyncGenerator<KeyChange, void, void> {
  const { connection, clock } = options;
  /** The first revision that was not delivered whole (F1); undefined: everything has to be listed. */
  let position: number | undefined;
  let outage: "unavailable" | "refused" | undefined;
  let backoffMs = backoff.firstMs;
  while (!signal.aborted) {
    let client: Etcd3 | undefined;
    try {
      if (position !== undefined && (await newestRevision(options)) < position - 1) position = undefined; // F2
      if (position === undefined) {
        const { entries, revision } = await list(options, signal);
        yield { kind: "reset", entries };
        position = revision + 1;
      }
      client = connection.client;
      for await (const response of watch(client, options, position, signal)) {
        if (response.canceled) {
          if (Number(response.compact_revision) > 0) position = undefined; // F2
          throw new Error(`etcd cancelled the watch: ${response.cancel_reason || "compacted"}`);
        }
        if (response.created) {
          outage = undefined;
          backoffMs = backoff.firstMs;
          yield { kind: "connected" };
        } else if (response.watch_id !== "-1") {
          // -1: an answer to F3's question. It may overtake events (etcd issue 15220) and moves nothing.
          for (const { type, kv } of response.events)
            yield type === "Delete" ? { kind: "delete", key: kv.key } : { kind: "put", entry: kv };
          position = following(response);
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (client) connection.failed(client);
      const kind = error instanceof HakobuError && error.code === "STORE_REFUSED" ? "refused" : "unavailable";
      if (kind !== outage) yield { kind: "disconnected", reason: reasonOf(error) };
      outage = kind;
    }
    await delay(clock, backoffMs * (0.5 + Math.random() / 2), signal).catch(() => undefined);
    backoffMs = Math.min(backoffMs * 2, backoff.lastMs);
  }
}

/** F1: the position after a response. Of a revision in fragments, all but the last leave it standing. */
function following({ events, fragment, header }: IWatchResponse): number {
  const last = events.at(-1);
  if (last === undefined) return Number(header.revision) + 1;
  return Number(last.kv.mod_revision) + (fragment ? 0 : 1);
}

type WatchStream = Awaited<ReturnType<Etcd3["watchClient"]["watch"]>> & AsyncIterable<IWatchResponse>;

async function* watch(
  client: Etcd3,
  { prefix, clock, idleMs }: FollowOptions,
  position: number,
  signal: AbortSignal,
): AsyncGenerator<IWatchResponse, void, void> {
  // In truth a Duplex, whose iterator pauses the stream while the consumer is busy (F4).
  const stream = (await client.watchClient.watch()) as WatchStream;
  stream.on("error", () => undefined); // also the ones that come when nobody reads any more
  let silent: Error | undefined;
  let busy = false;
  let quietChecks = 0;
  let timer: unknown;
  const check = (): void => {
    quietChecks = busy ? 0 : quietChecks + 1;
    if (quietChecks === 2) stream.write({ progress_request: {} });
    if (quietChecks === 4) {
      silent = new Error(`the watch stream was silent for ${2 * idleMs} ms`);
      // Not ended first: etcd3 then opens a new connection instead of staying on this one, which may be dead.
      stream.cancel();
    } else timer = clock.setTimeout(check, idleMs / 2);
  };
  const abort = (): void => {
    stream.end();
    stream.cancel();
  };
  try {
    if (signal.aborted) return;
    signal.addEventListener("abort", abort, { once: true });
    timer = clock.setTimeout(check, idleMs / 2);
    const request: IWatchRequest["create_request"] = {
      key: prefix,
      range_end: endOf(prefix),
      start_revision: String(position),
      progress_notify: true,
      fragment: true,
    };
    stream.write({ create_request: request });
    for await (const response of stream) {
      quietChecks = 0;
      busy = true;
      yield response;
      busy = false;
    }
    throw new Error("etcd ended the watch stream");
  } catch (error) {
    throw silent ?? error;
  } finally {
    clock.clearTimeout(timer);
    signal.removeEventListener("abort", abort);
    stream.cancel();
  }
}

/** A linearizable read. It also renews an expired password token, which a stream never does. */
async function newestRevision({ connection, prefix }: FollowOptions): Promise<number> {
  const answer = await connection.call("the newest revision", ({ kv }) => kv.range({ key: prefix, count_only: true }));
  return Number(answer.header.revision);
}

/** All keys of one revision, page by page. @throws HakobuError STORE_UNAVAILABLE, STORE_REFUSED */
async function list(
  { connection, prefix, pageSize = 2000 }: FollowOptions,
  signal: AbortSignal,
): Promise<{ entries: KeyValue[]; revision: number }> {
  const entries: KeyValue[] = [];
  let revision: string | undefined;
  let key = prefix;
  let limit = pageSize;
  for (;;) {
    signal.throwIfAborted();
    const request = { key, range_end: endOf(prefix), limit, ...(revision ? { revision } : {}) };
    try {
      const page = await connection.call("a listing", ({ kv }) => kv.range(request));
      revision ??= page.header.revision;
      entries.push(...page.kvs);
      const last = page.kvs.at(-1);
      if (!page.more || last === undefined) return { entries, revision: Number(revision) };
      key = Buffer.concat([last.key, Buffer.from([0])]);
    } catch (error) {
      const tooLarge = error instanceof HakobuError && error.cause instanceof GRPCResourceExhastedError;
      if (!tooLarge || limit === 1) throw error;
      limit = Math.ceil(limit / 4);
    }
  }
}

/** First key after all that start with the prefix. Prefixes end in a slash, so that the last byte has a successor. */
function endOf(prefix: Buffer): Buffer {
  const end = Buffer.from(prefix);
  end[end.length - 1] = (end[end.length - 1] as number) + 1;
  return end;
}
