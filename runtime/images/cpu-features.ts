// What a processor can do, as images remember it: `<vendor> <feature> <feature> ...`, and in which words two of them differ.
const namedAtMost = 5;

/** `image` and `here` are not the same. */
export function cpuDifference(image: string, here: string): string {
  const [[vendor, ...had], [own, ...has]] = [image.split(" "), here.split(" ")];
  if (vendor !== own) return `the image has ${vendor}, this host ${own}`;
  const missing = had.filter((feature) => !has.includes(feature));
  if (missing.length > 0) return `the image needs ${several(missing)}, which this host does not have`;
  return `this host has ${several(has.filter((feature) => !had.includes(feature)))}, without which the image was taken`;
}

function several(features: readonly string[]): string {
  const more = features.length - namedAtMost;
  return features.slice(0, namedAtMost).join(", ") + (more > 0 ? ` and ${more} more` : "");
}
