// The limits of a container that runs: those under which it was launched or scaled, and how it gets those that are asked for now.
import { HakobuError, reasonOf } from "./hakobu-error.js";
import type { Engine, Instance } from "./ports/engine.js";
import type { Log } from "./ports/log.js";
import type { ContainerSpec } from "./ports/spec.js";

type Limits = ContainerSpec["limits"];

export class ContainerLimits {
  readonly #engine: Engine;
  readonly #log: Log;
  readonly #container: string;
  /** Undefined: not known. */
  #set: Limits | undefined;

  constructor(container: string, { engine, log }: { readonly engine: Engine; readonly log: Log }) {
    this.#container = container;
    this.#engine = engine;
    this.#log = log;
  }

  /** It is launched under them; undefined: under others, perhaps. */
  launched(limits: Limits | undefined): void {
    this.#set = limits;
  }

  /** At once, where it runs. @throws HakobuError CONFIG_INVALID when they are refused */
  async scale(instance: Instance | undefined, limits: Limits): Promise<void> {
    if (this.#engine.scale === undefined)
      throw new HakobuError(
        "CONFIG_INVALID",
        `${this.#container} has no limits: the ${this.#engine.name} engine enforces none`,
      );
    if (instance === undefined || (this.#set !== undefined && same(limits, this.#set))) return;
    // Until it has succeeded: some of them may be set.
    this.#set = undefined;
    await this.#engine.scale(instance, limits);
    this.#set = limits;
  }

  /** As `scale`, where the engine enforces any; a refusal is in the log. */
  follow(instance: Instance | undefined, limits: Limits): void {
    if (this.#engine.scale === undefined) return;
    this.scale(instance, limits).catch((error: unknown) =>
      this.#log.warn({ container: this.#container, reason: reasonOf(error) }, "its limits stay as they were"),
    );
  }
}

function same(a: Limits, b: Limits): boolean {
  return a.cpus === b.cpus && a.memoryMiB === b.memoryMiB && a.pids === b.pids;
}
