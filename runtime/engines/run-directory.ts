// What a host tells a container: the files epoch, host and seed of the directory that it sees as /run/hakobu.
//
//   R1  Each is a new file whenever it is written: the container can write into the directory, and a link that it put there
//       must not lead our writing elsewhere.
//   R2  seed: 32 random bytes in hex, others each time, so that an application whose random state came out of an image can make its
//       own. Only the user that the container runs as reads it.
import { randomBytes } from "node:crypto";
import { chownSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Launch } from "../../actors/ports/engine.js";

const seedBytes = 32;

export function fillRunDirectory(directory: string, host: string, { spec, epoch }: Launch): void {
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  tellEpoch(directory, epoch);
  put(directory, "host", host, 0o644);
  const seed = put(directory, "seed", randomBytes(seedBytes).toString("hex"), 0o400);
  if (process.getuid?.() === 0) chownSync(seed, spec.user.uid, spec.user.gid);
}

/** Of a container that runs: its owner has claimed it again. */
export function tellEpoch(directory: string, epoch: number): void {
  put(directory, "epoch", String(epoch), 0o644);
}

function put(directory: string, name: string, text: string, mode: number): string {
  const path = join(directory, name);
  rmSync(path, { recursive: true, force: true });
  writeFileSync(path, `${text}\n`, { mode, flag: "wx" });
  return path;
}
