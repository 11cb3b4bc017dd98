// An instance on disk, so that an agent that starts again finds what the one before it started. Written whole or not at all.
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Instance } from "../../actors/ports/engine.js";

const fileName = "instance.json";

/** Of every path that is made of a container's or a host's name: a DNS label, for hosts with dots between. */
export function checkName(what: string, name: string): void {
  const label = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;
  if (!name.split(".").every((part) => label.test(part)))
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
      .filter((entry) => entry.isDirectory() && !entry.name.startsWith("."))
      .map(({ name }) => name);
  } catch {
    return [];
  }
}
