// The command line against a real etcd: what it prints, and how it fails.
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findProgram } from "../../runtime/doctor/criu-binary.js";
import { packageRoot } from "../../runtime/package-root.js";
import { type EtcdServer, startEtcd } from "../../runtime/placement/etcd-server.js";
import { certificates } from "../lab/certificates.js";
import { eventually, fixtures, send } from "../lab/cluster.js";
import { hakobu, startMembers } from "../lab/program.js";

describe("the command line", function () {
  this.timeout(120_000);
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
    assert.match(away.err, /^hakobu: etcd cannot be read: .*--etcd-endpoints.*\n$/);
  });

  it("explains itself", async () => {
    const { out } = await hakobu(["--help"]);
    for (const command of ["up", "proxy", "host", "apply", "get", "delete", "relocate", "drain", "undrain", "doctor"])
      assert.match(out, new RegExp(`^  ${command}\\b`, "m"));
    assert.match((await hakobu(["host", "--help"])).out, /--state-dir <value>.*\n?.*HAKOBU_HOST_STATE_DIR/);
    const doctor = JSON.parse((await hakobu(["doctor", "--json"])).out) as { checks: { name: string; ok: boolean }[] };
    assert.ok(doctor.checks.length > 8);
  });

  it("reaches an etcd that wants certificates, from every command and member, whoever signed etcd's own", async () => {
    const pem = await certificates(directory);
    const secure = await startEtcd({ dataDir: join(directory, "secure"), tls: pem });
    const own = {
      HAKOBU_ETCD_ENDPOINTS: secure.endpoints[0],
      HAKOBU_ETCD_TLS_CERT: pem.certFile,
      HAKOBU_ETCD_TLS_KEY: pem.keyFile,
    };
    const given = { ...own, HAKOBU_ETCD_TLS_CA: pem.caFile };
    try {
      const members = await startMembers(["a"], join(directory, "tls"), given);
      try {
        const file = join(directory, "sealed.yaml");
        const command = JSON.stringify([process.execPath, join(fixtures, "journal.mjs")]);
        await writeFile(file, `name: sealed\nengine: process\nport: 80\ncommand: ${command}\n`);
        const applied = await hakobu(["apply", "-f", file], given);
        assert.deepEqual([applied.code, applied.err], [0, ""]);
        await eventually("it is served", async () => (await send(members.proxy, "sealed.localhost")).status === 200);
        // No authority is named: those of the machine count, and this one is made one of them.
        const machine = { NODE_EXTRA_CA_CERTS: pem.caFile, GRPC_DEFAULT_SSL_ROOTS_FILE_PATH: "" };
        const trusted = await hakobu(["get", "--json"], { ...own, ...machine });
        assert.equal(trusted.code, 0, trusted.err);
        assert.match(trusted.out, /"host": "a"/);
      } finally {
        await members.close();
      }
      const { HAKOBU_ETCD_TLS_CA: ca } = given;
      const nobody = await hakobu(["get"], {
        HAKOBU_ETCD_ENDPOINTS: own.HAKOBU_ETCD_ENDPOINTS,
        HAKOBU_ETCD_TLS_CA: ca,
      });
      assert.deepEqual([nobody.code, nobody.out], [1, ""], "without a certificate");
      const distrusting = await hakobu(["get"], own);
      assert.deepEqual([distrusting.code, distrusting.out], [1, ""], "without an authority that signed etcd's");
    } finally {
      await secure.stop();
    }
  });
});
