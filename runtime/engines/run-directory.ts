// What a host tells a container: the files epoch, host and seed of the directory that it sees as /run/hakobu.
//
//   R1  Each is a new file whenever it is written: the container can write into the directory, and a link that it put there
//       must not lead our writing elsewhere.
//   R2  seed: 32 random bytes in hex, others each time, so that an application whose random state came out of an image can make its
//       own. Only the user that the container runs as reads it.
//   R3  None of them is missing at any moment after the first.
import { randomBytes } from "node:crypto";
import { chownSync, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Launch } from "../../actors/ports/engine.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";

const seedBytes = 32;

export function fillRunDirectory(directory: string, host: string, { spec, epoch }: Launch): void {
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  tellEpoch(directory, epoch);
  put(directory, "host", host, 0o644);
  put(directory, "seed", randomBytes(seedBytes).toString("hex"), 0o400, spec.user);
}

/** Of a container that runs: its owner has claimed it again. */
export function tellEpoch(directory: string, epoch: number): void {
  put(directory, "epoch", String(epoch), 0o644);
}

/** R3: without it an application would take its environment, which is that of its image, for the truth. */
function put(directory: string, name: string, text: string, mode: number, owner?: ContainerSpec["user"]): void {
  const path = join(directory, name);
  const draft = join(directory, `.${name}-${randomBytes(6).toString("hex")}`);
  writeFileSync(draft, `${text}\n`, { mode, flag: "wx" });
  if (owner !== undefined && process.getuid?.() === 0) chownSync(draft, owner.uid, owner.gid);
  try {
    renameSync(draft, path);
  } catch {
    // The container has put a directory there.
    rmSync(path, { recursive: true, force: true });
    renameSync(draft, path);
  }
}
