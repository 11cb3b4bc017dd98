// Restores by CRIU that reach their limit. Once may be this host's trouble, and the image stays; twice in a row it is taken for the
// image's, so that it does not make every start slow.
import { HakobuError } from "../../actors/hakobu-error.js";

export class Hangs {
  readonly #once = new Set<string>();

  /** @throws what the restore threw; RESTORE_FAILED in place of a second DEADLINE_EXCEEDED of that container */
  async watch<T>(container: string, signal: AbortSignal, restore: () => Promise<T>): Promise<T> {
    try {
      const restored = await restore();
      this.#once.delete(container);
      return restored;
    } catch (error) {
      const hung = !signal.aborted && error instanceof HakobuError && error.code === "DEADLINE_EXCEEDED";
      if (!hung) throw error;
      if (!this.#once.delete(container)) {
        this.#once.add(container);
        throw error;
      }
      throw new HakobuError("RESTORE_FAILED", `${error.message}, for the second time here`, { cause: error });
    }
  }
}
