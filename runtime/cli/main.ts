#!/usr/bin/env node
// The program `hakobu`: its commands, and how an error ends it.
import { Command } from "commander";
import { doctorCommand } from "./doctor.js";
import { experimentCommand } from "./experiment.js";
import { imagesCommand } from "./images.js";
import { memberCommands } from "./members.js";
import { moveCommands } from "./move.js";
import { fail } from "./output.js";
import { scaleCommand } from "./scale.js";
import { storeCommands } from "./store.js";
import { upCommand } from "./up.js";

// They are for authors; users would see one on each TLS connection to an IP address, from grpc-js, which Node then ignores well.
process.noDeprecation = !process.env.HAKOBU_DEBUG;

const program = new Command("hakobu")
  .description("Carries web containers between hosts, one HTTP request at a time.")
  .version("0.1.0")
  .showHelpAfterError("(add --help for what there is)")
  .addHelpText(
    "after",
    `
Begin here:
  hakobu doctor                     what this machine can do
  hakobu up                         a whole cluster on this machine
  hakobu apply -f blog.yaml         give it an application
  hakobu get                        where it runs

On real machines: etcd, "hakobu proxy" where requests come in, "hakobu host" on every host, and a directory that all
hosts share. Configuration files with every setting explained are in etc/hakobu/.`,
  );

upCommand(program);
experimentCommand(program);
memberCommands(program);
storeCommands(program);
moveCommands(program);
imagesCommand(program);
scaleCommand(program);
doctorCommand(program);

try {
  await program.parseAsync();
} catch (error) {
  // Whatever it had opened would keep the process.
  process.exit(fail(error));
}
