// The guard process: it kills what it was told to when the agent falls silent or is gone, and nothing else.
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import type { Instance } from "../../actors/ports/engine.js";
import { identify, isRunning } from "../../runtime/engines/process-table.js";
import { ProcessGuard } from "../../runtime/guard.js";
import { eventually } from "../lab/cluster.js";

describe("the guard of exclusive containers", () => {
  const victims: ChildProcess[] = [];
  const victim = (): { child: ChildProcess; instance: Instance } => {
    const child = spawn("sleep", ["60"], { stdio: "ignore" });
    victims.push(child);
    const { startTime } = identify(child.pid as number);
    const about = { container: "a", engine: "process", epoch: 1, specHash: "", address: "", port: 1 };
    return { child, instance: { ...about, pid: child.pid as number, startTime } };
  };
  const dead = (child: ChildProcess): boolean => child.signalCode === "SIGKILL";
  afterEach(() => {
    for (const child of victims.splice(0)) child.kill("SIGKILL");
  });

  it("kills when nothing is said in time, and only the process that was named", async () => {
    const guard = new ProcessGuard();
    const [named, reused, other] = [victim(), victim(), victim()];
    guard.watch(300, [named.instance, { ...reused.instance, startTime: reused.instance.startTime + 1 }]);
    await eventually("the named one is dead", () => dead(named.child));
    assert.equal(dead(reused.child), false, "a reused pid is spared");
    assert.equal(dead(other.child), false);
    const next = victim();
    await eventually("it guards again", () => {
      guard.watch(1, [next.instance]);
      return dead(next.child);
    });
    guard.close();
  });

  it("kills the whole process group where the process leads one", async () => {
    const guard = new ProcessGuard();
    const leader = spawn("bash", ["-c", "sleep 60 & echo $!; wait"], {
      detached: true,
      stdio: ["ignore", "pipe", "ignore"],
    });
    victims.push(leader);
    const child = Number(await new Promise<Buffer>((resolve) => leader.stdout.once("data", resolve)));
    const { startTime } = identify(leader.pid as number);
    const running = identify(child);
    guard.watch(1, [{ ...victim().instance, pid: leader.pid as number, startTime }]);
    await eventually("its child is dead", () => !isRunning(running));
    guard.close();
  });

  it("spares what is not named any more, and everything once it is closed", async () => {
    const guard = new ProcessGuard();
    const [first, second] = [victim(), victim()];
    guard.watch(400, [first.instance, second.instance]);
    guard.watch(400, [second.instance]);
    await eventually("the second is dead", () => dead(second.child));
    assert.equal(dead(first.child), false);
    const third = victim();
    guard.watch(60_000, [third.instance]);
    guard.close();
    guard.close();
    const later = victim();
    const probe = new ProcessGuard();
    probe.watch(1, [later.instance]);
    await eventually("time has passed", () => dead(later.child));
    assert.equal(dead(third.child), false);
    probe.close();
  });

  it("kills when the process that it guards for is killed", async () => {
    const { child, instance } = victim();
    const program = `
      const { ProcessGuard } = await import(${JSON.stringify(join(import.meta.dirname, "../../runtime/guard.js"))});
      new ProcessGuard().watch(60_000, [${JSON.stringify(instance)}]);
      setTimeout(() => process.kill(process.pid, "SIGKILL"), 200);`;
    const agent = spawn(process.execPath, ["--input-type=module", "-e", program], { stdio: "ignore" });
    await new Promise((resolve) => agent.once("exit", resolve));
    await eventually("its container is dead", () => dead(child));
  });
});
