// A request body that can be sent more than once, as long as it is small.
//
//   R1  What has been read is kept until the whole exceeds `limitBytes`; from then on, what a reader has taken is dropped.
//   R2  `replayable` is true exactly while every byte that came in is still here. `open` gives all of it, or throws.
//   R3  At most `limitBytes` + 64 KiB + one chunk are held: the client is read no further ahead of the reader than that.
//   R4  One reader at a time: a new one ends the one before.
import type { IncomingMessage } from "node:http";
import { Readable } from "node:stream";
import { HakobuError } from "../../actors/hakobu-error.js";

export const DEFAULT_REPLAY_LIMIT_BYTES = 256 * 1024;
const AHEAD_BYTES = 64 * 1024;

export class ReplayBody {
  readonly #source: IncomingMessage;
  readonly #limitBytes: number;
  #chunks: Buffer[] = [];
  /** How many chunks were dropped from the front of `#chunks`; R2. */
  #dropped = 0;
  #received = 0;
  /** Received and not yet taken by the reader. */
  #aheadBytes = 0;
  #ended = false;
  #failure: Error | undefined;
  #reader: Reader | undefined;

  /** Reads nothing before `open`. */
  constructor(source: IncomingMessage, limitBytes = DEFAULT_REPLAY_LIMIT_BYTES) {
    this.#source = source;
    this.#limitBytes = limitBytes;
    source.on("data", this.#onData);
    source.on("end", this.#onEnd);
    source.on("error", this.#onFailure);
    source.on("close", this.#onClose);
    source.pause();
  }

  get replayable(): boolean {
    return this.#dropped === 0 && this.#failure === undefined;
  }

  /** The client broke its upload off. */
  get failed(): boolean {
    return this.#failure !== undefined;
  }

  /** A reader is hungry and the client has not sent more: whoever is slow, it is not the next hop. */
  get awaitsClient(): boolean {
    return !this.#ended && this.#reader !== undefined && this.#reader.hungry;
  }

  /**
   * The body from its first byte. The reader before, if any, is destroyed.
   * @throws HakobuError ABORTED when it is no longer `replayable`
   */
  open(): Readable {
    if (!this.replayable)
      throw new HakobuError("ABORTED", "The request body is gone: raise replayLimit to have larger ones sent again", {
        cause: this.#failure,
      });
    const before = this.#reader;
    this.#aheadBytes = this.#received;
    this.#reader = new Reader(
      (reader) => this.#pump(reader),
      (reader) => {
        if (this.#reader === reader) this.#reader = undefined;
      },
    );
    before?.destroy();
    return this.#reader;
  }

  /** Forgets the body and lets the rest of the upload run into nothing, so that the connection can be used again. */
  discard(): void {
    this.#dropped += this.#chunks.length + 1;
    this.#chunks = [];
    this.#source.off("data", this.#onData);
    const reader = this.#reader;
    this.#reader = undefined;
    reader?.destroy();
    this.#source.resume();
  }

  readonly #onData = (chunk: Buffer): void => {
    this.#chunks.push(chunk);
    this.#received += chunk.length;
    this.#aheadBytes += chunk.length;
    if (this.#reader !== undefined) this.#pump(this.#reader);
    if (this.#aheadBytes >= AHEAD_BYTES) this.#source.pause();
  };

  readonly #onEnd = (): void => {
    this.#ended = true;
    if (this.#reader !== undefined) this.#pump(this.#reader);
  };

  readonly #onClose = (): void => {
    if (!this.#ended) this.#onFailure(new HakobuError("ABORTED", "The client closed its connection during the upload"));
  };

  readonly #onFailure = (error: Error): void => {
    if (this.#ended || this.#failure !== undefined) return;
    this.#failure = error;
    this.#chunks = [];
    const reader = this.#reader;
    this.#reader = undefined;
    reader?.destroy(error);
  };

  #pump(reader: Reader): void {
    if (this.#reader !== reader) return;
    while (reader.hungry && reader.next < this.#dropped + this.#chunks.length) {
      const chunk = this.#chunks[reader.next - this.#dropped] as Buffer;
      reader.next += 1;
      this.#aheadBytes -= chunk.length;
      if (this.#received > this.#limitBytes) {
        this.#chunks.splice(0, reader.next - this.#dropped);
        this.#dropped = reader.next;
      }
      reader.hungry = reader.push(chunk);
    }
    if (this.#ended) {
      if (reader.next === this.#dropped + this.#chunks.length) reader.finish();
    } else if (this.#aheadBytes < AHEAD_BYTES) this.#source.resume();
  }
}

class Reader extends Readable {
  /** Index, counted from the first chunk of the body, of the chunk to be taken next. */
  next = 0;
  hungry = false;
  #finished = false;
  readonly #want: (reader: Reader) => void;
  readonly #left: (reader: Reader) => void;

  constructor(want: (reader: Reader) => void, left: (reader: Reader) => void) {
    super({ highWaterMark: AHEAD_BYTES });
    this.#want = want;
    this.#left = left;
  }

  finish(): void {
    if (this.#finished) return;
    this.#finished = true;
    this.push(null);
  }

  override _read(): void {
    this.hungry = true;
    this.#want(this);
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#left(this);
    done(error);
  }
}
