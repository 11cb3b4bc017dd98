// What a user asks for: one application. The schema that reads it from YAML is runtime/config/spec.ts.
import type { ProbeKind } from "./prober.js";

export type Takeover = "fast" | "confirmed" | "exclusive";

export interface Mount {
  /** Absolute path, the same on every host (the shared directory, design "DataPool"). */
  readonly source: string;
  /** Absolute path inside the container. */
  readonly target: string;
  readonly readOnly: boolean;
}

/** One application, validated and with every default filled in. Durations in milliseconds. */
export interface ContainerSpec {
  /** A DNS label; names the container's directories, namespace and cgroup. */
  readonly name: string;
  /** Host names (RFC 9110 section 7.2) whose requests it answers; `*` answers what nothing else does. */
  readonly hostnames: readonly string[];
  readonly engine: "runc" | "process" | "haconiwa";
  /** `host`: a copy-on-write view of the host's own root. Else an absolute path of a root filesystem directory. */
  readonly rootfs: string;
  readonly command: readonly string[];
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  readonly user: { readonly uid: number; readonly gid: number };
  /** The TCP port on which the application listens, on 0.0.0.0 inside its container. */
  readonly port: number;
  readonly mounts: readonly Mount[];
  readonly limits: { readonly cpus: number; readonly memoryMiB: number; readonly pids: number };
  /** Without a request for this long the container is stopped. 0: never. */
  readonly idleTimeoutMs: number;
  /** What becomes of its memory then: `suspend` keeps it in an image, for the next request; absent: `stop`. Planned moves do the same. */
  readonly onIdle?: "stop" | "suspend";
  readonly startTimeoutMs: number;
  /** From TERM to KILL. */
  readonly stopGraceMs: number;
  readonly checkpoint: {
    /** Take an image when a cold start is ready. */
    readonly onReady: boolean;
    /** `listen`: as soon as the port listens (the paper). `warm`: after the warm-up requests were answered too. */
    readonly at: "listen" | "warm";
    /** Path of the GET, without cookies, that decides readiness and warms the application up; several are made one after the other. */
    readonly warmup: string | readonly string[];
    readonly timeoutMs: number;
    /** Golden images are taken again: when the root filesystem or the specification changed, and as named here. Absent: never. */
    readonly refresh?: {
      /** Since the newest good one was taken. */
      readonly everyMs?: number;
      /** When what lies there changed: absolute paths as the hosts see them, the same on each. */
      readonly paths: readonly string[];
    };
  };
  /** Requests (POST) that the application answers with 2xx before an image of it is taken, and after a copy of it was restored. */
  readonly hooks?: { readonly beforeCheckpoint?: string; readonly afterRestore?: string; readonly timeoutMs: number };
  /** A haco file of the user's own, the same on every host, instead of the generated one. */
  readonly haconiwa?: { readonly file: string };
  /** What it takes to move the container away from an owner that does not answer. */
  readonly takeover: Takeover;
  /** How its host is asked whether it is there; without `kind` as whoever asks is configured. */
  readonly probe: { readonly timeoutMs: number; readonly kind?: ProbeKind };
}
