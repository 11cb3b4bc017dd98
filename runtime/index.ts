// What a TypeScript service embeds: hosts, proxies, stores, engines, and the ports to implement one's own.
export { ActorRegistry, type Observer, type Registered } from "../actors/registry.js";
export { ClusterView } from "../actors/cluster-view.js";
export { type ErrorCode, HakobuError } from "../actors/hakobu-error.js";
export type { Clock } from "../actors/ports/clock.js";
export type { Engine, Instance, Launch, Launched, Phases } from "../actors/ports/engine.js";
export type { Image, ImageDraft, ImageStore, Manifest } from "../actors/ports/image-store.js";
export { type Log, noLog } from "../actors/ports/log.js";
export type {
  ClaimOutcome,
  HostRecord,
  Membership,
  Placement,
  PlacementStore,
  SpecRecord,
  StoreChange,
} from "../actors/ports/placement-store.js";
export type { Prober, ProbeResult, Target } from "../actors/ports/prober.js";
export type { ContainerSpec } from "../actors/ports/spec.js";
export { noTracing, type Span, type Tracer } from "../actors/ports/tracer.js";
export { containerMachine } from "../machines/container.js";
export { hostMachine } from "../machines/host.js";
export { reachabilityMachine } from "../machines/reachability.js";
export { relocationMachine } from "../machines/relocation.js";
export { parseSpecs, specRecord } from "./config/spec.js";
export { ProcessEngine } from "./engines/process.js";
export { RuncEngine } from "./engines/runc/engine.js";
export { createHost, type HakobuHost, type HostOptions } from "./host.js";
export { DirectoryImageStore } from "./images/directory-store.js";
export { EtcdPlacementStore } from "./placement/etcd.js";
export { MemoryPlacementStore } from "./placement/memory.js";
export { createProxy, type HakobuProxy, type ProxyOptions } from "./proxy/proxy.js";
export { systemClock } from "./system-clock.js";
export { startTracing, type Tracing } from "./tracing/opentelemetry.js";
