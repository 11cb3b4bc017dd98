// The log of a container, which lies where the container itself can write.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { appendFileSync, lstatSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { mkdtemp, open, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { boundOutputLog, openOutputLog, readOutputLog } from "../../runtime/engines/output-log.js";

describe("the output log", () => {
  const limitBytes = 8 * 1024 * 1024;
  const owner = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
  let directory: string;
  let log: string;
  let secret: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-log-"));
    log = join(directory, "output.log");
    secret = join(directory, "secret");
    writeFileSync(secret, "secret\n", { mode: 0o600 });
  });
  afterEach(() => rm(directory, { recursive: true, force: true }));

  const planted: Readonly<Record<string, () => void>> = {
    "a link": () => symlinkSync(secret, log),
    "a link that leads nowhere": () => symlinkSync(join(directory, "absent"), log),
    "a pipe that nobody reads": () => void execFileSync("mkfifo", [log]),
    "a directory": () => mkdirSync(join(log, "inside"), { recursive: true }),
  };
  for (const [what, plant] of Object.entries(planted)) {
    it(`is a fresh file where the container had put ${what} (L1)`, async () => {
      plant();
      const before = lstatSync(secret);
      await openOutputLog(log, owner);
      assert.equal(lstatSync(log).isFile(), true);
      assert.deepEqual([readFileSync(secret, "utf8"), lstatSync(secret).uid], ["secret\n", before.uid]);
      assert.deepEqual((await readdir(directory)).sort(), ["output.log", "secret"]);
    });

    it(`is empty to who reads it, and left alone, while it is ${what} (L1)`, async () => {
      plant();
      assert.equal(await readOutputLog(log, 5), "");
      await boundOutputLog(log);
      assert.equal(lstatSync(log).isFile(), false);
      assert.equal(readFileSync(secret, "utf8"), "secret\n");
    });
  }

  it("is read from its end, and is empty where there is none", async () => {
    assert.equal(await readOutputLog(log, 5), "");
    writeFileSync(log, "one\ntwo\nthree\n");
    assert.equal(await readOutputLog(log, 2), "two\nthree");
  });

  it("goes on at the next start, and makes way for a new one once it is large", async () => {
    writeFileSync(log, "small\n");
    await openOutputLog(log, owner);
    assert.equal(readFileSync(log, "utf8"), "small\n");
    appendFileSync(log, Buffer.alloc(limitBytes, "x"));
    await openOutputLog(log, owner);
    assert.equal(lstatSync(log).size, 0);
    assert.equal(lstatSync(`${log}.1`).size, limitBytes + 6);
  });

  it("is emptied under a writer that goes on, and its end is kept", async () => {
    writeFileSync(secret, "untouched\n");
    symlinkSync(secret, `${log}.1`);
    const writer = await open(log, "a");
    try {
      await writer.write(Buffer.alloc(limitBytes, "x"));
      await boundOutputLog(log);
      assert.equal(lstatSync(log).size, limitBytes, "it may become this large");
      await writer.write("\nthe last line\n");
      await boundOutputLog(log);
      assert.equal(lstatSync(log).size, 0);
      assert.match(readFileSync(`${log}.1`, "utf8"), /^x+\nthe last line\n$/);
      assert.equal(lstatSync(`${log}.1`).size, 256 * 1024);
      assert.equal(readFileSync(secret, "utf8"), "untouched\n");
      await writer.write("after it\n");
      assert.equal(readFileSync(log, "utf8"), "after it\n");
    } finally {
      await writer.close();
    }
  });
});
