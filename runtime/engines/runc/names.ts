// Everything on the machine that belongs to one container on one host, by name: so that all of it can be found and removed.
//
//   R1  Each name is made of the host id and the container's name and nothing else. An agent that lost its memory removes all.
//   R2  The address is made of the container's name alone: a restored socket finds the address that it was bound to.
//   R3  A container's shadow is called `<container>.shadow`, which no container can be. It has names of its own but for the address.
import { createHash } from "node:crypto";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { checkContainerName, checkHostId } from "../instance-file.js";

export interface Names {
  readonly container: string;
  readonly directory: string;
  /** Bound to /run/hakobu in the container; outlives it, for the log. */
  readonly run: string;
  readonly outputLog: string;
  /** tmpfs of bounded size: the overlay's upper and work directories, and /dev/shm. */
  readonly layer: string;
  readonly upper: string;
  readonly work: string;
  readonly shm: string;
  /** The mounted root file system. */
  readonly root: string;
  /** runc's bundle, and CRIU's logs. */
  readonly bundle: string;
  readonly pidFile: string;
  readonly namespace: string;
  readonly namespaceFile: string;
  /** The host's end of the link. */
  readonly link: string;
  readonly address: string;
  /** Of a shadow: the address that others see when it connects to them. */
  readonly outlet?: string;
  /** Below the root of each hierarchy. */
  readonly cgroup: string;
}

const shadowSuffix = ".shadow";

export function shadowOf(container: string): string {
  return `${container}${shadowSuffix}`;
}

/** Names of the containers whose shadows have a directory there. */
export function shadowsIn(stateDir: string): string[] {
  if (!existsSync(stateDir)) return [];
  return readdirSync(stateDir).filter((name) => name.endsWith(shadowSuffix));
}

/** `container`: or its shadow's name. */
export function namesOf(hostId: string, stateDir: string, container: string): Names {
  checkHostId(hostId);
  const shadow = container.endsWith(shadowSuffix);
  const shown = shadow ? container.slice(0, -shadowSuffix.length) : container;
  checkContainerName(shown);
  const directory = join(stateDir, container);
  const layer = join(directory, "layer");
  const run = join(directory, "run");
  const bundle = join(directory, "bundle");
  const namespace = `hakobu-${hostId}-${container}`;
  return {
    container,
    directory,
    run,
    outputLog: join(run, "output.log"),
    layer,
    upper: join(layer, "upper"),
    work: join(layer, "work"),
    shm: join(layer, "shm"),
    root: join(directory, "root"),
    bundle,
    pidFile: join(bundle, "pid"),
    namespace,
    namespaceFile: `/run/netns/${namespace}`,
    // An interface's name has at most 15 characters.
    link: `${shadow ? "hs" : "hk"}${createHash("sha256").update(`${hostId}/${container}`).digest("hex").slice(0, 12)}`,
    address: addressOf(shown),
    ...(shadow ? { outlet: outletOf(hostId, shown) } : {}),
    cgroup: `hakobu/${hostId}/${container}`,
  };
}

/** In 10.64.0.0/10. Of 1,000 containers on one host two collide with a chance of 11 %; the second one then does not start. */
function addressOf(container: string): string {
  const hash = createHash("sha256").update(container).digest().readUInt32BE();
  const last = 1 + ((hash & 0xff) % 254);
  return `10.${64 + ((hash >>> 16) & 0x3f)}.${(hash >>> 8) & 0xff}.${last}`;
}

/** In 169.254.64.0/18. Two shadows in one namespace have the same one with a chance of 1 in 16,384; the second one then does not start. */
function outletOf(hostId: string, container: string): string {
  const hash = createHash("sha256").update(`${hostId}/${container}`).digest().readUInt16BE();
  return `169.254.${64 + ((hash >>> 8) & 0x3f)}.${hash & 0xff}`;
}
