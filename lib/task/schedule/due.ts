/**
 * Sending the slots that are due: a transaction locks the rows of schedules, sends their slots and advances the rows (schedules.ts
 * says what that promises).
 *
 * The number of statements does not depend on how many schedules are due, up to 100: it inserts once for each queue, and updates
 * once. If that fails it begins again from a savepoint, with each schedule by itself. So the trouble of one schedule holds up no
 * other: what is wrong with it (no such queue) is its `error`; what may pass (a deadlock, a lock that somebody keeps) is thrown when
 * all others are sent, and its row is as it was. Only a lost connection ends the round at once.
 */
import { sql, type Transaction } from 'kysely'
import { fromDatabase, Stopwatch, UnavailableError } from '../../base/index.ts'
import { list, type Pool, sqlState, textOn } from '../../database/index.ts'
import type { Engine } from '../engine.ts'
import { fromBoss, makeBoss } from '../pgboss/index.ts'
import { finderOf, jobOptions, type Kind } from './boss-schedule.ts'
import { LATE_MS, type Missed, type Rule, type Step, slotId, stepTo } from './slots.ts'

/** A schedule that is due, and what will be done with it. */
interface Due extends Step, Rule {
  name: string
  queue: string
  data: object | null
  options: object | null
  jobs: { id: string; slot: Date; lateMs: number }[]
}

interface Row extends Rule {
  name: string
  queue: string
  data: object | null
  missed: Missed
  next_at: Date
  now: Date
  kind: Kind
  options: object | null // pg-boss's; null: the schedule is ours
  found: boolean // false: next_at is no slot, the first one is later
}

// biome-ignore lint/suspicious/noExplicitAny: of any tables
type Trx = Transaction<any>

// Schedules in one transaction: the limit in due_slots.
const BATCH = 100
// How long one transaction computes slots, and then tries schedules one by one. It is idle while it computes, and may be for 30 s.
const COMPUTE_MS = 2_000
const ONE_BY_ONE_MS = 10_000
// How long a job may wait to run, unless its queue says otherwise: pg-boss's default, 14 days.
const RETENTION_SECONDS = 1_209_600
// Of one statement: a string of JavaScript has at most 512 MB.
const STATEMENT_BYTES = 8_388_608
const REFUSED = 'The queue refused it: its policy allows no other job now'

/**
 * Sends every slot that is due, unless another ticker is sending it.
 *
 * @param more  called between transactions: whether there is time for another one.
 * @param now   the instant that counts as now; undefined: that of the database's clock.
 */
export async function sendDueSlots(
  pool: Pool,
  engine: Engine,
  more: () => boolean,
  now: Date | undefined,
): Promise<{ slots: number }> {
  const passed: string[] = [] // schedules of which more slots are due than are sent at a time, or that could not be sent
  const failures: unknown[] = []
  let at = now ?? null
  let slots = 0
  for (let left = true; left && (slots === 0 || more()); ) {
    left = await pool.transaction(async (trx) => {
      const { rows } = await sql<Row>`select * from lockstep.due_slots(${at}, ${list(passed, 'text')})`.execute(trx)
      const since = new Stopwatch()
      const due: Due[] = []
      for (const row of rows) {
        at ??= row.now // one instant for all transactions, or a schedule by the second is due again and again
        if (due.length > 0 && since.elapsed() > COMPUTE_MS) break
        due.push(await decide(engine, row, at))
      }
      const { sent, tried, failed } = due.length > 0 ? await send(trx, due) : { sent: 0, tried: 0, failed: [] }
      slots += sent
      failures.push(...failed.map(({ error }) => error))
      passed.push(...failed.map(({ name }) => name))
      passed.push(...due.slice(0, tried).flatMap(({ name, next }) => (next && at && next <= at ? [name] : [])))
      return rows.length === BATCH || tried < rows.length
    })
  }
  if (failures.length > 0) throw fromDatabase(failures[0])
  return { slots }
}

async function decide(engine: Engine, row: Row, at: Date): Promise<Due> {
  const { name, queue, data, options, cron, timezone, missed, next_at, found } = row
  const same = { name, queue, data, options, cron, timezone }
  const rule = { cron, timezone }
  const find = finderOf(row.kind, engine)
  const none = { send: [], jobs: [], missed: 0, lastMissed: null, error: null }
  try {
    const first = found ? next_at : find(rule, next_at)
    if (!first || first > at) return { ...same, ...none, next: first }
    const step = await stepTo(at, rule, missed, first, find)
    const jobs = step.send.map(async (slot) => ({ id: await slotId(name, slot), slot, lateMs: +at - +slot }))
    return { ...same, ...step, jobs: await Promise.all(jobs) }
  } catch (error) {
    return { ...same, ...none, next: null, error: (error as Error).message } // not even the first slot is known
  }
}

/** What was done: how many slots were sent, of how many schedules from the first on, and which of these failed in a way that passes. */
interface Outcome {
  sent: number
  tried: number
  failed: { name: string; error: unknown }[]
}

/** Sends slots and advances their schedules, all at once; if that fails, each by itself. */
async function send(trx: Trx, due: Due[]): Promise<Outcome> {
  const [first] = due as [Due]
  await sql`savepoint slots`.execute(trx)
  try {
    const sent = await insert(trx, due)
    await advance(trx, due, sent)
    await sql`release savepoint slots`.execute(trx)
    return { sent: sent.size, tried: due.length, failed: [] }
  } catch (error) {
    const reason = fromBoss(fromDatabase(error), first.queue)
    await sql
      .raw('rollback to savepoint slots; release savepoint slots')
      .execute(trx)
      .catch(() => {
        throw reason // the connection is lost
      })
    if (due.length === 1) return await failure(trx, first, reason)
  }
  const all: Outcome = { sent: 0, tried: 0, failed: [] }
  const since = new Stopwatch()
  for (const each of due) {
    if (since.elapsed() > ONE_BY_ONE_MS) break // the rest has its turn in another transaction
    const one = await send(trx, [each])
    all.sent += one.sent
    all.tried += 1
    all.failed.push(...one.failed)
  }
  return all
}

/** The schedule itself is the reason: then its slots are missed. Or it is not: then it stays as it is, and a later tick sends them. */
async function failure(trx: Trx, due: Due, reason: unknown): Promise<Outcome> {
  if (passes(reason)) return { sent: 0, tried: 1, failed: [{ name: due.name, error: reason }] }
  await advance(trx, [{ ...due, error: (reason as Error).message }], new Set())
  return { sent: 0, tried: 1, failed: [] }
}

/** Inserts the jobs. Returns the ids of those that exist now. */
async function insert(trx: Trx, due: Due[]): Promise<Set<string>> {
  // An engine on this transaction: the shared one reads queues on another connection, and this may be the pool's last one.
  const engine: Engine = makeBoss({ query: (text, values) => textOn(trx, text, values) }, () => {})
  const sent = new Set<string>()
  // In a fixed order: where a policy allows only one job, two tickers may wait for each other.
  for (const queue of [...new Set(due.map((each) => each.queue))].sort()) {
    const ofQueue = due.filter((each) => each.queue === queue)
    const late = ofQueue.some(({ jobs }) => jobs.some(({ lateMs }) => lateMs > LATE_MS))
    const { retentionSeconds = RETENTION_SECONDS } = (late && (await engine.getQueue(queue))) || {}
    for (const jobs of statements(ofQueue)) {
      const ids = await engine.insert(
        queue,
        jobs.map(({ id, slot, lateMs, data, options }) => ({
          startAfter: slot.toISOString(),
          ...jobOptions(options),
          id,
          ...(data !== null && { data }),
          // Retention counts from the slot: upkeep would delete the job of an old slot before a worker gets it.
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

type Sending = Due['jobs'][number] & Pick<Due, 'data' | 'options'>

/** Divides jobs: each array goes in one statement. */
function statements(due: Due[]): Sending[][] {
  const all: Sending[][] = [[]]
  let bytes = 0
  for (const { jobs, data, options } of due) {
    const each = 200 + JSON.stringify([data, options]).length
    for (const job of jobs) {
      bytes += each
      if (bytes > STATEMENT_BYTES) {
        all.push([])
        bytes = each
      }
      all.at(-1)?.push({ ...job, data, options })
    }
  }
  return all.filter((jobs) => jobs.length > 0)
}

async function advance(trx: Trx, due: Due[], sent: Set<string>): Promise<void> {
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
       set next_at = x.next_at, found = true, last_slot = coalesce(x.last_slot, s.last_slot), last_job = coalesce(x.last_job, s.last_job),
           missed_slots = s.missed_slots + x.missed, last_missed = coalesce(x.last_missed, s.last_missed), error = x.error
      from jsonb_to_recordset(${JSON.stringify(steps)}::jsonb)
           x(name text, next_at timestamptz, last_slot timestamptz, last_job uuid, missed integer,
             last_missed timestamptz, error text)
     where s.name = x.name`.execute(trx)
}

/** Whether it may be gone at the next try: SQLSTATE class 25 (the transaction was ended), 55 (an object is in use), unavailable. */
function passes(error: unknown): boolean {
  return !(error instanceof Error) || error instanceof UnavailableError || /^(25|55)/.test(sqlState(error))
}
