// Digests of watched content, on a real directory.
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rename, rm, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { noLog } from "../../actors/ports/log.js";
import { WatchedContent } from "../../runtime/images/watched-content.js";

describe("watched content", () => {
  let directory: string;
  const never = new AbortController().signal;
  const digest = (...names: string[]): Promise<string> =>
    new WatchedContent(noLog).digest(
      names.map((name) => join(directory, name)),
      never,
    );

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "hakobu-content-"));
    await mkdir(join(directory, "site", "pages"), { recursive: true });
    await writeFile(join(directory, "site", "pages", "index"), "one");
    await writeFile(join(directory, "site", "style"), "one");
  });
  afterEach(() => rm(directory, { recursive: true, force: true }));

  it("has the same digest as long as nothing changes, and another one after each change", async () => {
    const site = (name: string): string => join(directory, "site", name);
    const changes: [string, () => Promise<unknown>][] = [
      ["a file that is written", () => writeFile(site("pages/index"), "two!")],
      ["a file of the same size", () => utimes(site("style"), new Date(0), new Date(1000))],
      ["a file that is new", () => writeFile(site("pages/new"), "")],
      ["a file that has another name", () => rename(site("pages/new"), site("pages/old"))],
      ["a file that is gone", () => rm(site("pages/old"))],
      ["a directory that is new", () => mkdir(site("empty"))],
      ["a link", () => symlink("style", site("link"))],
      ["a link that leads elsewhere", () => rm(site("link")).then(() => symlink("pages", site("link")))],
    ];
    let before = await digest("site");
    for (const [what, change] of changes) {
      assert.equal(await digest("site"), before, `before ${what}`);
      await change();
      const after = await digest("site");
      assert.notEqual(after, before, what);
      before = after;
    }
  });

  it("is that of a single file, and of what is not there until it is", async () => {
    const file = await digest("site/style");
    await writeFile(join(directory, "site", "pages", "index"), "changed");
    assert.equal(await digest("site/style"), file);
    const absent = await digest("later");
    await writeFile(join(directory, "later"), "");
    assert.notEqual(await digest("later"), absent);
    assert.notEqual(await digest("site", "later"), await digest("later", "site"));
  });

  it("follows a watched path that is a link to the newest release", async () => {
    for (const release of ["1", "2"]) {
      await mkdir(join(directory, release));
      await writeFile(join(directory, release, "app"), "same");
      await utimes(join(directory, release, "app"), new Date(0), new Date(0));
    }
    await symlink("1", join(directory, "current"));
    const first = await digest("current");
    await rm(join(directory, "current"));
    await symlink("2", join(directory, "current"));
    assert.notEqual(await digest("current"), first);
  });

  it("looks at so many entries at most, and says once that there are more", async () => {
    const said: object[] = [];
    const content = new WatchedContent({ ...noLog, warn: (details) => void said.push(details) }, 10);
    const files = join(directory, "files");
    await mkdir(files);
    const look = () => content.digest([files], never);
    for (let n = 10; n < 19; n++) await writeFile(join(files, `${n}`), "");
    await look();
    assert.deepEqual(said, []);
    for (let n = 19; n < 30; n++) await writeFile(join(files, `${n}`), "");
    const before = await look();
    await writeFile(join(files, "29"), "not seen");
    assert.equal(await look(), before);
    await writeFile(join(files, "10"), "seen");
    assert.notEqual(await look(), before);
    assert.deepEqual(said, [{ paths: [files], entriesAtMost: 10 }]);
  });

  it("ends when it is told to", async () => {
    await assert.rejects(
      new WatchedContent(noLog).digest([directory], AbortSignal.abort(new Error("planted"))),
      /planted/,
    );
  });

  it("does not take what cannot be looked at for gone", async () => {
    await assert.rejects(digest("a".repeat(300)), /ENAMETOOLONG/);
  });
});
