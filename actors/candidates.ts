// Which host a container should live on: rendezvous hashing (highest random weight, Thaler and Ravishankar 1998), so that
// all proxies agree without talking, and the next-best host is known in advance.
import type { ClusterView } from "./cluster-view.js";
import type { HostRecord, SpecRecord } from "./ports/placement-store.js";

/** Hosts that could own the container, best first. A host that is suspected comes after all that are not. */
export function candidates(
  view: ClusterView,
  record: SpecRecord,
  excluded: ReadonlySet<string>,
  suspected: (host: string) => boolean,
): HostRecord[] {
  const ranked: { host: HostRecord; doubtful: boolean; weight: number }[] = [];
  for (const host of view.hosts()) {
    if (excluded.has(host.id) || host.draining) continue;
    if (!host.engines.includes(record.spec.engine) || view.load(host.id) >= host.capacity) continue;
    ranked.push({ host, doubtful: suspected(host.id), weight: weight(record.spec.name, host.id) });
  }
  ranked.sort((a, b) => Number(a.doubtful) - Number(b.doubtful) || b.weight - a.weight);
  return ranked.map((each) => each.host);
}

/** 32 bits of `container, host`: FNV-1a with murmur3's finalizer, so that near names give far weights. */
export function weight(container: string, host: string): number {
  let hash = 0x811c9dc5;
  for (const char of `${container}\0${host}`) hash = Math.imul(hash ^ (char.codePointAt(0) as number), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
