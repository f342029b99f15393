/**
 * All errors of Lockstep.
 *
 * Decide by `code`, never by the message or by `instanceof` alone: a bundler may put two copies of this package into one
 * process, and then there are two classes of each name, but the codes are the same. An expected refusal is not an error:
 * `tryAcquire` answers `null`. An aborted call rejects with the caller's own `signal.reason`.
 */

import { READ_ONLY, whyRefused, whyUnfit } from './refusals.ts'

export { type InvalidArgument, outOfRange, wrongType } from './invalid-argument.ts'
export { SQLSTATE } from './sqlstates.ts'

/** The `code` of every error of Lockstep. */
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

/** Another holder still held the name when the wait ended. Try again later. */
export class LeaseHeldError extends Error {
  override readonly name = 'LeaseHeldError'
  /** Always `LEASE_HELD`. */
  readonly code = 'LEASE_HELD'
  /** The name of the lock or election. */
  readonly leaseName: string
  /** Milliseconds until the present hold expires unless it is renewed; undefined when it has no expiry. */
  readonly retryAfterMs: number | undefined

  constructor(leaseName: string, waitMs: number, retryAfterMs?: number) {
    super(`${JSON.stringify(leaseName)} is still held by another holder after waiting ${waitMs} ms`)
    this.leaseName = leaseName
    this.retryAfterMs = retryAfterMs
  }
}

/** The name is not held under this token: the hold has expired, was taken away, or never existed. Stop the work that it guarded. */
export class LeaseLostError extends Error {
  override readonly name = 'LeaseLostError'
  /** Always `LEASE_LOST`. */
  readonly code = 'LEASE_LOST'
  /** The name of the lock or election. */
  readonly leaseName: string
  /** The fencing token of the lost hold; 0n: the transaction named no token. */
  readonly token: bigint

  constructor(leaseName: string, token: bigint, why: string, options?: ErrorOptions) {
    super(`${JSON.stringify(leaseName)} is not held under token ${token}: ${why}`, options)
    this.leaseName = leaseName
    this.token = token
  }

  /** For JSON.stringify, which throws at a bigint: the token is a decimal string. */
  toJSON(): Record<string, unknown> {
    const { name, code, message, leaseName, token } = this
    return { name, code, message, leaseName, token: String(token) }
  }
}

/** Where an append expects its stream to be: at a position, empty (`none`), not empty (`exists`), or anywhere (`any`). */
export type Expected = bigint | 'none' | 'exists' | 'any'

/** The stream is not at the position that the append expected. Read the new events, then decide again. */
export class PositionConflictError extends Error {
  override readonly name = 'PositionConflictError'
  /** Always `POSITION_CONFLICT`. */
  readonly code = 'POSITION_CONFLICT'
  /** The name of the stream. */
  readonly stream: string
  /** The position that the append expected. */
  readonly expected: Expected
  /** The position of the stream's last event; 0n: it has none. */
  readonly actual: bigint

  constructor(stream: string, expected: Expected, actual: bigint) {
    super(`${JSON.stringify(stream)} was expected at ${expected}, and is at ${actual}`)
    this.stream = stream
    this.expected = expected
    this.actual = actual
  }

  /** For JSON.stringify, which throws at a bigint: positions are decimal strings. */
  toJSON(): Record<string, unknown> {
    const { name, code, message, stream, expected, actual } = this
    return { name, code, message, stream, expected: String(expected), actual: String(actual) }
  }
}

/** The database did not answer. The outcome of the call is unknown. Back off and retry. */
export class UnavailableError extends Error {
  override readonly name = 'UnavailableError'
  /** Always `UNAVAILABLE`. */
  readonly code = 'UNAVAILABLE'
}

/** The database role of this process lacks a right. The message says which one to grant. */
export class ForbiddenError extends Error {
  override readonly name = 'ForbiddenError'
  /** Always `FORBIDDEN`. */
  readonly code = 'FORBIDDEN'
}

/** There is no such queue, job or schedule. */
export class NotFoundError extends Error {
  override readonly name = 'NotFoundError'
  /** Always `NOT_FOUND`. */
  readonly code = 'NOT_FOUND'
}

/**
 * A job that the caller waited for has failed for good, or was cancelled. `message` and `cause` are those of the error that its
 * handler threw, in the process where it ran.
 */
export class JobFailedError extends Error {
  override readonly name = 'JobFailedError'
  /** Always `JOB_FAILED`. */
  readonly code = 'JOB_FAILED'
  /** The queue of the job. */
  readonly queue: string
  /** The id of the job. */
  readonly id: string
  /** How the job ended. */
  readonly state: 'failed' | 'cancelled'
  /** The error that the handler threw, as it was stored: `name`, `message`, `stack`, `code` and its other properties. */
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

/** The job did not end within the wait. It goes on; its id finds it. */
export class RunTimeoutError extends Error {
  override readonly name = 'RunTimeoutError'
  /** Always `RUN_TIMEOUT`. */
  readonly code = 'RUN_TIMEOUT'
  /** The queue of the job. */
  readonly queue: string
  /** The ids of the jobs that had not ended: one, unless a pool was run. */
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

/** The reason of a handler's signal when its worker stops: the job is handed back, and another worker will run it again soon. */
export class HandedBackError extends Error {
  override readonly name = 'HandedBackError'
  /** Always `HANDED_BACK`. */
  readonly code = 'HANDED_BACK'
}

/** The outcome of a transaction that its own work ended; `unknown`: the connection was lost too. */
export type EndedOutcome = 'committed' | 'rolled back' | 'unknown'

/**
 * The work has ended the transaction that Lockstep began for it, by its own COMMIT or ROLLBACK, in a way that could not be
 * refused. Everything that the work did after that was outside the transaction, and under no fence.
 */
export class TransactionEndedError extends Error {
  override readonly name = 'TransactionEndedError'
  /** Always `TRANSACTION_ENDED`. */
  readonly code = 'TRANSACTION_ENDED'
  /** What happened to the writes in that transaction: they were committed, they were rolled back, or that is unknown. */
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
 * Classifies a failure. A failure of the database or of the network, or a missing migration, becomes an
 * {@link UnavailableError}; every other error (a bug, a constraint) is returned unchanged.
 *
 * @see https://www.postgresql.org/docs/current/errcodes-appendix.html
 */
export function fromDatabase(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  const { code, severity, routine } = error as { code?: string; severity?: string; routine?: string }
  const sqlState = severity === undefined ? undefined : code // only the server gives a severity; EPIPE has five letters too
  // The message is translated, as lc_messages says; the names in it and the place in the server's source are not.
  if (sqlState === '53200' && /\block\.c$/.test((error as { file?: string }).file ?? '')) {
    return new UnavailableError(
      'The database has no space for another advisory lock: raise max_locks_per_transaction (it has space for about ' +
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
  const unfit = whyUnfit(sqlState, error.message, routine)
  if (unfit !== undefined) return new UnavailableError(unfit, { cause: error })
  if (sqlState === '0A000' && routine === UNLOGGED) return refused(error, READ_ONLY)
  // A database that takes no connections, or none of this role. (That the error is FATAL is said in the language of the server.)
  if (routine === 'CheckMyDatabase') return refused(error)
  if (sqlState === '3F000' || sqlState === '42P01' || sqlState === '42883') {
    return /lockstep/.test(error.message) // lockstep_boss too
      ? new UnavailableError('The database lacks the lockstep schema, or has an older one: run the migrations', {
          cause: error,
        })
      : error
  }
  // 08 connection, 25006 read-only, 25P03 and 25P04 a timeout ended the transaction, 28 login, 3D000 no such database, 40 serialization failure or
  // deadlock, 53 resources, 55P03 lock timeout, 57P0x shutdown, 57014 cancelled, 58 and XX internal errors
  if (sqlState !== undefined) {
    return /^(08|25006|25P0[34]|28|3D000|40|53|55P03|57P|57014|58|XX)/.test(sqlState) ? refused(error) : error
  }
  if (/^(driver has already been destroyed|Cannot use a pool after calling end)/.test(error.message)) {
    return new UnavailableError('Lockstep was closed', { cause: error })
  }
  return isTransport(error) ? new UnavailableError('The database cannot be reached', { cause: error }) : error
}

const NO_CONNECTION_LEFT = '53300'
/** The routine of the server that refuses unlogged tables, which a standby does not have. */
const UNLOGGED = 'get_relation_info'

// A server that refuses a connection or a write, or has ended this connection.
function refused(cause: Error & { code?: unknown }, code = String(cause.code)): UnavailableError {
  return new UnavailableError(whyRefused(code), { cause })
}

/** Whether the server refused a connection because it has too many: its own error, or the one that {@link fromDatabase} makes of it. */
export function noConnectionLeft(error: unknown): boolean {
  const { code, cause } = (error ?? {}) as { code?: unknown; cause?: { code?: unknown } | null }
  return code === NO_CONNECTION_LEFT || (error instanceof UnavailableError && cause?.code === NO_CONNECTION_LEFT)
}

// pg has no error class for a lost connection. These are the codes of Node and the messages of pg, pg-pool and workerd.
function isTransport(error: Error & { code?: unknown }): boolean {
  return (
    (typeof error.code === 'string' && /^E(?!RR_)[A-Z_]+$/.test(error.code)) ||
    /^(Connection terminated|Client has encountered a connection error|Client was closed|Query read timeout|timeout expired|timeout exceeded when trying to connect|The server does not support SSL|Network connection lost)/.test(
      error.message,
    ) ||
    (error instanceof AggregateError && error.errors.every((e) => e instanceof Error && isTransport(e)))
  )
}
