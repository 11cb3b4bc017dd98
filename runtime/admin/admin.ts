// The admin API of a proxy, for people and tools: what it knows, what moved, and a way to every member (`/at/<host>/v1/host`).
import Koa from "koa";
import type { HakobuProxy } from "../proxy/proxy.js";
import { memberGateway } from "./gateway.js";

export function adminApi(proxy: HakobuProxy): Koa {
  const app = new Koa();
  app.silent = true;
  app.use(memberGateway(proxy.view));
  app.use((ctx) => {
    const { view, relocations, registry } = proxy;
    switch (ctx.path) {
      case "/healthz":
        ctx.status = view.connected ? 200 : 503;
        ctx.body = { connected: view.connected, reason: view.disconnectedReason };
        return;
      case "/hosts":
        ctx.body = [...view.hosts()].map((host) => ({ ...host, reachability: proxy.reachabilityOf(host.id) }));
        return;
      case "/containers":
        ctx.body = [...view.specs()].map(({ spec, hash }) => ({ spec, hash, placement: view.placement(spec.name) }));
        return;
      case "/relocations":
        ctx.body = relocations.reports;
        return;
      case "/actors":
        ctx.body = registry.list().map(({ address, actor }) => ({ address, snapshot: actor.getSnapshot() as unknown }));
        return;
      default:
        ctx.status = ctx.path === "/" ? 200 : 404;
        ctx.body = {
          name: "hakobu proxy",
          paths: ["/healthz", "/hosts", "/containers", "/relocations", "/actors", "/at/<host>/v1/host"],
        };
    }
  });
  return app;
}
