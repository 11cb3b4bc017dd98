// The command that changes the limits of a container: scale.
import type { Command } from "commander";
import type { z } from "zod";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { limit } from "../config/spec.js";
import { path } from "../dispatcher/protocol.js";
import { call, hostOf } from "./host-call.js";
import { type Given, withEtcd } from "./settings.js";
import { read, withStore } from "./store.js";

const scaleLimitMs = 15_000;
const MiB = 2 ** 20;

type Limits = ContainerSpec["limits"];

export function scaleCommand(program: Command): void {
  withEtcd(program.command("scale").description("change the limits of a container at once, without a restart"))
    .argument("<name>")
    .option("--cpu <number>", "CPUs, such as 0.5 or 2")
    .option("--memory <size>", "such as 512MiB")
    .action(async (name: string, { cpu, memory, ...flags }: Given) => {
      const change = changeOf(cpu, memory);
      const limits = await withStore(flags, async (store): Promise<Limits> => {
        const view = await read(store);
        const placement = view.placement(name);
        if (placement !== undefined) {
          const host = hostOf(view.host(placement.host), placement.host);
          return call<Limits>(host, "POST", path.scale, scaleLimitMs, { container: name, ...change });
        }
        const written = await store.updateSpec(name, ({ spec, hash }) =>
          Promise.resolve({ spec: { ...spec, limits: { ...spec.limits, ...change } }, hash }),
        );
        if (written === undefined) throw new HakobuError("CONFIG_INVALID", `no application ${name}; see: hakobu get`);
        return written.spec.limits;
      });
      console.log(`${name} has ${limits.cpus} CPUs and ${limits.memoryMiB} MiB of memory`);
    });
}

/** @throws HakobuError CONFIG_INVALID */
function changeOf(cpu: string | undefined, memory: string | undefined): Partial<Limits> {
  if (cpu === undefined && memory === undefined)
    throw new HakobuError("CONFIG_INVALID", "nothing to change: give --cpu or --memory");
  return {
    ...(cpu === undefined ? {} : { cpus: valueOf("--cpu", limit.cpus, cpu.trim() === "" ? cpu : Number(cpu)) }),
    ...(memory === undefined ? {} : { memoryMiB: Math.floor(valueOf("--memory", limit.memory, memory) / MiB) }),
  };
}

function valueOf(option: string, field: z.ZodType<number>, given: unknown): number {
  const result = field.safeParse(given);
  if (result.success) return result.data;
  throw new HakobuError("CONFIG_INVALID", `${option}: ${result.error.issues[0]?.message ?? "is wrong"}`);
}
