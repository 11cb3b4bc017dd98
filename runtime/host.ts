// A host of Hakobu as one object: the host actor, its dispatcher and its control API on one port. The program (`hakobu host`)
// makes one; so may any TypeScript service (examples/embed).
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { availableParallelism } from "node:os";
import { ClusterView } from "../actors/cluster-view.js";
import { HostActor } from "../actors/host.js";
import type { Clock } from "../actors/ports/clock.js";
import type { Engine } from "../actors/ports/engine.js";
import type { ImageStore } from "../actors/ports/image-store.js";
import type { Log } from "../actors/ports/log.js";
import type { PlacementStore } from "../actors/ports/placement-store.js";
import type { ProbeKind } from "../actors/ports/prober.js";
import type { Tracer } from "../actors/ports/tracer.js";
import { noTracing } from "../actors/ports/tracer.js";
import { ActorRegistry } from "../actors/registry.js";
import { controlApi } from "./dispatcher/control.js";
import { Dispatcher } from "./dispatcher/dispatcher.js";
import { header } from "./dispatcher/protocol.js";
import { httpHooks } from "./dispatcher/hooks.js";
import { httpReadiness } from "./dispatcher/readiness.js";
import { withFaultPoints } from "./fault-points.js";
import { Pools, SOCKET_HIGH_WATER_MARK } from "./forwarding/pools.js";
import { upgradeResponse } from "./forwarding/upgrade.js";
import { ProcessGuard } from "./guard.js";
import { WatchedContent } from "./images/watched-content.js";
import { listen, shut } from "./http-server.js";
import { ProberByKind } from "./probes/by-kind.js";
import { HttpHostClient } from "./proxy/host-client.js";
import { systemClock } from "./system-clock.js";

export interface HostOptions {
  readonly id: string;
  readonly listen: { readonly address: string; readonly port: number };
  /** Where proxies reach it; default: where it listens. */
  readonly advertise?: { readonly address: string; readonly port: number };
  readonly store: PlacementStore;
  readonly engines: readonly Engine[];
  readonly images: ImageStore;
  readonly log: Log;
  readonly capacity?: number;
  /** How proxies and other hosts are to probe it, where a container does not say. Default: as they are configured. */
  readonly probeKind?: ProbeKind;
  readonly fingerprint?: Readonly<Record<string, string>>;
  /** Containers that may come up at the same time. Default: one for each processor, at least 2. */
  readonly startsAtOnce?: number;
  /** Of images of other hosts' containers that are read ahead. Default 1 GiB; 0: none. */
  readonly warmBytes?: number;
  readonly maxWaiting?: number;
  readonly replayLimitBytes?: number;
  readonly requestTimeoutMs?: number;
  readonly tracer?: Tracer;
  readonly clock?: Clock;
  readonly registry?: ActorRegistry;
}

export interface HakobuHost {
  readonly actor: HostActor;
  readonly registry: ActorRegistry;
  readonly address: string;
  readonly port: number;
  /** Stops its containers, or with `drain` moves them to other hosts first; gives up its placements and its lease. Idempotent. */
  close(options?: { readonly drain?: boolean }): Promise<void>;
  /** Cuts every connection and leaves containers and lease as they are, as a crash does. Idempotent. */
  destroy(): Promise<void>;
}

/**
 * Listens, joins the cluster, and resolves when it may own containers.
 * @throws HakobuError HOST_ID_TAKEN, CONFIG_INVALID (the address cannot be listened on)
 */
export async function createHost(options: HostOptions, signal?: AbortSignal): Promise<HakobuHost> {
  const { id, store, log, images, clock = systemClock, tracer = noTracing, registry = new ActorRegistry() } = options;
  const view = new ClusterView();
  const pools = new Pools({ connectTimeoutMs: 1000 });
  const prober = new ProberByKind("tcp", log);
  const guard = new ProcessGuard();
  const server = createServer({ highWaterMark: SOCKET_HIGH_WATER_MARK, keepAliveTimeout: 65_000, requestTimeout: 0 });
  await listen(server, options.listen);
  const bound = server.address() as AddressInfo;
  const { address, port } = options.advertise ?? { address: bound.address, port: bound.port };
  const actor = new HostActor(
    {
      engines: new Map(options.engines.map((engine) => [engine.name, engine])),
      store,
      view,
      images,
      warmBytes: options.warmBytes ?? 2 ** 30,
      startsAtOnce: options.startsAtOnce ?? Math.max(2, availableParallelism()),
      prober,
      guard,
      hosts: withFaultPoints(new HttpHostClient((host) => pools.get(host)), "hosts"),
      content: new WatchedContent(log),
      readiness: httpReadiness,
      hooks: httpHooks(id),
      clock,
      tracer,
      log,
      registry,
    },
    {
      id,
      address,
      port,
      incarnation: randomUUID(),
      ...(options.probeKind === undefined ? {} : { probeKind: options.probeKind }),
      capacity: options.capacity ?? 100,
      engines: options.engines.map((engine) => engine.name),
      fingerprint: options.fingerprint ?? {},
      draining: false,
    },
  );
  const dispatcher = new Dispatcher({
    host: actor,
    view,
    pools,
    clock,
    tracer,
    log,
    maxWaiting: options.maxWaiting ?? 1000,
    replayLimitBytes: options.replayLimitBytes ?? 256 * 1024,
    requestTimeoutMs: options.requestTimeoutMs ?? 60_000,
  });
  const control = controlApi(actor, clock).callback();
  server.on("request", (incoming, outgoing) => {
    if (incoming.headers[header.container] === undefined) void control(incoming, outgoing);
    else void dispatcher.handle(incoming, outgoing);
  });
  server.on("upgrade", (incoming, socket, head) => {
    const outgoing = upgradeResponse(incoming, socket);
    if (incoming.headers[header.container] === undefined) outgoing.writeHead(400).end();
    else void dispatcher.handle(incoming, outgoing, head);
  });
  const closeEngines = async (): Promise<void> => {
    await Promise.all(options.engines.map(async (engine) => engine.close?.()));
  };
  let ended: Promise<void> | undefined;
  const end = (finish: () => Promise<void>): Promise<void> => (ended ??= finish());
  const host: HakobuHost = {
    actor,
    registry,
    address,
    port,
    close: ({ drain = false } = {}) =>
      end(async () => {
        await actor.close(drain);
        await closeEngines();
        guard.close();
        await shut(server);
        prober.close();
        await pools.close();
      }),
    destroy: () =>
      end(async () => {
        actor.abandon();
        await closeEngines();
        guard.close();
        await shut(server);
        prober.close();
        await pools.close();
      }),
  };
  try {
    await actor.join(signal ?? new AbortController().signal);
  } catch (error) {
    await host.destroy();
    throw error;
  }
  return host;
}
