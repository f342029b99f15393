/**
 * Sending what is due: a transaction takes the rows of schedules, sends their slots and moves the rows on (schedules.ts says
 * what that promises).
 *
 * Its statements do not depend on how many schedules are due, up to 100: it inserts once for each queue, and updates once.
 * Only when that fails it begins again from a savepoint, with each schedule by itself.
 */
import { sql, type Transaction } from 'kysely'
import { fromDatabase, Stopwatch, UnavailableError } from '../../base/index.ts'
import { list, type Pool, textOn } from '../../database/index.ts'
import type { Engine } from '../pgboss/index.ts'
import { fromBoss, makeBoss } from '../pgboss/index.ts'
import { LATE_MS, type Missed, type Rule, type Step, slotId, stepTo } from './slots.ts'

/** A schedule that is due, and what is done with it. */
interface Due extends Step, Rule {
  name: string
  queue: string
  data: object | null
  jobs: { id: string; slot: Date; lateMs: number }[]
  error: string | null
}

interface Row extends Rule {
  name: string
  queue: string
  data: object | null
  missed: Missed
  next_at: Date
  now: Date
}

// biome-ignore lint/suspicious/noExplicitAny: in any schema
type Trx = Transaction<any>

// As many schedules as one transaction takes, in due_schedules.
const BATCH = 100
// For finding slots in one transaction, which is idle meanwhile and may be for 30 s.
const TURN_MS = 2_000
// Of pg-boss, unless the queue says otherwise.
const FORTNIGHT_S = 1_209_600
// Of one statement: a string of JavaScript has an end at 512 MB.
const STATEMENT_BYTES = 8_388_608
const REFUSED = 'The queue refused it: by its policy another job is in the way'

/**
 * Sends every slot that is due and that nobody else is sending.
 *
 * @param more  asked between transactions: whether there is time for another one.
 * @param now   instead of the database's clock.
 */
export async function fire(
  pool: Pool,
  engine: Engine,
  more: () => boolean,
  now: Date | undefined,
): Promise<{ slots: number }> {
  const passed: string[] = [] // of which more is due than is sent at a time
  let at = now ?? null
  let slots = 0
  for (let left = true; left && (slots === 0 || more()); ) {
    left = await pool.transaction(async (trx) => {
      const { rows } = await sql<Row>`select * from lockstep.due_schedules(${at}, ${list(passed, 'text')})`.execute(trx)
      const since = new Stopwatch()
      const due: Due[] = []
      for (const row of rows) {
        at ??= row.now // for all, or a schedule by the second is due again and again
        if (due.length > 0 && since.elapsed() > TURN_MS) break
        due.push(await decide(engine, row, at))
      }
      if (due.length > 0) slots += await send(trx, due)
      passed.push(...due.filter(({ next }) => next && at && next <= at).map(({ name }) => name))
      return rows.length === BATCH || due.length < rows.length
    })
  }
  return { slots }
}

async function decide(engine: Engine, { name, queue, data, missed, next_at, ...rule }: Row, at: Date): Promise<Due> {
  const same = { ...rule, name, queue, data }
  try {
    const step = await stepTo(at, engine, rule, missed, next_at)
    const jobs = step.send.map(async (slot) => ({ id: await slotId(name, slot), slot, lateMs: +at - +slot }))
    return { ...same, ...step, jobs: await Promise.all(jobs), error: null }
  } catch (error) {
    const { message } = error as Error
    return { ...same, send: [], jobs: [], missed: 1, lastMissed: next_at, next: null, error: message }
  }
}

/** Sends slots and moves their schedules on, all at once; if that fails, each by itself. @returns how many were sent. */
async function send(trx: Trx, due: Due[]): Promise<number> {
  const [first] = due as [Due]
  await sql`savepoint slots`.execute(trx)
  try {
    const sent = await insert(trx, due)
    await moveOn(trx, due, sent)
    await sql`release savepoint slots`.execute(trx)
    return sent.size
  } catch (error) {
    const { message } = itsOwn(error, first.queue)
    await sql.raw('rollback to savepoint slots; release savepoint slots').execute(trx)
    if (due.length === 1) {
      await moveOn(trx, [{ ...first, error: message }], new Set())
      return 0
    }
    let sent = 0
    for (const each of due) sent += await send(trx, [each])
    return sent
  }
}

/** The ids that are jobs now. */
async function insert(trx: Trx, due: Due[]): Promise<Set<string>> {
  // An engine of this transaction: the one of all asks for queues on another connection, and the last one may be ours.
  const engine: Engine = makeBoss({ query: (text, values) => textOn(trx, text, values) }, () => {})
  const sent = new Set<string>()
  // In one order: two tickers may wait for one another where a policy allows one job.
  for (const queue of [...new Set(due.map((each) => each.queue))].sort()) {
    const its = due.filter((each) => each.queue === queue)
    const late = its.some(({ jobs }) => jobs.some(({ lateMs }) => lateMs > LATE_MS))
    const { retentionSeconds = FORTNIGHT_S } = (late && (await engine.getQueue(queue))) || {}
    for (const jobs of statements(its)) {
      const ids = await engine.insert(
        queue,
        jobs.map(({ id, slot, lateMs, data }) => ({
          id,
          startAfter: slot.toISOString(),
          ...(data !== null && { data }),
          // It is counted from the slot, and upkeep would delete the job of an old one before anybody sees it.
          ...(lateMs > LATE_MS && { retentionSeconds: retentionSeconds + Math.ceil(lateMs / 1_000) }),
        })),
        { returnId: true },
      )
      for (const id of ids ?? []) sent.add(id)
      const others = jobs.filter(({ id }) => !sent.has(id)).map(({ id }) => id)
      if (others.length === 0) continue
      const { rows } = await sql<{ id: string }>`
        select id from lockstep_boss.job where name = ${queue} and id = any (${list(others, 'uuid')})`.execute(trx)
      for (const { id } of rows) sent.add(id)
    }
  }
  return sent
}

type Sending = Due['jobs'][number] & { data: object | null }

/** Jobs that go in one statement each. */
function statements(due: Due[]): Sending[][] {
  const all: Sending[][] = [[]]
  let bytes = 0
  for (const { jobs, data } of due) {
    const each = 200 + JSON.stringify(data).length
    for (const job of jobs) {
      bytes += each
      if (bytes > STATEMENT_BYTES) {
        all.push([])
        bytes = each
      }
      all.at(-1)?.push({ ...job, data })
    }
  }
  return all.filter((jobs) => jobs.length > 0)
}

async function moveOn(trx: Trx, due: Due[], sent: Set<string>): Promise<void> {
  const steps = due.map(({ name, jobs, next, missed, lastMissed, error }) => {
    const last = jobs.findLast(({ id }) => sent.has(id))
    const refused = jobs.filter(({ id }) => !sent.has(id))
    const why = refused.length > 0 && refused.at(-1) === jobs.at(-1) ? REFUSED : null
    return {
      ...{ name, next_at: next, last_slot: last?.slot, last_job: last?.id, missed: missed + refused.length },
      ...{ last_missed: refused.at(-1)?.slot ?? lastMissed, error: error?.slice(0, 1_000) ?? why },
    }
  })
  await sql`
    update lockstep.schedule s
       set next_at = x.next_at, last_slot = coalesce(x.last_slot, s.last_slot), last_job = coalesce(x.last_job, s.last_job),
           missed_slots = s.missed_slots + x.missed, last_missed = coalesce(x.last_missed, s.last_missed), error = x.error
      from jsonb_to_recordset(${JSON.stringify(steps)}::jsonb)
           x(name text, next_at timestamptz, last_slot timestamptz, last_job uuid, missed integer,
             last_missed timestamptz, error text)
     where s.name = x.name`.execute(trx)
}

/** A failure of the schedule itself. Any other is thrown. */
function itsOwn(error: unknown, queue: string): Error {
  const reason = fromBoss(fromDatabase(error), queue)
  const { code, severity } = reason as { code?: string; severity?: string }
  // Of the server, 25: the transaction was ended; 55: what it needs is in use. Whatever ends the connection besides.
  const passing = severity !== undefined && (severity !== 'ERROR' || /^(25|55)/.test(code ?? ''))
  if (!(reason instanceof Error) || reason instanceof UnavailableError || passing) throw reason
  return reason
}
