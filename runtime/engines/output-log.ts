// A container's standard output and error, kept in a file: rotated at start, read from the end.
import { open, rename, stat } from "node:fs/promises";
import { lastLines } from "./command.js";

const rotateAboveBytes = 8 * 1024 * 1024;
const readBytes = 256 * 1024;

/** Call before a container starts: moves a log of more than 8 MiB to `<path>.1` and makes sure that there is one. */
export async function openOutputLog(
  path: string,
  owner: { readonly uid: number; readonly gid: number },
): Promise<void> {
  const bytes = await stat(path).then(
    ({ size }) => size,
    () => 0,
  );
  if (bytes > rotateAboveBytes) await rename(path, `${path}.1`);
  const file = await open(path, "a", 0o640);
  try {
    const { uid, gid } = await file.stat();
    if (uid !== owner.uid || gid !== owner.gid) await file.chown(owner.uid, owner.gid);
  } finally {
    await file.close();
  }
}

/** The last lines, of the last 256 KiB; empty where there is no log. */
export async function readOutputLog(path: string, lines: number): Promise<string> {
  const file = await open(path, "r").catch(() => undefined);
  if (file === undefined) return "";
  try {
    const { size } = await file.stat();
    const start = Math.max(0, size - readBytes);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(size - start), 0, size - start, start);
    return lastLines(buffer.toString("utf8", 0, bytesRead), lines);
  } finally {
    await file.close();
  }
}
