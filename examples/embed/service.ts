// A TypeScript service with Hakobu inside: two hosts and a proxy in one process, placements in memory, child processes as
// containers. The service keeps its own pages, gives the rest to Hakobu, and watches its containers' states.
//   node dist/examples/embed/service.js
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import Koa from "koa";
import { request } from "undici";
import {
  createHost,
  createProxy,
  DirectoryImageStore,
  MemoryPlacementStore,
  noLog,
  parseSpecs,
  ProcessEngine,
  specRecord,
  systemClock,
} from "../../runtime/index.js";

const directory = await mkdtemp(join(tmpdir(), "hakobu-embed-"));
const store = new MemoryPlacementStore({ clock: systemClock, ttlMs: 10_000 });
const images = new DirectoryImageStore({ directory: join(directory, "images"), log: noLog });

const hosts = await Promise.all(
  ["a", "b"].map((id, index) =>
    createHost({
      id,
      listen: { address: `127.0.2.${index + 1}`, port: 0 },
      engines: [new ProcessEngine({ hostId: `embed-${id}`, stateDir: join(directory, id), log: noLog })],
      store,
      images,
      log: noLog,
    }),
  ),
);
const proxy = await createProxy({ listen: { address: "127.0.0.1", port: 0 }, store, log: noLog });

// Every state change of every actor, while somebody watches.
const stopWatching = hosts.map((host) =>
  host.registry.inspect((address, event) => {
    if (
      event.type === "@xstate.snapshot" &&
      event.actorRef === host.registry.get(address) &&
      address.startsWith("container/")
    )
      console.log(`host ${host.actor.record.id}: ${address} ${JSON.stringify(Reflect.get(event.snapshot, "value"))}`);
  }),
);

const program = `require("http").createServer((q, s) => s.end("hello from " + process.pid)).listen(process.env.PORT, process.env.HOST)`;
const spec = `
name: hello
hostnames: [hello.localhost]
engine: process
command: [node, -e, ${JSON.stringify(program)}]
port: 8000
`;
for (const each of parseSpecs(spec, "service.ts")) await store.putSpec(specRecord(each));

// A Koa application of one's own: what it does not answer itself, Hakobu carries.
const app = new Koa();
app.use((ctx, next) => {
  if (ctx.path !== "/status") return next();
  ctx.body = [...proxy.view.placements()];
  return undefined;
});
app.use(proxy.middleware);
const server = app.listen(0, "127.0.0.1");
await once(server, "listening");
const { port } = server.address() as AddressInfo;

const get = async (path: string): Promise<string> => {
  const { body } = await request(`http://127.0.0.1:${port}${path}`, { headers: { host: "hello.localhost" } });
  return body.text();
};
console.log(await get("/"));
console.log(await get("/status"));

const owner = proxy.view.placement("hello")?.host;
console.log(`host ${owner} disappears`);
await hosts.find((host) => host.actor.record.id === owner)?.destroy();
console.log(await get("/"));

for (const stop of stopWatching) stop();
server.close();
server.closeAllConnections();
await proxy.close();
for (const host of hosts) await host.close();
// The host that disappeared left its container behind, as a crash does: its engine still knows it.
const left = new ProcessEngine({ hostId: `embed-${owner}`, stateDir: join(directory, owner ?? ""), log: noLog });
for (const instance of await left.find()) await left.stop(instance, 0);
await store.close();
await rm(directory, { recursive: true, force: true });
