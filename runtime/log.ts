// The program's log: pino, JSON lines on standard error, so that data on standard output stays clean.
import { type Logger, pino } from "pino";

export function programLog(level: string): Logger {
  return pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, pino.destination(2));
}
