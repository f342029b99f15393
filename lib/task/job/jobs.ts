/** Looking at jobs and queues: by the time the answer is read it may be otherwise. */
import { sql } from 'kysely'
import type { Pool } from '../../database/index.ts'
import type { Engine } from '../pgboss/index.ts'
import { fromBoss, noQueue } from '../pgboss/index.ts'
import type { Queues } from '../queue/index.ts'
import { checkId, checkQueue } from '../queue/index.ts'
import type { Settle } from './attempts.ts'
import { outputOf } from './outcomes.ts'

/** `created` and `retry` wait, for the first attempt and for another one. */
export type JobState = 'created' | 'retry' | 'active' | 'completed' | 'cancelled' | 'failed'

/** A job as it was a moment ago. */
export interface Job {
  id: string
  queue: string
  state: JobState
  data: unknown
  /** What the handler returned; after a failed attempt its error `{ name, message, stack, … }`; null: none yet. */
  output: unknown
  /** How many attempts were begun. */
  attempts: number
  retryLimit: number
  priority: number
  createdAt: Date
  /** It does not run before. Of a job that a schedule sent, its slot. */
  startAfter: Date
  /** Of the last attempt. */
  startedAt: Date | null
  completedAt: Date | null
  /** What the last attempt said. */
  progress: { fraction: number; note: string | null; at: Date } | null
  /** Who claimed it, of the last attempt, if they said so. */
  holder: string | null
}

/** How many jobs of a queue there are. Those that are over well are not counted: there may be millions. */
export interface Counts {
  queue: string
  /** May run now. */
  ready: number
  /** Wait for their time: a delay, a retry, a schedule. */
  deferred: number
  /** Wait for other jobs, of a flow. */
  blocked: number
  active: number
  /** Have failed for good, and are kept. */
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
  readonly #settle: Settle

  constructor(pool: Pool, boss: () => Engine, queues: Queues, settle: Settle) {
    this.#pool = pool
    this.#boss = boss
    this.#queues = queues
    this.#settle = settle
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
      const said = await this.#boss().cancel(queue, id)
      if ((said as { affected?: number }).affected !== 1) return false
    } catch (error) {
      throw fromBoss(error, queue)
    }
    await this.#settle.tellAll(id)
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
