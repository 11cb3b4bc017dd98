// An engine that runs nothing and does as it is told, for tests of actors.
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Engine, Instance, Launch, Launched, Phases } from "../../actors/ports/engine.js";

export class FakeEngine implements Engine {
  readonly name: string;
  readonly capabilities: Engine["capabilities"];
  /** Everything that runs, two copies of one container too. */
  readonly running = new Set<Instance>();
  readonly events: string[] = [];
  /** Stops that are going to fail. */
  failingStops = 0;
  findError: Error | undefined;
  #stopsAfter: Promise<void> = Promise.resolve();
  #pid = 0;

  constructor(name = "process", { checkpoint = false } = {}) {
    this.name = name;
    this.capabilities = checkpoint ? { checkpoint } : { checkpoint, reason: "it is a fake" };
  }

  fingerprint(): Promise<Readonly<Record<string, string>>> {
    return Promise.resolve({});
  }

  start(launch: Launch): Promise<Launched> {
    return Promise.resolve(this.#launch("start", launch));
  }

  restore(launch: Launch): Promise<Launched> {
    return Promise.resolve(this.#launch("restore", launch));
  }

  checkpoint({ container }: Instance): Promise<Phases> {
    this.events.push(`checkpoint ${container}`);
    return Promise.resolve([]);
  }

  renew(instance: Instance, epoch: number): Promise<Instance> {
    const renewed = { ...instance, epoch };
    if (this.running.delete(instance)) this.running.add(renewed);
    return Promise.resolve(renewed);
  }

  boundOutput(): Promise<void> {
    return Promise.resolve();
  }

  tidy(): Promise<void> {
    return Promise.resolve();
  }

  async stop({ container, pid }: Instance, graceMs: number): Promise<void> {
    this.events.push(`stop ${container} ${graceMs}`);
    await this.#stopsAfter;
    if (this.failingStops > 0) {
      this.failingStops--;
      throw new HakobuError("STOP_FAILED", "planted: it does not end");
    }
    this.die(pid);
  }

  /** No stop ends before the returned function is called. */
  holdStops(): () => void {
    let release = (): void => {};
    this.#stopsAfter = new Promise((resolve) => (release = resolve));
    return release;
  }

  /** It ends by itself. */
  die(pid: number): void {
    for (const each of this.running) if (each.pid === pid) this.running.delete(each);
  }

  alive({ pid }: Instance): boolean {
    return [...this.running].some((each) => each.pid === pid);
  }

  listening(): Promise<boolean> {
    return Promise.resolve(true);
  }

  find(): Promise<readonly Instance[]> {
    if (this.findError !== undefined) return Promise.reject(this.findError);
    return Promise.resolve([...this.running]);
  }

  output(): Promise<string> {
    return Promise.resolve("");
  }

  #launch(how: string, { spec, specHash, epoch }: Launch): Launched {
    this.events.push(`${how} ${spec.name}`);
    const pid = ++this.#pid;
    const about = { container: spec.name, engine: this.name, epoch, specHash, pid };
    const instance: Instance = { ...about, address: "127.0.0.1", port: spec.port, startTime: 1 };
    this.running.add(instance);
    return { instance, phases: [] };
  }
}
