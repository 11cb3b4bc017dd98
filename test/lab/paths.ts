// Names of a statechart's states, for tests over generated paths.
import type { AnyStateMachine, StateNode } from "xstate";

/** Dotted names of all atomic and final states. */
export function leaves(machine: AnyStateMachine): string[] {
  const names: string[] = [];
  const walk = (node: StateNode): void => {
    const children: StateNode[] = Object.values(node.states);
    if (children.length === 0) names.push(node.path.join("."));
    for (const child of children) walk(child);
  };
  walk(machine.root as StateNode);
  return names.sort();
}

/** A state value as a dotted name. */
export function nameOf(value: unknown): string {
  if (typeof value === "string") return value;
  return Object.entries(value as Record<string, unknown>)
    .map(([key, inner]) => `${key}.${nameOf(inner)}`)
    .join("+");
}
