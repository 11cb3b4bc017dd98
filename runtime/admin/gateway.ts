// `/at/<host>/...`: the control API of another member, through koa-proxies. For people and tools, never for tenants' requests:
// koa-proxies 0.12 neither retries nor limits a connection attempt. What else is wrong with it as it comes is mended here:
// an aborted client leaves the upstream open, a broken upstream looks like a complete answer, `Connection` passes through,
// and a chunked DELETE is announced as empty.
import { Agent, type ClientRequest, type IncomingMessage, type ServerResponse } from "node:http";
import type Koa from "koa";
import koaProxies from "koa-proxies";
import type { ClusterView } from "../../actors/cluster-view.js";

interface WebPasses {
  readonly proxy: { webPasses: { name: string }[]; on(event: "error", listener: () => void): void };
}

const timeoutMs = 5000;

/** Answers `/at/<host>/<path>` for every host in the view; passes other requests on. Make one in a process. */
export function memberGateway(view: ClusterView): Koa.Middleware {
  const { proxy } = koaProxies as unknown as WebPasses;
  const pass = proxy.webPasses.findIndex(({ name }) => name === "deleteLength");
  if (pass >= 0) proxy.webPasses.splice(pass, 1);
  proxy.on("error", () => {});
  const agent = new Agent({ keepAlive: true, maxFreeSockets: 8 });
  const events = {
    proxyReq: (upstream: ClientRequest, _incoming: IncomingMessage, outgoing: ServerResponse) => {
      outgoing.once("close", () => {
        if (!outgoing.writableFinished) upstream.destroy();
      });
    },
    proxyRes: (response: IncomingMessage) => {
      delete response.headers.connection;
      delete response.headers["keep-alive"];
    },
    error: (_error: Error, _incoming: IncomingMessage, outgoing: ServerResponse) => {
      if (outgoing.headersSent) outgoing.destroy();
    },
  };
  // One middleware for all members: koa-proxies keeps the `events` of each that it makes for ever.
  return koaProxies("/at/:member", ((params: { member: string }) => {
    const host = view.host(params.member);
    if (host === undefined) return false;
    return {
      target: `http://${host.address}:${host.port}`,
      agent,
      timeout: timeoutMs,
      proxyTimeout: timeoutMs,
      rewrite: (path: string) => path.replace(/^\/at\/[^/]+/, "") || "/",
      events,
    };
  }) as unknown as Parameters<typeof koaProxies>[1]);
}
