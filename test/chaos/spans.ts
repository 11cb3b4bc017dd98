// Times in which something was so, as a run notes them and its checker weighs them. CLOCK_REALTIME, in ms.

export interface Span {
  readonly fromMs: number;
  readonly toMs: number;
  readonly what: string;
}

export function meets(spans: readonly Span[] | undefined, fromMs: number, toMs: number): boolean {
  return (spans ?? []).some((span) => span.fromMs <= toMs && span.toMs >= fromMs);
}

/** Times that are in a span of each list; none where a list is empty. */
export function intersection(lists: readonly (readonly Span[])[]): Span[] {
  const [first, ...rest] = lists;
  if (first === undefined) return [];
  return rest.reduce<readonly Span[]>(
    (common, list) =>
      common.flatMap((a) =>
        list.flatMap((b) => {
          const [fromMs, toMs] = [Math.max(a.fromMs, b.fromMs), Math.min(a.toMs, b.toMs)];
          return fromMs < toMs ? [{ fromMs, toMs, what: `${a.what}; ${b.what}` }] : [];
        }),
      ),
    first,
  ) as Span[];
}
