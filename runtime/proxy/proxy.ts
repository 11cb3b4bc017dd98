// A proxy of Hakobu as one object: the Koa application that carries requests, its view of the cluster, one reachability
// actor per host, and the moves that it drives. The program (`hakobu proxy`) makes one; so may any service.
import type { AddressInfo } from "node:net";
import Koa from "koa";
import { ClusterView } from "../../actors/cluster-view.js";
import { follow } from "../../actors/follow.js";
import type { Clock } from "../../actors/ports/clock.js";
import type { Log } from "../../actors/ports/log.js";
import type { HostRecord, PlacementStore } from "../../actors/ports/placement-store.js";
import type { ProbeKind, Prober, Target } from "../../actors/ports/prober.js";
import { noTracing, type Tracer } from "../../actors/ports/tracer.js";
import { ReachabilityActor } from "../../actors/reachability.js";
import { ActorRegistry } from "../../actors/registry.js";
import { Relocations } from "../../actors/relocation.js";
import { Pools, SOCKET_HIGH_WATER_MARK } from "../forwarding/pools.js";
import { upgradeResponse } from "../forwarding/upgrade.js";
import { koaServer, listen, shut } from "../http-server.js";
import { ProberByKind } from "../probes/by-kind.js";
import { systemClock } from "../system-clock.js";
import { Carrier } from "./carrier.js";
import { HttpHostClient } from "./host-client.js";

export interface ProxyOptions {
  readonly listen: { readonly address: string; readonly port: number };
  readonly store: PlacementStore;
  readonly log: Log;
  /** A host that was heard within this time is not probed. Default 10. */
  readonly freshMs?: number;
  /** For background probes; a request's own probe takes its container's time-out. Default 100. */
  readonly probeTimeoutMs?: number;
  /** The least that a probe waits, however quick a host's answers are. Default 50. */
  readonly probeFloorMs?: number;
  /** Of the probes of all containers that name no kind. Default tcp. */
  readonly probeKind?: ProbeKind;
  /** Until the head of a response. Default 60 s. */
  readonly requestTimeoutMs?: number;
  /** For a whole move. Default 60 s. */
  readonly relocationTimeoutMs?: number;
  /** Moves of one container in a minute, whoever made them, from which on it does not move on suspicion. Default 6. */
  readonly movesPerMinute?: number;
  readonly replayLimitBytes?: number;
  readonly maxWaiting?: number;
  /** A load balancer in front of the proxy is trusted to have set `Forwarded` and `X-Forwarded-*`. */
  readonly trustForwarded?: boolean;
  readonly tracer?: Tracer;
  readonly clock?: Clock;
  readonly prober?: Prober;
  readonly registry?: ActorRegistry;
}

export interface HakobuProxy {
  /** What carries requests, as one middleware for an application of your own. */
  readonly middleware: Koa.Middleware;
  readonly view: ClusterView;
  readonly relocations: Relocations;
  readonly registry: ActorRegistry;
  readonly address: string;
  readonly port: number;
  reachabilityOf(host: string): string;
  /** Lets requests that are being answered end, at most `graceMs`, then cuts. Idempotent. */
  close(graceMs?: number): Promise<void>;
}

/** To one host; moves of one host's containers come in bursts. */
const controlConnections = 64;

/** Listens and follows the placement store; resolves when its table is filled. @throws HakobuError CONFIG_INVALID */
export async function createProxy(options: ProxyOptions): Promise<HakobuProxy> {
  const { store, log, clock = systemClock, tracer = noTracing } = options;
  const {
    registry = new ActorRegistry(),
    freshMs = 10,
    probeTimeoutMs = 100,
    probeFloorMs = 50,
    probeKind = "tcp",
  } = options;
  const ownProber = options.prober === undefined ? new ProberByKind(probeKind, log) : undefined;
  const prober: Prober = options.prober ?? (ownProber as ProberByKind);
  const view = new ClusterView();
  // A tenant whose answers are long must not keep the others, nor the calls by which containers move, from a host.
  const pools = new Pools({ connections: "unlimited" });
  const controlPools = new Pools({ connections: controlConnections });
  const actors = new Map<
    string,
    { readonly actor: ReachabilityActor; readonly incarnation: string; readonly target: Target }
  >();

  function reachability(host: HostRecord): ReachabilityActor {
    const known = actors.get(host.id);
    if (known?.incarnation === host.incarnation) return known.actor;
    known?.actor.stop();
    const actor = new ReachabilityActor({ clock, prober, registry }, host.id, host, {
      freshMs,
      probeTimeoutMs,
      probeFloorMs,
      probeKind: host.probeKind ?? probeKind,
    });
    actors.set(host.id, { actor, incarnation: host.incarnation, target: { address: host.address, port: host.port } });
    return actor;
  }

  view.onChange((noticed) => {
    if (noticed.kind !== "host" || noticed.record !== undefined) return;
    const gone = actors.get(noticed.id);
    if (gone === undefined) return;
    actors.delete(noticed.id);
    gone.actor.leaseExpired();
    gone.actor.stop();
    // Whatever still streams from it has ended, even if no packet says so.
    for (const each of [pools, controlPools]) each.destroy(gone.target, "its lease expired");
  });

  const relocations = new Relocations({
    clock,
    view,
    hosts: new HttpHostClient((host) => controlPools.get(host)),
    reachability,
    tracer,
    log,
    registry,
    deadlineMs: options.relocationTimeoutMs ?? 60_000,
    movesPerMinute: options.movesPerMinute ?? 6,
  });
  const carrier = new Carrier({
    view,
    relocations,
    reachability,
    pools,
    clock,
    tracer,
    log,
    forwarded: options.trustForwarded === true ? "append" : "replace",
    replayLimitBytes: options.replayLimitBytes ?? 256 * 1024,
    requestTimeoutMs: options.requestTimeoutMs ?? 60_000,
    maxWaiting: options.maxWaiting ?? 1000,
  });
  const middleware: Koa.Middleware = (ctx) => {
    ctx.respond = false;
    return carrier.carry(ctx.req, ctx.res);
  };

  const app = new Koa();
  app.silent = true;
  app.use(middleware);
  const server = koaServer(app, { highWaterMark: SOCKET_HIGH_WATER_MARK, requestTimeout: 0 });
  server.on("upgrade", (incoming, socket, head) => {
    void carrier.carry(incoming, upgradeResponse(incoming, socket), head);
  });
  await listen(server, options.listen).catch((error: unknown) => {
    ownProber?.close();
    throw error;
  });
  const bound = server.address() as AddressInfo;
  const following = new AbortController();
  await follow(store, view, log, following.signal);
  let closed: Promise<void> | undefined;
  return {
    middleware,
    view,
    relocations,
    registry,
    address: bound.address,
    port: bound.port,
    reachabilityOf: (host) => actors.get(host)?.actor.state ?? "unknown",
    close: (graceMs = 5000) =>
      (closed ??= (async () => {
        const drained = new Promise<void>((resolve) => server.close(() => resolve()));
        server.closeIdleConnections();
        await Promise.race([drained, new Promise((resolve) => setTimeout(resolve, graceMs).unref())]);
        await shut(server);
        following.abort();
        for (const { actor } of actors.values()) actor.stop();
        ownProber?.close();
        await Promise.all([pools.close(), controlPools.close()]);
      })()),
  };
}
