/**
 * The options of queues and jobs: our names and ranges, turned into those of pg-boss.
 *
 * Durations are milliseconds here as everywhere; pg-boss stores whole seconds, so they are rounded up. The options that only
 * pg-boss knows keep its names (`policy`, `singletonKey`, `group`, `retentionSeconds`, …). We check all of them here, because sends
 * of many callers share a statement (send.ts): one bad value must fail its own call and no other.
 *
 * A job has a heartbeat unless its queue says otherwise. So the job of a worker that was killed runs again within a minute, and not
 * only when it expires.
 */

import {
  checkInteger,
  checkMs,
  checkOptions,
  checkText,
  checkWord,
  isDots,
  outOfRange,
  wrongType,
} from '../../base/index.ts'
import type { AnyTransaction } from '../../database/index.ts'
import type { EngineJob, EngineQueue, EngineRetries } from '../engine.ts'
import type { Handler } from './handler.ts'
import type { StandardSchema } from './standard-schema.ts'

/** How jobs are tried, expire and are kept. Of a queue: the default of its jobs. Of a job: for this job only. */
export interface RetryOptions {
  /** Attempts after the first, 0–1,000. @default 2 */
  retryLimit?: number
  /** Milliseconds between a failed attempt and the next, 0–31,536,000,000 (a year). @default 0 */
  retryDelayMs?: number
  /** Doubles the delay at each attempt, with jitter; `maxMs` is its limit, 0–31,536,000,000. @default false */
  backoff?: boolean | { maxMs: number }
  /** Milliseconds that an attempt may take, 1,000–86,400,000 (a day). Then it fails, and its signal aborts. @default 900_000 */
  expireInMs?: number
  /** Milliseconds without a heartbeat after which a worker is taken for dead, 10,000–86,400,000. @default 30_000 */
  heartbeatMs?: number
  /** The name of a queue that gets a copy of each job that has failed for good. As an option of a queue it is made if it does not exist. */
  deadLetter?: string
  /** Seconds that a job may wait to run, ≥ 1; after that it is deleted. @default 1_209_600 (14 days) */
  retentionSeconds?: number
  /** Seconds that a job is kept when it is over, ≥ 0; 0: for ever. @default 604_800 (7 days) */
  deleteAfterSeconds?: number
}

export const POLICIES = ['standard', 'short', 'singleton', 'stately', 'exclusive', 'key_strict_fifo'] as const

/** Options of a queue, as it is in the database. */
export interface DeclareOptions extends RetryOptions {
  /** Which jobs exclude each other (by `singletonKey`). It cannot be changed. @default 'standard' @see pg-boss, queue policies */
  policy?: (typeof POLICIES)[number]
  /** Gives the queue its own table. It cannot be changed. @default false */
  partition?: boolean
  /** Notifies waiting workers when a job is sent. @default true */
  notify?: boolean
}

/** Options of a queue and of its workers in this process. */
export interface DefineOptions<Input = unknown> extends DeclareOptions {
  /** Jobs that run at a time in this process, 1–1,000. @default 5 */
  concurrency?: number
  /** Jobs of one `group` that run at a time, over all processes, 1–1,000. A soft limit, see pg-boss. @default no limit */
  groupConcurrency?: number
  /**
   * Gives the handler a transaction in which its job is completed: the handler's writes and the completion commit together, or
   * neither does. The job waits until one of the `max` connections is free. The handler must not begin or end the transaction. That
   * is refused; where it cannot be refused, the job fails for good with a TransactionEndedError.
   * @default false
   */
  transactional?: boolean
  /** Checks the data when it is sent, and again before the handler gets it. @see https://standardschema.dev */
  schema?: StandardSchema<Input>
}

/** Options of one job. */
export interface SendOptions extends RetryOptions {
  /** An open transaction of the caller's: the job is sent when it commits, or not at all. */
  trx?: AnyTransaction
  /** The job's id, a UUID. A job with an id that was used already is refused. @default a new one */
  id?: string
  /** Jobs with a larger priority begin first, −1,000,000–1,000,000. @default 0 */
  priority?: number
  /** Milliseconds from now before which the job does not begin, 0–315,360,000,000 (ten years). @default 0 */
  startAfterMs?: number
  /** Instead of `startAfterMs`: the instant before which it does not begin. As text it needs an offset or Z. */
  startAfter?: Date | string
  /** The key by which jobs of a queue exclude each other, 1–255 characters. */
  singletonKey?: string
  /**
   * Throttles: at most one job (for each `singletonKey`) in every period of so many seconds, 1–31,536,000. The first one's data wins,
   * and the others are refused; see `replace`.
   */
  singletonSeconds?: number
  /**
   * With `singletonSeconds`: the latest data wins. While the job of the period waits, it gets this data, and its id is returned; once it
   * has begun, others are refused until the period is over.
   * @default false
   */
  replace?: boolean
  /** The group of the job, for `groupConcurrency`: `id` and `tier` of 1–255 characters. */
  group?: { id: string; tier?: string }
}

/** A queue as this process has defined it. */
export interface Definition {
  readonly name: string
  readonly handler: Handler | undefined
  readonly options: DefineOptions
}

const YEAR_MS = 31_536_000_000
const DAY_MS = 86_400_000
const INT = 2_147_483_647
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i
const seconds = (ms: number) => Math.ceil(ms / 1_000)

/** @throws {TypeError | RangeError} `field` queue */
export function checkQueue(value: unknown, field = 'queue'): asserts value is string {
  const expected = '1–255 letters, digits, or _ - . /'
  if (typeof value !== 'string') throw wrongType(field, expected, value)
  if (!/^[\w./-]{1,255}$/.test(value)) throw outOfRange(field, expected, value)
  // pg-boss caches queues by name in a plain object: it would find a property of Object.prototype and take it for a queue.
  if (value in Object.prototype)
    throw outOfRange(field, 'no name of a property of every object, such as constructor', value)
  if (isDots(value)) throw outOfRange(field, 'another name than . and .., which no URL can have', value)
}

/** @throws {TypeError} `field` id */
export function checkId(value: unknown): asserts value is string {
  if (typeof value !== 'string' || !UUID.test(value)) throw wrongType('id', 'a UUID', value)
}

/** @throws {TypeError | RangeError} */
function retries(options: RetryOptions): EngineRetries {
  const { retryLimit, retryDelayMs, backoff, expireInMs, heartbeatMs, deadLetter } = options
  const { retentionSeconds, deleteAfterSeconds } = options
  if (retryLimit !== undefined) checkInteger('retryLimit', retryLimit, { min: 0, max: 1_000 })
  if (retryDelayMs !== undefined) checkMs('retryDelayMs', retryDelayMs, { min: 0, max: YEAR_MS })
  if (expireInMs !== undefined) checkMs('expireInMs', expireInMs, { min: 1_000, max: DAY_MS })
  if (heartbeatMs !== undefined) checkMs('heartbeatMs', heartbeatMs, { min: 10_000, max: DAY_MS })
  if (deadLetter !== undefined) checkQueue(deadLetter, 'deadLetter')
  if (retentionSeconds !== undefined) checkInteger('retentionSeconds', retentionSeconds, { min: 1, max: INT })
  if (deleteAfterSeconds !== undefined) checkInteger('deleteAfterSeconds', deleteAfterSeconds, { min: 0, max: INT })
  const max = typeof backoff === 'object' && backoff !== null ? backoff.maxMs : undefined
  if (max !== undefined) checkMs('backoff.maxMs', max, { min: 0, max: YEAR_MS })
  else if (backoff !== undefined && typeof backoff !== 'boolean') {
    throw wrongType('backoff', 'true, false or { maxMs }', backoff)
  }
  return {
    ...(retryLimit !== undefined && { retryLimit }),
    ...(retryDelayMs !== undefined && { retryDelay: seconds(retryDelayMs) }),
    ...(backoff !== undefined && { retryBackoff: backoff !== false }),
    ...(max !== undefined && { retryDelayMax: seconds(max) }),
    ...(expireInMs !== undefined && { expireInSeconds: seconds(expireInMs) }),
    ...(heartbeatMs !== undefined && { heartbeatSeconds: seconds(heartbeatMs) }),
    ...(deadLetter !== undefined && { deadLetter }),
    ...(retentionSeconds !== undefined && { retentionSeconds }),
    ...(deleteAfterSeconds !== undefined && { deleteAfterSeconds }),
  }
}

/** A queue's options under pg-boss's names. @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`. */
export function queueRow(options: DeclareOptions): EngineQueue {
  checkOptions(options)
  const { policy, partition, notify } = options
  if (policy !== undefined) checkWord('policy', policy, POLICIES)
  for (const [field, value] of Object.entries({ partition, notify })) {
    if (value !== undefined && typeof value !== 'boolean') throw wrongType(field, 'true or false', value)
  }
  return {
    ...retries(options),
    ...(policy !== undefined && { policy }),
    ...(partition !== undefined && { partition }),
    ...(notify !== undefined && { notify }),
  }
}

/** @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`. */
export function checkDefinition(name: string, options: DefineOptions): void {
  checkQueue(name)
  if (name.startsWith(WORKER_QUEUES))
    throw outOfRange('queue', `a name that does not begin with ${WORKER_QUEUES}`, name)
  queueRow(options)
  const { concurrency, groupConcurrency, transactional, schema } = options
  if (concurrency !== undefined) checkInteger('concurrency', concurrency, { min: 1, max: 1_000 })
  if (groupConcurrency !== undefined) checkInteger('groupConcurrency', groupConcurrency, { min: 1, max: 1_000 })
  if (transactional !== undefined && typeof transactional !== 'boolean') {
    throw wrongType('transactional', 'true or false', transactional)
  }
  if (schema !== undefined && typeof schema?.['~standard']?.validate !== 'function') {
    throw wrongType('schema', 'a Standard Schema, for example of zod', schema)
  }
}

/** The names of workers' own queues begin with this (task/worker/workers.ts). */
export const WORKER_QUEUES = 'lockstep.worker/'

/** A job's options under pg-boss's names. @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`. */
export function jobRow(options: Omit<SendOptions, 'trx'>): EngineJob {
  const { id, priority, startAfterMs, startAfter, singletonKey, singletonSeconds, replace, group } = options
  if (id !== undefined) checkId(id)
  if (priority !== undefined) checkInteger('priority', priority, { min: -1_000_000, max: 1_000_000 })
  if (startAfterMs !== undefined) checkMs('startAfterMs', startAfterMs, { min: 0, max: 10 * YEAR_MS })
  if (startAfterMs !== undefined && startAfter !== undefined) {
    throw wrongType('startAfter', 'left out: there is startAfterMs', startAfter)
  }
  if (singletonKey !== undefined) checkText('singletonKey', singletonKey)
  if (singletonSeconds !== undefined) checkInteger('singletonSeconds', singletonSeconds, { min: 1, max: 31_536_000 })
  if (replace !== undefined && typeof replace !== 'boolean') throw wrongType('replace', 'true or false', replace)
  if (replace && singletonSeconds === undefined)
    throw wrongType('replace', 'with singletonSeconds, or left out', replace)
  if (replace && id !== undefined) throw wrongType('id', 'left out: with replace the id may be that of another job', id)
  if (group !== undefined) {
    if (typeof group !== 'object' || group === null) throw wrongType('group', '{ id, tier? }', group)
    checkText('group.id', group.id)
    if (group.tier !== undefined) checkText('group.tier', group.tier)
  }
  return {
    ...retries(options),
    ...(id !== undefined && { id: id.toLowerCase() }),
    ...(priority !== undefined && { priority }),
    ...(startAfterMs && { startAfter: `${startAfterMs / 1_000} seconds` }),
    ...(startAfter !== undefined && future(instant('startAfter', startAfter))),
    ...(singletonKey !== undefined && { singletonKey }),
    ...(singletonSeconds !== undefined && { singletonSeconds }),
    ...(group !== undefined && { group }),
  }
}

// An instant in the past is left out: pg-boss would count the job's retention from it.
function future(instant: string): { startAfter?: string } {
  return Date.parse(instant) > Date.now() ? { startAfter: instant } : {}
}

function instant(field: string, value: unknown): string {
  const expected = `an instant, like '2030-01-01T09:00:00Z'`
  const [, day] = typeof value === 'string' ? (/^(\d{4}-\d\d-\d\d)T.*(?:Z|[+-]\d\d:?\d\d)$/.exec(value) ?? []) : []
  const date = value instanceof Date ? value : day ? new Date(value as string) : undefined
  if (date === undefined) throw wrongType(field, expected, value)
  // a day of the calendar: Date.parse takes 30 February for 2 March
  if (day && !Number.isNaN(Date.parse(day)) && new Date(day).toISOString().slice(0, 10) !== day) {
    throw outOfRange(field, expected, value)
  }
  const year = date.getUTCFullYear()
  if (!(year >= 1_970 && year < 10_000)) throw outOfRange(field, expected, value)
  return date.toISOString()
}
