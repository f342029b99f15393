/**
 * The adapter of pg-boss, which does the queueing: insert, fetch, retries, backoff, dead letters, policies, throttles, groups,
 * expiry, flows, retention. Nothing of that is written again here.
 *
 * pg-boss is never started. With our pool behind it, a PgBoss does everything on demand, has no timers and no connections, and
 * takes half a millisecond to make. It is made at first use: a Cloudflare Worker may not ask for random numbers while it loads. Its
 * timers stay off because its cron loses what we promise. It asks "was a slot due in the last 60 seconds?", so ticks a minute apart
 * lose one slot in five, and when the clocks change a slot is lost or sent twice.
 *
 * Its statements have a pool of their own: they may wait for one another, and the renewal of a lease must not wait behind them. We
 * do not use its Kysely adapter: Kysely returns only one result of a text of several statements, and gives a connection back to the
 * pool with a failed transaction open on it.
 *
 * What pg-boss lacks is done on its tables, by functions of 0004_task.sql: completing many jobs with an output each, handing a job
 * back without a retry, a lease per claim. The essay of job/attempts.ts says which of pg-boss's own calls come close, and why they
 * are not enough.
 */
import { PgBoss } from 'pg-boss'
import { NotFoundError, UnavailableError, wrongType } from '../../base/index.ts'
import { type AnyTransaction, type Pool, textWithin } from '../../database/index.ts'
import type { Engine, EngineDb } from '../engine.ts'

export const BOSS_SCHEMA = 'lockstep_boss'

/** Makes a pg-boss on our pool. `failed` gets the errors that pg-boss can report to no caller. */
export function makeBoss(pool: Pick<Pool, 'query'>, failed: (error: unknown) => void): PgBoss & Engine {
  const boss = new PgBoss({
    db: { executeSql: (text, values) => pool.query(text, values) },
    schema: BOSS_SCHEMA,
    migrate: false,
    createSchema: false,
    supervise: false,
    schedule: false,
    registerInstance: false,
    persistWarnings: false,
    // The first needs DDL, the second reads all of the cluster. A role that sends and works has neither right.
    reindex: false,
    monitorVacuum: false,
    // Ticks do the upkeep when it is due (task/tick.ts), perhaps in many processes. These intervals keep it from being done twice.
    monitorIntervalSeconds: 1,
    maintenanceIntervalSeconds: 600,
    flowIntervalSeconds: 1,
    openTelemetry: { enabled: false },
  })
  boss.on('error', failed)
  return boss satisfies Engine as PgBoss & Engine
}

/** pg-boss's statements in the caller's transaction. */
export function inside(trx: AnyTransaction): EngineDb {
  return { executeSql: (text, values) => textWithin(trx, text, values) }
}

/** Turns an error of pg-boss into one of ours; any other error is returned as it is. */
export function fromBoss(error: unknown, queue: string): unknown {
  const { message, code } = (error ?? {}) as { message?: unknown; code?: unknown }
  if (isQueueMissing(error)) return noQueue(queue)
  if (/^Dead letter queue .*does not exist/.test(String(message))) {
    return new NotFoundError(`The dead letter queue of ${JSON.stringify(queue)} does not exist: define it first`)
  }
  if (/queues require a singletonKey/.test(String(message))) {
    return wrongType('singletonKey', `a text: the policy of ${JSON.stringify(queue)} is key_strict_fifo`, undefined)
  }
  if ((code === '42P01' || code === '3F000') && String(message).includes(BOSS_SCHEMA))
    return new UnavailableError('The database lacks the schema of tasks: run the migrations', { cause: error })
  return error
}

/** Whether pg-boss says that there is no such queue. */
export function isQueueMissing(error: unknown): boolean {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown }
  return code === 'PGBOSS_QUEUE_NOT_FOUND' || /^Queue .* does not exist$/s.test(String(message))
}

export function noQueue(queue: string): NotFoundError {
  return new NotFoundError(`There is no queue ${JSON.stringify(queue)}: define it first, or declare it`)
}
