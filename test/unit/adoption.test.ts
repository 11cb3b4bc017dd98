// What a host does with what it finds when it joins, first and again.
import assert from "node:assert/strict";
import { adopt } from "../../actors/adoption.js";
import { ClusterView } from "../../actors/cluster-view.js";
import type { ContainerActor } from "../../actors/container.js";
import { noLog } from "../../actors/ports/log.js";
import type { Engine } from "../../actors/ports/engine.js";
import { MemoryPlacementStore } from "../../runtime/placement/memory.js";
import { systemClock } from "../../runtime/system-clock.js";
import { hostOf } from "../lab/records.js";

describe("adoption", () => {
  it("lets no engine touch the containers that the host has, which may be coming up, when it joins again", async () => {
    const store = new MemoryPlacementStore({ clock: systemClock, ttlMs: 60_000 });
    const membership = await store.join(hostOf("a"));
    const asked: Record<string, boolean | undefined> = {};
    const engine: Pick<Engine, "find"> = {
      find: async (held) => {
        for (const name of ["here", "left"]) asked[name] = held?.(name);
        return [];
      },
    };
    const here: Pick<ContainerActor, "loseOwnership"> = { loseOwnership() {} };
    await adopt(
      {
        hostId: "a",
        view: new ClusterView(),
        engines: new Map([["process", engine as Engine]]),
        containers: new Map([["here", here as ContainerActor]]),
        log: noLog,
        acquire: () => Promise.reject(new Error("nothing is taken")),
        discard: () => Promise.reject(new Error("nothing is stopped")),
      },
      membership,
    );
    assert.deepEqual(asked, { here: true, left: false });
    await store.close();
  });
});
