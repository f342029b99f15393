/** Looking at jobs and queues. An answer is a snapshot: it may have changed before the caller reads it. */
import { sql } from 'kysely'
import type { Pool } from '../../database/index.ts'
import type { Engine } from '../engine.ts'
import { fromBoss, noQueue } from '../pgboss/index.ts'
import type { Queues } from '../queue/index.ts'
import { checkId, checkQueue } from '../queue/index.ts'
import type { AttemptStore } from './attempts.ts'
import { outputOf } from './outcomes.ts'

/**
 * The state of a job. `created` waits for its first attempt, `retry` for another attempt; `active` runs; `completed`, `cancelled`
 * and `failed` (for good) are over.
 */
export type JobState = 'created' | 'retry' | 'active' | 'completed' | 'cancelled' | 'failed'

/** A job, as it was when it was read. Times are of the database's clock. */
export interface Job {
  /** A UUID; the same in every attempt. */
  id: string
  /** The queue's name. */
  queue: string
  /** Whether it waits, runs, or is over. */
  state: JobState
  /** What was sent: JSON. */
  data: unknown
  /** What the handler returned; after a failed attempt the error, `{ name, message, stack, … }`; null: there is none yet. */
  output: unknown
  /** How many attempts were begun, ≥ 0. */
  attempts: number
  /** Attempts after the first that it may have. Each hand-back adds one, so that it costs no retry. */
  retryLimit: number
  /** Jobs with a larger priority begin first. @default 0 */
  priority: number
  /** When it was sent. */
  createdAt: Date
  /** It does not begin before this instant. If a schedule sent it, this is its slot. */
  startAfter: Date
  /** When its last attempt began; null: none has. */
  startedAt: Date | null
  /** When it was completed, cancelled, or failed for good; null: it is not over. */
  completedAt: Date | null
  /** What the last attempt reported: the part that is done, 0–1, a note, and when; null: nothing. */
  progress: { fraction: number; note: string | null; at: Date } | null
  /** The `holder` that claimed the last attempt; null: it gave none, or a worker of a process runs it. */
  holder: string | null
}

/** How many jobs of a queue are in each state. Completed and cancelled jobs are not counted: there may be millions. */
export interface Counts {
  /** The queue's name. */
  queue: string
  /** Jobs that can begin now. */
  ready: number
  /** Jobs that wait for their `startAfter`: a delay, a retry, a schedule. */
  deferred: number
  /** Jobs of a flow that wait for other jobs. */
  blocked: number
  /** Jobs that run. */
  active: number
  /** Jobs that have failed for good, and are kept. */
  failed: number
}

interface Row {
  id: string
  state: JobState
  data: unknown
  output: unknown
  retry_count: number
  retry_limit: number
  priority: number
  created_on: Date
  start_after: Date
  started_on: Date | null
  completed_on: Date | null
  fraction: number | null
  note: string | null
  at: Date | null
  holder: string | null
}

export class Jobs {
  readonly #pool: Pool
  readonly #boss: () => Engine
  readonly #queues: Queues
  readonly #attempts: AttemptStore

  constructor(pool: Pool, boss: () => Engine, queues: Queues, attempts: AttemptStore) {
    this.#pool = pool
    this.#boss = boss
    this.#queues = queues
    this.#attempts = attempts
  }

  async get(queue: string, id: string): Promise<Job | null> {
    checkQueue(queue)
    checkId(id)
    const [row] = await this.#pool.run<Row>(
      sql`select j.id, j.state, j.data, j.output, j.retry_count, j.retry_limit, j.priority, j.created_on, j.start_after,
                 j.started_on, j.completed_on, a.fraction, a.note, a.at, a.holder
            from lockstep_boss.job j
            left join lockstep.attempt a on a.queue = j.name and a.id = j.id and a.attempt = j.retry_count
           where j.name = ${queue} and j.id = ${id}`,
    )
    if (!row) await this.#queues.ensure(queue)
    return row ? jobOf(queue, row) : null
  }

  async cancel(queue: string, id: string): Promise<boolean> {
    checkQueue(queue)
    checkId(id)
    try {
      const response = await this.#boss().cancel(queue, id)
      if ((response as { affected?: number }).affected !== 1) return false
    } catch (error) {
      throw fromBoss(error, queue)
    }
    await this.#attempts.notify(id)
    return true
  }

  async counts(queue: string): Promise<Counts> {
    checkQueue(queue)
    const [row] = await this.#pool.run<Record<Exclude<keyof Counts, 'queue'>, string> & { there: boolean }>(
      // the list of states lets it be read from an index alone
      sql`select exists (select from lockstep_boss.queue where name = ${queue}) as there,
                 count(*) filter (where state < 'active' and not blocked and start_after <= clock_timestamp()) as ready,
                 count(*) filter (where state < 'active' and not blocked and start_after > clock_timestamp()) as deferred,
                 count(*) filter (where state < 'active' and blocked) as blocked,
                 count(*) filter (where state = 'active') as active,
                 count(*) filter (where state = 'failed') as failed
            from lockstep_boss.job
           where name = ${queue} and state in ('created', 'retry', 'active', 'failed')`,
    )
    if (!row?.there) throw noQueue(queue)
    const { ready, deferred, blocked, active, failed } = row
    return {
      queue,
      ready: Number(ready),
      deferred: Number(deferred),
      blocked: Number(blocked),
      active: Number(active),
      failed: Number(failed),
    }
  }
}

function jobOf(queue: string, row: Row): Job {
  const { id, state, data, output, priority, fraction, note, at, holder } = row
  return {
    id,
    queue,
    state,
    data,
    output: outputOf(state, output),
    attempts: row.retry_count + (row.started_on === null ? 0 : 1),
    retryLimit: row.retry_limit,
    priority,
    createdAt: row.created_on,
    startAfter: row.start_after,
    startedAt: row.started_on,
    completedAt: row.completed_on,
    progress: fraction === null || at === null ? null : { fraction, note, at },
    holder,
  }
}
