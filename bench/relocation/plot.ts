// Response time over the run as a picture, like figures 3 to 5 of the paper: one curve for each way to start, all three drawn
// from the moment at which their host was cut off. Text in, text out.

export interface Curve {
  readonly label: string;
  readonly color: string;
  /** Of each request: seconds from the cut to its sending, and its response time in milliseconds. */
  readonly points: readonly { readonly seconds: number; readonly ms: number }[];
  /** Index of the request that was answered by the other host. */
  readonly slow: number;
}

const width = 860;
const height = 420;
const area = { left: 70, right: width - 20, top: 56, bottom: height - 52 };
const columns = 360;

/** Logarithmic: an ordinary response and a cold start are a factor of 1,000 apart. Of each column the slowest is drawn. */
export function plot(title: string, curves: readonly Curve[]): string {
  const all = curves.flatMap(({ points }) => points);
  const from = Math.min(0, ...all.map(({ seconds }) => seconds));
  const to = Math.max(1, ...all.map(({ seconds }) => seconds));
  const low = 10 ** Math.floor(Math.log10(Math.max(0.1, Math.min(...all.map(({ ms }) => ms)))));
  const high = 10 ** Math.ceil(Math.log10(Math.max(low * 10, ...all.map(({ ms }) => ms * 1.5))));
  const x = (seconds: number): number => area.left + ((seconds - from) / (to - from)) * (area.right - area.left);
  const y = (ms: number): number =>
    area.bottom - (Math.log10(Math.max(low, ms) / low) / Math.log10(high / low)) * (area.bottom - area.top);

  const parts: string[] = [text(area.left, 22, title, 'font-size="15" font-weight="bold"')];
  for (let ms = low; ms <= high * 1.001; ms *= 10) {
    parts.push(line(area.left, y(ms), area.right, y(ms), "#ddd"));
    parts.push(text(area.left - 8, y(ms) + 4, label(ms), 'text-anchor="end"'));
  }
  for (const seconds of ticks(from, to)) {
    parts.push(line(x(seconds), area.bottom, x(seconds), area.bottom + 5, "#888"));
    parts.push(text(x(seconds), area.bottom + 18, label(seconds), 'text-anchor="middle"'));
  }
  parts.push(line(x(0), area.top, x(0), area.bottom, "#888", 'stroke-dasharray="3 4"'));
  parts.push(text(x(0) + 6, area.top + 12, "host cut off", 'fill="#666"'));
  for (const [index, curve] of curves.entries()) {
    parts.push(path(curve, columnsOf(curve, x), y));
    const slow = curve.points[curve.slow];
    const at = area.left + index * 250;
    parts.push(line(at, 40, at + 22, 40, curve.color, 'stroke-width="2"'));
    const said = slow === undefined ? curve.label : `${curve.label}: ${Math.round(slow.ms)} ms`;
    parts.push(text(at + 28, 44, said));
    if (slow === undefined) continue;
    parts.push(`<circle cx="${n(x(slow.seconds))}" cy="${n(y(slow.ms))}" r="4" fill="${curve.color}"/>`);
  }
  const middle = (area.top + area.bottom) / 2;
  parts.push(text((area.left + area.right) / 2, height - 12, "seconds from the cut", 'text-anchor="middle"'));
  parts.push(
    text(18, middle, "response time, ms (logarithmic)", `text-anchor="middle" transform="rotate(-90 18 ${n(middle)})"`),
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
${parts.join("\n")}
</svg>
`;
}

/** The slowest request of each column of the picture, in order. */
function columnsOf({ points }: Curve, x: (seconds: number) => number): { x: number; ms: number }[] {
  const step = (area.right - area.left) / columns;
  const slowest = new Map<number, { x: number; ms: number }>();
  for (const { seconds, ms } of points) {
    const column = Math.floor((x(seconds) - area.left) / step);
    const known = slowest.get(column);
    if (known === undefined || known.ms < ms) slowest.set(column, { x: x(seconds), ms });
  }
  return [...slowest.entries()].sort(([a], [b]) => a - b).map(([, point]) => point);
}

function path({ color }: Curve, points: readonly { x: number; ms: number }[], y: (ms: number) => number): string {
  const steps = points.map((point, index) => `${index === 0 ? "M" : "L"}${n(point.x)} ${n(y(point.ms))}`);
  return `<path d="${steps.join("")}" fill="none" stroke="${color}" stroke-width="1.2" stroke-opacity="0.85"/>`;
}

/** About eight round numbers, 0 among them. */
function ticks(from: number, to: number): number[] {
  const rough = (to - from) / 8;
  const magnitude = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((each) => each * magnitude >= rough) ?? 10) * magnitude;
  const first = Math.ceil(from / step);
  return Array.from({ length: Math.floor(to / step) - first + 1 }, (_, index) => (first + index) * step);
}

function line(x1: number, y1: number, x2: number, y2: number, color: string, more = ""): string {
  return `<line x1="${n(x1)}" y1="${n(y1)}" x2="${n(x2)}" y2="${n(y2)}" stroke="${color}" ${more}/>`;
}

function text(x: number, y: number, content: string, more = ""): string {
  const escaped = content.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return `<text x="${n(x)}" y="${n(y)}" ${more}>${escaped}</text>`;
}

function n(value: number): string {
  return String(Math.round(value * 10) / 10);
}

function label(value: number): string {
  return String(Math.round(value * 1000) / 1000);
}
