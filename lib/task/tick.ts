/**
 * Ticks: what has to be done now and then. Due slots of schedules, attempts of dead workers, flows, upkeep, and, where no process
 * lives on, the jobs themselves.
 *
 * One statement asks what is due, and only that is done. So an idle tick is that one statement, and one more in a process that has
 * handlers. A tick may come from anywhere, at any time and from many processes at once: everything that it does is done by one of
 * them (a slot by the schedule's row lock, a job by pg-boss's fetch, upkeep by pg-boss's own claims). A tick that dies keeps what
 * it has done. A failure is reported, and does not keep the rest from being done.
 *
 * A process with workers also ticks: every 30 s, at the instants of the next slot and of the next lease that runs out, and when it
 * is notified of a new schedule or of a short lease.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { abortable, onAbort, Stopwatch, UnavailableError, Waker } from '../base/index.ts'
import type { Notifier, Pool } from '../database/index.ts'
import { CLOCK, type Clocked } from '../database/index.ts'
import type { Engine } from './engine.ts'
import { TICKS } from './job/index.ts'
import type { Queues } from './queue/index.ts'
import type { Schedules } from './schedule/index.ts'
import type { WorkerRegistry } from './worker/index.ts'
import { FetchLoop, type WorkerParts } from './worker/index.ts'

/** What a drain has done. */
export interface DrainResult {
  /** Jobs that were completed. */
  jobs: number
  /** Attempts that failed. */
  failed: number
  /** Jobs that were given back because the budget ended. */
  handedBack: number
  /** Milliseconds that it took. */
  ms: number
}

/** What a tick has done. */
export interface TickResult extends DrainResult {
  /** Slots of schedules that were sent. */
  slots: number
  /** When the next slot of any schedule is due, on the database's clock; null: there is none. */
  nextAt: Date | null
}

interface Due {
  next_at: Date | null
  next_in_ms: number | null
  late: string[] | null
  flows: boolean | null
  upkeep: boolean | null
  dead: string[] | null
  late_in_ms: number | null
}

const INTERVAL_MS = 30_000
const RETRY_MS = 1_000
const LATE_TRIES = 4
// Queues that are supervised at a time: one that has jobs takes 5 ms, and between two portions a tick may end. Those that have none
// are done before, all in one statement (rest_queues).
const PORTION = 50
// How much of a budget upkeep may take; without one 5 s. The rest is for jobs, and the queues that are left for the next tick.
const UPKEEP = 0.5
const UPKEEP_MS = 5_000
const LATE_PAUSE_MS = 350
/** The part of a budget that is kept for stopping what runs, and giving it back. */
const RESERVE = 0.2
const MAX_RESERVE_MS = 2_000
/** After a budget, for what is nearly done. A full pool, or a statement without an answer, may last half a minute. */
const GRACE_MS = 1_000

export interface TickParts {
  pool: Pool
  boss: () => Engine
  schedules: Schedules
  registry: WorkerRegistry
  queues: Queues
  jobNotifier: Notifier<null>
  work: WorkerParts
}

export class Ticker {
  readonly #parts: TickParts
  /** The ticking of this process, and how many workers need it. */
  #ticking: { users: number; end: () => Promise<void> } | undefined

  constructor(parts: TickParts) {
    this.#parts = parts
  }

  /**
   * Does what is due, then drains.
   * @param budgetMs  milliseconds for all of it.
   * @throws {UnavailableError} the database could not be reached, or did not answer within the budget: what is under way goes on.
   */
  tick(budgetMs: number, signal?: AbortSignal): Promise<TickResult> {
    return withinBudget(budgetMs, this.#tick(budgetMs, signal))
  }

  /** Works queues until nothing is ready, or the budget ends. @throws {UnavailableError} as {@link tick}. */
  drain(names: string[] | undefined, budgetMs: number, signal?: AbortSignal): Promise<DrainResult> {
    return withinBudget(budgetMs, this.#drain(names, budgetMs, signal))
  }

  async #tick(budgetMs: number, signal: AbortSignal | undefined): Promise<TickResult> {
    const since = new Stopwatch()
    const more = () => since.elapsed() < budgetMs && !signal?.aborted
    const { slots, due } = await this.#maintain(more, budgetMs * UPKEEP)
    const drained = await this.#drain(undefined, budgetMs - since.elapsed(), signal)
    return { ...drained, slots, nextAt: due.next_at, ms: Math.round(since.elapsed()) }
  }

  async #drain(names: string[] | undefined, budgetMs: number, signal: AbortSignal | undefined): Promise<DrainResult> {
    const since = new Stopwatch()
    const { queues, work } = this.#parts
    const chosen = [...queues.definitions.values()].filter(
      ({ name, handler }) => handler && (names === undefined || names.includes(name)),
    )
    const result = { jobs: 0, failed: 0, handedBack: 0, ms: 0 }
    const over = () => since.elapsed() >= budgetMs || signal?.aborted
    if (chosen.length === 0 || over()) return result
    await Promise.all(chosen.map(({ name }) => queues.ensure(name)))
    const ready = await Promise.all(chosen.map(({ name }) => work.readyJobs.nextInMs(name)))
    if (over()) return result // the answers were slow: nothing is begun that has no time left
    const loops = chosen.filter((_, i) => ready[i] === 0).map((each) => new FetchLoop(work, each, { once: true }))
    const stop = Promise.withResolvers<void>()
    const reserveMs = Math.min(budgetMs * RESERVE, MAX_RESERVE_MS)
    const timer = setTimeout(stop.resolve, budgetMs - reserveMs - since.elapsed())
    const off = onAbort(signal, stop.resolve)
    const ended = Promise.allSettled(loops.map((loop) => loop.ended))
    try {
      await Promise.race([ended, stop.promise])
      await Promise.all(loops.map((loop) => loop.stop(0, 'The budget ends', reserveMs / 2).catch(() => {})))
    } finally {
      clearTimeout(timer)
      off()
    }
    for (const { results } of loops) {
      result.jobs += results.completed
      result.failed += results.failed
      result.handedBack += results['handed back']
    }
    const failure = (await ended).find((end) => end.status === 'rejected')
    if (failure) throw failure.reason
    return { ...result, ms: Math.round(since.elapsed()) }
  }

  /** Ticks at intervals, without draining, until the returned function is called. All callers share the ticks. */
  start(): () => Promise<void> {
    this.#ticking ??= this.#start()
    const ticking = this.#ticking
    ticking.users += 1
    let stopped = false
    return async () => {
      if (!stopped) ticking.users -= 1
      stopped = true
      if (ticking.users > 0) return
      if (this.#ticking === ticking) this.#ticking = undefined
      await ticking.end()
    }
  }

  #start(): { users: number; end: () => Promise<void> } {
    const waker = new Waker()
    const unsubscribe = this.#parts.jobNotifier.on(TICKS, () => waker.wake())
    let over = false
    const ticking = (async () => {
      while (!over) await waker.wait(await this.#once(() => !over))
    })()
    const end = () => {
      over = true
      unsubscribe()
      waker.wake()
      return ticking
    }
    return { users: 0, end }
  }

  /** Ticks. Returns for how many milliseconds nothing is due. */
  async #once(more: () => boolean): Promise<number> {
    let nextInMs: number | null = null
    try {
      const { due } = await this.#maintain(more, UPKEEP_MS)
      // A lease is over when its last millisecond is.
      nextInMs = soonest(due.next_in_ms, due.late_in_ms === null ? null : Math.ceil(due.late_in_ms) + 1)
    } catch (error) {
      this.#parts.work.onError(error)
    }
    // A slot is still due: another tick has its row, or it could not be sent.
    if (nextInMs !== null && nextInMs <= 0) nextInMs = RETRY_MS
    return Math.min(nextInMs ?? INTERVAL_MS, INTERVAL_MS)
  }

  async #maintain(more: () => boolean, upkeepMs: number): Promise<{ slots: number; due: Due }> {
    const { boss, pool, registry, schedules } = this.#parts
    let due = await this.#due()
    let slots = 0
    let failure: UnavailableError | undefined
    const ifDue = async (due: unknown, run: () => Promise<unknown>) => {
      if (!due || !more() || failure) return
      try {
        await run()
      } catch (error) {
        if (error instanceof UnavailableError) failure = error
        else this.#parts.work.onError(error)
      }
    }
    await ifDue(due.next_in_ms !== null && due.next_in_ms <= 0, async () => {
      slots = (await schedules.sendDue(undefined, more)).slots
    })
    // pg-boss skips a queue that it supervised within the last second: then it is tried again.
    for (let tries = 0; due.late && tries < LATE_TRIES && more() && !failure; tries++) {
      if (tries > 0) await sleep(LATE_PAUSE_MS)
      for (const queue of due.late) await ifDue(true, () => boss().supervise(queue))
      await ifDue(true, async () => {
        due = { ...due, late: (await this.#due()).late }
      })
    }
    await ifDue(due.flows, () => boss().resolveFlow())
    await ifDue(due.upkeep, () => pool.run(sql`select lockstep.rest_queues()`))
    const since = new Stopwatch()
    for (
      let last: string | undefined = due.upkeep ? '' : undefined;
      last !== undefined && since.elapsed() < upkeepMs;
    ) {
      const after: string = last
      last = undefined
      await ifDue(true, async () => {
        last = await this.#supervise(after)
      })
    }
    await ifDue(due.upkeep, () => pool.run(sql`select lockstep.sweep_attempts()`))
    await ifDue(due.dead, () => registry.removeDead(due.dead ?? []))
    if (failure) throw failure
    if (due.next_in_ms !== null && due.next_in_ms <= 0) due = await this.#due()
    return { slots, due }
  }

  /** The upkeep of some queues that it is due for, by name. Returns the last of them; undefined: there are no more. */
  async #supervise(after: string): Promise<string | undefined> {
    const { boss, pool } = this.#parts
    const queues = await pool.run<{ name: string }>(
      sql`select name from lockstep_boss.queue
           where name collate "C" > ${after}
             and (maintain_on is null or maintain_on < clock_timestamp() - interval '10 minutes')
           order by name collate "C" limit ${PORTION}`,
    )
    if (queues.length > 0) {
      const some: unknown = await boss().getQueues(queues.map(({ name }) => name))
      // Its type says a name only, but its own timer passes queues too. Without an argument it takes all of them in one go.
      await boss().supervise(some as string)
    }
    return queues.length === PORTION ? queues.at(-1)?.name : undefined
  }

  async #due(): Promise<Due> {
    const close = this.#parts.work.database.clockReader.observe()
    const [row] = await this.#parts.pool.run<Due & Clocked>(
      sql`select ${CLOCK}, s.next_at, extract(epoch from s.next_at - clock_timestamp())::double precision * 1000 as next_in_ms, d.*
            from (select min(next_at) as next_at from lockstep.schedule) s, lockstep.due_work() d`,
    )
    close(row)
    return row as Due
  }
}

const soonest = (a: number | null, b: number | null) => (a === null || b === null ? (a ?? b) : Math.min(a, b))

/** The result of the work. When its budget has ended, nobody waits for it any more; it goes on. */
async function withinBudget<T>(budgetMs: number, work: Promise<T>): Promise<T> {
  const late = new AbortController()
  const why = `The database was too slow for a budget of ${budgetMs} ms: it may be done, or not`
  const timer = setTimeout(() => late.abort(new UnavailableError(why)), budgetMs + GRACE_MS)
  return abortable(late.signal, work).finally(() => clearTimeout(timer))
}
