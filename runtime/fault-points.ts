// For tests of crashes: every call of a port is a point at which the process can be told to die or to stand still, before it or after
// it. Nothing of it exists unless HAKOBU_FAULTS names a directory; the file `engine.restore.after` in it, holding `kill` or
// `stop`, is taken as the order at the next passage of that point. The production code knows nothing of this.
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

/** Wraps a port so that each of its methods, and what they return by `nested`, passes fault points named after it. */
export function withFaultPoints<T extends object>(
  port: T,
  name: string,
  nested: Readonly<Record<string, string>> = {},
): T {
  const directory = process.env.HAKOBU_FAULTS;
  if (directory === undefined || directory === "") return port;
  return new Proxy(port, {
    get(target, key) {
      const value: unknown = Reflect.get(target, key, target);
      if (typeof value !== "function" || typeof key !== "string") return value;
      return (...args: unknown[]): unknown => {
        pass(directory, `${name}.${key}.before`);
        const result: unknown = Reflect.apply(value, target, args);
        if (!(result instanceof Promise)) return result;
        return result.then((settled: unknown) => {
          pass(directory, `${name}.${key}.after`);
          const inner = nested[key];
          return inner === undefined ? settled : withFaultPoints(settled as object, inner);
        });
      };
    },
  });
}

function pass(directory: string, point: string): void {
  const file = join(directory, point);
  let order: string;
  try {
    order = readFileSync(file, "utf8").trim();
    rmSync(file);
  } catch {
    return;
  }
  process.kill(process.pid, order === "stop" ? "SIGSTOP" : "SIGKILL");
}
