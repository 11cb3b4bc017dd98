// The paper's experiment on this machine: one application, two hosts, a steady run of requests, and half-way the owner cut off
// the network. Once with the checkpoint image and once with a cold start, in the same cluster.
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { LocalCluster } from "../local/cluster.js";
import { failed, get, load } from "./load.js";
import type { Run } from "./picture.js";

export interface ExperimentOptions {
  readonly cluster: LocalCluster;
  readonly title: string;
  readonly record: SpecRecord;
  readonly path: string;
  readonly requests: number;
  readonly onProgress: (text: string) => void;
}

/** A cold start and the checkpoint after it. */
const firstLimitMs = 120_000;
const requestLimitMs = 60_000;

/** @throws HakobuError START_FAILED when the application does not answer at all */
export async function experiment(options: ExperimentOptions): Promise<Run> {
  const { cluster, title, record, path, requests, onProgress } = options;
  const { name, hostnames } = record.spec;
  const target = { ...cluster.proxy, hostname: hostnames[0] as string, path };
  onProgress(`${title}: first request (cold start${record.spec.checkpoint.onReady ? ", checkpoint" : ""})`);
  await cluster.apply([record]);
  const first = await get({ ...target, timeoutMs: firstLimitMs });
  if (failed(first))
    throw new HakobuError("START_FAILED", `${name} did not answer: ${first.error ?? `status ${first.status}`}`);
  const before = (await cluster.moves()).length;
  const cutAfter = Math.floor(requests / 2);
  let cut: string | undefined;
  let errors = 0;
  const samples = await load({
    ...target,
    requests,
    timeoutMs: requestLimitMs,
    onSample: async (sample, index) => {
      if (failed(sample)) errors++;
      const ms = sample.ms.toFixed(0).padStart(4);
      const state = cut === undefined ? "" : `   host ${cut} cut off`;
      onProgress(`${title}: ${bar(index + 1, requests)} ${index + 1}/${requests} ${ms} ms   failed ${errors}${state}`);
      if (index + 1 !== cutAfter) return;
      cut = await cluster.owner(name);
      if (cut === undefined) throw new HakobuError("UNAVAILABLE", `${name} has no host in the middle of the run`);
      await cluster.cut(cut);
    },
  });
  const moves = (await cluster.moves()).slice(before);
  const move = moves.find((each) => each.container === name && each.from !== undefined);
  if (cut !== undefined) {
    onProgress(`${title}: bringing host ${cut} back`);
    await cluster.heal(cut);
  }
  return { title, hostname: target.hostname, samples, cutAfter, move, firstMs: first.ms };
}

function bar(done: number, of: number): string {
  const width = 24;
  const full = Math.round((done / of) * width);
  return `${"█".repeat(full)}${"░".repeat(width - full)}`;
}
