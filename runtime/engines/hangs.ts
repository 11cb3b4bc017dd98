// Restores by CRIU that reach their limit. Once may be this host's trouble, and the image stays; twice in a row it is taken for the
// image's, so that it does not make every start slow.
import { HakobuError } from "../../actors/hakobu-error.js";

export class Hangs {
  /** By container, the directory of the image at which it hung last. */
  readonly #last = new Map<string, string>();

  /**
   * `begun`: whether it is CRIU that takes its time.
   * @throws what the restore threw; RESTORE_FAILED in place of a second DEADLINE_EXCEEDED of that image
   */
  async watch<T>(container: string, image: string, begun: () => boolean, restore: () => Promise<T>): Promise<T> {
    try {
      const restored = await restore();
      this.#last.delete(container);
      return restored;
    } catch (error) {
      const hung = error instanceof HakobuError && error.code === "DEADLINE_EXCEEDED" && begun();
      if (!hung) throw error;
      const again = this.#last.get(container) === image;
      this.#last.set(container, image);
      if (!again) throw error;
      throw new HakobuError("RESTORE_FAILED", `${error.message}, for the second time here`, { cause: error });
    }
  }
}
