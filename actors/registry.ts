// The live actors of one process by address (`container/blog`, `host/b`), and the hook through which they are watched.
// Each is a root actor: children under one parent cost O(n) each to spawn. Inspection costs a third of an actor's event
// throughput, so it is attached only while somebody watches.
import type { AnyActorRef, InspectionEvent } from "xstate";

export interface Registered {
  readonly address: string;
  readonly actor: AnyActorRef;
}

export type Observer = (address: string, event: InspectionEvent) => void;

export class ActorRegistry {
  readonly #actors = new Map<string, AnyActorRef>();
  readonly #observers = new Map<Observer, Map<string, () => void>>();

  /** Registers a started root actor until it stops. An address that is taken is handed over. */
  register(address: string, actor: AnyActorRef): void {
    this.#actors.set(address, actor);
    for (const [observer, attached] of this.#observers) this.#attach(observer, attached, address, actor);
    const remove = (): void => this.#remove(address, actor);
    actor.subscribe({ complete: remove, error: remove });
  }

  get(address: string): AnyActorRef | undefined {
    return this.#actors.get(address);
  }

  list(): Registered[] {
    return [...this.#actors].map(([address, actor]) => ({ address, actor }));
  }

  /** Sees every inspection event of every actor, present and future, until the returned function is called. Must not throw. */
  inspect(observer: Observer): () => void {
    const attached = new Map<string, () => void>();
    this.#observers.set(observer, attached);
    for (const [address, actor] of this.#actors) this.#attach(observer, attached, address, actor);
    return () => {
      this.#observers.delete(observer);
      for (const detach of attached.values()) detach();
    };
  }

  #attach(observer: Observer, attached: Map<string, () => void>, address: string, actor: AnyActorRef): void {
    attached.get(address)?.();
    const subscription = actor.system.inspect((event) => observer(address, event));
    attached.set(address, () => subscription.unsubscribe());
  }

  #remove(address: string, actor: AnyActorRef): void {
    if (this.#actors.get(address) !== actor) return;
    this.#actors.delete(address);
    for (const attached of this.#observers.values()) {
      attached.get(address)?.();
      attached.delete(address);
    }
  }
}
