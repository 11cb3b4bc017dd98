// What the benchmark says: medians, the file of results, the table beside the paper's, and the plots.
import Table from "cli-table3";
import { median } from "../../runtime/experiment/load.js";
import { type Way, ways } from "./applications.js";
import type { Measured, Relocation } from "./experiment.js";
import { type Curve, plot } from "./plot.js";

export interface Results {
  readonly machine: string;
  /** ISO 8601. */
  readonly date: string;
  readonly applications: readonly ApplicationResult[];
}

/** Medians in milliseconds. `golden`: image taken when the port listened; `warmed`: after one answered request. */
export interface ApplicationResult {
  readonly name: string;
  readonly failed: number;
  readonly requests: number;
  readonly relocation: {
    readonly coldMs: number;
    readonly goldenMs: number;
    readonly warmedMs: number;
    readonly floorMs: number;
    /** Of the warmed way. `noticed`: from sending to the proof that the host is dead; `brought up` holds what follows it. */
    readonly parts: Readonly<Record<string, number>>;
  };
  readonly wake: { readonly coldMs: number; readonly goldenMs: number; readonly warmedMs: number };
}

/** Request during relocation, from the paper's section on its experiment. */
const paper: Readonly<Record<string, { readonly coldMs: number; readonly imageMs: number }>> = {
  WordPress: { coldMs: 3037, imageMs: 2163 },
  Rails: { coldMs: 8575, imageMs: 1544 },
  Django: { coldMs: 6030, imageMs: 2249 },
};

const probeMs = 100;
const overFloor = 1.3;
const colors: Readonly<Record<Way, string>> = { cold: "#c0392b", golden: "#e08e0b", warmed: "#1f6fb2" };
const titles: Readonly<Record<Way, string>> = {
  cold: "cold start",
  golden: "image at listen",
  warmed: "image after warm-up",
};

export function resultOf(measured: Measured): ApplicationResult {
  const { name, failed, requests, relocations, wakes, floors } = measured;
  const slow = (way: Way): number => middle(relocations[way].map((each) => each.ms));
  return {
    name,
    failed,
    requests,
    relocation: {
      coldMs: slow("cold"),
      goldenMs: slow("golden"),
      warmedMs: slow("warmed"),
      floorMs: middle(floors),
      parts: partsOf(relocations.warmed),
    },
    wake: { coldMs: middle(wakes.cold), goldenMs: middle(wakes.golden), warmedMs: middle(wakes.warmed) },
  };
}

function partsOf(relocations: readonly Relocation[]): Record<string, number> {
  const all = relocations.map(({ ms: slowMs, move }): Record<string, number> => {
    const responseMs = move.firstResponseMs ?? Number.NaN;
    return {
      noticed: slowMs - move.claimMs - move.activateMs - responseMs,
      claim: move.claimMs,
      "brought up": move.activateMs,
      ...move.phases,
      "first response": responseMs,
    };
  });
  const names = [...new Set(all.flatMap((parts) => Object.keys(parts)))];
  const last = "first response";
  const ordered = [...names.filter((part) => part !== last), ...names.filter((part) => part === last)];
  return Object.fromEntries(ordered.map((part) => [part, middle(all.map((parts) => parts[part] ?? Number.NaN))]));
}

/** What a relocation may take: one probe that is not answered, and the restore. */
export function targetOf({ relocation }: ApplicationResult): number {
  return probeMs + overFloor * relocation.floorMs;
}

export function table({ applications }: Results): string {
  const out = new Table({
    head: ["ms, medians", ...applications.map(({ name }) => name)],
    colAligns: ["left", ...applications.map(() => "right" as const)],
    style: { head: [], border: [] },
  });
  const row = (title: string, value: (result: ApplicationResult) => number | string | undefined): void => {
    const shown = applications.map((each) => {
      const found = value(each);
      return typeof found === "number" ? ms(found) : (found ?? "-");
    });
    out.push([title, ...shown]);
  };
  row("relocation, the slow request: cold start", ({ relocation }) => relocation.coldMs);
  row("  the paper's", ({ name }) => paper[name]?.coldMs);
  row("relocation: image at listen", ({ relocation }) => relocation.goldenMs);
  row("  the paper's", ({ name }) => paper[name]?.imageMs);
  row("relocation: image after warm-up", ({ relocation }) => relocation.warmedMs);
  for (const part of new Set(applications.flatMap(({ relocation }) => Object.keys(relocation.parts))))
    row(`  ${part}`, ({ relocation }) => relocation.parts[part]);
  row("bare restore by hand (the floor)", ({ relocation }) => relocation.floorMs);
  row(`target: ${probeMs} + ${overFloor} x floor`, (each) => {
    const over = each.relocation.warmedMs - targetOf(each);
    return `${ms(targetOf(each))} ${over <= 0 ? "met" : `missed by ${ms(over)}`}`;
  });
  row("wake from stopped: cold start", ({ wake }) => wake.coldMs);
  row("wake: image at listen", ({ wake }) => wake.goldenMs);
  row("wake: image after warm-up", ({ wake }) => wake.warmedMs);
  row("requests / failed", ({ requests, failed }) => `${requests} / ${failed}`);
  return out.toString();
}

export function picture({ name, runs }: Measured): string {
  const curves: Curve[] = ways.map((way) => {
    const { samples, cutAtMs, slow } = runs[way];
    const points = samples.map(({ atMs, ms: took }) => ({ seconds: (atMs - cutAtMs) / 1000, ms: took }));
    return { label: titles[way], color: colors[way], points, slow };
  });
  return plot(`${name}: response time of ${runs.cold.samples.length} requests, and the one during relocation`, curves);
}

function middle(values: readonly number[]): number {
  return Math.round(median(values.filter((value) => !Number.isNaN(value))) * 10) / 10;
}

function ms(value: number): string {
  return value.toFixed(value < 10 ? 1 : 0);
}
