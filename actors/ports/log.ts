// What actors tell people. pino fits it as it is.

export interface Log {
  debug(details: object, message: string): void;
  info(details: object, message: string): void;
  warn(details: object, message: string): void;
  error(details: object, message: string): void;
}

export const noLog: Log = { debug() {}, info() {}, warn() {}, error() {} };
