// Durations as people write them: `100ms`, `5s`, `1h30m`. In milliseconds everywhere else.

const UNITS: readonly (readonly [unit: string, ms: number])[] = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1000],
  ["ms", 1],
];
const MS = new Map(UNITS);
const PART = /(\d+(?:\.\d+)?)(ms|s|m|h|d)/g;

/** Milliseconds, rounded; undefined when it is not a duration. A bare number is not one: its unit would be a guess. */
export function parseDuration(text: string): number | undefined {
  const parts = [...text.matchAll(PART)];
  if (parts.length === 0 || parts.map(([part]) => part).join("") !== text) return undefined;
  let ms = 0;
  let last = Number.POSITIVE_INFINITY;
  for (const [, amount, unit] of parts) {
    const size = MS.get(unit as string) as number;
    // Largest unit first and each once, so that a typing error is not added up.
    if (size >= last) return undefined;
    last = size;
    ms += Number(amount) * size;
  }
  return Number.isFinite(ms) ? Math.round(ms) : undefined;
}

/** The shortest text that `parseDuration` reads as so many whole milliseconds. */
export function formatDuration(ms: number): string {
  let rest = ms;
  let text = "";
  for (const [unit, size] of UNITS) {
    const amount = Math.floor(rest / size);
    if (amount === 0) continue;
    text += `${amount}${unit}`;
    rest -= amount * size;
  }
  return text === "" ? "0s" : text;
}
