// YAML documents whose values know where they were written.
import { isCollection, isMap, isPair, LineCounter, type Node, parseAllDocuments } from "yaml";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { Path } from "./problem.js";

export interface Document {
  /** Plain data; undefined for an empty document. */
  readonly value: unknown;
  /** `blog.yaml:7:3`, of what is at that path or of the nearest thing around it. */
  readonly where: (path: Path) => string;
}

/**
 * YAML 1.2, any number of documents.
 * @param file how to call it in messages
 * @throws HakobuError CONFIG_INVALID with every syntax error, keys that are given twice included
 */
export function parseDocuments(text: string, file: string): Document[] {
  const lines = new LineCounter();
  const documents = parseAllDocuments(text, {
    lineCounter: lines,
    prettyErrors: false,
    uniqueKeys: true,
    version: "1.2",
  });
  if (!Array.isArray(documents)) return [];
  const at = (position: number): string => {
    const { line, col } = lines.linePos(position);
    return `${file}:${Math.max(line, 1)}:${Math.max(col, 1)}`;
  };
  const errors = documents.flatMap((document) => [...document.errors, ...document.warnings]);
  if (errors.length > 0) {
    const messages = errors.map(({ pos, message }) => `${at(pos[0])}: ${message}`);
    throw new HakobuError("CONFIG_INVALID", messages.join("\n"));
  }
  return documents.map((document) => ({
    value: plain(() => document.toJS({ maxAliasCount: 100 }) as unknown, file),
    where: (path) => at(offset(document.contents, path)),
  }));
}

function plain(read: () => unknown, file: string): unknown {
  try {
    return read() ?? undefined;
  } catch (cause) {
    throw new HakobuError("CONFIG_INVALID", `${file}: ${(cause as Error).message}`, { cause });
  }
}

/** Where the key of the last part of the path is written, or the item of a list. */
function offset(contents: Node | null, path: Path): number {
  let node: unknown = contents;
  let found = contents?.range?.[0] ?? 0;
  for (const part of path) {
    if (!isCollection(node)) break;
    const item = isMap(node)
      ? node.items.find((pair) => String((pair.key as { value?: unknown } | null)?.value ?? pair.key) === String(part))
      : node.items[Number(part)];
    if (item === undefined) break;
    const start = isPair(item) ? (item.key as Node | null) : (item as Node | null);
    found = start?.range?.[0] ?? found;
    node = isPair(item) ? item.value : item;
  }
  return found;
}

/** The value, which nobody can change any more. */
export function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    for (const part of Object.values(value)) deepFreeze(part);
    Object.freeze(value);
  }
  return value;
}
