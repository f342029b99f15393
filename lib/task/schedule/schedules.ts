/**
 * Exact cron, without a leader: each slot of a schedule is sent once, however many processes tick, and whenever they do. A slot is
 * an instant at which a schedule is due.
 *
 * PROMISE. The row of a schedule has its next slot (db/migrations/0005_schedule.sql). A ticker locks the row, sends the slots that
 * are due, and advances the row in the same transaction. So a slot is sent by one ticker, and a ticker that dies has sent nothing.
 * Nothing asks "was a slot due in the last minute?", so it does not matter when ticks come, or whether one is lost. The clock is
 * the database's. The id of a job is made of the schedule's name and the slot. If a slot is sent again all the same (the clock was
 * set back, a backup was restored), pg-boss finds that it has that job already.
 *
 * LATE SLOTS. A slot that was due more than 150 s ago, while nobody ticked, is sent if `missed` says so, and is counted otherwise.
 *
 * FAILURES. A schedule that cannot be sent (its queue was deleted, a trigger refuses) does not stop the others: the reason is its
 * `error`, its slots count as missed, and it goes on with the next slot. Any other failure, of the connection or a deadlock, rolls
 * the transaction back, and the next tick sends the same slots. A ticker that is frozen within the transaction loses it after 30 s.
 */
import { sql } from 'kysely'
import {
  checkInteger,
  checkOptions,
  checkPage,
  checkText,
  checkWord,
  jsonText,
  known,
  LIMITS,
  outOfRange,
  type Page,
  Stopwatch,
} from '../../base/index.ts'
import type { Pool } from '../../database/index.ts'
import type { Engine } from '../engine.ts'
import { checkQueue } from '../queue/index.ts'
import { BOSS_PREFIX, finderOf, type Kind } from './boss-schedule.ts'
import { sendDueSlots } from './due.ts'
import { checkCron, checkTimezone, MISSED, type Missed, type Rule, slotAfter } from './slots.ts'

/** A schedule. Times are of the database's clock. */
export interface Schedule {
  /** Its name, 1–255 characters. One that was made with pg-boss's own `schedule()` is called `pg-boss:<queue>` or `pg-boss:<queue>:<key>`. */
  name: string
  /** The name of the queue that its jobs are sent to. */
  queue: string
  /** The cron expression, with single spaces. Of a schedule of pg-boss: as it was given; it may be a recurrence rule (RFC 5545). */
  cron: string
  /** The IANA name of the time zone that `cron` is read in. */
  timezone: string
  /** The data of each job: JSON. */
  data: unknown
  /** Which late slots are sent: see {@link ScheduleOptions.missed}. */
  missed: Missed
  /** The next slot; null: there is none any more, or it cannot be computed (see `error`) until the schedule is made again. */
  nextAt: Date | null
  /** The last slot that was sent; null: none was. */
  lastSlot: Date | null
  /** The id of the job of `lastSlot`. */
  lastJob: string | null
  /** How many slots were due and not sent, because they were late or refused. When more than 2,000 were late at a time it is less. */
  missedSlots: number
  /** The last slot that was not sent; null: there is none. */
  lastMissed: Date | null
  /** Why the last slot could not be sent; null: it was sent. */
  error: string | null
  /** When the schedule was made. */
  createdAt: Date
  /** When it was changed last. */
  updatedAt: Date
}

/** Options of `schedule`. */
export interface ScheduleOptions {
  /** The name of the queue that the jobs are sent to. It must exist. */
  queue: string
  /** The IANA name of the time zone that `cron` is read in. @default 'UTC' */
  timezone?: string | undefined
  /** The data of each job: JSON, at most 1 MiB. @default null */
  data?: unknown
  /**
   * What happens to slots that were due more than 150 s ago, while nobody ticked. `skip`: none is sent. `once`: the last of them
   * is, unless a later slot is sent anyway. `all`: each is, 1,000 at a tick.
   * @default 'once'
   */
  missed?: Missed | undefined
}

const PAGE = known<Page & { maxBytes?: number }>({ prefix: true, limit: true, after: true, maxBytes: true })
const SCHEDULE = known<ScheduleOptions>({ queue: true, timezone: true, data: true, missed: true })

export class Schedules {
  readonly #pool: Pool
  readonly #engine: () => Engine
  readonly #ensure: (queue: string) => Promise<void>

  /** @param parts.ensure  throws a NotFoundError when there is no such queue. */
  constructor(parts: { pool: Pool; boss: () => Engine; ensure: (queue: string) => Promise<void> }) {
    this.#pool = parts.pool
    this.#engine = parts.boss
    this.#ensure = parts.ensure
  }

  /** Makes a schedule, or changes it. Returns whether it was made. @throws {NotFoundError | UnavailableError | TypeError | RangeError} */
  async schedule(name: string, cron: string, options: ScheduleOptions): Promise<boolean> {
    checkText('name', name)
    if (name.startsWith(BOSS_PREFIX)) {
      throw outOfRange(
        'name',
        `a name that does not begin with ${BOSS_PREFIX} (those are made with pg-boss's own schedule())`,
        name,
      )
    }
    checkOptions(options ?? {}, SCHEDULE)
    const { queue, timezone = 'UTC', data = null, missed = 'once' } = options ?? {}
    checkQueue(queue)
    const rule = ruleOf(cron, timezone)
    checkWord('missed', missed, MISSED)
    const text = jsonText('data', data, LIMITS.dataBytes)
    await this.#ensure(queue)
    const [row] = await this.#pool.transaction(async (trx) => {
      // Lock the row first: a ticker that has it sends the slots up to its `now`, and our `now` must be later than that.
      await sql`set local idle_in_transaction_session_timeout = '30s'`.execute(trx)
      await sql`select from lockstep.schedule where name = ${name} for update`.execute(trx)
      const now = (await sql<{ now: Date }>`select clock_timestamp() as now`.execute(trx)).rows[0]?.now as Date
      const next = slotAfter(rule, now)
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

  /** Removes a schedule. Returns whether there was one. When this resolves, none of its slots is sent any more. */
  async unschedule(name: string): Promise<boolean> {
    checkText('name', name)
    // One of pg-boss's goes with its copy, or the copy comes back when pg-boss changes it.
    const gone = await this.#pool.run(
      name.startsWith(BOSS_PREFIX)
        ? sql`delete from lockstep_boss.schedule b using lockstep.schedule s
               where s.name = ${name} and b.name = s.queue and b.key = s.boss_key returning b.name`
        : sql`delete from lockstep.schedule where name = ${name} returning name`,
    )
    return gone.length > 0
  }

  /** A schedule; null: there is none. */
  async get(name: string): Promise<Schedule | null> {
    checkText('name', name)
    const [row] = await this.#pool.run<Row>(sql`select ${FIELDS} from lockstep.schedule where name = ${name}`)
    return row ? this.#scheduleOf(row) : null
  }

  /** Schedules, in the order of their names' code points. */
  async list(page: Page & { maxBytes?: number | undefined } = {}): Promise<Schedule[]> {
    const { prefix, limit, after } = checkPage(page, PAGE)
    const { maxBytes } = page
    const asked = sql`select * from lockstep.schedule
                       where name > ${after} and name >= ${prefix} and starts_with(name, ${prefix})
                       order by name limit ${limit}`
    if (maxBytes !== undefined) checkInteger('maxBytes', maxBytes, { min: 1, max: 2 ** 31 - 1 })
    const rows = await this.#pool.run<Row>(
      maxBytes === undefined
        ? sql`select ${FIELDS} from (${asked}) s order by name`
        : sql`select ${FIELDS} from (
                select s.*, row_number() over w as nth, sum(octet_length(to_json(to_json(s)::text)::text)) over w as upto
                  from (${asked}) s window w as (order by s.name rows unbounded preceding)) s
               where nth = 1 or upto <= ${maxBytes} order by name`,
    )
    return rows.map((row) => this.#scheduleOf(row))
  }

  /** The next n slots, from now on, by the local clock. */
  preview(cron: string, timezone = 'UTC', n = 5): Date[] {
    const rule = ruleOf(cron, timezone)
    checkInteger('n', n, { min: 1, max: 1_000 })
    const since = new Stopwatch()
    const slots: Date[] = []
    while (slots.length < n) {
      if (since.elapsed() > 1_000) throw outOfRange('n', 'smaller, for slots that are this rare', n)
      slots.push(slotAfter(rule, slots.at(-1) ?? new Date()))
    }
    return slots
  }

  /**
   * Sends every slot that is due, unless another ticker is sending it. Returns how many were sent.
   * @param now   the instant that counts as now. @default the database's clock
   * @param more  whether there is time for another transaction.
   * @throws {UnavailableError} nothing is lost: the slots are still due.
   */
  sendDue(now?: Date, more = () => true): Promise<{ slots: number }> {
    return sendDueSlots(this.#pool, this.#engine(), more, now)
  }

  #scheduleOf({ kind, found, ...row }: Row): Schedule {
    const schedule = { ...row, missedSlots: Number(row.missedSlots) } // pg returns a bigint as text
    if (found || row.nextAt === null) return schedule
    try {
      return { ...schedule, nextAt: finderOf(kind, this.#engine())(row, row.nextAt) }
    } catch (error) {
      return { ...schedule, nextAt: null, error: (error as Error).message } // as the next tick will say
    }
  }
}

function ruleOf(cron: unknown, timezone: unknown): Rule {
  const rule = { cron: checkCron(cron), timezone }
  checkTimezone(timezone)
  return rule as Rule
}

const FIELDS = sql.raw(`name, queue, cron, timezone, data, missed, next_at as "nextAt", last_slot as "lastSlot",
  last_job as "lastJob", missed_slots as "missedSlots", last_missed as "lastMissed", error, created_at as "createdAt",
  updated_at as "updatedAt", case when boss_key is null then 'own' else kind end as kind, found`)

interface Row extends Schedule {
  kind: Kind
  found: boolean // false: nextAt is no slot, the first one is later
}
