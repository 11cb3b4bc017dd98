import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { stringify } from "yaml";
import { HakobuError } from "../../actors/hakobu-error.js";
import type { ContainerSpec } from "../../actors/ports/spec.js";
import { formatDuration, parseDuration } from "../../runtime/config/duration.js";
import { nearest } from "../../runtime/config/problem.js";
import { hostSettings, proxySettings, readHostConfig, readProxyConfig } from "../../runtime/config/program.js";
import { formatSize, parseSize } from "../../runtime/config/size.js";
import { parseSpecs, readSpecs, specHash, specRecord } from "../../runtime/config/spec.js";

const MINIMAL = "name: blog\ncommand: [serve]\nport: 8000\n";

/** The lines of the refusal. */
function refusal(text: string): string[] {
  try {
    parseSpecs(text, "blog.yaml");
  } catch (error) {
    assert.ok(error instanceof HakobuError && error.code === "CONFIG_INVALID", String(error));
    return error.message.split("\n");
  }
  return assert.fail(`not refused:\n${text}`);
}

function one(text: string): ContainerSpec {
  const specs = parseSpecs(text, "blog.yaml");
  assert.equal(specs.length, 1);
  return specs[0] as ContainerSpec;
}

describe("a specification", () => {
  it("needs a name, a command and a port, and has a default for the rest", () => {
    assert.deepEqual(one(MINIMAL), {
      name: "blog",
      hostnames: ["blog.localhost"],
      engine: "runc",
      rootfs: "host",
      command: ["serve"],
      cwd: "/",
      env: {},
      user: { uid: 0, gid: 0 },
      port: 8000,
      mounts: [],
      limits: { cpus: 1, memoryMiB: 1024, pids: 512 },
      idleTimeoutMs: 600_000,
      startTimeoutMs: 60_000,
      stopGraceMs: 5000,
      checkpoint: { onReady: true, at: "warm", warmup: "/", timeoutMs: 60_000 },
      takeover: "fast",
      probe: { timeoutMs: 100 },
    });
    assert.deepEqual(
      refusal("engine: runc\n").map((line) => line.split(": ")[1]),
      ["command", "name", "port"],
    );
    assert.equal(one(`${MINIMAL}engine: process\n`).checkpoint.onReady, false);
  });

  it("takes one path or a list of paths to warm the application up", () => {
    const warmupOf = (yaml: string) => one(`${MINIMAL}checkpoint: { warmup: ${yaml} }\n`).checkpoint.warmup;
    assert.equal(warmupOf("/health"), "/health");
    assert.equal(warmupOf("[/health]"), "/health");
    assert.deepEqual(warmupOf("[/, /login?next=/, /]"), ["/", "/login?next=/", "/"]);
  });

  it("is stopped when idle, or suspended", () => {
    assert.equal(one(`${MINIMAL}onIdle: stop\n`).onIdle, undefined);
    assert.equal(one(`${MINIMAL}onIdle: suspend\n`).onIdle, "suspend");
    const own = one(`${MINIMAL}engine: haconiwa\nhaconiwa: { file: /srv/blog.haco }\n`);
    assert.deepEqual(own.haconiwa, { file: "/srv/blog.haco" });
    assert.notEqual(specHash(own), specHash(one(`${MINIMAL}engine: haconiwa\n`)));
  });

  it("has its images taken again where it says when, or only that they are to be", () => {
    const refresh = (text: string) => one(`${MINIMAL}checkpoint: { refresh: ${text} }\n`).checkpoint.refresh;
    assert.deepEqual(refresh("{ every: 1h30m, paths: [/shared/blog, /srv/theme.css] }"), {
      everyMs: 5_400_000,
      paths: ["/shared/blog", "/srv/theme.css"],
    });
    assert.deepEqual(refresh("{}"), { paths: [] });
    assert.equal("refresh" in one(MINIMAL).checkpoint, false);
  });

  it("says why images of an exclusive application are not taken again, and the way out", () => {
    const [line = ""] = refusal(`${MINIMAL}takeover: exclusive\ncheckpoint: { refresh: { every: 1h } }\n`);
    assert.match(line, /^blog\.yaml:5:\d+: checkpoint\.refresh: .*second copy.*owner.*(leave refresh out).*confirmed$/);
  });

  it("names hooks with their time-out only where there are some", () => {
    assert.deepEqual(one(`${MINIMAL}hooks: { afterRestore: /hakobu/restored }\n`).hooks, {
      afterRestore: "/hakobu/restored",
      timeoutMs: 2000,
    });
    assert.equal(one(`${MINIMAL}hooks: {}\n`).hooks, undefined);
  });

  it("is what the example says", async () => {
    const [spec] = await readSpecs("etc/hakobu/blog.yaml");
    assert.deepEqual(spec, {
      ...one(MINIMAL),
      hostnames: ["blog.example"],
      command: ["gunicorn", "-b", "0.0.0.0:8000", "site.wsgi"],
      cwd: "/srv/blog",
      env: { DJANGO_SETTINGS_MODULE: "site.settings" },
      mounts: [{ source: "/shared/blog", target: "/srv/blog", readOnly: false }],
    });
  });

  it("cannot be changed once it was read", () => {
    const spec = one(`${MINIMAL}env: { A: b }\n`);
    assert.throws(() => Object.assign(spec.env, { A: "c" }), TypeError);
    assert.throws(() => (spec.command as string[]).push("x"), TypeError);
  });

  it("may be one of several in a file, each with a name and host names of its own", () => {
    const specs = parseSpecs(`---\n${MINIMAL}---\n${MINIMAL.replace("blog", "shop")}---\n`, "all.yaml");
    assert.deepEqual(
      specs.map(({ name }) => name),
      ["blog", "shop"],
    );
    assert.deepEqual(refusal(`${MINIMAL}---\n${MINIMAL}`), [
      "blog.yaml:5:1: name: blog is already used by the one at blog.yaml:1:1",
    ]);
    const host = "hostnames: [a.example]\n";
    assert.deepEqual(refusal(`${MINIMAL}${host}---\n${MINIMAL.replace("blog", "shop")}${host}`), [
      "blog.yaml:9:13: hostnames[0]: a.example is already used by the one at blog.yaml:1:1",
    ]);
    assert.match(refusal("# nothing\n")[0] as string, /^blog\.yaml: holds no specification/);
  });

  it("is refused with file, line, column and field of everything that is wrong, in order", () => {
    const text = [
      "name: blog",
      "comand: [serve]",
      "port: 99999",
      "limits:",
      "  cpus: 1",
      "  memroy: 1GiB",
      "  pids: many",
      "env: { A: 1, 2B: x }",
      "takeover: quick",
    ].join("\n");
    const lines = refusal(text);
    assert.deepEqual(
      lines.map((line) => line.split(": ", 2).join(": ")),
      [
        "blog.yaml:1:1: command",
        "blog.yaml:2:1: comand",
        "blog.yaml:3:1: port",
        "blog.yaml:6:3: limits.memroy",
        "blog.yaml:7:3: limits.pids",
        "blog.yaml:8:8: env.A",
        "blog.yaml:8:14: env.2B",
        "blog.yaml:9:1: takeover",
      ],
    );
    assert.match(lines[1] as string, /did you mean command\?$/);
    assert.match(lines[3] as string, /did you mean memory\?$/);
    assert.match(lines[5] as string, /quotes/);
    assert.match(lines[7] as string, /expected fast or confirmed or exclusive, not "quick"$/);
  });

  it("is refused for errors of YAML too, a key that is given twice among them", () => {
    assert.match(refusal(`${MINIMAL}port: 8001\n`)[0] as string, /^blog\.yaml:4:1: .*unique/);
    assert.match(refusal("name: [a")[0] as string, /^blog\.yaml:1:\d+: /);
    assert.match(refusal("- a\n- b\n")[0] as string, /^blog\.yaml:1:1: expected a section/);
    assert.match(refusal("just text")[0] as string, /^blog\.yaml:1:1: expected a section/);
    const bomb = `a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [${"*a,".repeat(9)}*a]\nc: &c [${"*b,".repeat(9)}*b]\nd: [${"*c,".repeat(9)}*c]\n`;
    assert.match(refusal(bomb)[0] as string, /alias/i);
  });

  describe("is refused where", () => {
    const cases: readonly [why: string, yaml: string, field: string][] = [
      ["a name is not a DNS label", "name: Blog", "name"],
      ["a name is a path", "name: ../etc", "name"],
      ["a name is too long", `name: ${"a".repeat(41)}`, "name"],
      ["a name ends with a hyphen", "name: blog-", "name"],
      ["there is no command", "command: []", "command"],
      ["the command is a text", "command: serve --fast", "command"],
      ["the program is empty", 'command: [""]', "command[0]"],
      ["an argument is a number", "command: [serve, 8000]", "command[1]"],
      ["a port is out of range", "port: 0", "port"],
      ["a port is a fraction", "port: 80.5", "port"],
      ["a host name has a port", "hostnames: [a.example:80]", "hostnames[0]"],
      ["a host name is a pattern", 'hostnames: ["*.example"]', "hostnames[0]"],
      ["a host name is given twice", "hostnames: [a.example, A.example]", "hostnames[1]"],
      ["host names are there but none", "hostnames: []", "hostnames"],
      ["an engine is not known", "engine: docker", "engine"],
      ["a root file system is relative", "rootfs: rootfs", "rootfs"],
      ["a root file system is the host's own by path", "rootfs: /", "rootfs"],
      ["a root file system is given to the process engine", "engine: process\nrootfs: /srv/root", "rootfs"],
      [
        "a checkpoint is asked of the process engine",
        "engine: process\ncheckpoint: { onReady: true }",
        "checkpoint.onReady",
      ],
      ["a mount is asked of the process engine", "engine: process\nmounts: [{ source: /a, target: /b }]", "mounts[0]"],
      ["a warm-up request is given, and not made", "checkpoint: { at: listen, warmup: /x }", "checkpoint.warmup"],
      ["a haco file for runc", "haconiwa: { file: /srv/blog.haco }", "haconiwa"],
      ["a haco file by a relative path", "engine: haconiwa\nhaconiwa: { file: blog.haco }", "haconiwa.file"],
      ["a process is to be suspended", "engine: process\nonIdle: suspend", "onIdle"],
      ["what takes no image is to be suspended", "onIdle: suspend\ncheckpoint: { onReady: false }", "onIdle"],
      [
        "a second copy of an exclusive one is asked for",
        "takeover: exclusive\ncheckpoint: { refresh: {} }",
        "checkpoint.refresh",
      ],
      ["no image is refreshed", "checkpoint: { onReady: false, refresh: { every: 1h } }", "checkpoint.refresh"],
      ["images are asked of the process engine", "engine: process\ncheckpoint: { refresh: {} }", "checkpoint.refresh"],
      ["Haconiwa is to start a shadow", "engine: haconiwa\ncheckpoint: { refresh: {} }", "checkpoint.refresh"],
      ["a refresh never ends", "checkpoint: { refresh: { every: 1s } }", "checkpoint.refresh.every"],
      ["a watched path is relative", "checkpoint: { refresh: { paths: [a] } }", "checkpoint.refresh.paths[0]"],
      ["a whole file system is watched", "checkpoint: { refresh: { paths: [/] } }", "checkpoint.refresh.paths[0]"],
      [
        "too much is watched",
        `checkpoint: { refresh: { paths: [${Array.from({ length: 17 }, (_, n) => `/a${n}`).join(", ")}] } }`,
        "checkpoint.refresh.paths",
      ],
      ["hooks are asked of the process engine", "engine: process\nhooks: { afterRestore: /x }", "hooks"],
      ["a hook is no path", "hooks: { afterRestore: x }", "hooks.afterRestore"],
      ["a hook is not known", "hooks: { onRestore: /x }", "hooks.onRestore"],
      ["a time-out has no hook", "hooks: { timeout: 1s }", "hooks.timeout"],
      ["a warm-up request is no path", "checkpoint: { warmup: http://x/ }", "checkpoint.warmup"],
      ["one of the warm-up requests is no path", "checkpoint: { warmup: [/, x] }", "checkpoint.warmup[1]"],
      ["no warm-up request is in the list", "checkpoint: { warmup: [] }", "checkpoint.warmup"],
      [
        "too many warm-up requests are given",
        `checkpoint: { warmup: [${Array.from({ length: 17 }, (_, n) => `/${n}`).join(", ")}] }`,
        "checkpoint.warmup",
      ],
      ["a warm-up request would split", 'checkpoint: { warmup: "/a b\\r\\nc" }', "checkpoint.warmup"],
      ["a mount's target is relative", "mounts: [{ source: /a, target: b }]", "mounts[0].target"],
      ["a mount's source climbs", "mounts: [{ source: /a/../etc, target: /b }]", "mounts[0].source"],
      ["a mount shows the whole host", "mounts: [{ source: /, target: /b }]", "mounts[0].source"],
      ["a mount hides /proc", "mounts: [{ source: /a, target: /proc/sys }]", "mounts[0].target"],
      ["a mount hides /dev", "mounts: [{ source: /a, target: /dev }]", "mounts[0].target"],
      ["a mount hides Hakobu's own files", "mounts: [{ source: /a, target: /run }]", "mounts[0].target"],
      ["a mount hides everything", "mounts: [{ source: /a, target: / }]", "mounts[0].target"],
      [
        "two mounts have one target",
        "mounts: [{ source: /a, target: /c }, { source: /b, target: /c }]",
        "mounts[1].target",
      ],
      ["a mount misses its target", "mounts: [{ source: /a }]", "mounts[0].target"],
      ["a working directory is relative", "cwd: srv", "cwd"],
      ["a size has no unit", "limits: { memory: 512 }", "limits.memory"],
      ["a size has an unclear unit", "limits: { memory: 512MB }", "limits.memory"],
      ["there is no memory to speak of", "limits: { memory: 1KiB }", "limits.memory"],
      ["there is no CPU", "limits: { cpus: 0 }", "limits.cpus"],
      ["a number is none", "limits: { cpus: .nan }", "limits.cpus"],
      ["a duration has no unit", "idleTimeout: 600", "idleTimeout"],
      ["a duration is too short to be meant", "idleTimeout: 0s", "idleTimeout"],
      ["a duration is too long", "startTimeout: 2h", "startTimeout"],
      ["a user is negative", "user: { uid: -1 }", "user.uid"],
      ["a variable belongs to Hakobu", "env: { HAKOBU_EPOCH: x }", "env.HAKOBU_EPOCH"],
      ["a variable's name is none", "env: { a=b: x }", "env.a=b"],
      ["a section is a list", "limits: []", "limits"],
      ["a flag is a word", 'mounts: [{ source: /a, target: /b, readOnly: "no" }]', "mounts[0].readOnly"],
    ];
    for (const [why, yaml, field] of cases) {
      it(why, () => {
        const own = new Set(yaml.split("\n").map((line) => line.split(":")[0]));
        const rest = MINIMAL.split("\n").filter((line) => !own.has(line.split(":")[0]));
        const lines = refusal([...rest, yaml].join("\n"));
        assert.equal(lines.length, 1, lines.join("\n"));
        const [, ...place] = /^blog\.yaml:(\d+):(\d+): (.*)$/.exec(lines[0] as string) ?? [];
        assert.ok(place[2]?.startsWith(`${field}: `), lines[0]);
      });
    }
  });

  it("suggests the key that was meant, and only a likely one", () => {
    const known = ["command", "idleTimeout", "readOnly", "env"];
    assert.equal(nearest("comamnd", known), "command");
    assert.equal(nearest("idle_timeout", known), "idleTimeout");
    assert.equal(nearest("readonly", known), "readOnly");
    assert.equal(nearest("volumes", known), undefined);
    assert.equal(nearest("x", known), undefined);
  });

  it("says when its file cannot be read", async () => {
    await assert.rejects(readSpecs("/nowhere/blog.yaml"), { code: "CONFIG_INVALID" });
  });

  it("comes back the same from the text that says it", () => {
    const word = fc.string({ unit: "grapheme", maxLength: 20 }).filter((text) => !text.includes("\0"));
    const part = fc.stringMatching(/^[a-z0-9_]{1,8}$/);
    const path = fc.array(part, { minLength: 1, maxLength: 3 }).map((parts) => `/data/${parts.join("/")}`);
    const ms = fc.integer({ min: 1000, max: 3_600_000 });
    fc.assert(
      fc.property(
        fc.record({
          name: fc.stringMatching(/^[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?$/),
          command: fc.tuple(part, fc.array(word, { maxLength: 4 })).map(([program, rest]) => [program, ...rest]),
          env: fc.dictionary(fc.stringMatching(/^[A-Z_]{1,10}$/), word, { maxKeys: 4 }),
          port: fc.integer({ min: 1, max: 65_535 }),
          mounts: fc.uniqueArray(
            fc.record({ source: path, target: path, readOnly: fc.boolean() }, { noNullPrototype: true }),
            {
              selector: ({ target }) => target,
              maxLength: 3,
            },
          ),
          memoryMiB: fc.integer({ min: 4, max: 100_000 }),
          idleTimeoutMs: fc.oneof(fc.constant(0), ms),
          startTimeoutMs: ms,
        }),
        ({ memoryMiB, idleTimeoutMs, startTimeoutMs, ...plain }) => {
          const idleTimeout = idleTimeoutMs === 0 ? "never" : formatDuration(idleTimeoutMs);
          const startTimeout = formatDuration(startTimeoutMs);
          const limits = { memory: formatSize(memoryMiB * 2 ** 20) };
          const spec = one(stringify({ ...plain, limits, idleTimeout, startTimeout }));
          const { name, command, env, port, mounts } = spec;
          assert.deepEqual({ name, command, env: { ...env }, port, mounts }, { ...plain, env: { ...plain.env } });
          assert.deepEqual(
            [spec.limits.memoryMiB, spec.idleTimeoutMs, spec.startTimeoutMs],
            [memoryMiB, idleTimeoutMs, startTimeoutMs],
          );
        },
      ),
      { numRuns: 200 },
    );
  });
});

describe("the hash of a specification", () => {
  const spec = one(`${MINIMAL}env: { A: "1", B: "2" }\n`);

  it("changes when what runs changes", () => {
    const changes: Partial<ContainerSpec>[] = [
      { name: "shop" },
      { engine: "process" },
      { rootfs: "/srv/root" },
      { command: ["serve", "-v"] },
      { cwd: "/srv" },
      { env: { A: "1", B: "3" } },
      { user: { uid: 1, gid: 0 } },
      { port: 8001 },
      { mounts: [{ source: "/a", target: "/b", readOnly: false }] },
      { checkpoint: { ...spec.checkpoint, at: "listen" } },
      { checkpoint: { ...spec.checkpoint, warmup: "/health" } },
      { checkpoint: { ...spec.checkpoint, warmup: ["/", "/health"] } },
      { checkpoint: { ...spec.checkpoint, warmup: ["/health", "/"] } },
      { hooks: { beforeCheckpoint: "/before", timeoutMs: 2000 } },
    ];
    const hashes = changes.map((change) => specHash({ ...spec, ...change }));
    assert.equal(new Set([...hashes, specHash(spec)]).size, changes.length + 1);
    for (const hash of hashes) assert.match(hash, /^[0-9a-f]{16}$/);
  });

  it("stays when only what surrounds it changes, and does not depend on the order of keys", () => {
    const changes: Partial<ContainerSpec>[] = [
      { hostnames: ["other.example"] },
      { idleTimeoutMs: 1000 },
      { startTimeoutMs: 1000 },
      { stopGraceMs: 0 },
      { takeover: "exclusive" },
      { probe: { timeoutMs: 50, kind: "icmp" } },
      { checkpoint: { ...spec.checkpoint, onReady: false, timeoutMs: 1000 } },
      { checkpoint: { ...spec.checkpoint, refresh: { everyMs: 60_000, paths: ["/a"] } } },
      { env: { B: "2", A: "1" } },
      { limits: { cpus: 2, memoryMiB: 512, pids: 7 } },
      { onIdle: "suspend" },
      { hooks: { afterRestore: "/after", timeoutMs: 1 } },
    ];
    for (const change of changes)
      assert.equal(specHash({ ...spec, ...change }), specHash(spec), JSON.stringify(change));
    assert.deepEqual(specRecord(spec), { spec, hash: specHash(spec) });
  });

  it("is the same as it was in the versions before, or every image would be thrown away", () => {
    assert.equal(specHash(one(MINIMAL)), "0e19f9d2a16916e3");
  });
});

describe("durations and sizes", () => {
  it("come back from the text that was written for them", () => {
    fc.assert(fc.property(fc.nat({ max: 10 ** 10 }), (ms) => parseDuration(formatDuration(ms)) === ms));
    fc.assert(fc.property(fc.maxSafeNat(), (bytes) => parseSize(formatSize(bytes)) === bytes));
  });

  it("are read as people write them", () => {
    const durations: Record<string, number | undefined> = {
      "0s": 0,
      "100ms": 100,
      "1.5s": 1500,
      "1h30m": 5_400_000,
      "2d": 172_800_000,
      "30m1h": undefined,
      "1s1s": undefined,
      "5": undefined,
      "5 s": undefined,
      "-5s": undefined,
      "5S": undefined,
      s: undefined,
      "": undefined,
    };
    for (const [text, ms] of Object.entries(durations)) assert.equal(parseDuration(text), ms, text);
    const sizes: Record<string, number | undefined> = {
      "0B": 0,
      "256KiB": 262_144,
      "1.5GiB": 1_610_612_736,
      "1GB": undefined,
      "1G": undefined,
      "1": undefined,
      "-1MiB": undefined,
      "": undefined,
    };
    for (const [text, bytes] of Object.entries(sizes)) assert.equal(parseSize(text), bytes, text);
  });
});

describe("the configuration of the program", () => {
  let directory: string;
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-config-"));
  });
  after(() => rm(directory, { recursive: true }));

  async function written(text: string): Promise<string> {
    const file = join(directory, "file.yaml");
    await writeFile(file, text);
    return file;
  }

  async function lines(promise: Promise<unknown>): Promise<string[]> {
    try {
      await promise;
    } catch (error) {
      assert.ok(error instanceof HakobuError && error.code === "CONFIG_INVALID", String(error));
      return error.message.replaceAll(`${directory}/`, "").split("\n");
    }
    return assert.fail("not refused");
  }

  it("is the default where the examples that ship say so", async () => {
    const options = { "host.id": "a" };
    assert.deepEqual(
      await readHostConfig({ file: "etc/hakobu/host.yaml", env: {}, options }),
      await readHostConfig({ env: {}, options }),
    );
    assert.deepEqual(
      await readProxyConfig({ file: "etc/hakobu/proxy.yaml", env: {} }),
      await readProxyConfig({ env: {} }),
    );
    const config = await readHostConfig({ env: {}, options });
    assert.equal(config.host.stateDir, "/var/lib/hakobu/a");
    assert.deepEqual(config.host.advertise, config.host.listen);
    assert.throws(() => Object.assign(config.host, { id: "b" }), TypeError);
  });

  it("names every setting of its schema in the examples that ship", async () => {
    const host = await readFile("etc/hakobu/host.yaml", "utf8");
    const proxy = await readFile("etc/hakobu/proxy.yaml", "utf8");
    for (const { path } of hostSettings) assert.ok(host.includes(`${path.split(".").at(-1)}:`), path);
    for (const { path } of proxySettings) assert.ok(proxy.includes(`${path.split(".").at(-1)}:`), path);
    for (const { description, path } of [...hostSettings, ...proxySettings]) assert.notEqual(description, "", path);
  });

  it("takes an option before the environment, that before the file, and that before the default", async () => {
    const file = await written(
      "host: { id: a, capacity: 1, listen: 127.0.0.1:1000, engines: [process] }\nlog: { level: warn }\n",
    );
    const env = {
      HAKOBU_HOST_CAPACITY: "2",
      HAKOBU_HOST_LISTEN: "127.0.0.1:2000",
      HAKOBU_LOG_LEVEL: "",
      HAKOBU_HOST_ENGINES: "runc,process",
    };
    const config = await readHostConfig({ file, env, options: { "host.capacity": "3", "host.id": undefined } });
    assert.equal(config.host.capacity, 3);
    assert.deepEqual(config.host.listen, { address: "127.0.0.1", port: 2000 });
    assert.deepEqual(config.host.engines, ["runc", "process"]);
    assert.equal(config.host.id, "a");
    assert.equal(config.log.level, "warn");
    assert.equal(config.etcd.ttlMs, 10_000);
  });

  it("says for each problem whether the option, the variable or the line is wrong", async () => {
    const file = await written("proxy:\n  maxWating: 5\n  probe: { fresh: 2 }\nlogs: {}\n");
    const env = { HAKOBU_PROXY_TRUST_FORWARDED: "perhaps" };
    const found = await lines(readProxyConfig({ file, env, options: { "proxy.listen": "localhost:80" } }));
    assert.deepEqual(
      found.map((line) => line.split(": ", 2).join(": ")),
      [
        "--listen: proxy.listen",
        "file.yaml:2:3: proxy.maxWating",
        "file.yaml:3:12: proxy.probe.fresh",
        "file.yaml:4:1: logs",
        "HAKOBU_PROXY_TRUST_FORWARDED: proxy.trustForwarded",
      ],
    );
    assert.match(found[1] as string, /did you mean maxWaiting\?/);
  });

  const proxyRefusals: readonly [why: string, settings: Record<string, string>, field: string][] = [
    ["hosts would be believed alive for too long", { "proxy.probe.fresh": "2s" }, "proxy.probe.fresh"],
    ["a probe outlasts the lease", { "proxy.probe.timeout": "10s" }, "proxy.probe.timeout"],
    ["a request ends before its relocation", { "proxy.requestTimeout": "30s" }, "proxy.relocationTimeout"],
    ["the admin address is open to all", { "proxy.admin": "0.0.0.0:8081" }, "proxy.admin"],
    ["the admin address is the public one", { "proxy.admin": "127.0.0.1:8080" }, "proxy.admin"],
    ["waiting bodies could fill the memory", { "proxy.replayLimit": "1GiB" }, "proxy.replayLimit"],
    ["one slow call would lose the lease", { "etcd.callTimeout": "6s" }, "etcd.callTimeout"],
    ["a lease is not whole seconds", { "etcd.ttl": "2500ms" }, "etcd.ttl"],
    ["certificates have no effect", { "etcd.tls.ca": "/etc/ca.pem" }, "etcd.tls"],
    ["a certificate has no key", { "etcd.endpoints": "https://a:1", "etcd.tls.cert": "/c.pem" }, "etcd.tls.cert"],
    ["members differ in protocol", { "etcd.endpoints": "https://a:1,http://b:1" }, "etcd.endpoints"],
    ["an endpoint holds a password", { "etcd.endpoints": "http://u:p@a:1" }, "etcd.endpoints"],
    ["a prefix has no end", { "etcd.prefix": "hakobu" }, "etcd.prefix"],
  ];
  for (const [why, options, field] of proxyRefusals) {
    it(`is refused where ${why}`, async () => {
      const found = await lines(readProxyConfig({ env: {}, options }));
      assert.equal(found.length, 1, found.join("\n"));
      assert.ok(found[0]?.includes(`: ${field}: `), found[0]);
    });
  }

  it("is refused where proxies could not reach a host", async () => {
    const id = { "host.id": "a" };
    for (const more of [
      { "host.listen": "0.0.0.0:7070" },
      { "host.listen": "[::]:7070" },
      { "host.advertise": "0.0.0.0:1" },
      { "host.listen": "10.0.0.1:7070", "host.advertise": "127.0.0.1:7070" },
    ])
      assert.equal((await lines(readHostConfig({ env: {}, options: { ...id, ...more } }))).length, 1);
    const config = await readHostConfig({
      env: {},
      options: { ...id, "host.listen": "[::]:7070", "host.advertise": "[fd00::1]:7070" },
    });
    assert.deepEqual(config.host.advertise, { address: "fd00::1", port: 7070 });
    const shared = { ...id, "host.images": "/x", "host.stateDir": "/x" };
    assert.match((await lines(readHostConfig({ env: {}, options: shared })))[0] as string, /host\.images/);
  });

  it("takes a password of etcd from the environment only, and sends it over TLS only", async () => {
    const env = { HAKOBU_ETCD_USERNAME: "hakobu", HAKOBU_ETCD_PASSWORD: "secret" };
    const safe = await readProxyConfig({ env, options: { "etcd.endpoints": "https://a:2379" } });
    assert.deepEqual(safe.etcd.auth, { username: "hakobu", password: "secret" });
    assert.ok((await readProxyConfig({ env })).etcd.auth !== undefined);
    assert.match(
      (await lines(readProxyConfig({ env, options: { "etcd.endpoints": "http://a:2379" } })))[0] as string,
      /clear/,
    );
    assert.equal((await lines(readProxyConfig({ env: { HAKOBU_ETCD_PASSWORD: "x" } }))).length, 1);
    const file = await written("etcd: { password: secret }\n");
    assert.match((await lines(readProxyConfig({ file, env: {} })))[0] as string, /etcd\.password: is not known/);
  });

  it("is refused where the file is not one", async () => {
    assert.match((await lines(readProxyConfig({ file: "/nowhere/x.yaml", env: {} })))[0] as string, /cannot be read/);
    assert.equal((await lines(readProxyConfig({ file: await written("- a\n"), env: {} }))).length, 1);
    assert.equal((await lines(readProxyConfig({ file: await written("log: {}\n---\nlog: {}\n"), env: {} }))).length, 1);
    assert.equal(
      (await lines(readProxyConfig({ file: await written("etcd: text\n"), env: { HAKOBU_ETCD_TTL: "5s" } }))).length,
      1,
    );
    assert.deepEqual(await readProxyConfig({ file: await written(""), env: {} }), await readProxyConfig({ env: {} }));
  });
});
