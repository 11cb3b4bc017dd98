// What runc is told about a container (OCI runtime specification 1.0.2). Few mounts, and no tmpfs among them: each costs CRIU
// milliseconds at every restore (docs/decisions).
//
//   O1  No new privileges, the capabilities below, no devices but the base layer's, /proc not writable outside of processes' own.
//   O2  Nothing of the container's open files lies outside of its mount namespace, so that it can be imaged: its output goes
//       to /run/hakobu/output.log, opened inside.
import { realpathSync } from "node:fs";
import { HakobuError, reasonOf } from "../../../actors/hakobu-error.js";
import type { Launch } from "../../../actors/ports/engine.js";
import type { ContainerSpec } from "../../../actors/ports/spec.js";
import type { Names } from "./names.js";
import { seccompProfile } from "./seccomp.js";

/** Docker's, without MKNOD and NET_RAW. */
const capabilities = [
  "CAP_AUDIT_WRITE",
  "CAP_CHOWN",
  "CAP_DAC_OVERRIDE",
  "CAP_FOWNER",
  "CAP_FSETID",
  "CAP_KILL",
  "CAP_NET_BIND_SERVICE",
  "CAP_SETFCAP",
  "CAP_SETGID",
  "CAP_SETPCAP",
  "CAP_SETUID",
  "CAP_SYS_CHROOT",
];

const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const openFiles = 4096;

/** A bind mount: declared to CRIU as external, at the dump by its target and at the restore by its source. */
export interface Bind {
  readonly source: string;
  readonly target: string;
  readonly readOnly: boolean;
}

/** @throws HakobuError START_FAILED when a source is not on this host */
export function bindsOf(names: Names, spec: ContainerSpec): readonly Bind[] {
  return [
    { source: names.shm, target: "/dev/shm", readOnly: false },
    { source: names.run, target: "/run/hakobu", readOnly: false },
    // CRIU follows no symbolic link to a source.
    ...spec.mounts.map((mount) => ({ ...mount, source: whereIs(mount.source) })),
  ];
}

function whereIs(source: string): string {
  try {
    return realpathSync(source);
  } catch (error) {
    throw new HakobuError("START_FAILED", `${source} cannot be mounted into the container: ${reasonOf(error)}`, {
      cause: error,
    });
  }
}

export function ociConfig(names: Names, { spec, epoch }: Launch, binds: readonly Bind[]): object {
  const environment = {
    PATH: path,
    HOST: "0.0.0.0",
    PORT: String(spec.port),
    HAKOBU_CONTAINER: spec.name,
    HAKOBU_EPOCH: String(epoch),
    // CRIU cannot image io_uring.
    UV_USE_IO_URING: "0",
    ...spec.env,
  };
  return {
    ociVersion: "1.0.2",
    hostname: spec.name,
    process: {
      terminal: false,
      user: { uid: spec.user.uid, gid: spec.user.gid },
      args: ["/bin/sh", "-c", 'exec "$@" >>/run/hakobu/output.log 2>&1', "sh", ...spec.command],
      cwd: spec.cwd,
      env: Object.entries(environment).map(([name, value]) => `${name}=${value}`),
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
      rlimits: [{ type: "RLIMIT_NOFILE", hard: openFiles, soft: openFiles }],
      noNewPrivileges: true,
    },
    root: { path: names.root, readonly: false },
    mounts: [
      { destination: "/proc", type: "proc", source: "proc", options: ["nosuid", "noexec", "nodev"] },
      {
        destination: "/dev/pts",
        type: "devpts",
        source: "devpts",
        options: ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
      },
      ...binds.map(({ source, target, readOnly }) => ({
        destination: target,
        type: "bind",
        source,
        options: ["bind", readOnly ? "ro" : "rw", "nosuid", "nodev"],
      })),
    ],
    linux: {
      cgroupsPath: `/${names.cgroup}`,
      resources: { devices: [{ allow: false, access: "rwm" }] },
      namespaces: [
        { type: "pid" },
        { type: "network", path: names.namespaceFile },
        { type: "ipc" },
        { type: "uts" },
        { type: "mount" },
      ],
      // Docker masks /proc/acpi and /proc/scsi by a tmpfs; read-only they do no harm and cost nothing.
      maskedPaths: ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug"],
      readonlyPaths: [
        "/proc/acpi",
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/scsi",
        "/proc/sys",
        "/proc/sysrq-trigger",
      ],
      seccomp: seccompProfile,
    },
  };
}
