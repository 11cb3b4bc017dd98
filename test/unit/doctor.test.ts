// `hakobu doctor` examines the machine that runs the tests, whatever that is, and machines with something missing.

import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findCriu, findProgram } from "../../runtime/doctor/criu-binary.js";
import {
  canRestore,
  type Check,
  examine,
  examineTimeNamespaces,
  missingToRestore,
} from "../../runtime/doctor/doctor.js";

function named(checks: Check[], name: string): Check {
  const found = checks.find((check) => check.name === name);
  assert.ok(found, `no check is called ${name}`);
  return found;
}

describe("doctor", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "hakobu-doctor-test-"));
  });
  afterEach(() => {
    rmSync(folder, { recursive: true });
  });

  function script(name: string, body: string): string {
    const path = join(folder, name);
    writeFileSync(path, `#!/bin/sh\n${body}\n`);
    chmodSync(path, 0o755);
    return path;
  }

  it("says in one line what it found, and for whatever is not ok how to mend it", async () => {
    const checks = await examine();
    assert.equal(new Set(checks.map((check) => check.name)).size, checks.length);
    for (const { name, ok, found, mend } of checks) {
      assert.match(found, /^.+$/, `${name}: ${found}`);
      assert.equal(ok, mend === undefined, `${name}: ${found}`);
      if (mend !== undefined) assert.match(mend, /^.+$/, name);
    }
    assert.ok(named(checks, "Node.js").ok);
  });

  it("tells root from an ordinary user", async () => {
    const privileges = named(await examine(), "privileges");
    if (process.geteuid?.() !== 0) {
      assert.equal(privileges.found, "not root");
      assert.equal(privileges.mend, "run as root: sudo npm start");
    } else {
      assert.match(privileges.found, /^root with/);
    }
  });

  it("finds that this machine can restore exactly when CRIU and all that it needs are there", async () => {
    const checks = await examine();
    const installed = ["privileges", "CRIU", "runc"].every((name) => named(checks, name).ok);
    assert.equal(canRestore(checks), installed, `missing: ${missingToRestore(checks).join(", ")}`);
    const without = checks.filter((check) => check.name !== "CRIU");
    assert.ok(missingToRestore(without).includes("CRIU"), "a check that was not made counts as missing");
    const allOk = checks.map((check) => ({ ...check, ok: true }));
    assert.ok(canRestore(allOk));
    assert.ok(canRestore(allOk.map((check) => (check.name === "etcd" ? { ...check, ok: false } : check))));
    for (const name of ["kernel", "privileges", "CRIU", "runc", "cgroups", "network namespaces", "overlayfs"]) {
      const one = allOk.map((check) => (check.name === name ? { ...check, ok: false } : check));
      assert.deepEqual(missingToRestore(one), [name]);
    }
  });

  it("says where the kernel has no time namespaces, with which a restore works all the same", async () => {
    const checks = await examine();
    assert.equal(named(checks, "time namespaces").ok, existsSync("/proc/self/ns/time"));
    const { ok, mend } = await examineTimeNamespaces(join(folder, "none"));
    assert.equal(ok, false);
    assert.match(mend ?? "", /CONFIG_TIME_NS/);
    const allOk = checks.map((check) => ({ ...check, ok: check.name !== "time namespaces" }));
    assert.deepEqual(missingToRestore(allOk), []);
  });

  it("leaves no folder, cgroup or mount behind", async () => {
    const mounts = () => readFileSync("/proc/self/mounts", "utf8");
    const before = mounts();
    await examine();
    assert.equal(mounts(), before);
    const left = (top: string) => readdirSync(top).filter((name) => name.includes(`hakobu-doctor-${process.pid}`));
    for (const top of ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"]) {
      if (existsSync(top)) assert.deepEqual(left(top), []);
    }
  });

  describe("CRIU", () => {
    const examineCriu = async (path: string, commandDeadlineMs = 10_000): Promise<Check> =>
      named(await examine({ env: { ...process.env, HAKOBU_CRIU: path }, commandDeadlineMs }), "CRIU");

    it("that is named in HAKOBU_CRIU but missing is not ok, and the mending command is given", async () => {
      const { ok, found, mend } = await examineCriu("/nonexistent/criu");
      assert.equal(ok, false);
      assert.equal(found, "HAKOBU_CRIU=/nonexistent/criu is not an executable file");
      const command = /bash (\S+\/etc\/setup\.sh)$/.exec(mend ?? "");
      assert.ok(command?.[1] !== undefined && existsSync(command[1]), `the script in "${mend}" is there`);
    });

    it("that fails its own check is not ok, and its error is shown", async () => {
      const broken = script(
        "criu",
        '[ "$1" = --version ] && echo "Version: 9.9" || { echo "Error (x.c:1): no"; exit 1; }',
      );
      const { ok, found, mend } = await examineCriu(broken);
      assert.equal(ok, false);
      assert.equal(found, `9.9 (${broken}): criu check failed: Error (x.c:1): no`);
      assert.ok(mend);
    });

    it("that passes its own check is ok, with its version and path", async () => {
      const sound = script("criu", 'echo "Version: 9.9"');
      assert.deepEqual(await examineCriu(sound), { name: "CRIU", ok: true, found: `9.9 (${sound})` });
    });

    it("that hangs is given up at the deadline", async () => {
      const hanging = script("criu", "exec sleep 60");
      const { ok, found } = await examineCriu(hanging, 200);
      assert.equal(ok, false);
      assert.match(found, /no answer within 200 ms/);
    });
  });

  describe("findCriu", () => {
    it("takes HAKOBU_CRIU first, and nothing else when that cannot be executed", () => {
      const mine = script("mine", "true");
      const onPath = script("criu", "true");
      assert.equal(findCriu({ HAKOBU_CRIU: mine, PATH: folder }), mine);
      assert.equal(findCriu({ HAKOBU_CRIU: join(folder, "none"), PATH: folder }), undefined);
      assert.equal(findCriu({ HAKOBU_CRIU: folder, PATH: folder }), undefined, "a folder is not a binary");
      assert.ok([onPath, "/usr/local/lib/hakobu/criu"].includes(findCriu({ HAKOBU_CRIU: "", PATH: folder }) ?? ""));
    });
  });

  describe("findProgram", () => {
    it("looks at the PATH in order, then in the system folders that an ordinary user's PATH lacks", () => {
      const program = script("hakobu-test-program", "true");
      assert.equal(findProgram("hakobu-test-program", { PATH: `/nonexistent:${folder}` }), program);
      assert.equal(findProgram("hakobu-test-program", { PATH: "/nonexistent" }), undefined);
      writeFileSync(join(folder, "plain"), "");
      assert.equal(findProgram("plain", { PATH: folder }), undefined, "a file that cannot be executed is passed over");
    });
  });

  it("gives the package of a program that cannot be run", async () => {
    script("nft", "echo broken; exit 1");
    const { ok, found, mend } = named(
      await examine({ env: { ...process.env, PATH: `${folder}:${process.env.PATH}` } }),
      "nft",
    );
    assert.equal(ok, false);
    assert.equal(found, `${join(folder, "nft")}: broken`);
    assert.match(mend ?? "", /install nftables/);
  });
});
