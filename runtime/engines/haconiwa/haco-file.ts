// The haco file (Haconiwa's Ruby DSL, v0.11.5) of one container.
//
//   H1  No value of a specification can leave its literal: every byte that means anything inside a Ruby string is written as \xNN.
//   H2  What differs between two calls for one container comes from the environment: name, address, images, CRIU's service.
//   H3  A user's own file is taken as it is, with the same environment, and stands beside the container for all calls that follow.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Launch } from "../../../actors/ports/engine.js";
import { HakobuError, reasonOf } from "../../../actors/hakobu-error.js";
import type { Bind } from "../runc/oci-config.js";
import type { HaconiwaNames } from "./names.js";

/** What the haco file reads. All are given to every call: it is evaluated by each of them. */
export const variables = {
  name: "HAKOBU_HACONIWA_NAME",
  address: "HAKOBU_HACONIWA_ADDRESS",
  images: "HAKOBU_HACONIWA_IMAGES",
  service: "HAKOBU_HACONIWA_CRIU_SERVICE",
  /** For a user's own file; the generated one has these as literals. */
  root: "HAKOBU_HACONIWA_ROOT",
  pidFile: "HAKOBU_HACONIWA_PID_FILE",
  bundle: "HAKOBU_HACONIWA_BUNDLE",
  restoreLog: "HAKOBU_HACONIWA_RESTORE_LOG",
  criu: "HAKOBU_HACONIWA_CRIU",
  port: "HAKOBU_HACONIWA_PORT",
  epoch: "HAKOBU_HACONIWA_EPOCH",
} as const;

/** Without these Hakobu could not find, image or restore the container. */
const needed = ["name", "root", "pidFile", "images", "service"] as const;

/** The runc engine's. */
const capabilities = [
  "cap_audit_write",
  "cap_chown",
  "cap_dac_override",
  "cap_fowner",
  "cap_fsetid",
  "cap_kill",
  "cap_net_bind_service",
  "cap_setfcap",
  "cap_setgid",
  "cap_setpcap",
  "cap_setuid",
  "cap_sys_chroot",
];

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** The runc engine gives CRIU the same: TCP connections of the image are closed in the copy, control groups are ours. */
const criuOptions = ["--manage-cgroups=ignore", "--network-lock", "skip", "--tcp-close", "--file-locks"];

export interface HacoContext {
  readonly names: HaconiwaNames;
  readonly launch: Launch;
  /** Targets as they are called in the mounted root file system, without symbolic links. */
  readonly binds: readonly Bind[];
  /** Path of the CRIU that restores. */
  readonly criu: string | undefined;
}

/** @throws HakobuError START_FAILED for what no program can be given */
export function hacoFile({ names, launch, binds, criu }: HacoContext): string {
  const { spec, epoch } = launch;
  const environment = {
    PATH: rubyString(searchPath),
    HOST: fromEnvironment("address"),
    PORT: rubyString(String(spec.port)),
    HAKOBU_CONTAINER: rubyString(spec.name),
    HAKOBU_EPOCH: rubyString(String(epoch)),
    // CRIU cannot image io_uring.
    UV_USE_IO_URING: rubyString("0"),
    ...Object.fromEntries(Object.entries(spec.env).map(([name, value]) => [name, rubyString(value)])),
  };
  // Opened inside: a file outside of the container's mount namespace cannot be imaged.
  const command = ["/bin/sh", "-c", 'exec "$@" >>/run/hakobu/output.log 2>&1', "sh", ...spec.command];
  const lines = [
    `c.name = ${fromEnvironment("name")}`,
    `c.hostname = ${rubyString(spec.name)}`,
    `c.container_pid_file = ${rubyString(names.pidFile)}`,
    "c.daemonize!",
    `c.init_command = ${rubyArray(command)}`,
    `c.environ = { ${Object.entries(environment)
      .map(([name, value]) => `${rubyString(name)} => ${value}`)
      .join(", ")} }`,
    `c.workdir = ${rubyString(spec.cwd)}`,
    `c.uid = ${spec.user.uid}`,
    `c.gid = ${spec.user.gid}`,
    `c.chroot_to ${rubyString(names.root)}`,
    "c.rootfs.readonly = false",
    'c.mount_independent "procfs"',
    ...binds.map(
      ({ source, target, readOnly }) =>
        `c.add_mount_point ${rubyString(source)}, to: ${rubyString(names.root + target)}, ` +
        `criu_ext_key: ${rubyString(target)}, readonly: ${readOnly}`,
    ),
    ...["uts", "ipc", "pid", "mount"].map((each) => `c.namespace.unshare ${rubyString(each)}`),
    "c.capabilities.reset_to_privileged!",
    `c.capabilities.allow ${capabilities.map(rubyString).join(", ")}`,
    "c.checkpoint do |k|",
    `  k.images_dir = ${fromEnvironment("images")}`,
    `  k.criu_bin_path = ${rubyString(criu ?? "criu")}`,
    `  k.criu_service_address = ${fromEnvironment("service")}`,
    // CRIU's service takes no path here, only a name: it writes into the images' directory.
    `  k.criu_log_file = ::Haconiwa.current_subcommand == "restore" ? ${rubyString(names.restoreLog)} : "dump.log"`,
    `  k.extra_criu_options = ${rubyArray(["-W", names.bundle, ...criuOptions])}`,
    "  k.leave_running = true",
    "end",
  ];
  const body = lines.map((line) => `  ${line}\n`).join("");
  return `# Written by Hakobu at each start and restore of ${spec.name}.\nHaconiwa.define do |c|\n${body}end\n`;
}

/** H3. @throws HakobuError START_FAILED naming what the file lacks */
export function ownHacoFile(path: string): string {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    throw new HakobuError("START_FAILED", `haconiwa.file ${path} cannot be read on this host: ${reasonOf(cause)}`, {
      cause,
    });
  }
  const missing = needed.map((each) => variables[each]).filter((variable) => !text.includes(variable));
  if (missing.length === 0) return text;
  const what = missing.map((variable) => `ENV["${variable}"]`).join(", ");
  throw new HakobuError("START_FAILED", `haconiwa.file ${path} does not use ${what}; see docs/reference/haconiwa.md`);
}

/** Changes with the content of a user's own file. */
export function ownHacoFingerprint(path: string): string {
  try {
    return createHash("sha256").update(readFileSync(path)).digest("hex").slice(0, 16);
  } catch {
    return "cannot be read";
  }
}

/** A Ruby literal of exactly these bytes (UTF-8). @throws HakobuError START_FAILED for a NUL, which ends every argument and variable */
export function rubyString(text: string): string {
  let literal = "";
  for (const byte of Buffer.from(text)) {
    if (byte === 0)
      throw new HakobuError(
        "START_FAILED",
        `${JSON.stringify(text)} holds a NUL character: no program can be given that`,
      );
    const character = String.fromCharCode(byte);
    literal += /[ !$-[\]-~]/.test(character) ? character : `\\x${byte.toString(16).padStart(2, "0")}`;
  }
  return `"${literal}"`;
}

function rubyArray(texts: readonly string[]): string {
  return `[${texts.map(rubyString).join(", ")}]`;
}

function fromEnvironment(variable: keyof typeof variables): string {
  return `ENV[${rubyString(variables[variable])}]`;
}
