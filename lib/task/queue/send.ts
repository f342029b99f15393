/**
 * Sending: the jobs of many callers go in one insert.
 *
 * The first send goes at once. Those that come while its insert is under way go together in the next one (base/batch.ts). A send is
 * answered when its insert is on disk, as if it were alone. Ids are made here and not by the database: an insert skips the jobs
 * that a policy or a throttle refuses, and by the ids we know which these were.
 *
 * A job with `replace` that a throttle refuses gives its data to the job that is in its way. If that has begun meanwhile, or the period
 * is over, the insert is tried once more.
 *
 * If a shared insert fails, each job is sent again by itself: one bad job must not fail the others.
 */
import {
  batched,
  checkOptions,
  jsonText,
  LIMITS,
  NotFoundError,
  UnavailableError,
  wrongType,
} from '../../base/index.ts'
import { type AnyTransaction, checkTransaction, type Pool } from '../../database/index.ts'
import type { Engine, EngineDb, EngineJob } from '../engine.ts'
import { fromBoss, inside } from '../pgboss/index.ts'
import { checkQueue, jobRow, SEND, SEND_ALL, type SendOptions } from './options.ts'
import type { Queues } from './queues.ts'
import { validated } from './standard-schema.ts'

type Row = Omit<EngineJob, 'data'> & { id: string; data: unknown; replace?: boolean }
type Outgoing = { queue: string; row: Row }

const MAX_BATCH = 500 // in one insert

export class Sender {
  readonly #queues: Queues
  readonly #boss: () => Engine
  readonly #pool: Pool
  readonly #insert: (outgoing: Outgoing) => Promise<string | null>

  constructor(queues: Queues, boss: () => Engine, pool: Pool) {
    this.#queues = queues
    this.#boss = boss
    this.#pool = pool
    const shared = batched(
      (all: Outgoing[]) => this.#insertAll(all),
      ({ row }) => row.id,
      MAX_BATCH,
    )
    this.#insert = async (outgoing) => {
      const result = await shared(outgoing)
      if (typeof result === 'string' || result === null) return result
      throw result.error
    }
  }

  /** Returns the job's id; null: it was refused. @param makeId  makes the id, unless `options` have one. */
  async send(queue: string, data: unknown, options: SendOptions, makeId: () => string): Promise<string | null> {
    checkOptions(options, SEND)
    const { trx, ...rest } = options
    checkQueue(queue)
    if (trx !== undefined) checkTransaction(trx) // before the queue is made
    const row = rowOf(data, rest, makeId)
    await this.#check(queue, [row])
    if (trx !== undefined) return (await this.#insertRows(queue, [row], trx))[0] ?? null
    return this.#insert({ queue, row })
  }

  /** Sends all in one statement: all of them, or none. Returns null for each that is refused. */
  async sendAll(
    queue: string,
    jobs: ({ data?: unknown } & Omit<SendOptions, 'trx'>)[],
    makeId: () => string,
    trx?: AnyTransaction,
  ): Promise<(string | null)[]> {
    checkQueue(queue)
    if (trx !== undefined) checkTransaction(trx)
    if (!Array.isArray(jobs)) throw wrongType('jobs', 'an array of { data, … }', jobs)
    const rows = jobs.map((job, i) => {
      checkOptions(job, SEND_ALL, `jobs.${i}`)
      const { data, ...options } = job
      return rowOf(data, options, makeId)
    })
    if (rows.length === 0) return []
    const ids = new Set(rows.map(({ id }) => id))
    if (ids.size < rows.length) throw wrongType('id', 'different for each job', 'the same twice')
    await this.#check(queue, rows)
    return this.#insertRows(queue, rows, trx)
  }

  // The data must match the schema, if there is one, and the queue must exist.
  async #check(queue: string, rows: Row[]): Promise<void> {
    const schema = this.#queues.definitions.get(queue)?.options.schema
    if (schema) for (const { data } of rows) await validated(schema, data)
    await this.#queues.ensure(queue)
  }

  async #insertAll(all: Outgoing[]): Promise<(string | null | { error: unknown })[]> {
    const results = new Map<string, string | null | { error: unknown }>()
    const groups = [...Map.groupBy(all, ({ queue }) => queue)]
    await Promise.all(
      groups.map(async ([queue, group]) => {
        const rows = group.map(({ row }) => row)
        for (const [i, result] of (await this.#insertOrEach(queue, rows)).entries()) {
          results.set((rows[i] as Row).id, result)
        }
      }),
    )
    return all.map(({ row }) => results.get(row.id) ?? null)
  }

  async #insertOrEach(queue: string, rows: Row[]): Promise<(string | null | { error: unknown })[]> {
    try {
      return await this.#insertRows(queue, rows)
    } catch (error) {
      if (rows.length === 1 || error instanceof UnavailableError) {
        return rows.map(() => ({ error }))
      }
      return (await Promise.all(rows.map((row) => this.#insertOrEach(queue, [row])))).flat()
    }
  }

  async #insertRows(queue: string, rows: Row[], trx?: AnyTransaction): Promise<(string | null)[]> {
    if (trx && this.#queues.isNew(queue)) await checkVisible(queue, trx)
    try {
      const options = { returnId: true, ...(trx && { db: inside(trx) }) }
      const made = new Set(await this.#boss().insert(queue, rows as EngineJob[], options))
      const ids: (string | null)[] = []
      // One after the other: of several with the same key the last one's data is kept.
      for (const row of rows)
        ids.push(made.has(row.id) ? row.id : row.replace ? await this.#replace(queue, row, options) : null)
      return ids
    } catch (error) {
      const known = fromBoss(error, queue)
      if (known instanceof NotFoundError) this.#queues.forget(queue)
      throw known
    }
  }

  /** Gives the data to the job that is in the way. Returns the id of the job that has the data now; null: refused. */
  async #replace(queue: string, row: Row, options: { returnId: boolean; db?: EngineDb }): Promise<string | null> {
    const run = (text: string, values: unknown[]) =>
      options.db ? options.db.executeSql(text, values) : this.#pool.query(text, values)
    const values = [queue, row.singletonKey ?? null, row.singletonSeconds, JSON.stringify(row.data)]
    for (const last of [false, true]) {
      const [found] = (await run(REPLACE, values)).rows as { id: string }[]
      if (found) return found.id
      if (last) break
      const [id] = (await this.#boss().insert(queue, [row as EngineJob], options)) ?? []
      if (id !== undefined) return id
    }
    return null
  }
}

// A REPEATABLE READ or SERIALIZABLE transaction does not see a queue that was made after it began; its COMMIT would fail with 23503.
async function checkVisible(queue: string, trx: AnyTransaction): Promise<void> {
  const { rows } = await inside(trx).executeSql(
    'select from lockstep_boss.queue where name operator(pg_catalog.=) $1',
    [queue],
  )
  if (rows.length > 0) return
  throw new UnavailableError(
    `The queue ${JSON.stringify(queue)} was made after this transaction began, and its isolation level hides it: run the transaction again`,
  )
}

// A period as pg-boss counts it: from 1970, on the database's clock.
const REPLACE = `
  update lockstep_boss.job set data = $4::jsonb
   where name = $1 and state = 'created' and coalesce(singleton_key, '') = coalesce($2::text, '')
     and singleton_on = 'epoch'::timestamp
           + '1s'::interval * ($3::float8 * floor(date_part('epoch', lockstep_boss.job_now())::float8 / $3::float8))
  returning id`

function rowOf(data: unknown, options: Omit<SendOptions, 'trx'>, makeId: () => string): Row {
  const row = jobRow(options)
  jsonText('data', data ?? null, LIMITS.dataBytes)
  return { ...row, id: row.id ?? makeId(), data: data ?? null, ...(options.replace && { replace: true }) }
}
