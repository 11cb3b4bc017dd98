// The image store that a host's configuration describes.
import { dirname } from "node:path";
import type { Log } from "../../actors/ports/log.js";
import type { HostConfig } from "../config/program.js";
import { ClusterKey } from "./cluster-key.js";
import { DirectoryImageStore } from "./directory-store.js";
import { PrivateMemory } from "./private-memory.js";

/** What no container may see: the memory of every container, and the key. What is below /run, none sees anyway. */
export function secretDirectories({ host, images }: HostConfig): string[] {
  const { keyFile } = images;
  return [host.images, ...(keyFile === undefined || keyFile.startsWith("/run/") ? [] : [dirname(keyFile)])];
}

/** @throws HakobuError CONFIG_INVALID */
export async function configuredImages({ host, images }: HostConfig, log: Log): Promise<DirectoryImageStore> {
  const { keyFile, ...retention } = images;
  const secret =
    keyFile === undefined ? {} : { key: await ClusterKey.read(keyFile), memory: PrivateMemory.of(host.stateDir) };
  return new DirectoryImageStore({ directory: host.images, log, ...retention, ...secret });
}
