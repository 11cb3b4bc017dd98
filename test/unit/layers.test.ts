// The architecture as CONTRIBUTING.md draws it: who may import whom, no cycles, and files named after what they own.
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, posix, relative } from "node:path";

/** Source text by path from the repository's root, with `/`. */
type Sources = ReadonlyMap<string, string>;

/** Layers and packages that a layer may import. What is not listed may import anything; `packages` absent: any. */
const rules: Readonly<Record<string, { readonly layers: readonly string[]; readonly packages?: readonly string[] }>> = {
  machines: { layers: ["machines"], packages: ["xstate"] },
  actors: { layers: ["machines", "actors"], packages: ["xstate"] },
  runtime: { layers: ["machines", "actors", "runtime"] },
};
const everywhere = ["machines", "actors", "runtime", "test", "bench", "examples"];
const namesThatSayNothing = /^(utils?|helpers?|types?|common)\./;

/** Specifiers in the order of the text, type imports and re-exports too. `undefined`: computed when it runs. */
function importsOf(text: string): (string | undefined)[] {
  const statements = /^[ \t]*(?:import|export)\b(?:[\w\s{},*$]*?\bfrom)?\s*(["'])([^"'\n]+)\1/gm;
  const calls = /\b(?:import|require)\s*\(\s*(?:(["'`])([^"'`$\n]+)\1)?/g;
  return [...text.matchAll(statements), ...text.matchAll(calls)].map((match) => match[2]);
}

function layerOf(path: string): string {
  return path.split("/", 1)[0] ?? "";
}

/** The path of the source that a relative specifier names. */
function targetOf(path: string, specifier: string): string {
  return posix.join(posix.dirname(path), specifier).replace(/\.js$/, ".ts");
}

function directionViolations(sources: Sources): string[] {
  const violations: string[] = [];
  for (const [path, text] of sources) {
    const rule = rules[layerOf(path)];
    if (!rule) continue;
    for (const specifier of importsOf(text)) {
      const allowed =
        specifier === undefined
          ? rule.packages === undefined
          : specifier.startsWith(".")
            ? rule.layers.includes(layerOf(targetOf(path, specifier)))
            : (rule.packages?.some((name) => specifier === name || specifier.startsWith(`${name}/`)) ?? true);
      if (!allowed) violations.push(`${path} imports ${specifier ?? "a name computed when it runs"}`);
    }
  }
  return violations;
}

/** The first cycle found from each file that closes one, as `a -> b -> a`. */
function cycles(sources: Sources): string[] {
  const found: string[] = [];
  const done = new Set<string>();
  const visit = (path: string, trail: readonly string[]): void => {
    const start = trail.indexOf(path);
    if (start >= 0) found.push([...trail.slice(start), path].join(" -> "));
    const text = sources.get(path);
    if (start >= 0 || done.has(path) || text === undefined) return;
    for (const specifier of importsOf(text)) {
      if (specifier?.startsWith(".")) visit(targetOf(path, specifier), [...trail, path]);
    }
    done.add(path);
  };
  for (const path of sources.keys()) visit(path, []);
  return found;
}

function repository(): string {
  let directory = import.meta.dirname;
  while (!existsSync(join(directory, "package.json"))) directory = dirname(directory);
  return directory;
}

function filesBelow(root: string, folders: readonly string[]): string[] {
  return folders.flatMap((folder) => {
    if (!existsSync(join(root, folder))) return [];
    return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && !entry.parentPath.includes("node_modules"))
      .map((entry) => relative(root, join(entry.parentPath, entry.name)).replaceAll("\\", "/"));
  });
}

function sourcesOf(root: string, folders: readonly string[]): Sources {
  const paths = filesBelow(root, folders).filter((path) => path.endsWith(".ts"));
  return new Map(paths.map((path) => [path, readFileSync(join(root, path), "utf8")]));
}

function planted(...files: readonly [path: string, text: string][]): Sources {
  return new Map(files);
}

describe("layers", () => {
  const root = repository();
  const sources = sourcesOf(root, Object.keys(rules));

  it("are read: every layer has files, and their imports are found", () => {
    for (const layer of Object.keys(rules)) {
      assert.ok([...sources.keys()].filter((path) => layerOf(path) === layer).length > 1, layer);
    }
    const imported = new Set([...sources.values()].flatMap(importsOf));
    assert.ok(imported.has("xstate") && imported.size > 50, `${imported.size} specifiers found`);
  });

  it("are imported in one direction: machines <- actors <- runtime", () => {
    assert.deepEqual(directionViolations(sources), []);
  });

  it("have no import cycle", () => {
    assert.deepEqual(cycles(sources), []);
  });

  it("hold no file whose name says nothing", () => {
    const named = filesBelow(root, everywhere).filter((path) => namesThatSayNothing.test(posix.basename(path)));
    assert.deepEqual(named, []);
  });
});

describe("check of the layers", () => {
  const forbidden: readonly [what: string, path: string, text: string][] = [
    ["an actor that imports the runtime", "actors/a.ts", 'import { b } from "../runtime/b.js";'],
    ["a port that imports the runtime", "actors/ports/a.ts", 'import { b } from "../../runtime/b.js";'],
    ["a statechart that imports an actor", "machines/a.ts", 'import { b } from "../actors/b.js";'],
    ["an upward type import", "machines/a.ts", 'import type { B } from "../actors/b.js";'],
    ["an upward import over several lines", "actors/a.ts", 'import {\n  a,\n  type B,\n} from "../runtime/b.js";'],
    ["an upward re-export", "actors/a.ts", 'export * from "../runtime/b.js";'],
    ["an upward import for its effects", "actors/a.ts", 'import "../runtime/b.js";'],
    ["an upward import type", "actors/a.ts", 'type B = import("../runtime/b.js").B;'],
    ["an upward import that is made late", "actors/a.ts", 'const b = await import("../runtime/b.js");'],
    ["an import whose name is computed in an actor", "actors/a.ts", "const b = await import(name);"],
    ["a runtime that imports tests", "runtime/a.ts", 'import { b } from "../test/lab/b.js";'],
    ["node:fs in an actor", "actors/a.ts", 'import { readFile } from "node:fs/promises";'],
    ["node:crypto in an actor", "actors/a.ts", 'import { randomUUID } from "node:crypto";'],
    ["a built-in without its prefix", "actors/a.ts", 'import fs from "fs";'],
    ["another package in a statechart", "machines/a.ts", 'import { z } from "zod";'],
    ["a package whose name begins alike", "machines/a.ts", 'import { z } from "xstate-more";'],
  ];
  for (const [what, path, text] of forbidden) {
    it(`finds ${what}`, () => {
      assert.equal(directionViolations(planted([path, text])).length, 1);
    });
  }

  it("lets through what is allowed, and text that only looks like an import", () => {
    const files = planted(
      ["machines/a.ts", 'import { setup } from "xstate";\nimport { b } from "./b.js";'],
      [
        "actors/a.ts",
        'import type { A } from "../machines/a.js";\nimport { P } from "./ports/p.js";\nexport type { A };',
      ],
      ["actors/b.ts", 'export const c = { from: "../runtime/x.js" };\nconst d = `moved away from "../runtime/x.js"`;'],
      ["runtime/a.ts", 'import { readFile } from "node:fs/promises";\nimport { a } from "../actors/a.js";'],
      ["test/unit/a.test.ts", 'import { a } from "../../runtime/a.js";'],
    );
    assert.deepEqual(directionViolations(files), []);
    assert.deepEqual(cycles(files), []);
  });

  it("finds a cycle, of two files, of three, of types alone, and of one file with itself", () => {
    const two = planted(["runtime/a.ts", 'import "./b.js";'], ["runtime/b.ts", 'import "./a.js";']);
    assert.deepEqual(cycles(two), ["runtime/a.ts -> runtime/b.ts -> runtime/a.ts"]);
    const three = planted(
      ["actors/start.ts", 'import { a } from "./a.js";'],
      ["actors/a.ts", 'import type { B } from "./deep/b.js";'],
      ["actors/deep/b.ts", 'import type { C } from "../c.js";'],
      ["actors/c.ts", 'export { type A } from "./a.js";'],
    );
    assert.deepEqual(cycles(three), ["actors/a.ts -> actors/deep/b.ts -> actors/c.ts -> actors/a.ts"]);
    assert.equal(cycles(planted(["machines/a.ts", 'import "./a.js";'])).length, 1);
  });

  it("takes two ways to one file for no cycle", () => {
    const diamond = planted(
      ["runtime/top.ts", 'import "./left.js";\nimport "./right.js";'],
      ["runtime/left.ts", 'import "./end.js";'],
      ["runtime/right.ts", 'import "./end.js";'],
      ["runtime/end.ts", ""],
    );
    assert.deepEqual(cycles(diamond), []);
  });

  it("knows which names say nothing", () => {
    for (const name of ["utils.ts", "helper.ts", "types.ts", "types.d.ts", "common.mjs"]) {
      assert.match(name, namesThatSayNothing);
    }
    for (const name of ["container-types.ts", "common-name.ts", "headers.ts"]) {
      assert.doesNotMatch(name, namesThatSayNothing);
    }
  });
});
