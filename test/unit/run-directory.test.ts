// The files in which a container reads who it is.
import assert from "node:assert/strict";
import { lstatSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { fillRunDirectory, tellEpoch } from "../../runtime/engines/run-directory.js";
import { specOf } from "../lab/records.js";

describe("the run directory", () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-run-"));
  });
  afterEach(() => rm(directory, { recursive: true, force: true }));
  const fill = (epoch: number) => fillRunDirectory(directory, "host-a", { spec: specOf("blog"), specHash: "1", epoch });
  const read = (name: string) => readFileSync(join(directory, name), "utf8").trim();

  it("has another seed each time, and the epoch of the last claim", () => {
    fill(5);
    const seed = read("seed");
    fill(9);
    assert.deepEqual([read("epoch"), read("host")], ["9", "host-a"]);
    assert.notEqual(read("seed"), seed);
    tellEpoch(directory, 12);
    assert.equal(read("epoch"), "12");
  });

  it("is written beside what the container has put there, not through it (R1)", async () => {
    writeFileSync(join(directory, "theirs"), "untouched");
    symlinkSync("theirs", join(directory, "epoch"));
    mkdirSync(join(directory, "host", "inside"), { recursive: true });
    fill(5);
    assert.deepEqual([read("theirs"), read("epoch"), read("host")], ["untouched", "5", "host-a"]);
    assert.ok(lstatSync(join(directory, "epoch")).isFile());
    assert.deepEqual((await readdir(directory)).sort(), ["epoch", "host", "seed", "theirs"]);
  });

  it("has an epoch at every moment (R3)", async () => {
    fill(1);
    const over = new Int32Array(new SharedArrayBuffer(4));
    const reader = new Worker(
      `const { parentPort, workerData: { path, over } } = require("node:worker_threads");
       const { readFileSync } = require("node:fs");
       parentPort.postMessage("ready");
       let reads = 0;
       for (; Atomics.load(over, 0) === 0; reads++) if (readFileSync(path, "utf8").trim() === "") throw new Error("empty");
       parentPort.postMessage(reads);`,
      { eval: true, workerData: { path: join(directory, "epoch"), over } },
    );
    const said = (): Promise<unknown> =>
      new Promise((resolve, reject) => {
        reader.once("message", resolve).once("error", reject);
      });
    await said();
    const reads = said();
    for (let epoch = 2; epoch < 2000; epoch++) tellEpoch(directory, epoch);
    Atomics.store(over, 0, 1);
    assert.ok(Number(await reads) > 200);
    await reader.terminate();
  });
});
