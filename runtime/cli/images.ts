// `hakobu images`: what lies in the directory of images, and for each whether this machine would use it, or why not.
import Table from "cli-table3";
import type { Command } from "commander";
import { reasonOf } from "../../actors/hakobu-error.js";
import { noLog } from "../../actors/ports/log.js";
import type { Image, SkippedImage, Tier } from "../../actors/ports/image-store.js";
import type { SpecRecord } from "../../actors/ports/placement-store.js";
import { type HostConfig, hostSettings, readHostConfig } from "../config/program.js";
import { configuredImages, secretDirectories } from "../images/configured.js";
import type { DirectoryImageStore, Fit } from "../images/directory-store.js";
import { EtcdPlacementStore } from "../placement/etcd.js";
import { systemClock } from "../system-clock.js";
import { nameOf } from "../images/image-directory.js";
import { engine } from "./members.js";
import { plain } from "./output.js";
import { etcdOptions, type Given, givenSettings, withSettings } from "./settings.js";
import { read } from "./store.js";

const settings = hostSettings.filter(
  ({ path }) => path.startsWith("etcd.") || /^(host\.(id|images)|images\.(keyFile|encrypt))$/.test(path),
);

export function imagesCommand(program: Command): void {
  withSettings(
    program.command("images").description("list checkpoint images, and whether this machine can use each"),
    settings,
  )
    .argument("[name]", "of one application; default: of all")
    .option("--verify", "read every byte of each; ends with 1 where one is damaged")
    .option("--json", "print as JSON")
    .action(
      async (name: string | undefined, { verify, json, ...flags }: Given & { verify?: string; json?: string }) => {
        const options = givenSettings(flags, settings);
        const config = await readHostConfig({ file: flags.config, env: process.env, options });
        const store = await configuredImages(config, noLog);
        const found = await store.list(name);
        const records = found.length === 0 ? undefined : await recordsOf(config);
        const rows: Row[] = [];
        for (const each of found) rows.push(await rowOf(each, store, config, records, verify !== undefined));
        if (verify !== undefined && rows.some(({ damaged }) => damaged)) process.exitCode = 1;
        if (json !== undefined) console.log(JSON.stringify(rows, null, 2));
        else if (rows.length === 0) console.log(`No images in ${config.host.images}.`);
        else print(rows);
      },
    );
}

interface Row {
  readonly container: string;
  readonly epoch: number;
  /** Among the images of one epoch. */
  readonly sequence?: number;
  readonly tier?: Tier;
  readonly at?: string;
  readonly taken?: string;
  readonly bytes?: number;
  readonly specHash?: string;
  readonly encrypted?: boolean;
  /** With a MAC; whether it is the cluster's says `reason`. */
  readonly signed?: boolean;
  readonly usable: boolean;
  /** Why not. */
  readonly reason?: string;
  /** It failed a verification of every byte. */
  readonly damaged?: boolean;
}

type Records = ReadonlyMap<string, SpecRecord>;

/** What is applied; undefined, and said, where etcd does not answer. */
async function recordsOf(config: HostConfig): Promise<Records | undefined> {
  const store = new EtcdPlacementStore(etcdOptions(config.etcd), { clock: systemClock, log: noLog });
  try {
    return new Map([...(await read(store)).specs()].map((record) => [record.spec.name, record]));
  } catch (error) {
    process.stderr.write(`hakobu: images are not compared with their specifications: ${reasonOf(error)}\n`);
    return undefined;
  } finally {
    await store.close();
  }
}

async function rowOf(
  each: Image | SkippedImage,
  store: DirectoryImageStore,
  config: HostConfig,
  records: Records | undefined,
  verify: boolean,
): Promise<Row> {
  if (!("manifest" in each)) return { ...each, usable: false };
  const { container, epoch, sequence, tier = "golden", at, taken, specHash, encryption, mac } = each.manifest;
  const record = records?.get(container);
  const harm = verify ? await store.verify(each) : undefined;
  const missing = records !== undefined && record === undefined ? "it has no specification any more" : undefined;
  const reason = harm ?? missing ?? (await store.unusable(each, await fitOf(record, config)));
  return {
    container,
    epoch,
    ...(sequence === undefined ? {} : { sequence }),
    tier,
    at,
    taken,
    bytes: each.bytes,
    specHash,
    encrypted: encryption !== undefined,
    signed: mac !== undefined,
    usable: reason === undefined,
    ...(reason === undefined ? {} : { reason }),
    ...(verify ? { damaged: harm !== undefined } : {}),
  };
}

async function fitOf(record: SpecRecord | undefined, config: HostConfig): Promise<Fit> {
  if (record === undefined) return {};
  const { spec, hash } = record;
  const { id, stateDir } = config.host;
  const own = engine(spec.engine, id, stateDir, secretDirectories(config), noLog);
  return { specHash: hash, fingerprint: await own.fingerprint(spec) };
}

function print(rows: readonly Row[]): void {
  const table = new Table({
    head: ["CONTAINER", "EPOCH", "TIER", "AGE", "SIZE", "AT", "SPEC", "USABLE HERE"],
    chars: plain,
    style: { "padding-left": 0, "padding-right": 2, head: [], border: [] },
  });
  for (const { container, epoch, sequence = 0, tier, taken, bytes, at, specHash, usable, reason } of rows)
    table.push([
      container,
      nameOf({ epoch, sequence }),
      tier ?? "",
      taken === undefined ? "" : age(Date.now() - Date.parse(taken)),
      bytes === undefined ? "" : `${(bytes / 2 ** 20).toFixed(1)} MiB`,
      at ?? "",
      specHash?.slice(0, 12) ?? "",
      usable ? "yes" : `no: ${reason ?? "unknown"}`,
    ]);
  console.log(table.toString());
}

function age(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (!Number.isFinite(seconds)) return "unknown";
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)}m`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)}h` : `${Math.round(seconds / 86_400)}d`;
}
