// A container's standard output and error, kept in a file: bounded, and read from the end.
//
//   L1  The file lies where the container can write: whatever it put in its place (a link, a pipe) is neither followed nor waited for.
import { constants, lstatSync } from "node:fs";
import { type FileHandle, open, rename, rm, writeFile } from "node:fs/promises";
import { lastLines } from "./command.js";

const limitBytes = 8 * 1024 * 1024;
const readBytes = 256 * 1024;
const { O_APPEND, O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY } = constants;
/** L1. */
const careful = O_NOFOLLOW | O_NONBLOCK;

/** Call before a container starts: moves a log of more than 8 MiB to `<path>.1` and makes sure that there is one. */
export async function openOutputLog(
  path: string,
  owner: { readonly uid: number; readonly gid: number },
): Promise<void> {
  const known = lstatSync(path, { throwIfNoEntry: false });
  const ours = known?.isFile() === true;
  if (known !== undefined && (!ours || known.size > limitBytes)) {
    await rm(`${path}.1`, { recursive: true, force: true });
    if (ours) await rename(path, `${path}.1`);
    else await rm(path, { recursive: true, force: true });
  }
  const fresh = known === undefined || !ours || known.size > limitBytes;
  const file = await open(path, O_APPEND | O_WRONLY | careful | (fresh ? O_CREAT | O_EXCL : 0), 0o640);
  try {
    const { uid, gid } = await file.stat();
    if (uid !== owner.uid || gid !== owner.gid) await file.chown(owner.uid, owner.gid);
  } finally {
    await file.close();
  }
}

/** The last lines, of the last 256 KiB; empty where there is no log. */
export async function readOutputLog(path: string, lines: number): Promise<string> {
  const file = await regular(path, O_RDONLY);
  if (file === undefined) return "";
  try {
    return lastLines((await tailOf(file)).toString(), lines);
  } finally {
    await file.close();
  }
}

/** Empties a log of more than 8 MiB while it is being written to, and leaves its last 256 KiB in `<path>.1`. */
export async function boundOutputLog(path: string): Promise<void> {
  const known = lstatSync(path, { throwIfNoEntry: false });
  if (known === undefined || known.size <= limitBytes) return;
  const file = await regular(path, O_RDWR);
  if (file === undefined) return;
  try {
    const tail = await tailOf(file);
    await file.truncate();
    await rm(`${path}.1`, { recursive: true, force: true });
    await writeFile(`${path}.1`, tail, { mode: 0o640, flag: "wx" });
  } finally {
    await file.close();
  }
}

/** Undefined where it is not there, or is no regular file. */
async function regular(path: string, flags: number): Promise<FileHandle | undefined> {
  const file = await open(path, flags | careful).catch(() => undefined);
  if (file === undefined || (await file.stat()).isFile()) return file;
  await file.close();
  return undefined;
}

async function tailOf(file: FileHandle): Promise<Buffer> {
  const { size } = await file.stat();
  const start = Math.max(0, size - readBytes);
  const { buffer, bytesRead } = await file.read(Buffer.alloc(size - start), 0, size - start, start);
  return buffer.subarray(0, bytesRead);
}
