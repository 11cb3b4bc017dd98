// Readiness over HTTP: one GET on a connection of its own, without cookies.
import { request } from "node:http";
import type { Target } from "../../actors/ports/prober.js";
import { connectionTo } from "../engines/inside.js";
import type { Readiness } from "../../actors/ports/readiness.js";

export const httpReadiness: Readiness = {
  get: (target: Target, hostname: string, path: string, signal: AbortSignal): Promise<number> =>
    new Promise((resolve, reject) => {
      const call = request(
        {
          host: target.address,
          port: target.port,
          ...connectionTo(target),
          path,
          headers: { host: hostname, connection: "close" },
          signal,
        },
        (response) => {
          response.resume();
          response.on("end", () => resolve(response.statusCode as number));
          response.on("error", reject);
        },
      );
      call.on("error", reject);
      call.end();
    }),
};
