// The command line against a real etcd: what it prints, and how it fails.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { findProgram } from "../../runtime/doctor/criu-binary.js";
import { packageRoot } from "../../runtime/package-root.js";
import { type EtcdServer, startEtcd } from "../../runtime/placement/etcd-server.js";

const program = fileURLToPath(new URL("../../runtime/cli/main.js", import.meta.url));

interface Result {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

function hakobu(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Result> {
  return new Promise((resolve) => {
    const options = { env: { ...process.env, ...env }, timeout: 15_000 };
    execFile(process.execPath, [program, ...args], options, (error, out, err) =>
      resolve({ code: error === null ? 0 : Number(error.code ?? -1), out, err }),
    );
  });
}

describe("the command line", function () {
  this.timeout(60_000);
  let directory: string;
  let etcd: EtcdServer;
  let env: NodeJS.ProcessEnv;

  before(async function () {
    if (findProgram("etcd") === undefined) {
      console.log("      skipped: needs etcd");
      this.skip();
    }
    directory = await mkdtemp(join(tmpdir(), "hakobu-cli-"));
    etcd = await startEtcd({ dataDir: join(directory, "etcd") });
    env = { HAKOBU_ETCD_ENDPOINTS: etcd.endpoints[0] };
  });
  after(async () => {
    await etcd?.stop();
    if (directory !== undefined) await rm(directory, { recursive: true, force: true });
  });

  it("applies, lists and deletes an application", async () => {
    assert.match((await hakobu(["get"], env)).out, /Nothing applied yet/);
    const applied = await hakobu(["apply", "-f", join(packageRoot(), "etc/hakobu/blog.yaml")], env);
    assert.deepEqual([applied.code, applied.err], [0, ""]);
    assert.match(applied.out, /^blog applied: /);
    const rows = JSON.parse((await hakobu(["get", "--json"], env)).out) as { name: string; state: string }[];
    assert.deepEqual(
      rows.map(({ name, state }) => [name, state]),
      [["blog", "not placed"]],
    );
    assert.match((await hakobu(["get", "hosts"], env)).out, /No host has joined/);
    assert.equal((await hakobu(["delete", "blog"], env)).code, 0);
    assert.equal((await hakobu(["delete", "blog"], env)).code, 2);
  });

  it("names file, line and field of what is wrong in a specification, and applies nothing of it", async () => {
    const file = join(directory, "two.yaml");
    await writeFile(
      file,
      "name: good\ncommand: [a]\nport: 80\n---\nname: bad\ncommand: [a]\nport: 80\nlimits: { memori: 1GiB }\n",
    );
    const { code, out, err } = await hakobu(["apply", "-f", file], env);
    assert.deepEqual([code, out], [2, ""]);
    assert.match(err, /two\.yaml:8:\d+: limits\.memori: .*memory/);
    assert.match((await hakobu(["get"], env)).out, /Nothing applied yet/);
  });

  it("says in one line which variable a specification wants, and what to check where etcd is away", async () => {
    const file = join(directory, "variable.yaml");
    await writeFile(file, 'name: a\ncommand: ["${NOT_SET_ANYWHERE}"]\nport: 80\n');
    const unset = await hakobu(["apply", "-f", file], env);
    assert.match(unset.err, /variable\.yaml:2: .*NOT_SET_ANYWHERE/);
    const away = await hakobu(["get"], { HAKOBU_ETCD_ENDPOINTS: "http://127.0.0.1:1" });
    assert.equal(away.code, 1);
    assert.match(away.err, /^hakobu: etcd does not answer.*--etcd-endpoints.*\n$/);
  });

  it("explains itself", async () => {
    const { out } = await hakobu(["--help"]);
    for (const command of ["up", "proxy", "host", "apply", "get", "delete", "relocate", "drain", "undrain", "doctor"])
      assert.match(out, new RegExp(`^  ${command}\\b`, "m"));
    assert.match((await hakobu(["host", "--help"])).out, /--state-dir <value>.*\n?.*HAKOBU_HOST_STATE_DIR/);
    const doctor = JSON.parse((await hakobu(["doctor", "--json"])).out) as { checks: { name: string; ok: boolean }[] };
    assert.ok(doctor.checks.length > 8);
  });
});
