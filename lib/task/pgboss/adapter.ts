/**
 * The seam to pg-boss, which does the queueing: insert, fetch, retries, backoff, dead letters, policies, throttles,
 * groups, expiry, flows, retention. Nothing of that is written again here.
 *
 * It is never started: with a database of ours behind it a PgBoss can do everything on demand, keeps no timers and no
 * connections, and costs half a millisecond to make (so it is made at first use: a Worker may not call for randomness
 * while it loads). Its clockwork stays off because it loses what we promise: its cron asks "was a slot due in the last 60
 * seconds?", so that ticks a minute apart lose one slot in five, and at daylight saving one is lost or sent twice.
 *
 * Its statements go through a pool of their own. They may wait for one another, and a lease's renewal must not wait with
 * them. Not through its own Kysely adapter: Kysely drops all results of a multi-statement text but one, and gives a
 * connection back with a failed transaction open on it.
 *
 * What it lacks is done on its tables, by functions of 0004_task.sql: completing many jobs with an output each, giving a
 * job back without spending a retry, a lease per claim.
 */
import { PgBoss } from 'pg-boss'
import { NotFoundError, UnavailableError, wrongType } from '../../base/index.ts'
import { type AnyTransaction, type Pool, textWithin } from '../../database/index.ts'
import type { Engine, EngineDb } from './engine.ts'

export const BOSS_SCHEMA = 'lockstep_boss'

/** pg-boss on our pool. `failed` hears of what it cannot tell a caller. */
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
    // These two are DDL, or want to see all of the cluster: not the right of a role that sends and works.
    reindex: false,
    monitorVacuum: false,
    // Upkeep comes when it is due (task/tick.ts), perhaps from many places: these keep it from being done twice at a time.
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

/** What pg-boss says in its own way. */
export function fromBoss(error: unknown, queue: string): unknown {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown }
  if (code === 'PGBOSS_QUEUE_NOT_FOUND' || /^Queue .* does not exist$/s.test(String(message))) return noQueue(queue)
  if (/^Dead letter queue .*does not exist/.test(String(message))) {
    return new NotFoundError(`The dead letter queue of ${JSON.stringify(queue)} does not exist: define it first`)
  }
  if (/queues require a singletonKey/.test(String(message))) {
    return wrongType('singletonKey', `given: the policy of ${JSON.stringify(queue)} is key_strict_fifo`, undefined)
  }
  if (/relation "lockstep_boss/.test(String(message)))
    return new UnavailableError('The database lacks the schema of tasks: run the migrations', { cause: error })
  return error
}

export function noQueue(queue: string): NotFoundError {
  return new NotFoundError(`There is no queue ${JSON.stringify(queue)}: define it first, or declare it`)
}
