// `hakobu doctor`: what this machine can do, and the command that mends what it cannot.
import type { Command } from "commander";
import Table from "cli-table3";
import { plain } from "./output.js";
import { canRestore, examine, missingToRestore } from "../doctor/doctor.js";

export function doctorCommand(program: Command): void {
  program
    .command("doctor")
    .description("check this machine: kernel, capabilities, CRIU, runc, etcd, network, cgroups, Node")
    .option("--json", "print the checks as JSON")
    .action(async ({ json }: { json?: boolean }) => {
      const checks = await examine();
      if (json === true) {
        console.log(JSON.stringify({ canRestore: canRestore(checks), checks }, null, 2));
        return;
      }
      const table = new Table({ chars: plain, style: { "padding-left": 0, "padding-right": 2, head: [], border: [] } });
      for (const { name, ok, found, mend } of checks)
        table.push([ok ? "ok" : "--", name, ok ? found : (mend ?? found)]);
      console.log(table.toString());
      const verdict = canRestore(checks)
        ? "Containers can be checkpointed and restored here."
        : `Cold starts only. Missing for checkpoint and restore: ${missingToRestore(checks).join(", ")}`;
      console.log(`\n${verdict}`);
      if (!canRestore(checks)) process.exitCode = 1;
    });
}
