// How commands show progress, on a terminal and in a log.
import assert from "node:assert/strict";
import { progress } from "../../runtime/cli/output.js";

/** What a command wrote to a stream that is, or is not, a terminal. */
function streamOf(isTTY: boolean): { readonly stream: NodeJS.WriteStream; readonly written: string[] } {
  const written: string[] = [];
  const write = (text: string): boolean => written.push(text) > 0;
  return { stream: { isTTY, columns: 20, write } as unknown as NodeJS.WriteStream, written };
}

describe("progress of a command", () => {
  it("gives a log each step once, whatever changes while it lasts", () => {
    const { stream, written } = streamOf(false);
    const line = progress(stream);
    for (const left of [3, 2, 1]) line.step("draining", ` (${left} in flight)`);
    line.step("restoring", "");
    line.done();
    assert.deepEqual(written, ["draining (3 in flight)\n", "restoring\n"]);
  });

  it("rewrites one line of a terminal with every change, cut to its width, and clears it in the end", () => {
    const { stream, written } = streamOf(true);
    const line = progress(stream);
    for (const left of [2, 1]) line.step("draining", ` (${left} in flight)`);
    line.done();
    const clear = "\r\x1b[K";
    assert.deepEqual(written, [`${clear}draining (2 in flig`, `${clear}draining (1 in flig`, clear]);
  });
});
