// What is wrong with a configuration: collected, so that one run says everything, each with the place where it was written.
import type { z } from "zod";
import { HakobuError } from "../../actors/hakobu-error.js";

export type Path = readonly PropertyKey[];

export interface Problem {
  readonly path: Path;
  readonly message: string;
}

/** `mounts[0].target` */
export function fieldName(path: Path): string {
  let name = "";
  for (const part of path) name += typeof part === "number" ? `[${part}]` : `${name === "" ? "" : "."}${String(part)}`;
  return name;
}

/** By file, line and column. */
const inOrder = new Intl.Collator("en", { numeric: true }).compare;

/** The problems as one error; `where` gives the file, line and column, or the option, of a path. */
export function refusal(problems: readonly Problem[], where: (path: Path) => string): HakobuError {
  const lines = problems.map(({ path, message }) => {
    const field = fieldName(path);
    return `${where(path)}: ${field === "" ? "" : `${field}: `}${message}`;
  });
  return new HakobuError("CONFIG_INVALID", [...new Set(lines)].sort(inOrder).join("\n"));
}

/** What zod found, in our words, with a suggestion for each key that is not known. */
export function problemsOf(schema: z.ZodType, error: z.ZodError): Problem[] {
  return error.issues.flatMap((issue): Problem[] => {
    if (issue.code === "invalid_key")
      return [{ path: issue.path, message: issue.issues.map(({ message }) => message).join("; ") }];
    if (issue.code !== "unrecognized_keys") return [{ path: issue.path, message: issue.message }];
    const known = knownKeys(schema, issue.path);
    return issue.keys.map((key) => ({ path: [...issue.path, key], message: unknown(key, known) }));
  });
}

function unknown(key: string, known: readonly string[]): string {
  const like = nearest(key, known);
  return like === undefined
    ? `is not known here; known are ${known.join(", ")}`
    : `is not known; did you mean ${like}?`;
}

interface Definition {
  readonly type: string;
  readonly shape?: Readonly<Record<string, z.core.$ZodType>>;
  readonly innerType?: z.core.$ZodType;
  readonly element?: z.core.$ZodType;
  readonly in?: z.core.$ZodType;
}

function definition(schema: z.core.$ZodType | undefined): Definition | undefined {
  let def = schema?._zod.def as Definition | undefined;
  while (def?.innerType !== undefined || def?.in !== undefined) def = (def.innerType ?? def.in)?._zod.def as Definition;
  return def;
}

function knownKeys(schema: z.core.$ZodType, path: Path): string[] {
  let def = definition(schema);
  for (const part of path) def = definition(typeof part === "number" ? def?.element : def?.shape?.[String(part)]);
  return Object.keys(def?.shape ?? {});
}

/** The candidate that few typing errors away, if there is one. */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const plain = (text: string): string => text.toLowerCase().replaceAll(/[-_]/g, "");
  let best: string | undefined;
  let bestDistance = Math.min(2, Math.floor(word.length / 3)) + 1;
  for (const candidate of candidates) {
    const distance = plain(word) === plain(candidate) ? 0 : editDistance(plain(word), plain(candidate));
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** Levenshtein's, with a swap of neighbours as one edit. */
function editDistance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, column) => column)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    const above = rows[i - 1] as number[];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      let cost = Math.min((row[j - 1] as number) + 1, (above[j] as number) + 1, (above[j - 1] as number) + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        cost = Math.min(cost, ((rows[i - 2] as number[])[j - 2] as number) + 1);
      row.push(cost);
    }
    rows.push(row);
  }
  return (rows[a.length] as number[])[b.length] as number;
}
