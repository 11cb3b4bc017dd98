// Records as the store holds them, for tests.
import type { HostRecord, Placement, SpecRecord } from "../../actors/ports/placement-store.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";

export function specOf(name: string, more: Partial<ContainerSpec> = {}): ContainerSpec {
  return {
    name,
    hostnames: [`${name}.localhost`],
    engine: "process",
    rootfs: "host",
    command: ["true"],
    cwd: "/",
    env: {},
    user: { uid: 0, gid: 0 },
    port: 8000,
    mounts: [],
    limits: { cpus: 1, memoryMiB: 256, pids: 128 },
    idleTimeoutMs: 0,
    startTimeoutMs: 10_000,
    stopGraceMs: 1000,
    checkpoint: { onReady: true, at: "warm", warmup: "/", timeoutMs: 30_000 },
    takeover: "fast",
    probe: { timeoutMs: 100 },
    ...more,
  };
}

export function recordOf(name: string, more: Partial<ContainerSpec> = {}, hash = "1"): SpecRecord {
  return { spec: specOf(name, more), hash };
}

export function hostOf(id: string, more: Partial<HostRecord> = {}): HostRecord {
  return {
    id,
    address: "127.0.0.1",
    port: 1,
    incarnation: id,
    capacity: 100,
    engines: ["process"],
    fingerprint: {},
    draining: false,
    ...more,
  };
}

export function placementOf(container: string, host: string, epoch: number): Placement {
  return { container, host, epoch, since: "2026-01-01T00:00:00Z", reason: "planted" };
}
