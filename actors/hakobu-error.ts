// The one error class that Hakobu throws. Adapters translate foreign errors into it where they meet them.

export type ErrorCode =
  | "CONFIG_INVALID" // a specification, a configuration file or an option is wrong; the message names the field
  | "STORE_UNAVAILABLE" // etcd did not answer within its deadline; nothing is known about the write
  | "STORE_REFUSED" // etcd answered and refused (authentication, space, size)
  | "HOST_ID_TAKEN" // another live agent has joined under this host id
  | "NOT_OWNER" // this host does not own the container
  | "LEASE_LOST" // the host can no longer prove its lease
  | "START_FAILED" // a cold start did not reach readiness
  | "RESTORE_FAILED" // an image could not be restored
  | "CHECKPOINT_FAILED" // no image was taken; the container goes on running
  | "STOP_FAILED" // processes of a container are still there after KILL
  | "DEADLINE_EXCEEDED" // a wait reached its limit
  | "OVERLOADED" // a bounded queue is full
  | "ABORTED" // the operation was cancelled by its caller
  | "UNAVAILABLE"; // no host can take the container now

export interface ErrorDetails {
  readonly cause?: unknown;
  /** Whether the same call may succeed later without anything being mended by hand. */
  readonly retryable?: boolean;
}

/** Match on `code`; the message is for people and says what to do next. */
export class HakobuError extends Error {
  override readonly name = "HakobuError";
  readonly code: ErrorCode;
  readonly retryable: boolean;

  constructor(code: ErrorCode, message: string, { cause, retryable = false }: ErrorDetails = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.retryable = retryable;
  }
}

/** The message of anything thrown, in one line. */
export function reasonOf(error: unknown): string {
  if (error instanceof AggregateError && error.message === "") return error.errors.map(reasonOf).join("; ");
  return error instanceof Error ? error.message : String(error);
}
