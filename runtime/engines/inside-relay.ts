// A program, run inside a network namespace by inside.ts: carries its standard input to a TCP port and back.
import { connect } from "node:net";

const [, , address = "", port] = process.argv;
const socket = connect({ host: address, port: Number(port), allowHalfOpen: true });
socket.on("error", () => process.exit(1));
process.stdin.pipe(socket).pipe(process.stdout);
