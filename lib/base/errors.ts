/**
 * The errors, all of them.
 *
 * A caller decides by `code`, never by message or `instanceof` alone: two copies of this package in one
 * process (a bundler's work) have two classes of each name but the same codes. An expected refusal is not
 * here at all: `tryAcquire` answers `null`. An aborted call rejects with the caller's own `signal.reason`.
 */

/** What every error of ours carries. */
export type ErrorCode =
  | 'LEASE_HELD'
  | 'LEASE_LOST'
  | 'POSITION_CONFLICT'
  | 'UNAVAILABLE'
  | 'INVALID_ARGUMENT'
  | 'NOT_FOUND'
  | 'JOB_FAILED'
  | 'RUN_TIMEOUT'
  | 'HANDED_BACK'
  | 'FORBIDDEN'
  | 'TRANSACTION_ENDED'

/** Somebody else still held it when the wait ran out. Try later. */
export class LeaseHeldError extends Error {
  override readonly name = 'LeaseHeldError'
  readonly code = 'LEASE_HELD'
  readonly leaseName: string
  /** Milliseconds until the present hold ends by itself unless renewed; undefined when it has no expiry. */
  readonly retryAfterMs: number | undefined

  constructor(leaseName: string, waitMs: number, retryAfterMs?: number) {
    super(`${JSON.stringify(leaseName)} is still held by another holder after waiting ${waitMs} ms`)
    this.leaseName = leaseName
    this.retryAfterMs = retryAfterMs
  }
}

/** The hold was taken from us, or ran out, or was never ours: stop the work it guarded. */
export class LeaseLostError extends Error {
  override readonly name = 'LeaseLostError'
  readonly code = 'LEASE_LOST'
  readonly leaseName: string
  readonly token: bigint

  constructor(leaseName: string, token: bigint, why: string, options?: ErrorOptions) {
    super(`${JSON.stringify(leaseName)} is not held under token ${token}: ${why}`, options)
    this.leaseName = leaseName
    this.token = token
  }
}

/** Where an append expects its stream to be: at a position, empty, not empty, or anywhere. */
export type Expected = bigint | 'none' | 'exists' | 'any'

/** The stream is not where the append expected it: read what has been appended, decide anew. */
export class PositionConflictError extends Error {
  override readonly name = 'PositionConflictError'
  readonly code = 'POSITION_CONFLICT'
  readonly stream: string
  readonly expected: Expected
  /** Of the stream's last event; 0n: it has none. */
  readonly actual: bigint

  constructor(stream: string, expected: Expected, actual: bigint) {
    super(`${JSON.stringify(stream)} was expected at ${expected}, and is at ${actual}`)
    this.stream = stream
    this.expected = expected
    this.actual = actual
  }
}

/** The database cannot be asked now. Nothing is known about the outcome of the call; back off and retry. */
export class UnavailableError extends Error {
  override readonly name = 'UnavailableError'
  readonly code = 'UNAVAILABLE'
}

/** The database role of this process may not do that; the message says what to grant it. */
export class ForbiddenError extends Error {
  override readonly name = 'ForbiddenError'
  readonly code = 'FORBIDDEN'
}

/** There is no such queue, job or schedule. */
export class NotFoundError extends Error {
  override readonly name = 'NotFoundError'
  readonly code = 'NOT_FOUND'
}

/**
 * A job that was waited for has failed for good, or was cancelled. `message` and `cause` are those of the error that its
 * handler threw, in the process where it ran.
 */
export class JobFailedError extends Error {
  override readonly name = 'JobFailedError'
  readonly code = 'JOB_FAILED'
  readonly queue: string
  readonly id: string
  readonly state: 'failed' | 'cancelled'
  /** What the handler threw, as it was stored: `name`, `message`, `stack`, `code` and whatever else it carried. */
  readonly output: unknown

  constructor(queue: string, id: string, state: 'failed' | 'cancelled', output: unknown) {
    const { message, cause } = (output ?? {}) as { message?: unknown; cause?: unknown }
    const text = state === 'cancelled' ? 'The job was cancelled' : 'The job failed'
    super(
      typeof message === 'string' && state === 'failed' ? message : text,
      cause === undefined ? undefined : { cause },
    )
    this.queue = queue
    this.id = id
    this.state = state
    this.output = output
  }
}

/** The wait for a job ran out. The job goes on: look for it by its id. */
export class RunTimeoutError extends Error {
  override readonly name = 'RunTimeoutError'
  readonly code = 'RUN_TIMEOUT'
  readonly queue: string
  /** Those that were not over; one, unless a pool was run. */
  readonly ids: string[]

  constructor(queue: string, ids: string[], waitMs: number) {
    super(
      `${ids.length > 1 ? `${ids.length} jobs` : 'The job'} of ${JSON.stringify(queue)} did not end within ${waitMs} ms`,
    )
    this.queue = queue
    this.ids = ids
  }

  /** The first of {@link ids}. */
  get id(): string {
    return this.ids[0] as string
  }
}

/** Why a handler's signal aborts though nothing is wrong with its job: somebody else will run it again, soon. */
export class HandedBackError extends Error {
  override readonly name = 'HandedBackError'
  readonly code = 'HANDED_BACK'
}

/** What became of a transaction that its own work ended; `unknown`: the connection was lost with it. */
export type EndedOutcome = 'committed' | 'rolled back' | 'unknown'

/**
 * Work that was given a transaction of Lockstep's has ended it, by a COMMIT or a ROLLBACK of its own in a way that could not
 * be refused. What the work did since then was in no transaction of Lockstep's, and under no fence.
 */
export class TransactionEndedError extends Error {
  override readonly name = 'TransactionEndedError'
  readonly code = 'TRANSACTION_ENDED'
  /** Of what the work wrote before: it is there, it is gone, or that is not known. */
  readonly outcome: EndedOutcome

  constructor(outcome: EndedOutcome, options?: ErrorOptions) {
    super(`The work has ended the transaction that it was given: ${ENDED[outcome]}`, options)
    this.outcome = outcome
  }
}
const ENDED: Record<EndedOutcome, string> = {
  committed: 'it was committed, so what the work wrote in it is there',
  'rolled back': 'it was rolled back, so what the work wrote in it is gone',
  unknown: 'whether what the work wrote in it is there is not known',
}

/**
 * Marks a `TypeError` or `RangeError` as a mistake in a call: `code` INVALID_ARGUMENT, the `field`, and `expected`: the values that
 * it may have, in words.
 */
export type InvalidArgument = (TypeError | RangeError) & { code: 'INVALID_ARGUMENT'; field: string; expected: string }

/** A value of the wrong type. */
export function wrongType(field: string, expected: string, got: unknown): InvalidArgument {
  return Object.assign(new TypeError(`Expected \`${field}\` to be ${expected}, got ${shown(got)}`), {
    code: 'INVALID_ARGUMENT' as const,
    field,
    expected,
  })
}

/** A value of the right type outside its range. */
export function outOfRange(field: string, expected: string, got: unknown): InvalidArgument {
  return Object.assign(new RangeError(`Expected \`${field}\` to be ${expected}, got ${shown(got)}`), {
    code: 'INVALID_ARGUMENT' as const,
    field,
    expected,
  })
}

function shown(value: unknown): string {
  if (typeof value === 'string') {
    return value.length > 80 ? `a string of ${value.length} characters` : JSON.stringify(value)
  }
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'an array' : 'an object'
  return String(value)
}

/**
 * A failure below the protocol, told apart: what the database or the network did to us becomes an
 * {@link UnavailableError}; anything else (a bug, a missing migration) is returned as it came.
 *
 * @see https://www.postgresql.org/docs/current/errcodes-appendix.html
 */
export function fromDatabase(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  const { code, severity } = error as { code?: string; severity?: string }
  const sqlState = severity === undefined ? undefined : code // an answer of the server; EPIPE has five letters too
  if (sqlState === '53200' && /shared memory/.test(error.message)) {
    return new UnavailableError(
      'The database has no room for another advisory lock: raise max_locks_per_transaction (it holds about ' +
        'max_locks_per_transaction × max_connections of them)',
      { cause: error },
    )
  }
  if (sqlState === NO_CONNECTION_LEFT) {
    return new UnavailableError(
      'The database takes no more connections: max_connections of the server, or the connection limit of the role or of ' +
        'the database, is reached',
      { cause: error },
    )
  }
  if (sqlState === '3F000' || sqlState === '42P01' || sqlState === '42883') {
    return /lockstep/.test(error.message) // lockstep_boss too
      ? new UnavailableError('The database lacks the lockstep schema, or has an older one: run the migrations', {
          cause: error,
        })
      : error
  }
  // 08 connection, 25006 a standby, 25P03 and 25P04 a transaction that was ended, 28 login, 3D000 no such database, 40 others were
  // in the way, 53 resources, 55P03 a lock was waited for too long, 57P0x shutdown, 57014 cancelled, 58 and XX faults of its own
  if (sqlState !== undefined) {
    return /^(08|25006|25P0[34]|28|3D000|40|53|55P03|57P|57014|58|XX)/.test(sqlState)
      ? new UnavailableError('The database is not available', { cause: error })
      : error
  }
  if (/^(driver has already been destroyed|Cannot use a pool after calling end)/.test(error.message)) {
    return new UnavailableError('Lockstep was closed', { cause: error })
  }
  return isTransport(error) ? new UnavailableError('The database cannot be reached', { cause: error }) : error
}

const NO_CONNECTION_LEFT = '53300'

/** Whether the server refused a connection because there are too many, as it said it or as {@link fromDatabase} does. */
export function noConnectionLeft(error: unknown): boolean {
  const { code, cause } = (error ?? {}) as { code?: unknown; cause?: { code?: unknown } | null }
  return code === NO_CONNECTION_LEFT || (error instanceof UnavailableError && cause?.code === NO_CONNECTION_LEFT)
}

// pg has no error class of its own for a lost connection: node's codes, and these sentences of pg, pg-pool and workerd.
function isTransport(error: Error & { code?: unknown }): boolean {
  return (
    (typeof error.code === 'string' && /^E(?!RR_)[A-Z_]+$/.test(error.code)) ||
    /^(Connection terminated|Client has encountered a connection error|Client was closed|Query read timeout|timeout expired|timeout exceeded when trying to connect|The server does not support SSL|Network connection lost)/.test(
      error.message,
    ) ||
    (error instanceof AggregateError && error.errors.every((e) => e instanceof Error && isTransport(e)))
  )
}
