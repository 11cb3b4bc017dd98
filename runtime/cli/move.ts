// The commands that move containers on purpose: relocate, drain, undrain.
import type { Command } from "commander";
import { request } from "undici";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { HostRecord, Placement } from "../../actors/ports/placement-store.js";
import type { HostStatus } from "../dispatcher/control.js";
import { path } from "../dispatcher/protocol.js";
import { progress } from "./output.js";
import { type Given, withEtcd } from "./settings.js";
import { read, withStore } from "./store.js";

const moveLimitMs = 90_000;
const askLimitMs = 5000;
const askEveryMs = 200;

export function moveCommands(program: Command): void {
  withEtcd(program.command("relocate").description("move a container to another host; no request fails"))
    .argument("<name>")
    .option("--to <host>", "which host; default: the best other one")
    .action(async (name: string, flags: Given) => {
      const view = await withStore(flags, read);
      const placement = view.placement(name);
      if (placement === undefined) throw new HakobuError("CONFIG_INVALID", `${name} is on no host; see: hakobu get`);
      const host = hostOf(view.host(placement.host), placement.host);
      const line = progress();
      line.say(`${name}: ${placement.host} → ${flags.to ?? "the best other host"}`);
      const begunMs = performance.now();
      const to = flags.to === undefined ? {} : { to: flags.to };
      const moved = await call<Placement>(host, "POST", path.relocate, moveLimitMs, { container: name, ...to });
      line.done();
      const ms = Math.round(performance.now() - begunMs);
      console.log(`${name} moved from ${placement.host} to ${moved.host} in ${ms} ms (epoch ${moved.epoch})`);
    });

  withEtcd(program.command("drain").description("move every container of a host away, and give it no new ones"))
    .argument("<host>")
    .action(async (id: string, flags: Given) => {
      const view = await withStore(flags, read);
      const host = hostOf(view.host(id), id);
      const line = progress();
      const all = (await call<HostStatus>(host, "GET", path.host, askLimitMs)).containers.length;
      let status = await call<HostStatus>(host, "POST", path.drain, askLimitMs);
      const end = performance.now() + moveLimitMs;
      while (status.moving && performance.now() < end) {
        const left = status.containers.length;
        line.say(`${id}: ${all - left} of ${all} moved`);
        await new Promise((resolve) => setTimeout(resolve, askEveryMs));
        status = await call<HostStatus>(host, "GET", path.host, askLimitMs);
      }
      line.done();
      const stay = status.containers.map(({ name }) => name);
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

export function hostOf(host: HostRecord | undefined, id: string): HostRecord {
  if (host === undefined) throw new HakobuError("CONFIG_INVALID", `no host ${id} has joined; see: hakobu get hosts`);
  return host;
}

/** A call to a host's control API. @throws HakobuError UNAVAILABLE with what it said */
export async function call<T>(
  host: HostRecord,
  method: "GET" | "POST",
  to: string,
  limitMs: number,
  body?: object,
): Promise<T> {
  const { statusCode, body: answer } = await request(`http://${host.address}:${host.port}${to}`, {
    method,
    signal: AbortSignal.timeout(limitMs),
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await answer.text();
  const value = JSON.parse(text) as T & { error?: string };
  if (statusCode >= 300) throw new HakobuError("UNAVAILABLE", `host ${host.id}: ${value.error ?? text}`);
  return value;
}
