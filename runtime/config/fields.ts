// The fields that configuration files are made of, as zod schemas whose messages say what is expected instead.
import { z } from "zod";
import { formatDuration, parseDuration } from "./duration.js";
import { formatSize, parseSize } from "./size.js";

/** Starts and ends with a letter or digit; fits into a path, a cgroup, a network namespace and a host name. */
export const NAME = /^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$/;

/** Reads a value with `read`; undefined from it is a refusal. */
export function field<T>(expected: string, read: (input: unknown) => T | undefined): z.ZodType<T> {
  return z.any().transform((input: unknown, context): T => {
    const value = input === undefined ? undefined : read(input);
    if (value !== undefined) return value;
    const got = input === undefined ? "it is missing" : `not ${shown(input)}`;
    context.addIssue({ code: "custom", message: `expected ${expected}, ${got}` });
    return z.NEVER;
  }) as z.ZodType<T>;
}

function shown(input: unknown): string {
  if (Array.isArray(input)) return "a list";
  if (typeof input === "object" && input !== null) return "a section";
  const written = JSON.stringify(input) ?? String(input);
  return written.length > 60 ? `${written.slice(0, 57)}...` : written;
}

/** A section with known keys and nothing else; absent, it is taken as empty. */
export function section<T extends z.core.$ZodLooseShape>(shape: T): z.ZodPrefault<z.ZodObject<T, z.core.$strict>> {
  return block(shape).prefault({} as never);
}

/** A section that has to be there. */
export function block<T extends z.core.$ZodLooseShape>(shape: T): z.ZodObject<T, z.core.$strict> {
  return z.strictObject(shape, {
    error: (issue) =>
      issue.code === "invalid_type" ? `expected a section of fields, not ${shown(issue.input)}` : undefined,
  });
}

export function text(expected: string, pattern: RegExp): z.ZodType<string> {
  return field(expected, (input) => (typeof input === "string" && pattern.test(input) ? input : undefined));
}

export const name = text("a name of a-z, 0-9 and -, at most 40 long, such as blog-2", NAME);

/** Whole numbers; digits in a string count, for they come from the environment. */
export function whole(least: number, most: number): z.ZodType<number> {
  return field(`a whole number from ${least} to ${most}`, (input) => {
    const number = typeof input === "string" && /^\d{1,15}$/.test(input) ? Number(input) : input;
    return typeof number === "number" && Number.isInteger(number) && number >= least && number <= most
      ? number
      : undefined;
  });
}

export const flag = field<boolean>("true or false", (input) => {
  if (input === true || input === "true") return true;
  return input === false || input === "false" ? false : undefined;
});

export function oneOf<const T extends string>(...values: readonly T[]): z.ZodType<T> {
  return field(values.join(" or "), (input) => values.find((value) => value === input));
}

/** In milliseconds. */
export function duration(leastMs: number, mostMs: number): z.ZodType<number> {
  return field(`a duration from ${formatDuration(leastMs)} to ${formatDuration(mostMs)}`, (input) => {
    const ms = typeof input === "string" ? parseDuration(input) : undefined;
    return ms !== undefined && ms >= leastMs && ms <= mostMs ? ms : undefined;
  });
}

/** In bytes. */
export function size(leastBytes: number, mostBytes: number, example: string): z.ZodType<number> {
  const range = `from ${formatSize(leastBytes)} to ${formatSize(mostBytes)}`;
  return field(`a size such as ${example}, ${range}`, (input) => {
    const bytes = typeof input === "string" ? parseSize(input) : undefined;
    return bytes !== undefined && bytes >= leastBytes && bytes <= mostBytes ? bytes : undefined;
  });
}

/** Absolute, and written in the one way in which it can be compared: no `.`, `..`, empty part or slash at the end. */
export function isPlainPath(path: string): boolean {
  if (path === "/") return true;
  if (!path.startsWith("/") || path.length > 4095 || path.includes("\0")) return false;
  return path
    .slice(1)
    .split("/")
    .every((part) => part !== "" && part !== "." && part !== "..");
}

export const absolutePath = field<string>("an absolute path without . or .. or a slash at the end", (input) =>
  typeof input === "string" && isPlainPath(input) ? input : undefined,
);

export interface Endpoint {
  readonly address: string;
  readonly port: number;
}
