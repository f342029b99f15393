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
  type Known,
  known,
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
  retryLimit?: number | undefined
  /** Milliseconds between a failed attempt and the next, 0–31,536,000,000 (a year). @default 0 */
  retryDelayMs?: number | undefined
  /** Doubles the delay at each attempt, with jitter; `maxMs` is its limit, 0–31,536,000,000. @default false */
  backoff?: boolean | { maxMs: number } | undefined
  /** Milliseconds that an attempt may take, 1,000–86,400,000 (a day). Then it fails, and its signal aborts. @default 900_000 */
  expireInMs?: number | undefined
  /** Milliseconds without a heartbeat after which a worker is taken for dead, 10,000–86,400,000. @default 30_000 */
  heartbeatMs?: number | undefined
  /** The name of a queue that gets a copy of each job that has failed for good. As an option of a queue it is made if it does not exist. */
  deadLetter?: string | undefined
  /** Seconds that a job may wait to run, ≥ 1; after that it is deleted. @default 1_209_600 (14 days) */
  retentionSeconds?: number | undefined
  /** Seconds that a job is kept when it is over, ≥ 0; 0: for ever. @default 604_800 (7 days) */
  deleteAfterSeconds?: number | undefined
}

export const POLICIES = ['standard', 'short', 'singleton', 'stately', 'exclusive', 'key_strict_fifo'] as const

/** Options of a queue, as it is in the database. */
export interface DeclareOptions extends RetryOptions {
  /** Which jobs exclude each other (by `singletonKey`). It cannot be changed. @default 'standard' @see pg-boss, queue policies */
  policy?: (typeof POLICIES)[number] | undefined
  /** Gives the queue its own table. It cannot be changed. @default false */
  partition?: boolean | undefined
  /** Notifies waiting workers when a job is sent. @default true */
  notify?: boolean | undefined
}

/** Options of a queue and of its workers in this process. */
export interface DefineOptions<Input = unknown> extends DeclareOptions {
  /** Jobs that run at a time in this process, 1–1,000. @default 5 */
  concurrency?: number | undefined
  /** Jobs of one `group` that run at a time, over all processes, 1–1,000. A soft limit, see pg-boss. @default no limit */
  groupConcurrency?: number | undefined
  /**
   * Gives the handler a transaction in which its job is completed: the handler's writes and the completion commit together, or
   * neither does. The job waits until one of the `max` connections is free. The handler must not begin or end the transaction. That
   * is refused; where it cannot be refused, the job fails for good with a TransactionEndedError.
   * @default false
   */
  transactional?: boolean | undefined
  /** Checks the data when it is sent, and again before the handler gets it. @see https://standardschema.dev */
  schema?: StandardSchema<Input> | undefined
}

/** Options of one job. */
export interface SendOptions extends RetryOptions {
  /** An open transaction of the caller's: the job is sent when it commits, or not at all. */
  trx?: AnyTransaction | undefined
  /** The job's id, a UUID. A job with an id that was used already is refused. @default a new one */
  id?: string | undefined
  /** Jobs with a larger priority begin first, −1,000,000–1,000,000. @default 0 */
  priority?: number | undefined
  /** Milliseconds from now before which the job does not begin, 0–315,360,000,000 (ten years). @default 0 */
  startAfterMs?: number | undefined
  /** Instead of `startAfterMs`: the instant before which it does not begin. As text it needs an offset or Z. */
  startAfter?: Date | string | undefined
  /** The key by which jobs of a queue exclude each other, 1–255 characters. */
  singletonKey?: string | undefined
  /**
   * Throttles: at most one job (for each `singletonKey`) in every period of so many seconds, 1–31,536,000. The first one's data wins,
   * and the others are refused; see `replace`.
   */
  singletonSeconds?: number | undefined
  /**
   * With `singletonSeconds`: the latest data wins. While the job of the period waits, it gets this data, and its id is returned; once it
   * has begun, others are refused until the period is over.
   * @default false
   */
  replace?: boolean | undefined
  /** The group of the job, for `groupConcurrency`: `id` and `tier` of 1–255 characters. */
  group?: { id: string; tier?: string | undefined } | undefined
}

/** A queue as this process has defined it. */
export interface Definition {
  readonly name: string
  readonly handler: Handler | undefined
  readonly options: DefineOptions
}

type Names<O> = Record<keyof O, true>
const RETRY_NAMES: Names<RetryOptions> = {
  ...{ retryLimit: true, retryDelayMs: true, backoff: true, expireInMs: true, heartbeatMs: true, deadLetter: true },
  ...{ retentionSeconds: true, deleteAfterSeconds: true },
}
const DECLARE_NAMES: Names<DeclareOptions> = { ...RETRY_NAMES, policy: true, partition: true, notify: true }
const JOB_NAMES: Names<Omit<SendOptions, 'trx'>> = {
  ...{ ...RETRY_NAMES, id: true, priority: true, startAfterMs: true, startAfter: true },
  ...{ singletonKey: true, singletonSeconds: true, replace: true, group: true },
}
/** The names of the options, by verb. */
export const DECLARE = known<DeclareOptions>(DECLARE_NAMES)
export const DEFINE = known<DefineOptions>({
  ...{ ...DECLARE_NAMES, concurrency: true, groupConcurrency: true, transactional: true, schema: true },
})
export const SEND = known<SendOptions>({ ...JOB_NAMES, trx: true })
export const SEND_ALL = known<{ data: unknown } & Omit<SendOptions, 'trx'>>({ ...JOB_NAMES, data: true })
export const RUN = known<Omit<SendOptions, 'trx'> & { waitMs?: number; signal?: AbortSignal; pool?: number }>({
  ...{ ...JOB_NAMES, waitMs: true, signal: true, pool: true },
})
const BACKOFF = known<{ maxMs: number }>({ maxMs: true })
const GROUP = known<{ id: string; tier?: string }>({ id: true, tier: true })

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
  if (typeof backoff === 'object' && backoff !== null) checkOptions(backoff, BACKOFF, 'backoff')
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
export function checkDefinition(name: string, options: DefineOptions, names: Known): void {
  checkQueue(name)
  checkOptions(options, names)
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
    checkOptions(group, GROUP, 'group')
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
    ...(group !== undefined && { group: { id: group.id, ...(group.tier !== undefined && { tier: group.tier }) } }),
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
