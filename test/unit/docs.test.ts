// The documentation keeps up with what it describes.
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { containerMachine } from "../../machines/container.js";
import { hostMachine } from "../../machines/host.js";
import { reachabilityMachine } from "../../machines/reachability.js";
import { relocationMachine } from "../../machines/relocation.js";
import { packageRoot } from "../../runtime/package-root.js";
import { leaves } from "../lab/paths.js";

const root = packageRoot();

describe("the documentation", () => {
  it("draws every state of every statechart", () => {
    const text = readFileSync(join(root, "docs/guide/statecharts.md"), "utf8");
    for (const machine of [containerMachine, hostMachine, reachabilityMachine, relocationMachine]) {
      const section = text.split(`## ${machine.id}:`)[1]?.split("\n## ")[0] ?? "";
      for (const leaf of leaves(machine)) {
        const name = leaf.split(".").at(-1) as string;
        assert.match(section, new RegExp(`\\b${name}\\b`), `${machine.id}: ${leaf}`);
      }
    }
  });

  it("has no link to a file that is not there", () => {
    const pages = readdirSync(root, { recursive: true, encoding: "utf8" }).filter(
      (file) => file.endsWith(".md") && !/(^|\/)(node_modules|dist|\.cache)\//.test(file),
    );
    assert.ok(pages.length > 5);
    for (const page of pages) {
      const text = readFileSync(join(root, page), "utf8");
      for (const [, target] of text.matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)) {
        if (target === undefined || /^[a-z]+:/.test(target)) continue;
        assert.ok(existsSync(join(root, dirname(page), target)), `${page} links to ${target}`);
      }
    }
  });
});
