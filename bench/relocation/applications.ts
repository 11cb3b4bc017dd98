// The four applications of the benchmark, each prepared and with its specification; and the three ways in which they start.
import { execFile } from "node:child_process";
import { mkdir, readFile } from "node:fs/promises";
import { realpathSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { HakobuError, reasonOf } from "../../actors/hakobu-error.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { readSpecFile } from "../../runtime/config/spec-file.js";
import { specRecord } from "../../runtime/config/spec.js";
import { Child } from "../../runtime/local/child.js";
import { packageRoot } from "../../runtime/package-root.js";

/** What happens to a start: nothing of an image; an image taken as soon as the port listens; or after one answered request. */
export const ways = ["cold", "golden", "warmed"] as const;
export type Way = (typeof ways)[number];

export interface Application {
  readonly name: string;
  /** Needs the database. */
  readonly database: boolean;
  /** Fills its data directory, which is kept between runs, and reads its specification. */
  prepare(data: string, database: Database | undefined): Promise<ContainerSpec>;
}

export interface Database {
  /** address:port */
  readonly host: string;
  readonly password: string;
  stop(): Promise<void>;
}

const examples = join(packageRoot(), "examples");
const prepareLimitMs = 180_000;
const databasePort = 13_306;
const databaseLimitMs = 60_000;
const databaseGraceMs = 20_000;

const execute = promisify(execFile);

export const applications: readonly Application[] = [
  {
    name: "WordPress",
    database: true,
    prepare: async (data, database) => {
      if (database === undefined) throw new HakobuError("CONFIG_INVALID", "WordPress needs its database");
      await prepare("wordpress", data, { HAKOBU_DB_HOST: database.host, HAKOBU_DB_PASSWORD: database.password });
      return specOf("wordpress/site.yaml", data);
    },
  },
  {
    name: "Rails",
    database: false,
    prepare: async (data) => {
      await prepare("rails", data);
      return specOf("rails/site.yaml", data);
    },
  },
  {
    name: "Django",
    database: false,
    prepare: async (data) => {
      await prepare("django", data);
      return { ...(await specOf("django/site.yaml", data)), name: "django" };
    },
  },
  {
    name: "Node",
    database: false,
    prepare: async (data) => {
      const spec = await specOf("node/app.yaml", data);
      return {
        ...spec,
        name: "node",
        engine: "runc",
        command: [realpathSync(process.execPath), ...spec.command.slice(1)],
        mounts: [{ source: spec.cwd, target: "/app", readOnly: true }],
        cwd: "/app",
      };
    },
  },
];

/** The specification of one way: a container of its own, so that each keeps its own image. */
export function variant(spec: ContainerSpec, way: Way): SpecRecord {
  const name = `${spec.name}-${way}`;
  return specRecord({
    ...spec,
    name,
    hostnames: [`${name}.localhost`],
    idleTimeoutMs: 0,
    takeover: "fast",
    // A cold start counts as ready when the port listens: the request that waits for it warms the application up itself.
    checkpoint: { ...spec.checkpoint, onReady: way !== "cold", at: way === "warmed" ? "warm" : "listen" },
  });
}

/** MariaDB with a data directory of its own, which is kept between runs. */
export async function startDatabase(directory: string, address: string, logFile: string): Promise<Database> {
  const script = join(examples, "wordpress", "database.sh");
  const child = new Child("mariadb", ["bash", script, directory, address, String(databasePort)], { logFile });
  const password = (): Promise<string> => readFile(join(directory, "password"), "utf8");
  try {
    await child.until(
      async () => {
        const client = ["--no-defaults", "--protocol=tcp", `--host=${address}`, `--port=${databasePort}`];
        await execute("mariadb", [...client, "--user=wordpress", "--execute=SELECT 1", "wordpress"], {
          env: { ...process.env, MYSQL_PWD: await password() },
        });
        return true;
      },
      databaseLimitMs,
      "answers",
    );
  } catch (error) {
    await child.stop(databaseGraceMs);
    throw error;
  }
  return {
    host: `${address}:${databasePort}`,
    password: await password(),
    stop: () => child.stop(databaseGraceMs),
  };
}

async function prepare(example: string, data: string, env: NodeJS.ProcessEnv = {}): Promise<void> {
  await mkdir(data, { recursive: true });
  try {
    await execute("bash", [join(examples, example, "prepare.sh"), data], {
      env: { ...process.env, ...env },
      timeout: prepareLimitMs,
    });
  } catch (error) {
    throw new HakobuError("START_FAILED", `${example}/prepare.sh: ${reasonOf(error)}`, { cause: error });
  }
}

async function specOf(file: string, data: string): Promise<ContainerSpec> {
  const [folder = ""] = file.split("/");
  const env = { HAKOBU_EXAMPLE_DIR: join(examples, folder), HAKOBU_DATA_DIR: data };
  const [record] = await readSpecFile(join(examples, file), { ...process.env, ...env });
  return (record as SpecRecord).spec;
}
