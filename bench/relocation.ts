// npm run bench:relocation: the paper's experiment on four applications, three ways each, with the floor in the same run.
//   --quick       300 requests and 3 rounds, for a look; the results go to .cache/relocation
//   --only a,b    of WordPress, Rails, Django and Node
//   --out DIR     where the results go (default bench/results); results of other applications in there are kept
// Exit status 1: a request failed, or an application did not come up as it should.
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { cpus, release, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { HakobuError, reasonOf } from "../actors/hakobu-error.js";
import { fail, progress } from "../runtime/cli/output.js";
import { canRestore, examine, missingToRestore } from "../runtime/doctor/doctor.js";
import { createNamespacesCluster } from "../runtime/local/namespaces.js";
import { programLog } from "../runtime/log.js";
import { packageRoot } from "../runtime/package-root.js";
import { type Application, applications, type Database, startDatabase } from "./relocation/applications.js";
import { experiment, type Measured } from "./relocation/experiment.js";
import { openFloor } from "./relocation/floor.js";
import { freePorts } from "./relocation/free-ports.js";
import { type ApplicationResult, picture, resultOf, type Results, table } from "./relocation/results.js";

/** Databases and data of the applications, kept between runs. */
const home = "/var/lib/hakobu/bench";

interface Plan {
  readonly chosen: readonly Application[];
  readonly requests: number;
  readonly rounds: number;
  readonly out: string;
}

function planOf(argv: readonly string[]): Plan {
  const { values } = parseArgs({
    args: [...argv],
    options: { quick: { type: "boolean" }, only: { type: "string" }, out: { type: "string" } },
  });
  const names = values.only?.split(",").map((name) => name.trim().toLowerCase());
  const chosen = applications.filter(({ name }) => names?.includes(name.toLowerCase()) ?? true);
  if (chosen.length !== (names?.length ?? applications.length))
    throw new HakobuError(
      "CONFIG_INVALID",
      `--only ${values.only}: of ${applications.map(({ name }) => name).join(", ")}`,
    );
  const quick = values.quick === true;
  return {
    chosen,
    requests: quick ? 300 : 3000,
    rounds: quick ? 3 : 7,
    out: values.out ?? join(packageRoot(), quick ? ".cache/relocation" : "bench/results"),
  };
}

async function main(): Promise<void> {
  const plan = planOf(process.argv.slice(2));
  const checks = await examine();
  if (!canRestore(checks))
    throw new HakobuError("UNAVAILABLE", `needs ${missingToRestore(checks).join(", ")}; details: hakobu doctor`);
  const interrupted = new AbortController();
  const interrupt = (): void => interrupted.abort(new HakobuError("ABORTED", "interrupted"));
  process.once("SIGINT", interrupt);
  process.once("SIGTERM", interrupt);

  const line = progress();
  const say = (text: string): void => line.say(text);
  const undo: (() => Promise<void>)[] = [];
  const done: Measured[] = [];
  try {
    say("starting the cluster: placement store, two hosts and the proxy");
    const directory = join(home, "run");
    await rm(join(directory, "shared"), { recursive: true, force: true });
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const [port, adminPort] = await freePorts(2);
    const cluster = await createNamespacesCluster({
      name: "bench",
      hosts: ["a", "b"],
      directory,
      proxy: { address: "127.0.0.1", port: port as number },
      admin: { address: "127.0.0.1", port: adminPort as number },
      log: programLog("silent"),
    });
    undo.push(async () => {
      await cluster.close();
      if (process.exitCode === undefined) await rm(directory, { recursive: true, force: true });
    });
    const floor = openFloor(join(home, "floor"), [directory]);
    undo.push(() => floor.close());
    let database: Database | undefined;
    for (const application of plan.chosen) {
      const name = application.name.toLowerCase();
      say(`${application.name}: preparing its data`);
      if (application.database && database === undefined) {
        const started = await startDatabase(
          join(home, "mariadb"),
          cluster.network.gateway,
          join(cluster.logs, "mariadb.log"),
        );
        undo.push(() => started.stop());
        database = started;
      }
      const spec = await application.prepare(join(home, name), database);
      const { requests, rounds } = plan;
      const signal = interrupted.signal;
      const measured = await experiment({
        cluster,
        floor,
        name: application.name,
        spec,
        requests,
        rounds,
        signal,
        say,
      });
      done.push(measured);
      await write(plan, measured);
      for (const surprise of new Set(measured.surprises)) {
        line.done();
        console.error(`${application.name}: ${surprise}`);
        process.exitCode = 1;
      }
    }
  } catch (error) {
    line.done();
    console.error(`bench: ${reasonOf(error)}. Logs: ${join(home, "run/logs")}`);
    process.exitCode = 1;
  } finally {
    say("cleaning up");
    for (const step of undo.toReversed())
      await step().catch((error: unknown) => {
        console.error(`bench: ${reasonOf(error)}`);
        process.exitCode = 1;
      });
    line.done();
  }
  if (done.length === 0) return;
  console.log(table(whole(done.map(resultOf))));
  const busy = done.reduce((sum, { calm }) => sum + calm.busy, 0);
  const all = done.reduce((sum, { calm }) => sum + calm.of, 0);
  if (busy > 0) console.log(`${busy} of ${all} measurements began while the machine was busy with something else.`);
  console.log(`results: ${plan.out}`);
}

function whole(results: readonly ApplicationResult[]): Results {
  return { machine: machine(), date: new Date().toISOString(), applications: results };
}

/** Also after each application, so that an interrupted run keeps what it has. */
async function write({ out }: Plan, measured: Measured): Promise<void> {
  await mkdir(out, { recursive: true });
  const file = join(out, "relocation.json");
  const result = resultOf(measured);
  const before = await readFile(file, "utf8").then(
    (text) => JSON.parse(text) as Results,
    () => undefined,
  );
  const kept = before?.machine === machine() ? before.applications : [];
  const order = (name: string): number => applications.findIndex((each) => each.name === name);
  const all = [...kept.filter(({ name }) => name !== result.name), result].sort(
    (a, b) => order(a.name) - order(b.name),
  );
  await writeFile(file, `${JSON.stringify(whole(all), null, 2)}\n`);
  await writeFile(join(out, `${measured.name.toLowerCase()}.svg`), picture(measured));
}

function machine(): string {
  const [cpu] = cpus();
  const memory = Math.round(totalmem() / 2 ** 30);
  return `${cpus().length} x ${cpu?.model.trim() ?? "unknown CPU"}, ${memory} GiB, Linux ${release()}`;
}

try {
  await main();
} catch (error) {
  process.exitCode = fail(error);
}
