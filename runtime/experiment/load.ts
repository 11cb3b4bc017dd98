// A steady client: one request after the other, each on a connection of its own, as `ab -c 1` does in the paper.
import { request } from "node:http";

export interface Sample {
  /** Milliseconds since the run began, at which the request was sent. */
  readonly atMs: number;
  /** Until the last byte of the response. */
  readonly ms: number;
  /** 0: no response. */
  readonly status: number;
  readonly error: string | undefined;
}

export interface LoadOptions {
  readonly address: string;
  readonly port: number;
  readonly hostname: string;
  readonly path: string;
  readonly requests: number;
  /** For one request. */
  readonly timeoutMs: number;
  /** Called after each; awaited. */
  readonly onSample: (sample: Sample, index: number) => void | Promise<void>;
}

/** Sends one GET. Never rejects. */
export function get(options: Omit<LoadOptions, "requests" | "onSample">, begunMs = performance.now()): Promise<Sample> {
  const sentMs = performance.now();
  return new Promise((resolve) => {
    const end = (status: number, error?: string): void =>
      resolve({ atMs: sentMs - begunMs, ms: performance.now() - sentMs, status, error });
    const call = request(
      {
        host: options.address,
        port: options.port,
        path: options.path,
        headers: { host: options.hostname, connection: "close" },
        agent: false,
        signal: AbortSignal.timeout(options.timeoutMs),
      },
      (response) => {
        response.resume();
        response.on("end", () => end(response.statusCode ?? 0));
        response.on("error", (error) => end(0, error.message));
      },
    );
    call.on("error", (error) => end(0, error.message));
    call.end();
  });
}

export async function load(options: LoadOptions): Promise<Sample[]> {
  const begunMs = performance.now();
  const samples: Sample[] = [];
  for (let index = 0; index < options.requests; index++) {
    const sample = await get(options, begunMs);
    samples.push(sample);
    await options.onSample(sample, index);
  }
  return samples;
}

export function failed(sample: Sample): boolean {
  return sample.status < 200 || sample.status >= 400;
}

/** The median of the numbers; NaN of none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  if (sorted.length === 0) return Number.NaN;
  const upper = sorted[Math.floor(middle)] as number;
  return Number.isInteger(middle) ? ((sorted[middle - 1] as number) + upper) / 2 : upper;
}
