// Directories of the agent's own where anybody may write.
import assert from "node:assert/strict";
import { chmodSync, chownSync, lstatSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HakobuError } from "../../actors/hakobu-error.js";
import { ownDirectory } from "../../runtime/engines/own-directory.js";

describe("a directory of the agent's own", () => {
  let home: string;
  let path: string;
  beforeEach(async () => {
    home = await mkdtemp(join(tmpdir(), "hakobu-own-"));
    path = join(home, "own");
  });
  afterEach(() => rm(home, { recursive: true, force: true }));
  const refused = (why: RegExp): void =>
    assert.throws(
      () => ownDirectory(path),
      (error) => error instanceof HakobuError && error.code === "CONFIG_INVALID" && why.test(error.message),
    );

  it("is made for it alone, and found again", () => {
    ownDirectory(path);
    writeFileSync(join(path, "kept"), "");
    ownDirectory(path);
    assert.equal(lstatSync(path).mode & 0o777, 0o700);
    assert.ok(lstatSync(join(path, "kept")).isFile());
    chmodSync(path, 0o755);
    ownDirectory(path);
    assert.equal(lstatSync(path).mode & 0o777, 0o700, "an earlier version made it readable");
  });

  it("is none where others can write into it, or it is a link or a file", async () => {
    mkdirSync(path);
    chmodSync(path, 0o777);
    refused(/can be written by others/);
    await rm(path, { recursive: true });
    symlinkSync(home, path);
    refused(/is no directory/);
    await rm(path);
    writeFileSync(path, "");
    refused(/is no directory/);
  });

  it("is none where it belongs to somebody else", function () {
    if (process.getuid?.() !== 0) return this.skip();
    mkdirSync(path, { mode: 0o700 });
    chownSync(path, 65_534, 65_534);
    refused(/belongs to user 65534/);
  });
});
