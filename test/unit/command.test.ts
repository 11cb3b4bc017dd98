// Programs that are run to their end, and what their endings say of the work and what of this machine.
import assert from "node:assert/strict";
import { HakobuError } from "../../actors/hakobu-error.js";
import { runCommand } from "../../runtime/engines/command.js";
import { Hangs } from "../../runtime/engines/hangs.js";

const codeIs = (code: string) => (error: unknown) => {
  assert.ok(error instanceof HakobuError, String(error));
  assert.equal(error.code, code, error.message);
  return true;
};

describe("a program that is run", () => {
  const options = { failure: "RESTORE_FAILED", title: "the test", timeoutMs: 10_000 } as const;
  const shell = (script: string, more: Partial<Parameters<typeof runCommand>[1]> = {}): Promise<string> =>
    runCommand(["/bin/sh", "-c", script], { ...options, ...more });

  it("has failed at its work when it says so by its exit code, or crashes", async () => {
    await assert.rejects(shell("exit 3"), codeIs("RESTORE_FAILED"));
    await assert.rejects(shell("kill -SEGV $$"), codeIs("RESTORE_FAILED"));
  });

  it("has not failed at its work when it cannot be run, or is killed (C3)", async () => {
    await assert.rejects(runCommand(["/nonexistent/program"], options), codeIs("UNAVAILABLE"));
    await assert.rejects(runCommand(["/bin/sh", "-c", "x".repeat(200_000)], options), codeIs("UNAVAILABLE"));
    await assert.rejects(shell("kill -KILL $$"), codeIs("UNAVAILABLE"));
  });

  it("has its time from when it has its input, for which it may have to wait", async () => {
    let give: (text: string) => void = () => {};
    const input = new Promise<string>((resolve) => (give = resolve));
    const late = shell("read -r word; echo $word", { input, timeoutMs: 1000 });
    const begunMs = performance.now();
    while (performance.now() - begunMs < 1200) await new Promise(setImmediate);
    give("go\n");
    assert.equal(await late, "go\n");
    await assert.rejects(
      shell("read -r word; exec sleep 20", { input: Promise.resolve("go\n"), timeoutMs: 50 }),
      codeIs("DEADLINE_EXCEEDED"),
    );
  });
});

describe("restores that hang", () => {
  const begun = (): boolean => true;
  const late = (): Promise<never> => Promise.reject(new HakobuError("DEADLINE_EXCEEDED", "criu restore took longer"));

  it("are taken for the image's fault when they do so twice in a row with the same image, and not before", async () => {
    const hangs = new Hangs();
    await assert.rejects(hangs.watch("blog", "blog/1", begun, late), codeIs("DEADLINE_EXCEEDED"));
    await assert.rejects(hangs.watch("shop", "shop/1", begun, late), codeIs("DEADLINE_EXCEEDED"));
    await assert.rejects(hangs.watch("blog", "blog/2", begun, late), codeIs("DEADLINE_EXCEEDED"), "another image");
    await assert.rejects(hangs.watch("blog", "blog/2", begun, late), codeIs("RESTORE_FAILED"));
  });

  it("are forgiven when one has succeeded since, and not counted where CRIU had not begun", async () => {
    const hangs = new Hangs();
    await assert.rejects(hangs.watch("blog", "blog/1", begun, late), codeIs("DEADLINE_EXCEEDED"));
    assert.equal(await hangs.watch("blog", "blog/1", begun, () => Promise.resolve(1)), 1);
    const waits = (): boolean => false;
    await assert.rejects(hangs.watch("blog", "blog/1", waits, late), codeIs("DEADLINE_EXCEEDED"));
    await assert.rejects(hangs.watch("blog", "blog/1", begun, late), codeIs("DEADLINE_EXCEEDED"));
  });
});
