// Application specifications: from YAML to `ContainerSpec`, with every default, and nothing wrong left.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { z } from "zod";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { deepFreeze, parseDocuments } from "./document.js";
import * as fields from "./fields.js";
import { type Problem, problemsOf, refusal } from "./problem.js";

const MiB = 2 ** 20;
const SECOND = 1000;
const HOUR = 3_600_000;
const YEAR = 365 * 24 * HOUR;

const noNul = (input: unknown): string | undefined =>
  typeof input === "string" && !input.includes("\0") ? input : undefined;

const word = fields.field("a text (put quotes around a number)", noNul);

const hostname = fields.field(
  "a host name without port, such as blog.example (write non-ASCII ones in their xn-- form), or *",
  (input) => {
    if (input === "*") return "*";
    if (typeof input !== "string" || input.length > 253) return undefined;
    const lower = input.toLowerCase();
    const labels = lower.split(".");
    return labels.every((label) => /^[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?$/.test(label)) ? lower : undefined;
  },
);

const requestPath = fields.text("the path of a request, such as /health", /^\/[\x21-\x7e]*$/);

const warmupsAtMost = 16;
const watchedPathsAtMost = 16;

const watchedPath = fields.field("the absolute path of content, and not of the whole file system", (input) =>
  typeof input === "string" && input !== "/" && fields.isPlainPath(input) ? input : undefined,
);

/** CPUs, and bytes of memory. */
export const limit = {
  cpus: fields.field("a number of CPUs from 0.01 to 1024, such as 0.5", (input) =>
    typeof input === "number" && input >= 0.01 && input <= 1024 ? input : undefined,
  ),
  memory: fields.size(4 * MiB, 2 ** 44, "512MiB"),
};

function list<T>(item: z.ZodType<T>, expected: string, least = 0): z.ZodArray<z.ZodType<T>> {
  const message = (issue: { input?: unknown }): string =>
    issue.input === undefined ? `expected ${expected}, it is missing` : `expected ${expected}`;
  return z.array(item, { error: message }).min(least, { error: `expected ${expected}` });
}

const warmups = list(requestPath, "a path, or a list of paths, such as [/, /login]", 1).max(warmupsAtMost, {
  error: `expected at most ${warmupsAtMost} paths: one that loads much of the application is worth more than many`,
});

/** A list of one is that one: the hash is the same. */
const warmupField = z.any().transform((input: unknown, context): string | readonly string[] => {
  const read = warmups.safeParse(Array.isArray(input) ? input : [input]);
  if (read.success) return read.data.length === 1 ? (read.data[0] as string) : read.data;
  for (const { path, message } of read.error.issues)
    context.addIssue({ code: "custom", path: Array.isArray(input) ? path : [], message });
  return z.NEVER;
});

const schema = fields.block({
  name: fields.name,
  hostnames: list(hostname, "a list of host names", 1).optional(),
  engine: fields.oneOf("runc", "process", "haconiwa").default("runc"),
  rootfs: fields
    .field("host, or the absolute path of a directory", (input) =>
      input === "host" || (typeof input === "string" && input !== "/" && fields.isPlainPath(input)) ? input : undefined,
    )
    .default("host"),
  command: list(word, 'a command as a list, such as [gunicorn, -b, "0.0.0.0:8000", site.wsgi]', 1),
  cwd: fields.absolutePath.default("/"),
  env: z
    .record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, { error: "expected a name of letters, digits and _" }), word, {
      error: (issue) => (issue.code === "invalid_type" ? "expected a section of NAME: value" : undefined),
    })
    .default({}),
  user: fields.section({
    uid: fields.whole(0, 2 ** 32 - 2).default(0),
    gid: fields.whole(0, 2 ** 32 - 2).default(0),
  }),
  port: fields.whole(1, 65_535),
  mounts: list(
    fields.block({ source: fields.absolutePath, target: fields.absolutePath, readOnly: fields.flag.default(false) }),
    "a list of { source, target, readOnly }",
  ).default([]),
  limits: fields.section({
    cpus: limit.cpus.default(1),
    memory: limit.memory.default(1024 * MiB),
    pids: fields.whole(1, 4_194_304).default(512),
  }),
  idleTimeout: fields
    .field("never, or a duration from 1s to 365d", (input) => {
      if (input === "never") return 0;
      const read = fields.duration(SECOND, YEAR).safeParse(input);
      return read.success ? read.data : undefined;
    })
    .default(600 * SECOND),
  onIdle: fields.oneOf("stop", "suspend").default("stop"),
  startTimeout: fields.duration(SECOND, HOUR).default(60 * SECOND),
  stopGrace: fields.duration(0, HOUR).default(5 * SECOND),
  checkpoint: fields.section({
    onReady: fields.flag.optional(),
    at: fields.oneOf("listen", "warm").default("warm"),
    warmup: warmupField.default("/"),
    timeout: fields.duration(SECOND, HOUR).default(60 * SECOND),
    refresh: fields
      .block({
        every: fields.duration(60 * SECOND, YEAR).exactOptional(),
        paths: list(watchedPath, "a list of absolute paths, such as [/shared/blog]")
          .max(watchedPathsAtMost, {
            error: `expected at most ${watchedPathsAtMost} paths: name the directory above them`,
          })
          .default([]),
      })
      .exactOptional(),
  }),
  hooks: fields.section({
    beforeCheckpoint: requestPath.exactOptional(),
    afterRestore: requestPath.exactOptional(),
    timeout: fields.duration(10, 10 * 60 * SECOND).default(2 * SECOND),
  }),
  haconiwa: fields.block({ file: fields.absolutePath }).optional(),
  takeover: fields.oneOf("fast", "confirmed", "exclusive").default("fast"),
  probe: fields.section({
    kind: fields.oneOf("tcp", "icmp").optional(),
    timeout: fields.duration(10, 10 * SECOND).default(100),
  }),
});

type Form = z.output<typeof schema>;

/** Directories of the container that Hakobu or the kernel fills. */
const RESERVED = ["/proc", "/dev", "/sys", "/run/hakobu"];

/** What the schema cannot say: fields that do not go together. Looks at the text as it was written, wherever it makes sense. */
function contradictions(value: unknown): Problem[] {
  const problems: Problem[] = [];
  const refuse = (path: Problem["path"], message: string): void => void problems.push({ path, message });
  const spec = asSection(value);
  const process = spec["engine"] === "process";
  const checkpoint = asSection(spec["checkpoint"]);
  if (process && typeof spec["rootfs"] === "string" && spec["rootfs"] !== "host")
    refuse(["rootfs"], "the process engine runs on the host's own root: leave rootfs out, or set engine: runc");
  if (process && checkpoint["onReady"] === true)
    refuse(["checkpoint", "onReady"], "the process engine takes no checkpoints: leave it out, or set engine: runc");
  if (spec["onIdle"] === "suspend" && (process || checkpoint["onReady"] === false))
    refuse(
      ["onIdle"],
      `suspend takes images: ${process ? "set engine: runc" : "leave checkpoint.onReady out"}, or set stop`,
    );
  if (spec["haconiwa"] !== undefined && spec["engine"] !== "haconiwa")
    refuse(["haconiwa"], "is for engine: haconiwa: leave it out, or set that engine");
  const hooks = asSection(spec["hooks"]);
  if (process && spec["hooks"] !== undefined)
    refuse(["hooks"], "the process engine takes no checkpoints: leave them out, or set engine: runc");
  if (hooks["timeout"] !== undefined && Object.keys(hooks).length === 1)
    refuse(["hooks", "timeout"], "is of no hook: name beforeCheckpoint or afterRestore, or leave it out");
  if (checkpoint["at"] === "listen" && checkpoint["warmup"] !== undefined)
    refuse(["checkpoint", "warmup"], "is not requested with at: listen: leave one of the two out");
  if (checkpoint["refresh"] !== undefined) refuseRefresh(spec, checkpoint, refuse);
  for (const key of Object.keys(asSection(spec["env"])))
    if (key.startsWith("HAKOBU_")) refuse(["env", key], "names that begin with HAKOBU_ are set by Hakobu");
  const command = spec["command"];
  if (Array.isArray(command) && command[0] === "") refuse(["command", 0], "expected a program");
  const targets = new Map<string, number>();
  const mounts = Array.isArray(spec["mounts"]) ? spec["mounts"] : [];
  for (const [index, mount] of mounts.entries()) {
    const { source, target, readOnly } = asSection(mount);
    if (source === "/") refuse(["mounts", index, "source"], "would show the host's whole file system to the container");
    if (process && (source !== target || readOnly === true))
      refuse(["mounts", index], "the process engine cannot mount: use the path on the host, or set engine: runc");
    if (typeof target !== "string") continue;
    const reserved = RESERVED.find((path) => covers(path, target) || covers(target, path));
    if (reserved !== undefined)
      refuse(["mounts", index, "target"], `would hide ${reserved}, which the container needs as it is`);
    const first = targets.get(target);
    if (first !== undefined) refuse(["mounts", index, "target"], `${target} is already the target of mounts[${first}]`);
    else targets.set(target, index);
  }
  const hostnames = Array.isArray(spec["hostnames"]) ? spec["hostnames"].map(String) : [];
  for (const [index, each] of hostnames.entries())
    if (hostnames.findIndex((other) => other.toLowerCase() === each.toLowerCase()) < index)
      refuse(["hostnames", index], `${each} is given twice`);
  return problems;
}

/** Images are taken again from a second copy that nobody reaches: where there may be none, and where there are no images. */
function refuseRefresh(
  spec: Readonly<Record<string, unknown>>,
  checkpoint: Readonly<Record<string, unknown>>,
  refuse: (path: Problem["path"], message: string) => void,
): void {
  const path = ["checkpoint", "refresh"];
  const { engine, takeover } = spec;
  if (checkpoint["onReady"] === false) refuse(path, "refreshes images, and checkpoint.onReady is false: leave one out");
  if (takeover === "exclusive")
    refuse(
      path,
      "starts a second copy of the application beside its owner, to image it, and takeover: exclusive promises that there " +
        "is never one: leave refresh out, or set takeover: confirmed",
    );
  if (engine === "process") refuse(path, "the process engine takes no checkpoints: leave it out, or set engine: runc");
  if (engine === "haconiwa")
    refuse(path, "the haconiwa engine cannot start a copy that no client reaches: leave it out, or set engine: runc");
}

function covers(outer: string, inner: string): boolean {
  return outer === "/" || inner === outer || inner.startsWith(`${outer}/`);
}

function asSection(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

function refreshOf({ every, paths }: NonNullable<Form["checkpoint"]["refresh"]>) {
  return { ...(every === undefined ? {} : { everyMs: every }), paths };
}

function specOf(form: Form): ContainerSpec {
  const { limits, checkpoint } = form;
  const { timeout: timeoutMs, ...hooks } = form.hooks;
  return {
    name: form.name,
    hostnames: form.hostnames ?? [`${form.name}.localhost`],
    engine: form.engine,
    rootfs: form.rootfs,
    command: form.command,
    cwd: form.cwd,
    env: form.env,
    user: form.user,
    port: form.port,
    mounts: form.mounts,
    limits: { cpus: limits.cpus, memoryMiB: Math.floor(limits.memory / MiB), pids: limits.pids },
    idleTimeoutMs: form.idleTimeout,
    ...(form.onIdle === "stop" ? {} : { onIdle: form.onIdle }),
    startTimeoutMs: form.startTimeout,
    stopGraceMs: form.stopGrace,
    checkpoint: {
      onReady: checkpoint.onReady ?? form.engine !== "process",
      at: checkpoint.at,
      warmup: checkpoint.warmup,
      timeoutMs: checkpoint.timeout,
      ...(checkpoint.refresh === undefined ? {} : { refresh: refreshOf(checkpoint.refresh) }),
    },
    ...(Object.keys(hooks).length === 0 ? {} : { hooks: { ...hooks, timeoutMs } }),
    ...(form.haconiwa === undefined ? {} : { haconiwa: form.haconiwa }),
    takeover: form.takeover,
    probe: {
      timeoutMs: form.probe.timeout,
      ...(form.probe.kind === undefined ? {} : { kind: form.probe.kind }),
    },
  };
}

/**
 * Every specification in a YAML text, deep-frozen.
 * @param file how to call the text in messages
 * @throws HakobuError CONFIG_INVALID naming everything that is wrong, one line each: `blog.yaml:7:3: limits.memory: expected ...`
 */
export function parseSpecs(text: string, file: string): ContainerSpec[] {
  const specs: ContainerSpec[] = [];
  const lines: string[] = [];
  const refuse = (problems: readonly Problem[], where: (path: Problem["path"]) => string): void => {
    if (problems.length > 0) lines.push(refusal(problems, where).message);
  };
  /** Which document took a name or host name first. */
  const taken = new Map<string, string>();
  for (const { value, where } of parseDocuments(text, file)) {
    if (value === undefined) continue;
    const result = schema.safeParse(value);
    const problems = result.success ? [] : problemsOf(schema, result.error);
    const broken = new Set(problems.map(({ path }) => path.join("\0")));
    for (const problem of contradictions(value)) if (!broken.has(problem.path.join("\0"))) problems.push(problem);
    if (result.success) {
      const spec = specOf(result.data);
      const keys: [Problem["path"], string][] = [[["name"], spec.name]];
      for (const [index, each] of (result.data.hostnames ?? []).entries()) keys.push([["hostnames", index], each]);
      for (const [path, key] of keys) {
        const kind = `${String(path[0])} ${key}`;
        const first = taken.get(kind);
        if (first === undefined) taken.set(kind, where([]));
        else if (first !== where([])) problems.push({ path, message: `${key} is already used by the one at ${first}` });
      }
      specs.push(spec);
    }
    refuse(problems, where);
  }
  if (lines.length > 0) throw new HakobuError("CONFIG_INVALID", lines.join("\n"));
  if (specs.length === 0)
    throw new HakobuError("CONFIG_INVALID", `${file}: holds no specification; one starts with "name:"`);
  return deepFreeze(specs);
}

/** @throws HakobuError CONFIG_INVALID, also when the file cannot be read */
export async function readSpecs(file: string): Promise<ContainerSpec[]> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (cause) {
    throw new HakobuError("CONFIG_INVALID", `${file}: cannot be read (${reasonOf(cause)}): check the path`, { cause });
  }
  return parseSpecs(text, file);
}

/**
 * Changes exactly when what runs changes: an image, or a running copy, of another hash is of another program. How the
 * container is reached (`hostnames`), watched (`probe`, `takeover`), timed (`idleTimeout`, `startTimeout`, `stopGrace`,
 * `checkpoint.timeout`), limited (`limits`), what becomes of it when idle (`onIdle`), whether and when an image is taken (`checkpoint.onReady`,
 * `checkpoint.refresh`) and what is called after a restore (`hooks.afterRestore`) can change without a restart and without throwing an image away. 16 hex digits of SHA-256 over the canonical JSON (keys in order) of the rest.
 */
export function specHash(spec: ContainerSpec): string {
  const { name, engine, rootfs, command, cwd, env, user, port, mounts, checkpoint, hooks, haconiwa } = spec;
  const { at, warmup } = checkpoint;
  const prepared = hooks?.beforeCheckpoint === undefined ? {} : { beforeCheckpoint: hooks.beforeCheckpoint };
  const own = haconiwa === undefined ? {} : { haconiwa };
  const image = { at, warmup, ...prepared };
  const what = { name, engine, rootfs, command, cwd, env, user, port, mounts, checkpoint: image, ...own };
  return createHash("sha256").update(canonical(what)).digest("hex").slice(0, 16);
}

export function specRecord(spec: ContainerSpec): SpecRecord {
  return { spec, hash: specHash(spec) };
}

function canonical(value: unknown): string {
  return JSON.stringify(value, (_key, part: unknown) => {
    if (typeof part !== "object" || part === null || Array.isArray(part)) return part;
    return Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)));
  });
}
