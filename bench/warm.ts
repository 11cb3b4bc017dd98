// npm run bench:warm: what it costs to restore from an image that is not in the machine's memory, against one that is; in turns, one
// restore each of 13 rounds. Prints; writes nothing.
import { execFile } from "node:child_process";
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { HakobuError, reasonOf } from "../actors/hakobu-error.js";
import { fail } from "../runtime/cli/output.js";
import { canRestore, examine, missingToRestore } from "../runtime/doctor/doctor.js";
import { RuncEngine } from "../runtime/engines/runc/engine.js";
import { get, median } from "../runtime/experiment/load.js";
import { programLog } from "../runtime/log.js";
import { type Application, applications } from "./relocation/applications.js";

const home = "/var/lib/hakobu/bench";
const rounds = 13;
const limitMs = 60_000;
const execute = promisify(execFile);
/** posix_fadvise(2), which Node does not have; dirty pages would stay. */
const evict = `
import os, sys
for root, _, files in os.walk(sys.argv[1]):
    for name in files:
        fd = os.open(os.path.join(root, name), os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
`;

async function measure(engine: RuncEngine, application: Application, state: string): Promise<string> {
  const limit = (): AbortSignal => AbortSignal.timeout(limitMs);
  const name = application.name.toLowerCase();
  const spec = { ...(await application.prepare(join(home, name), undefined)), name: `warm-${name}` };
  const launch = { spec, specHash: name, epoch: 1 };
  const { instance } = await engine.start(launch, limit());
  const image = await mkdtemp(join(state, "image-"));
  try {
    const { signal } = new AbortController();
    while (!(await engine.listening(instance))) {
      if (!engine.alive(instance)) throw new HakobuError("START_FAILED", await engine.output(spec.name, 5));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await get({ ...instance, hostname: spec.hostnames[0] as string, path: "/", timeoutMs: limitMs });
    await engine.checkpoint(instance, spec, image, signal);
  } finally {
    await engine.stop(instance, 0);
  }
  const files = await readdir(image, { recursive: true, withFileTypes: true });
  const sizes = await Promise.all(
    files.filter((file) => file.isFile()).map(async (file) => (await stat(join(file.parentPath, file.name))).size),
  );
  const mebibytes = sizes.reduce((sum, bytes) => sum + bytes, 0) / 2 ** 20;
  const times = { warm: [] as number[], cold: [] as number[] };
  for (let round = 0; round < rounds; round++)
    for (const way of round % 2 === 0 ? (["cold", "warm"] as const) : (["warm", "cold"] as const)) {
      if (way === "cold") await execute("python3", ["-c", evict, image]);
      const begunMs = performance.now();
      const restored = await engine.restore(launch, image, limit());
      times[way].push(performance.now() - begunMs);
      await engine.stop(restored.instance, 0);
    }
  const [warm, cold] = [median(times.warm), median(times.cold)].map((ms) => ms.toFixed(0));
  return `${application.name}: image of ${mebibytes.toFixed(0)} MiB, restored in ${warm} ms from memory, ${cold} ms from disk`;
}

async function main(): Promise<void> {
  const checks = await examine();
  if (!canRestore(checks))
    throw new HakobuError("UNAVAILABLE", `needs ${missingToRestore(checks).join(", ")}; details: hakobu doctor`);
  // Not below /tmp, which is memory on many machines.
  const state = await mkdtemp("/var/tmp/hakobu-warm-");
  try {
    const engine = new RuncEngine({ hostId: "warm", stateDir: state, log: programLog("warn") });
    for (const application of applications.filter(({ name }) => name === "Django" || name === "Node"))
      console.log(await measure(engine, application, state));
  } finally {
    await rm(state, { recursive: true, force: true });
  }
}

try {
  await main();
} catch (error) {
  console.error(`bench: ${reasonOf(error)}`);
  process.exitCode = fail(error);
}
