// What is asked of an image that Haconiwa and CRIU's service have written together.
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { HakobuError } from "../../../actors/hakobu-error.js";
import { criuDirectory, noteSizes, sizesOf } from "../criu-images.js";
import { layerArchive } from "../runc/rootfs.js";

/** After a dump. @throws HakobuError CHECKPOINT_FAILED when it is not whole */
export function sealImage(container: string, directory: string): void {
  rmSync(join(criuDirectory(directory), "dump.log"), { force: true });
  if (!existsSync(join(directory, layerArchive)) || sizesOf(directory)["inventory.img"] === undefined)
    throw new HakobuError(
      "CHECKPOINT_FAILED",
      `the checkpoint of ${container} is not whole: criu service must run with the configuration of this engine`,
    );
  noteSizes(directory);
}
