// A violation for people: what was found, and what happened around it.
import type { History, Violation } from "./history.js";

export function explain(violation: Violation, history: History, aroundMs = 3000): string {
  const { kind, container, atMs, text } = violation;
  const head = `${kind}${container === undefined ? "" : ` of ${container}`}: ${text}`;
  if (atMs === undefined) return head;
  const time = (ms: number): string => `${ms - atMs >= 0 ? "+" : ""}${ms - atMs}`.padStart(7);
  const near: { at: number; line: string }[] = [];
  const note = (at: number, line: string): void => {
    if (Math.abs(at - atMs) <= aroundMs) near.push({ at, line: `${time(at)} ${line}` });
  };
  const spans = [...history.hostsOut.values(), ...history.proxiesKilled.values(), ...history.proxiesStopped.values()];
  for (const { fromMs, toMs, what } of [...spans.flat(), ...history.etcdOut]) {
    note(fromMs, `begins: ${what} (until ${time(toMs).trim()})`);
    note(toMs, `is over: ${what}`);
  }
  for (const it of history.exchanges) {
    if (it.container !== container) continue;
    note(it.sentMs, `client ${it.client} sends ${it.method} ${it.id} to proxy ${it.proxy}`);
    note(it.doneMs, `${it.id}: ${it.status} ${it.epoch === undefined ? "" : `${it.host} epoch ${it.epoch}`}`);
  }
  for (const line of (container === undefined ? undefined : history.lines.get(container)) ?? [])
    if (line.event !== "beat")
      note(line.at, `${line.host} epoch ${line.epoch} ${line.instance}: ${line.event} ${line.id ?? ""}`);
  near.sort((a, b) => a.at - b.at);
  return [head, ...near.map(({ line }) => `  ${line}`)].join("\n");
}
