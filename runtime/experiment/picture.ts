// What the experiment shows: response time over the run with the relocation marked, and the table beside it.
import asciichart from "asciichart";
import Table from "cli-table3";
import type { MoveReport } from "../../actors/move-report.js";
import { failed, median, type Sample } from "./load.js";

export interface Run {
  readonly title: string;
  readonly hostname: string;
  readonly samples: readonly Sample[];
  /** Index of the last request that had been answered when the host was cut off. */
  readonly cutAfter: number;
  readonly move: MoveReport | undefined;
  /** First request to a container that never ran: cold start, checkpoint, answer. */
  readonly firstMs: number;
}

const columns = 72;
const rows = 9;

/** Index of the request that found its host dead: the slowest after the cut. */
export function slowest(run: Run): number {
  let index = run.cutAfter;
  for (let i = run.cutAfter; i < run.samples.length; i++)
    if ((run.samples[i] as Sample).ms > (run.samples[index] as Sample).ms) index = i;
  return index;
}

/** Slowest response of each stretch of the run, so that a single slow request stays visible. */
export function chart(run: Run): string {
  const { samples } = run;
  const width = Math.min(columns, samples.length);
  const perColumn = samples.length / width;
  const series = Array.from({ length: width }, (_, column) => {
    const stretch = samples.slice(Math.floor(column * perColumn), Math.floor((column + 1) * perColumn));
    return Math.max(...stretch.map((sample) => sample.ms));
  });
  const plot = asciichart.plot(series, { height: rows, min: 0, format: (ms: number) => ms.toFixed(0).padStart(7) });
  const at = slowest(run);
  const column = Math.min(width - 1, Math.floor(at / perColumn));
  const slow = (samples[at] as Sample).ms.toFixed(0);
  const mark = run.move === undefined ? "" : `▲ request ${at + 1}: ${run.move.from} → ${run.move.to}, ${slow} ms`;
  const left = 9 + column;
  const pad = left + mark.length > columns + 12 ? Math.max(0, left + 1 - mark.length) : left;
  const turned = pad === left ? mark : `${mark.slice(2)} ▲`;
  return [`  ms   ${run.title}`, plot, " ".repeat(pad) + turned].join("\n");
}

export interface Summary {
  readonly title: string;
  readonly requests: number;
  readonly failed: number;
  readonly firstMs: number;
  readonly steadyMs: number;
  readonly slowMs: number;
  readonly how: string;
  readonly noticeMs: number;
  readonly claimMs: number;
  readonly activateMs: number;
  readonly responseMs: number;
  readonly phases: Readonly<Record<string, number>>;
}

export function summarise(run: Run): Summary {
  const at = slowest(run);
  const slow = run.samples[at] as Sample;
  const steady = run.samples.filter((_, index) => index !== at).map((sample) => sample.ms);
  const { move } = run;
  const claimMs = move?.claimMs ?? Number.NaN;
  const activateMs = move?.activateMs ?? Number.NaN;
  const responseMs = move?.firstResponseMs ?? Number.NaN;
  return {
    title: run.title,
    requests: run.samples.length,
    failed: run.samples.filter(failed).length,
    firstMs: run.firstMs,
    steadyMs: median(steady),
    slowMs: slow.ms,
    how: move?.how ?? "not moved",
    // The probe's time-out, and what passed from sending the request to the probe.
    noticeMs: slow.ms - claimMs - activateMs - responseMs,
    claimMs,
    activateMs,
    responseMs,
    phases: move?.phases ?? {},
  };
}

export function table(runs: readonly Summary[]): string {
  const ms = (value: number): string => (Number.isNaN(value) ? "-" : value.toFixed(value < 10 ? 1 : 0));
  const out = new Table({
    head: ["", ...runs.map((run) => run.title)],
    colAligns: ["left", ...runs.map(() => "right" as const)],
    style: { head: [], border: [] },
  });
  const row = (name: string, value: (run: Summary) => string): void => {
    out.push([name, ...runs.map(value)]);
  };
  row("requests", (run) => String(run.requests));
  row("failed", (run) => String(run.failed));
  row("very first request (cold start, checkpoint)  ms", (run) => ms(run.firstMs));
  row("steady median  ms", (run) => ms(run.steadyMs));
  row("the one slow request  ms", (run) => ms(run.slowMs));
  row("  noticed: probe time-out  ms", (run) => ms(run.noticeMs));
  row("  claim  ms", (run) => ms(run.claimMs));
  row("  brought up  ms", (run) => `${run.how} ${ms(run.activateMs)}`);
  row("  first response  ms", (run) => ms(run.responseMs));
  return out.toString();
}
