/**
 * What a queue is, and what a job may ask for: our words and their ranges, turned into those of pg-boss.
 *
 * Durations are milliseconds here as everywhere; pg-boss keeps whole seconds, so they are rounded up. Its own options keep
 * their own names (`policy`, `singletonKey`, `group`, `retentionSeconds`, …). They are checked here and not there because
 * what is sent at once shares a statement (send.ts): one bad value must fail its own call and no other.
 *
 * A job has a heartbeat unless its queue says otherwise, for then the job of a worker that was killed runs again within a
 * minute, and not when it expires.
 */

import { checkInteger, checkMs, checkOptions, checkText, checkWord, outOfRange, wrongType } from '../../base/index.ts'
import type { AnyTransaction } from '../../database/index.ts'
import type { EngineJob, EngineQueue, EngineRetries } from '../pgboss/index.ts'
import type { Handler } from './handler.ts'
import type { StandardSchema } from './standard-schema.ts'

/** How the jobs of a queue are tried, unless a job says otherwise. */
export interface RetryOptions {
  /** Attempts after the first, 0–1,000. @default 2 */
  retryLimit?: number
  /** Milliseconds before the next attempt, 0–31,536,000,000. @default 0 */
  retryDelayMs?: number
  /** Doubles the delay each time, with jitter, up to `maxMs`. @default false */
  backoff?: boolean | { maxMs: number }
  /** Milliseconds an attempt may take, 1,000–86,400,000. @default 900_000 */
  expireInMs?: number
  /** Milliseconds without a sign of life after which a worker is taken for dead, 10,000–86,400,000. @default 30_000 */
  heartbeatMs?: number
  /** A queue that gets a copy of each job that has failed for good. */
  deadLetter?: string
  /** Seconds for which a job may wait to run, ≥ 1. @default 1_209_600 (14 days) */
  retentionSeconds?: number
  /** Seconds for which a job that is over is kept, ≥ 0, 0: for ever. @default 604_800 (7 days) */
  deleteAfterSeconds?: number
}

export const POLICIES = ['standard', 'short', 'singleton', 'stately', 'exclusive', 'key_strict_fifo'] as const

/** Of a queue in the database. */
export interface DeclareOptions extends RetryOptions {
  /** Which jobs exclude each other (by `singletonKey`); cannot be changed. @default 'standard' @see pg-boss, queues */
  policy?: (typeof POLICIES)[number]
  /** A table of its own; cannot be changed. @default false */
  partition?: boolean
  /** Wakes the workers that wait when a job is sent. @default true */
  notify?: boolean
}

/** Of a queue and of its workers here. */
export interface DefineOptions<Input = unknown> extends DeclareOptions {
  /** Jobs at a time in this process, 1–1,000. @default 5 */
  concurrency?: number
  /** Jobs of one group at a time, over all processes (a soft limit, see pg-boss), 1–1,000. */
  groupConcurrency?: number
  /**
   * The handler gets a transaction in which its job is completed too: both commit, or neither. The job waits until one of the
   * `max` connections is free. The handler neither begins nor ends the transaction: that is refused, and where it cannot be, the
   * job fails for good with a TransactionEndedError.
   * @default false
   */
  transactional?: boolean
  /** Checks the data when it is sent, and again before the handler gets it. @see https://standardschema.dev */
  schema?: StandardSchema<Input>
}

/** Of one job. */
export interface SendOptions extends RetryOptions {
  /** Sends in an open transaction of yours: with it, or not at all. */
  trx?: AnyTransaction
  /** A UUID. The same again is refused. */
  id?: string
  /** −1,000,000–1,000,000, the higher first. @default 0 */
  priority?: number
  /** Milliseconds from now before which it does not run, 0–315,360,000,000. @default 0 */
  startAfterMs?: number
  /** Instead: the instant. As a string with an offset or Z. */
  startAfter?: Date | string
  /** What jobs of a queue exclude each other by, 1–255 characters. */
  singletonKey?: string
  /** At most one job (for each `singletonKey`) in every such slot of time, 1–31,536,000. */
  singletonSeconds?: number
  /** Jobs of a group, for `groupConcurrency`. */
  group?: { id: string; tier?: string }
}

/** A queue as this process knows it. */
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
  // pg-boss keeps queues in a plain object by name, and would take what every object has for one of them.
  if (value in Object.prototype) throw outOfRange(field, 'no word that every object has', value)
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

/** What is said of a queue, in pg-boss's words. @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`. */
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

/** What begins the names of queues that each belong to one worker (task/worker/fetch-loop.ts). */
export const WORKER_QUEUES = 'lockstep.worker/'

/** A job's options in pg-boss's words. @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`. */
export function jobRow(options: Omit<SendOptions, 'trx'>): EngineJob {
  const { id, priority, startAfterMs, startAfter, singletonKey, singletonSeconds, group } = options
  if (id !== undefined) checkId(id)
  if (priority !== undefined) checkInteger('priority', priority, { min: -1_000_000, max: 1_000_000 })
  if (startAfterMs !== undefined) checkMs('startAfterMs', startAfterMs, { min: 0, max: 10 * YEAR_MS })
  if (startAfterMs !== undefined && startAfter !== undefined) {
    throw wrongType('startAfter', 'left out when startAfterMs is given', startAfter)
  }
  if (singletonKey !== undefined) checkText('singletonKey', singletonKey)
  if (singletonSeconds !== undefined) checkInteger('singletonSeconds', singletonSeconds, { min: 1, max: 31_536_000 })
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

// An instant that has passed says nothing: and pg-boss would count from it for how long the job may wait to run.
function future(instant: string): { startAfter?: string } {
  return Date.parse(instant) > Date.now() ? { startAfter: instant } : {}
}

function instant(field: string, value: unknown): string {
  const expected = `an instant, like '2030-01-01T09:00:00Z'`
  const [, day] = typeof value === 'string' ? (/^(\d{4}-\d\d-\d\d)T.*(?:Z|[+-]\d\d:?\d\d)$/.exec(value) ?? []) : []
  const date = value instanceof Date ? value : day ? new Date(value as string) : undefined
  if (date === undefined) throw wrongType(field, expected, value)
  // on the calendar: 30 February is taken for 2 March
  if (day && !Number.isNaN(Date.parse(day)) && new Date(day).toISOString().slice(0, 10) !== day) {
    throw outOfRange(field, expected, value)
  }
  const year = date.getUTCFullYear()
  if (!(year >= 1_970 && year < 10_000)) throw outOfRange(field, expected, value)
  return date.toISOString()
}
