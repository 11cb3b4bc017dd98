// A web application without dependencies: a counter in memory. What it has counted shows whether a process was carried over
// (restored from an image) or started again. Listens on HOST:PORT.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { hostname } from "node:os";
import { setTimeout as wait } from "node:timers/promises";

const { HOST = "0.0.0.0", PORT = "8000" } = process.env;
const MAX_BODY = 1024;
let count = 0;

function epoch() {
  try {
    return readFileSync("/run/hakobu/epoch", "utf8").trim();
  } catch {
    return "none";
  }
}

async function bodyOf(request) {
  let body = "";
  for await (const chunk of request.setEncoding("utf8")) {
    body += chunk;
    if (body.length > MAX_BODY) throw new RangeError("body too long");
  }
  return body;
}

async function answer(request) {
  const url = new URL(request.url, "http://localhost");
  switch (`${request.method} ${url.pathname}`) {
    case "GET /":
      return [200, `Hello. ${count} counted so far.\n`];
    case "GET /count":
      return [200, { count }];
    case "GET /slow": {
      const ms = Number(url.searchParams.get("ms") ?? 1000);
      if (!(ms >= 0 && ms <= 60_000)) return [400, "ms: 0 to 60000\n"];
      await wait(ms);
      return [200, { ms, count }];
    }
    case "POST /add": {
      const step = Number((await bodyOf(request)) || 1);
      if (!Number.isSafeInteger(step)) return [400, "the body is a whole number, or empty for 1\n"];
      count += step;
      return [200, { count }];
    }
    default:
      return [404, "GET /, /count, /slow?ms=, POST /add\n"];
  }
}

async function respond(request, response) {
  const [status, content] = await answer(request).catch((error) => {
    return [error instanceof RangeError ? 413 : 500, `${error.message}\n`];
  });
  const json = typeof content !== "string";
  response.writeHead(status, {
    "content-type": json ? "application/json" : "text/plain; charset=utf-8",
    "x-served-by": `host=${hostname()}; pid=${process.pid}; epoch=${epoch()}`,
  });
  response.end(json ? JSON.stringify(content) : content);
}

const server = createServer((request, response) => void respond(request, response));

server.listen(Number(PORT), HOST, () => process.stdout.write(`listening on ${HOST}:${PORT}\n`));
process.once("SIGTERM", () => server.close());
