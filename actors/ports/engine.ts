// What runs containers: a child process, runc with CRIU, Haconiwa. Every engine passes test/contract/engine.ts.
import type { ContainerSpec } from "./spec.js";

/** One running copy of a container. Plain data: it is written to disk so that a restarted agent finds it again. */
export interface Instance {
  readonly container: string;
  readonly engine: string;
  readonly epoch: number;
  /** Hash of the specification it was started with. */
  readonly specHash: string;
  /** Where the dispatcher reaches it. */
  readonly address: string;
  readonly port: number;
  /** Of a shadow, which nobody reaches from outside of its network namespace: the path of that. */
  readonly within?: string;
  /** The container's first process, as the host sees it, and its start time (proc(5), field 22), so that a reused pid is told apart. */
  readonly pid: number;
  readonly startTime: number;
}

export interface Launch {
  readonly spec: ContainerSpec;
  readonly specHash: string;
  readonly epoch: number;
}

/** Named parts of an operation with their milliseconds, in order: they become spans. */
export type Phases = readonly {
  readonly name: string;
  readonly ms: number;
  /** Done while nobody waited for it yet. */
  readonly ahead?: true;
}[];

export interface Launched {
  readonly instance: Instance;
  readonly phases: Phases;
}

/** A restored copy of which nothing has run yet: its processes are stopped where the image was taken. */
export interface Standby {
  readonly phases: Phases;
  /** Lets it run, as that epoch; once. @throws HakobuError RESTORE_FAILED: then nothing of it is left */
  run(epoch: number): Promise<Launched>;
  /** Nothing of it is left. Idempotent; not after `run`. @throws HakobuError STOP_FAILED */
  discard(): Promise<void>;
}

export interface Engine {
  readonly name: string;
  /** Absent `checkpoint` support comes with the reason, for people. */
  readonly capabilities: { readonly checkpoint: true } | { readonly checkpoint: false; readonly reason: string };
  /** Makes ready what all its containers share; called once before the host joins. Idempotent. */
  prepare?(): Promise<void>;
  /**
   * What an image taken here needs where it is restored. Compared key by key. It may be remembered for as long as the engine lives;
   * `now`: looked at anew, and not remembered.
   */
  fingerprint(spec: ContainerSpec, now?: boolean): Promise<Readonly<Record<string, string>>>;
  /** What is to be remembered of this container from now on: an image was published that needs it. Absent: nothing is remembered. */
  remember?(spec: ContainerSpec, fingerprint: Readonly<Record<string, string>>): void;
  /** Cold start: resolves when the first process runs, which is before it listens. @throws HakobuError START_FAILED */
  start(launch: Launch, signal: AbortSignal): Promise<Launched>;
  /**
   * A cold start beside the container, in order to image it: with the container's own address and environment, in a network namespace
   * which no client and no dispatcher reaches and from which it reaches others. Its image is restored as the container.
   * `checkpoint`, `alive`, `listening` and `stop` take the instance as any other; `find` never returns it and removes what a crash
   * left of it. At most one of a container. Absent: the engine cannot. @throws HakobuError START_FAILED
   */
  shadow?(launch: Launch, signal: AbortSignal): Promise<Launched>;
  /** From the image in `directory`, which is only read. @throws HakobuError RESTORE_FAILED with CRIU's last lines */
  restore(launch: Launch, directory: string, signal: AbortSignal): Promise<Launched>;
  /**
   * As `restore`, ahead of the time at which it is known whether, and as which epoch, the container may run here. What `find` meets
   * of one whose agent has died is removed. Absent: the engine cannot. @throws HakobuError RESTORE_FAILED
   */
  standby?(launch: Omit<Launch, "epoch">, directory: string, signal: AbortSignal): Promise<Standby>;
  /** Writes an image into the empty `directory`; the instance goes on running. @throws HakobuError CHECKPOINT_FAILED */
  checkpoint(instance: Instance, spec: ContainerSpec, directory: string, signal: AbortSignal): Promise<Phases>;
  /** Changes the limits of a running instance at once. Absent: the engine enforces none. @throws HakobuError CONFIG_INVALID when they are refused */
  scale?(instance: Instance, limits: ContainerSpec["limits"]): Promise<void>;
  /** The host owns the running instance anew: tells it (/run/hakobu/epoch), and notes it. */
  renew(instance: Instance, epoch: number): Promise<Instance>;
  /** TERM, then KILL after the grace; returns when no process and no resource of it is left. @throws HakobuError STOP_FAILED */
  stop(instance: Instance, graceMs: number): Promise<void>;
  /** Whether its first process still runs. Cheap: asked often. */
  alive(instance: Instance): boolean;
  /** Whether something listens on its port, inside its own network namespace. */
  listening(instance: Instance): Promise<boolean>;
  /** Instances that outlived the agent that started them. Removes what is left of those that did not. */
  find(): Promise<readonly Instance[]>;
  /** Ends what the engine itself runs; containers go on. Idempotent. */
  close?(): Promise<void>;
  /** The last lines that the container wrote to its standard output and error. */
  output(container: string, lines: number): Promise<string>;
}
