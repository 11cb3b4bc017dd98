// How often a specification is read again that somebody else has written while it was being changed.
import { HakobuError } from "../../actors/hakobu-error.js";

export const updateRounds = 5;

export function changesAllTheTime(name: string): HakobuError {
  const message = `the specification of ${name} changes all the time; try again`;
  return new HakobuError("STORE_UNAVAILABLE", message, { retryable: true });
}
