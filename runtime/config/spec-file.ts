// A file of specifications as people write it: `${NAME}` stands for a variable of the environment of whoever applies it,
// `$${NAME}` for the text itself.
import { readFile } from "node:fs/promises";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import { parseSpecs, specRecord } from "./spec.js";

/** @throws HakobuError CONFIG_INVALID naming file, line and field, or the variable that is not set */
export async function readSpecFile(file: string, env: NodeJS.ProcessEnv): Promise<SpecRecord[]> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (cause) {
    throw new HakobuError("CONFIG_INVALID", `cannot read ${file}: ${reasonOf(cause)}`, { cause });
  }
  return parseSpecs(substitute(text, file, env), file).map(specRecord);
}

export function substitute(text: string, file: string, env: NodeJS.ProcessEnv): string {
  return text
    .split("\n")
    .map((line, index) => {
      if (/^\s*#/.test(line)) return line;
      return line.replace(/(\$?)\$\{([A-Za-z_]\w*)\}/g, (whole, escape: string, name: string) => {
        if (escape !== "") return whole.slice(1);
        const value = env[name];
        if (value === undefined)
          throw new HakobuError(
            "CONFIG_INVALID",
            `${file}:${index + 1}: the environment has no variable ${name}; set it, or write $\${${name}} for the text itself`,
          );
        return value;
      });
    })
    .join("\n");
}
