// Everything on the machine that belongs to one container of this engine, by name. As for runc (../runc/names.ts, R1), with
// control groups of its own: a container that changed its engine must not be cleaned up by the one that it had before.
//
//   N1  The address is made of the container's name alone, in 127.64.0.0/10: there is no network namespace, and a restored socket
//       finds the address that it was bound to.
import { createHash } from "node:crypto";
import { join } from "node:path";
import { type Names, namesOf } from "../runc/names.js";

export interface HaconiwaNames extends Names {
  /** Haconiwa's name of it: unique on the machine, for Haconiwa makes files of it outside of our directories. */
  readonly name: string;
  readonly hacoFile: string;
  /** What the last `start` or `restore` wrote. */
  readonly said: string;
  readonly restoreLog: string;
  /** Left by a Haconiwa that was killed. */
  readonly strayFiles: readonly string[];
}

export function haconiwaNamesOf(hostId: string, stateDir: string, container: string): HaconiwaNames {
  const names = namesOf(hostId, stateDir, container);
  const { bundle, namespace: name } = names;
  return {
    ...names,
    address: addressOf(container),
    // `@` is in no container's name.
    cgroup: `hakobu/${hostId}/${container}@haconiwa`,
    name,
    hacoFile: join(bundle, "container.haco"),
    said: join(bundle, "haconiwa.out"),
    restoreLog: join(bundle, "restore.log"),
    strayFiles: [`/var/lock/.${name}.hacolock`, `/tmp/.__criu_restored_${name}.pid`],
  };
}

/** Without the ends of the last byte. */
function addressOf(container: string): string {
  const hash = createHash("sha256").update(container).digest().readUInt32BE();
  return `127.${64 + ((hash >>> 16) & 0x3f)}.${(hash >>> 8) & 0xff}.${1 + ((hash & 0xff) % 254)}`;
}
