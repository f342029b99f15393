/**
 * What has to be done now and then: due slots, attempts that nobody makes any more, flows, upkeep, and, where nothing lives
 * on, the jobs themselves.
 *
 * One look says what is due, and only that is done: an idle tick is that one statement (and one more where it works). A tick
 * may come from anywhere, at any time and from many places at once: whatever it does is taken by one of them (a slot by
 * its schedule's row, a job by pg-boss's fetch, upkeep by pg-boss's claims), and a tick that dies has done what it has
 * done. What fails is told, and does not keep the rest from being done.
 *
 * A process that works also ticks: every 30 s, at the instant of the next slot, and when it is told of a new schedule.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { abortable, Stopwatch, UnavailableError, Waker } from '../base/index.ts'
import type { Notifier, Pool } from '../database/index.ts'
import { CLOCK, type Clocked } from '../database/index.ts'
import type { Engine } from './pgboss/index.ts'
import type { Queues } from './queue/index.ts'
import type { Cron } from './schedule/index.ts'
import type { Members } from './worker/index.ts'
import { Loop, type WorkerParts } from './worker/index.ts'

export interface DrainResult {
  /** Completed. */
  jobs: number
  /** Attempts that failed. */
  failed: number
  /** Given back because the budget ended. */
  handedBack: number
  ms: number
}

export interface TickResult extends DrainResult {
  /** Sent. */
  slots: number
  /** When the next slot of any schedule is due. */
  nextAt: Date | null
}

interface Due {
  next_at: Date | null
  next_in_ms: number | null
  late: string[] | null
  flows: boolean | null
  upkeep: boolean | null
  dead: string[] | null
}

/** What is told when a schedule is made or changed. */
export const SCHEDULES = 'schedules'

const EVERY_MS = 30_000
const AGAIN_MS = 1_000
const LATE_TRIES = 4
const LATE_PAUSE_MS = 350
/** Of a budget: for what runs to stop, and to be given back. */
const RESERVE = 0.2
const MOST_RESERVED_MS = 2_000
/** After a budget, for what is nearly done. A pool that is full and a statement without an answer may last half a minute. */
const GRACE_MS = 1_000

export interface TickParts {
  pool: Pool
  boss: () => Engine
  cron: Cron
  members: Members
  queues: Queues
  jobs: Notifier<null>
  work: WorkerParts
}

export class Ticks {
  readonly #parts: TickParts
  #kept: { by: number; end: () => Promise<void> } | undefined

  constructor(parts: TickParts) {
    this.#parts = parts
  }

  /**
   * @param budgetMs  for all of it.
   * @throws {UnavailableError} the database could not be asked, or did not answer within the budget: what is under way goes on.
   */
  tick(budgetMs: number, signal?: AbortSignal): Promise<TickResult> {
    return held(budgetMs, this.#tick(budgetMs, signal))
  }

  /** Works queues until nothing is ready, or the budget ends. @throws {UnavailableError} as {@link tick}. */
  drain(names: string[] | undefined, budgetMs: number, signal?: AbortSignal): Promise<DrainResult> {
    return held(budgetMs, this.#drain(names, budgetMs, signal))
  }

  async #tick(budgetMs: number, signal: AbortSignal | undefined): Promise<TickResult> {
    const since = new Stopwatch()
    const { slots, due } = await this.#chores(() => since.elapsed() < budgetMs && !signal?.aborted)
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
    const ready = await Promise.all(chosen.map(({ name }) => work.look.ask(name)))
    if (over()) return result // slow answers: nothing is begun for which there is no time
    const loops = chosen.filter((_, i) => ready[i] === 0).map((each) => new Loop(work, each, { once: true }))
    const stop = Promise.withResolvers<void>()
    const reserveMs = Math.min(budgetMs * RESERVE, MOST_RESERVED_MS)
    const timer = setTimeout(stop.resolve, budgetMs - reserveMs - since.elapsed())
    const onAbort = () => stop.resolve()
    signal?.addEventListener('abort', onAbort)
    const ended = Promise.allSettled(loops.map((loop) => loop.ended))
    try {
      await Promise.race([ended, stop.promise])
      await Promise.all(loops.map((loop) => loop.stop(0, 'The budget ends', reserveMs / 2).catch(() => {})))
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
    }
    for (const { fates } of loops) {
      result.jobs += fates.completed
      result.failed += fates.failed
      result.handedBack += fates['handed back']
    }
    const failure = (await ended).find((end) => end.status === 'rejected')
    if (failure) throw failure.reason
    return { ...result, ms: Math.round(since.elapsed()) }
  }

  /** Ticks by itself, without draining, until the answer is called. */
  keep(): () => Promise<void> {
    this.#kept ??= this.#begin()
    const kept = this.#kept
    kept.by += 1
    let released = false
    return async () => {
      if (!released) kept.by -= 1
      released = true
      if (kept.by > 0) return
      if (this.#kept === kept) this.#kept = undefined
      await kept.end()
    }
  }

  #begin(): { by: number; end: () => Promise<void> } {
    const waker = new Waker()
    const unsubscribe = this.#parts.jobs.on(SCHEDULES, () => waker.wake())
    let over = false
    const ticking = (async () => {
      while (!over) await waker.wait(await this.#again(() => !over))
    })()
    const end = () => {
      over = true
      unsubscribe()
      waker.wake()
      return ticking
    }
    return { by: 0, end }
  }

  /** Ticks; for how long there is nothing to do. */
  async #again(more: () => boolean): Promise<number> {
    let nextInMs: number | null = null
    try {
      nextInMs = (await this.#chores(more)).due.next_in_ms
    } catch (error) {
      this.#parts.work.onError(error)
    }
    // Due still: another tick has its row, or it could not be sent.
    if (nextInMs !== null && nextInMs <= 0) nextInMs = AGAIN_MS
    return Math.min(nextInMs ?? EVERY_MS, EVERY_MS)
  }

  async #chores(more: () => boolean): Promise<{ slots: number; due: Due }> {
    const { boss, cron, members, pool } = this.#parts
    let due = await this.#due()
    let slots = 0
    let failure: UnavailableError | undefined
    const chore = async (is: unknown, run: () => Promise<unknown>) => {
      if (!is || !more() || failure) return
      try {
        await run()
      } catch (error) {
        if (error instanceof UnavailableError) failure = error
        else this.#parts.work.onError(error)
      }
    }
    await chore(due.next_in_ms !== null && due.next_in_ms <= 0, async () => {
      slots = (await cron.fire(undefined, more)).slots
    })
    // pg-boss refuses a queue that it saw to within the last second: then once more.
    for (let tries = 0; due.late && tries < LATE_TRIES && more() && !failure; tries++) {
      if (tries > 0) await sleep(LATE_PAUSE_MS)
      for (const queue of due.late) await chore(true, () => boss().supervise(queue))
      await chore(true, async () => {
        due = { ...due, late: (await this.#due()).late }
      })
    }
    await chore(due.flows, () => boss().resolveFlow())
    await chore(due.upkeep, () => boss().supervise())
    await chore(due.upkeep, () => pool.run(sql`select lockstep.sweep_attempts()`))
    await chore(due.dead, () => members.bury(due.dead ?? []))
    if (failure) throw failure
    if (due.next_in_ms !== null && due.next_in_ms <= 0) due = await this.#due()
    return { slots, due }
  }

  async #due(): Promise<Due> {
    const close = this.#parts.work.database.clockReader.observe()
    const [row] = await this.#parts.pool.run<Due & Clocked>(
      sql`select ${CLOCK}, s.next_at, extract(epoch from s.next_at - clock_timestamp())::double precision * 1000 as next_in_ms, d.*
            from (select min(next_at) as next_at from lockstep.schedule) s, lockstep.due_jobs() d`,
    )
    close(row)
    return row as Due
  }
}

/** What the work comes to, which nobody waits for any more once its budget has ended. */
async function held<T>(budgetMs: number, work: Promise<T>): Promise<T> {
  const late = new AbortController()
  const why = `The database was too slow for a budget of ${budgetMs} ms: it may be done, or not`
  const timer = setTimeout(() => late.abort(new UnavailableError(why)), budgetMs + GRACE_MS)
  return abortable(late.signal, work).finally(() => clearTimeout(timer))
}
