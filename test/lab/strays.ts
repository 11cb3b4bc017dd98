// What the hosts of a cluster have on the machine beside what they say they run. To be asked while the agents are up and before anything
// is closed, since closing a cluster removes what the product left behind.
//
//   S1  Nothing is removed by looking, and no host is asked to remove anything.
//   S2  A container may have its own things (runtime/engines/runc/names.ts) on a host while that host says that it has a process.
//       In a host's own network namespace there may be its agent and that agent's guard, and nobody else.
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { runCommand } from "../../runtime/engines/command.js";
import { namesOf } from "../../runtime/engines/runc/names.js";
import type { NamespacesCluster } from "../../runtime/local/namespaces.js";
import { entriesOf, read } from "./leftovers.js";

const namespaces = "/run/netns";
const cgroups = "/sys/fs/cgroup";
const pollMs = 100;
const commandLimitMs = 10_000;

/** What is still there when `limitMs` are over, one line each; empty as soon as a look found nothing. */
export async function straysAfter(cluster: NamespacesCluster, limitMs: number): Promise<string[]> {
  const end = performance.now() + limitMs;
  for (;;) {
    const found = await strays(cluster);
    if (found.length === 0 || performance.now() > end) return found;
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}

/** One look. */
export async function strays(cluster: NamespacesCluster): Promise<string[]> {
  const found = await Promise.all(cluster.hosts.map((host) => straysOf(cluster, host)));
  return found.flat();
}

async function straysOf(cluster: NamespacesCluster, host: string): Promise<string[]> {
  // Asked first: a container that it stops meanwhile has less on the machine, and not more.
  const status = await cluster.status(host);
  if (status === undefined) return [`host ${host} does not say what it runs`];
  const hostId = cluster.hostId(host);
  const directory = join(cluster.stateDir(host), "runc");
  const runs = new Set(status.containers.flatMap(({ name, pid }) => (pid === undefined ? [] : [name])));
  const links = new Set([...runs].map((name) => namesOf(hostId, directory, name).link));
  const others = (names: readonly string[]): string[] => names.filter((name) => !runs.has(name));
  const spaces = entriesOf(namespaces).filter((name) => name.startsWith(`hakobu-${hostId}-`));
  const found = {
    namespace: others(spaces.map((name) => name.slice(`hakobu-${hostId}-`.length))),
    link: (await containerLinks(cluster, host)).filter((link) => !links.has(link)),
    mount: mountsBelow(`${directory}/`)
      .filter(([container = ""]) => !runs.has(container))
      .map((path) => path.join("/")),
    cgroup: groupsOf(hostId)
      .filter(({ container }) => !runs.has(container))
      .map(({ path }) => path),
    bundle: others(entriesOf(directory).filter((name) => existsSync(join(directory, name, "bundle")))),
    "runc state": others(entriesOf(join(directory, ".runc"))),
    process: processesOf(cluster, host, spaces),
  };
  return Object.entries(found).flatMap(([kind, all]) => all.map((each) => `host ${host}, ${kind}: ${each}`));
}

async function containerLinks(cluster: NamespacesCluster, host: string): Promise<string[]> {
  const there = cluster.network.host(host);
  const said = await runCommand(there.wrap(["ip", "-oneline", "link", "show"]), {
    failure: "UNAVAILABLE",
    title: `the links of host ${host}`,
    timeoutMs: commandLimitMs,
  });
  return [...said.matchAll(/^\d+: (h[ks][0-9a-f]{12})[@:]/gm)].map(([, link]) => link as string);
}

/** Mount points below a directory, in parts. */
function mountsBelow(directory: string): string[][] {
  const points = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" ")[4] ?? "");
  return points.flatMap((point) => (point.startsWith(directory) ? [point.slice(directory.length).split("/")] : []));
}

function groupsOf(hostId: string): { readonly container: string; readonly path: string }[] {
  const roots = [cgroups, ...entriesOf(cgroups).map((name) => join(cgroups, name))];
  return roots
    .map((root) => join(root, "hakobu", hostId))
    .flatMap((parent) =>
      entriesOf(parent)
        .map((container) => ({ container, path: join(parent, container) }))
        .filter(({ path }) => statSync(path, { throwIfNoEntry: false })?.isDirectory() === true),
    );
}

/** S2, and of what is in the namespace of a container but not in its control group. */
function processesOf(cluster: NamespacesCluster, host: string, spaces: readonly string[]): string[] {
  const agent = cluster.agentPid(host);
  const own = inode(join(namespaces, cluster.network.host(host).namespace));
  const prefix = `hakobu-${cluster.hostId(host)}-`;
  const inside = new Map(spaces.map((name) => [inode(join(namespaces, name)), name.slice(prefix.length)]));
  return entriesOf("/proc").flatMap((pid) => {
    const where = /^\d+$/.test(pid) ? inode(`/proc/${pid}/ns/net`) : undefined;
    if (where === undefined) return [];
    const command = read(`/proc/${pid}/cmdline`).replaceAll("\0", " ").trim();
    const container = inside.get(where);
    if (where === own) {
      const parent = Number(/^PPid:\s*(\d+)/m.exec(read(`/proc/${pid}/status`))?.[1]);
      if (Number(pid) === agent || (parent === agent && command.endsWith("hakobu-guard"))) return [];
    } else if (
      container === undefined ||
      read(`/proc/${pid}/cgroup`).includes(`/hakobu/${cluster.hostId(host)}/${container}`)
    )
      return [];
    return [`${pid} ${command}`];
  });
}

function inode(path: string): number | undefined {
  try {
    return statSync(path).ino;
  } catch {
    return undefined;
  }
}
