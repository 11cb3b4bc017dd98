// The control API of a host: what proxies and the command line ask of it (protocol.ts has the shapes).
import Koa from "koa";
import type { z } from "zod";
import type { ContainerActor } from "../../actors/container.js";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { HostActor } from "../../actors/host.js";
import { type Clock, deadline } from "../../actors/ports/clock.js";
import type { ActivateReply, ClaimReply } from "../../actors/ports/host-client.js";
import { parseTraceparent } from "../tracing/traceparent.js";
import { activateSchema, claimSchema, path, prepareSchema, relocateSchema, scaleSchema } from "./protocol.js";

const bodyLimitBytes = 64 * 1024;

/** State of a host for people and tools. */
export interface HostStatus {
  readonly id: string;
  readonly state: string;
  readonly leaseProven: boolean;
  readonly draining: boolean;
  /** Containers are on their way out. */
  readonly moving: boolean;
  readonly capacity: number;
  readonly containers: readonly {
    readonly name: string;
    readonly state: string;
    readonly epoch: number;
    readonly inFlight: number;
    readonly pid: number | undefined;
    readonly address: string | undefined;
    readonly how: string | undefined;
    readonly reason: string | undefined;
    /** Why its image could not be refreshed lately. */
    readonly imageTrouble: string | undefined;
  }[];
}

export function controlApi(host: HostActor, clock: Clock): Koa {
  const app = new Koa();
  app.silent = true;
  app.use(async (ctx) => {
    const trace = parseTraceparent(ctx.get("traceparent") || undefined);
    const route = `${ctx.method} ${ctx.path}`;
    switch (route) {
      case `POST ${path.claim}`: {
        const reply = await host.claim(await read(ctx, claimSchema), trace);
        return send(ctx, reply);
      }
      case `POST ${path.activate}`: {
        const { container: name, epoch } = await read(ctx, activateSchema);
        return send(ctx, await activate(host.container(name), epoch));
      }
      case `POST ${path.prepare}`: {
        const { container } = await read(ctx, prepareSchema);
        ctx.status = 202;
        ctx.body = { prepares: host.prepare(container) };
        return;
      }
      case `POST ${path.relocate}`: {
        const { container, to } = await read(ctx, relocateSchema);
        try {
          ctx.body = await host.relocate(container, to, "asked for by hand");
        } catch (error) {
          ctx.status = error instanceof HakobuError && error.code === "CONFIG_INVALID" ? 400 : 503;
          ctx.body = { error: reasonOf(error) };
        }
        return;
      }
      case `POST ${path.scale}`: {
        const { container, ...limits } = await read(ctx, scaleSchema);
        try {
          ctx.body = (await host.scale(container, limits)).spec.limits;
        } catch (error) {
          ctx.status = error instanceof HakobuError && error.code === "CONFIG_INVALID" ? 400 : 503;
          ctx.body = { error: reasonOf(error) };
        }
        return;
      }
      case `POST ${path.drain}`:
        await host.startDrain();
        ctx.status = 202;
        ctx.body = hostStatus(host);
        return;
      case `POST ${path.undrain}`:
        await host.undrain();
        ctx.body = hostStatus(host);
        return;
      case `GET ${path.host}`:
        ctx.body = hostStatus(host);
        return;
      default:
        ctx.status = 404;
        ctx.body = { error: `no such call: ${route}. Tenants' requests carry a hakobu-container header.` };
    }
  });
  app.on("error", () => {});
  return app;

  async function activate(container: ContainerActor | undefined, epoch: number): Promise<ActivateReply> {
    if (container === undefined || container.epoch !== epoch) return { kind: "moved" };
    const { startTimeoutMs, checkpoint } = container.record.spec;
    const limitMs = startTimeoutMs + checkpoint.timeoutMs;
    try {
      await container.whenServing(undefined, deadline(clock, limitMs, `not serving within ${limitMs} ms`));
    } catch (error) {
      if (error instanceof HakobuError && error.code === "NOT_OWNER") return { kind: "moved" };
      return { kind: "failed", reason: reasonOf(error) };
    }
    return { kind: "active", activation: container.activation ?? { how: "running", epoch, phases: [] } };
  }
}

export function hostStatus(host: HostActor): HostStatus {
  return {
    id: host.record.id,
    state: host.state,
    leaseProven: host.proven,
    draining: host.record.draining,
    moving: host.moving,
    capacity: host.record.capacity,
    containers: [...host.containers].map((container) => ({
      name: container.name,
      state: container.state,
      epoch: container.epoch,
      inFlight: container.inFlight,
      pid: container.instance?.pid,
      address: container.instance && `${container.instance.address}:${container.instance.port}`,
      how: container.activation?.how,
      reason: container.reason,
      imageTrouble: host.imageTrouble(container),
    })),
  };
}

function send(ctx: Koa.Context, reply: ClaimReply | ActivateReply): void {
  ctx.body = reply;
  switch (reply.kind) {
    case "won":
    case "active":
      ctx.status = 200;
      return;
    case "moved":
      ctx.status = 421;
      return;
    case "refused":
      ctx.status = 503;
      if (reply.retryAfterMs !== undefined) ctx.set("retry-after", String(Math.ceil(reply.retryAfterMs / 1000)));
      return;
    case "failed":
    case "unreachable":
      ctx.status = 503;
  }
}

async function read<T>(ctx: Koa.Context, schema: z.ZodType<T>): Promise<T> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of ctx.req as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > bodyLimitBytes) return ctx.throw(413, `a call has at most ${bodyLimitBytes} bytes`);
    chunks.push(chunk);
  }
  let value: unknown;
  try {
    value = JSON.parse(Buffer.concat(chunks).toString());
  } catch (error) {
    return ctx.throw(400, `not JSON: ${reasonOf(error)}`);
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  return ctx.throw(400, parsed.error.issues.map((issue) => `${issue.path.join(".")}: ${issue.message}`).join("; "));
}
