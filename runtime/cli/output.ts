// How the command line talks: progress on one line of a terminal (or now and then in a log), errors in one line.
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";

export interface Progress {
  say(text: string): void;
  /** A step of something, and what changes while it lasts: a log gets each step once. */
  step(step: string, detail: string): void;
  /** Clears the line: other output follows. */
  done(): void;
}

const plainEveryMs = 2000;

/** On standard error, so that data on standard output stays clean. */
export function progress(stream: NodeJS.WriteStream = process.stderr): Progress {
  let lastMs = Number.NEGATIVE_INFINITY;
  let lastTitle = "";
  const overwrite = (text: string): void => {
    stream.write(`\r\x1b[K${text.slice(0, (stream.columns || 80) - 1)}`);
  };
  return {
    say(text) {
      if (stream.isTTY) return overwrite(text);
      const title = text.split(":")[0] as string;
      if (performance.now() - lastMs < plainEveryMs && title === lastTitle) return;
      lastMs = performance.now();
      lastTitle = title;
      stream.write(`${text}\n`);
    },
    step(step, detail) {
      if (stream.isTTY) return overwrite(step + detail);
      if (step === lastTitle) return;
      lastTitle = step;
      stream.write(`${step}${detail}\n`);
    },
    done() {
      if (stream.isTTY) stream.write("\r\x1b[K");
    },
  };
}

/** One line on standard error; the stack only with HAKOBU_DEBUG. @returns the exit status */
export function fail(error: unknown): number {
  process.stderr.write(`hakobu: ${reasonOf(error)}\n`);
  if (process.env.HAKOBU_DEBUG && error instanceof Error) process.stderr.write(`${error.stack}\n`);
  return error instanceof HakobuError && error.code === "CONFIG_INVALID" ? 2 : 1;
}

/** A table without lines. */
export const plain = Object.fromEntries(
  ["top", "top-mid", "top-left", "top-right", "bottom", "bottom-mid", "bottom-left", "bottom-right"]
    .concat(["left", "left-mid", "mid", "mid-mid", "right", "right-mid", "middle"])
    .map((name) => [name, ""]),
);
