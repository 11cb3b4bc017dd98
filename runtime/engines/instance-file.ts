// An instance on disk, so that an agent that starts again finds what the one before it started. Written whole or not at all.
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Instance } from "../../actors/ports/engine.js";

const fileName = "instance.json";

const label = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

/** Whether a container may be called so: a DNS label, of which no path can be made. */
export function isContainerName(name: string): boolean {
  return label.test(name);
}

/** @throws HakobuError CONFIG_INVALID */
export function checkContainerName(name: string): void {
  if (!isContainerName(name)) refuse("container", name);
}

/** Host ids may have dots between labels. @throws HakobuError CONFIG_INVALID */
export function checkHostId(hostId: string): void {
  if (hostId.length > 100 || !hostId.split(".").every((part) => label.test(part))) refuse("host id", hostId);
}

function refuse(what: string, name: string): never {
  throw new HakobuError(
    "CONFIG_INVALID",
    `${what} ${JSON.stringify(name)}: use lower-case letters, digits and hyphens inside, at most 63`,
  );
}

export function writeInstance(directory: string, instance: Instance): void {
  const draft = join(directory, `.${fileName}.${randomBytes(4).toString("hex")}`);
  writeFileSync(draft, `${JSON.stringify(instance)}\n`, { mode: 0o600 });
  renameSync(draft, join(directory, fileName));
}

export function readInstance(directory: string): Instance | undefined {
  try {
    return JSON.parse(readFileSync(join(directory, fileName), "utf8")) as Instance;
  } catch {
    return undefined;
  }
}

export function removeInstance(directory: string): void {
  rmSync(join(directory, fileName), { force: true });
}

/** Names of the containers that have a directory there. */
export function containersIn(directory: string): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory() && isContainerName(entry.name))
      .map(({ name }) => name);
  } catch {
    return [];
  }
}
