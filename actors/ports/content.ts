// What an application reads from the shared directory, as a value that can be compared. Implemented in runtime/images/.

export interface Content {
  /**
   * A digest of the names, sizes and modification times of all that lies at and below these absolute paths. What is not there is
   * digested as that. Rejects where something cannot be looked at, and with the signal's reason at once, whatever the file server does.
   */
  digest(paths: readonly string[], signal: AbortSignal): Promise<string>;
}
