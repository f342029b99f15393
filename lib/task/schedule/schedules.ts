/**
 * Exact cron, without a leader: each slot of a schedule is sent once, however many tick, and whenever.
 *
 * PROMISE. The row of a schedule says which slot is the next (db/migrations/0005_schedule.sql). Who has the row's lock sends
 * what is due, and in the same transaction moves the row on: so a slot is sent by one ticker, and one that dies has sent
 * nothing. Nothing asks "was a slot due in the last minute?", so it does not matter when ticks come, or whether one
 * is lost. The clock is the database's. The id of a job is made of the schedule's name and the slot: should a slot be
 * sent again all the same (a clock that is set back, a backup), pg-boss finds that it has that job.
 *
 * LATE. What was due more than 150 s ago, while nobody ticked, is sent as `missed` says, and what is not is counted.
 *
 * FAILURES. A schedule that cannot be sent (its queue was deleted, a trigger refuses) does not stop the others: it says
 * `error`, its slots count as missed, and it goes on with the next. A failure that is not its own, of the connection or a
 * deadlock, undoes the transaction, and the next tick sends the same slots. A ticker that is frozen within the
 * transaction loses it after 30 s.
 */
import { sql } from 'kysely'
import {
  checkInteger,
  checkPage,
  checkText,
  checkWord,
  jsonText,
  LIMITS,
  outOfRange,
  Stopwatch,
} from '../../base/index.ts'
import type { Pool } from '../../database/index.ts'
import type { Engine } from '../pgboss/index.ts'
import { checkQueue } from '../queue/index.ts'
import { fire } from './due.ts'
import { checkCron, checkTimezone, MISSED, type Missed, PAGE, type Rule, slotsAfter } from './slots.ts'

export interface Schedule {
  name: string
  queue: string
  cron: string
  timezone: string
  data: unknown
  missed: Missed
  /** The next slot; null: it cannot be told (see `error`), until it is scheduled again. */
  nextAt: Date | null
  /** The last slot that was sent, and its job. */
  lastSlot: Date | null
  lastJob: string | null
  /** Slots that were due and not sent: late, or refused. Of more than 2,000 at a time it says less. */
  missedSlots: number
  lastMissed: Date | null
  /** Why the last slot could not be sent. */
  error: string | null
  createdAt: Date
  updatedAt: Date
}

export interface ScheduleOptions {
  /** Where the jobs go. It has to be there. */
  queue: string
  /** IANA. @default 'UTC' */
  timezone?: string
  /** Of each job. @default null */
  data?: unknown
  /**
   * What becomes of slots that were due more than 150 s ago, while nobody ticked: none of them is sent; the last of them,
   * unless a later one is sent anyway; or each, 1,000 at a tick.
   * @default 'once'
   */
  missed?: Missed
}

export class Cron {
  readonly #pool: Pool
  readonly #engine: () => Engine
  readonly #ensure: (queue: string) => Promise<void>

  /** @param parts.ensure  throws NotFoundError when there is no such queue. */
  constructor(parts: { pool: Pool; boss: () => Engine; ensure: (queue: string) => Promise<void> }) {
    this.#pool = parts.pool
    this.#engine = parts.boss
    this.#ensure = parts.ensure
  }

  /** Whether it was made, and not changed. @throws {NotFoundError | UnavailableError | TypeError | RangeError} */
  async schedule(name: string, cron: string, options: ScheduleOptions): Promise<boolean> {
    checkText('name', name)
    const { queue, timezone = 'UTC', data = null, missed = 'once' } = options ?? {}
    checkQueue(queue)
    const rule = this.#rule(cron, timezone)
    checkWord('missed', missed, MISSED)
    const text = jsonText('data', data, LIMITS.dataBytes)
    await this.#ensure(queue)
    const [row] = await this.#pool.transaction(async (trx) => {
      // The row first: a ticker that has it sends slots up to its now, and ours must be later than that.
      await sql`set local idle_in_transaction_session_timeout = '30s'`.execute(trx)
      await sql`select from lockstep.schedule where name = ${name} for update`.execute(trx)
      const now = (await sql<{ now: Date }>`select clock_timestamp() as now`.execute(trx)).rows[0]?.now as Date
      const [next] = slotsAfter(this.#engine(), rule, now, 1)
      const { rows } = await sql<{ made: boolean }>`
        insert into lockstep.schedule as s (name, queue, cron, timezone, data, missed, next_at)
        values (${name}, ${queue}, ${rule.cron}, ${timezone}, ${text}::jsonb, ${missed}, ${next})
        on conflict (name) do update
          set queue = excluded.queue, cron = excluded.cron, timezone = excluded.timezone, data = excluded.data,
              missed = excluded.missed, error = null, updated_at = clock_timestamp(),
              next_at = case when (s.cron, s.timezone) = (excluded.cron, excluded.timezone)
                             then coalesce(s.next_at, excluded.next_at) else excluded.next_at end
          where s.next_at is null
             or (s.queue, s.cron, s.timezone, s.data, s.missed)
                  is distinct from (excluded.queue, excluded.cron, excluded.timezone, excluded.data, excluded.missed)
        returning xmax = 0 as made`.execute(trx)
      return rows
    })
    return row?.made ?? false
  }

  /** Whether there was one. When this resolves nothing of it is sent any more. */
  async unschedule(name: string): Promise<boolean> {
    checkText('name', name)
    return (await this.#pool.run(sql`delete from lockstep.schedule where name = ${name} returning name`)).length > 0
  }

  async scheduled(name: string): Promise<Schedule | null> {
    checkText('name', name)
    const [row] = await this.#pool.run<Schedule>(sql`select ${FIELDS} from lockstep.schedule where name = ${name}`)
    return row ? shown(row) : null
  }

  /** In the order of their names' code points. */
  async schedules(page: { prefix?: string; limit?: number; after?: string } = {}): Promise<Schedule[]> {
    const { prefix, limit, after } = checkPage(page)
    const rows = await this.#pool.run<Schedule>(
      sql`select ${FIELDS} from lockstep.schedule
           where name > ${after} and name >= ${prefix} and starts_with(name, ${prefix})
           order by name limit ${limit}`,
    )
    return rows.map(shown)
  }

  /** The next n slots, from now on the local clock. */
  preview(cron: string, timezone = 'UTC', n = 5): Date[] {
    const rule = this.#rule(cron, timezone)
    checkInteger('n', n, { min: 1, max: 1_000 })
    const since = new Stopwatch()
    const slots: Date[] = []
    while (slots.length < n) {
      if (since.elapsed() > 1_000) throw outOfRange('n', 'less, for a cron this rare', n)
      slots.push(...slotsAfter(this.#engine(), rule, slots.at(-1) ?? new Date(), Math.min(n - slots.length, PAGE)))
    }
    return slots
  }

  /**
   * Sends every slot that is due, and that nobody else is sending.
   * @param now  instead of the database's clock, for tests.
   * @throws {UnavailableError} and nothing is lost: it is due still.
   */
  fire(now?: Date, more = () => true): Promise<{ slots: number }> {
    return fire(this.#pool, this.#engine(), more, now)
  }

  #rule(cron: unknown, timezone: unknown): Rule {
    const rule = { cron: checkCron(this.#engine(), cron), timezone }
    checkTimezone(timezone)
    return rule as Rule
  }
}

const FIELDS = sql.raw(`name, queue, cron, timezone, data, missed, next_at as "nextAt", last_slot as "lastSlot",
  last_job as "lastJob", missed_slots as "missedSlots", last_missed as "lastMissed", error, created_at as "createdAt",
  updated_at as "updatedAt"`)

const shown = (row: Schedule): Schedule => ({ ...row, missedSlots: Number(row.missedSlots) }) // a bigint is text in pg
