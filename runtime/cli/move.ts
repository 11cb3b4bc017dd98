// The commands that move containers on purpose: relocate, drain, undrain.
import type { Command } from "commander";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { HostRecord, Placement } from "../../actors/ports/placement-store.js";
import type { HostStatus } from "../dispatcher/control.js";
import { path } from "../dispatcher/protocol.js";
import type { EtcdPlacementStore } from "../placement/etcd.js";
import { systemClock } from "../system-clock.js";
import { call, hostOf } from "./host-call.js";
import { tellMove, untilDrained } from "./move-progress.js";
import { progress } from "./output.js";
import { type Given, withEtcd } from "./settings.js";
import { read, withStore } from "./store.js";

const moveLimitMs = 90_000;
const askLimitMs = 5000;

export function moveCommands(program: Command): void {
  withEtcd(program.command("relocate").description("move a container to another host; no request fails"))
    .argument("<name>")
    .option("--to <host>", "which host; default: the best other one")
    .action(async (name: string, flags: Given) => {
      console.log(await withStore(flags, (store) => relocate(store, name, flags.to)));
    });

  withEtcd(program.command("drain").description("move every container of a host away, and give it no new ones"))
    .argument("<host>")
    .action(async (id: string, flags: Given) => {
      const view = await withStore(flags, read);
      const host = hostOf(view.host(id), id);
      const line = progress();
      const all = (await call<HostStatus>(host, "GET", path.host, askLimitMs)).containers.length;
      const begun = await call<HostStatus>(host, "POST", path.drain, askLimitMs);
      const ask = () => call<HostStatus>(host, "GET", path.host, askLimitMs);
      const deps = { clock: systemClock, ask, say: (text: string) => line.say(text), standstillMs: moveLimitMs };
      const stay = await untilDrained(deps, all, begun).finally(() => line.done());
      if (stay.length > 0)
        throw new HakobuError(
          "UNAVAILABLE",
          `nobody took ${stay.join(", ")} from ${id}: see its log, then drain again`,
        );
      console.log(`${id} is empty and takes no containers. To take it back: hakobu undrain ${id}`);
    });

  withEtcd(program.command("undrain").description("let a drained host take containers again"))
    .argument("<host>")
    .action(async (id: string, flags: Given) => {
      const view = await withStore(flags, read);
      await call(hostOf(view.host(id), id), "POST", path.undrain, askLimitMs);
      console.log(`${id} takes containers again`);
    });
}

/** @returns what came of it, for people */
async function relocate(store: EtcdPlacementStore, name: string, to: string | undefined): Promise<string> {
  const view = await read(store);
  const from = view.placement(name);
  if (from === undefined) throw new HakobuError("CONFIG_INVALID", `${name} is on no host; see: hakobu get`);
  const host = hostOf(view.host(from.host), from.host);
  const ask = (whom: HostRecord) => call<HostStatus>(whom, "GET", path.host, askLimitMs);
  const line = progress();
  const step = (text: string, detail: string): void => line.step(`${name}: ${text}`, detail);
  step(`${from.host} asks ${to ?? "the best other host"}`, "");
  const over = new AbortController();
  const told = tellMove({ store, view, clock: systemClock, ask, step }, from, over.signal);
  try {
    const begunMs = performance.now();
    const body = { container: name, ...(to === undefined ? {} : { to }) };
    const moved = await call<Placement>(host, "POST", path.relocate, moveLimitMs, body);
    const ms = Math.round(performance.now() - begunMs);
    const how = await howItRuns(view.host(moved.host), moved, ask);
    return `${name} moved from ${from.host} to ${moved.host} in ${ms} ms (epoch ${moved.epoch}${how})`;
  } finally {
    over.abort();
    await told;
    line.done();
  }
}

/** As the new owner says: from its image or cold. For people; empty where it does not say. */
async function howItRuns(
  host: HostRecord | undefined,
  { container, epoch }: Placement,
  ask: (host: HostRecord) => Promise<HostStatus>,
): Promise<string> {
  const status = host && (await ask(host).catch(() => undefined));
  const live = status?.containers.find((each) => each.name === container && each.epoch === epoch);
  if (live?.how === undefined) return "";
  return live.how === "cold" ? `, started cold${live.reason === undefined ? "" : `: ${live.reason}`}` : `, ${live.how}`;
}
