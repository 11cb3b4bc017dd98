// Hooks over HTTP: one POST on a connection of its own.
//
//   K1  Only this sends `hakobu-hook`: the field is taken off whatever clients send (forwarding/headers.ts, H2).
//   K2  A seed is fresh for each call, and nobody else is told it.
import { randomBytes } from "node:crypto";
import { request } from "node:http";
import { reasonOf } from "../../actors/hakobu-error.js";
import type { Hooks } from "../../actors/ports/hooks.js";
import { connectionTo } from "../engines/inside.js";
import { header } from "./protocol.js";

const seedBytes = 32;
/** Of an answer that is no success, for the log. */
const keptCharacters = 200;

/** `host`: the id that applications are told. */
export function httpHooks(host: string): Hooks {
  return {
    call: (target, hostname, { name, path, epoch, reason }, signal) =>
      new Promise((resolve, reject) => {
        const refuse = (why: string, cause?: unknown): void =>
          reject(new Error(`hook ${name} (POST ${path}): ${why}`, cause === undefined ? undefined : { cause }));
        const seed = name === "afterRestore" ? { seed: randomBytes(seedBytes).toString("hex") } : {};
        const body = JSON.stringify({ epoch, host, reason, ...seed });
        const headers = {
          host: hostname,
          connection: "close",
          "content-type": "application/json",
          "content-length": Buffer.byteLength(body),
          [header.hook]: name,
        };
        const call = request(
          { host: target.address, port: target.port, ...connectionTo(target), method: "POST", path, headers, signal },
          (response) => {
            const { statusCode = 0 } = response;
            let said = "";
            response.setEncoding("utf8").on("data", (text: string) => {
              said = (said + text).slice(0, keptCharacters);
            });
            response.on("error", (error) => refuse(signal.aborted ? reasonOf(signal.reason) : reasonOf(error), error));
            response.on("end", () => {
              if (statusCode >= 200 && statusCode < 300) resolve();
              else refuse(`the application answered ${statusCode}${said === "" ? "" : `: ${said.trim()}`}`);
            });
          },
        );
        call.on("error", (error) => refuse(signal.aborted ? reasonOf(signal.reason) : reasonOf(error), error));
        call.end(body);
      }),
  };
}
