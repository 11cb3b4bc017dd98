// CRIU's files in an image, as they are looked at before a restore.
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HakobuError } from "../../actors/hakobu-error.js";
import { checkSizes, noteSizes } from "../../runtime/engines/criu-images.js";

describe("CRIU's files in an image", () => {
  let image: string;
  let sizes: string;
  beforeEach(async () => {
    image = await mkdtemp(join(tmpdir(), "hakobu-criu-"));
    sizes = join(image, "sizes.json");
    await mkdir(join(image, "criu"));
    await writeFile(join(image, "criu", "pages-1.img"), "pages");
    noteSizes(image);
  });
  afterEach(() => rm(image, { recursive: true, force: true }));
  const refused = (code: string): void =>
    assert.throws(
      () => checkSizes("blog", image),
      (error) => error instanceof HakobuError && error.code === code,
    );

  it("are as the dump wrote them, or the image is refused", async () => {
    assert.equal(checkSizes("blog", image), 5);
    await truncate(join(image, "criu", "pages-1.img"), 4);
    refused("RESTORE_FAILED");
    await writeFile(sizes, "{");
    refused("RESTORE_FAILED");
    await rm(sizes);
    refused("RESTORE_FAILED");
  });

  it("are not taken for bad by a host that cannot read them", async () => {
    await rm(sizes);
    await symlink(sizes, sizes);
    refused("UNAVAILABLE");
  });
});
