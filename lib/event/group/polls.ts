/**
 * Groups for consumers that live elsewhere, over HTTP and in any language: the verbs without memory.
 *
 * A poll keeps the holder's place as a member, its share of the partitions, and their leases, and gives what is next of each. What
 * was given is given again until it is committed: an answer may get lost, and the commit made again. Whoever has not polled for
 * `leaseMs` is taken for dead; then its partitions go to others, and its commits are refused by their tokens.
 */
import { sql } from 'kysely'
import {
  checkInteger,
  checkMs,
  checkOptions,
  checkPage,
  checkText,
  LeaseLostError,
  NotFoundError,
  Stopwatch,
  WAIT,
  wrongType,
} from '../../base/index.ts'
import { type AnyTransaction, checkTransaction, type Pool, sqlState, within } from '../../database/index.ts'
import type { StreamNotifier } from '../stream/index.ts'
import { checkLimit, checkPlace, LIMIT, MOST_PLACE } from '../stream/index.ts'
import { commitEvents, failEvent, type Given, type GivenEvent, type Next, readAll } from './delivery.ts'
import { type Group, type Groups, memberName, partitionName, pick } from './groups.ts'

export interface PollOptions {
  /** Who polls, 1–255 characters: one consumer, that does one thing at a time. */
  holder: string
  /** Events of each partition at most, 1–1,000. @default 100 */
  limit?: number
  /** Milliseconds for which its partitions are its own from each poll on, 1,000–3,600,000. @default 30_000 */
  leaseMs?: number
  /** Milliseconds to wait for an event, ≥ 0. @default 0 */
  waitMs?: number
  /** Ends the wait. */
  signal?: AbortSignal
}

/** What is next of a partition. */
export interface Batch {
  partition: number
  /** The fencing token of the partition. */
  token: bigint
  events: GivenEvent[]
  /** To be given back to `commit`. */
  next: string
}

export interface BatchEnd {
  partition: number
  token: bigint
  next: string
}

export interface FailOptions extends BatchEnd {
  /** Its cursor. */
  event: bigint
  /** Why, for whoever looks: JSON, of which 4 KiB are kept. */
  reason?: unknown
}

/** A stream that stands still, since an event of it failed too often. */
export interface Parked {
  stream: string
  /** Of the event that failed. */
  position: bigint
  attempts: number
  reason: unknown
  /** When it failed last. */
  at: Date
}

const LEASE = { min: 1_000, max: 3_600_000 }
const TOKEN = 'a bigint ≥ 1n'

export class Polls {
  readonly #pool: Pool
  readonly #groups: Groups
  readonly #notifier: StreamNotifier

  constructor(pool: Pool, groups: Groups, tidings: StreamNotifier) {
    this.#pool = pool
    this.#groups = groups
    this.#notifier = tidings
  }

  async poll(name: string, options: PollOptions): Promise<Batch[]> {
    checkOptions(options)
    const { holder, limit = LIMIT.default, leaseMs = 30_000, waitMs = 0, signal } = options
    checkText('group', name)
    checkText('holder', holder)
    checkLimit(limit)
    checkMs('leaseMs', leaseMs, LEASE)
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    const since = new Stopwatch()
    const group = await this.#groups.known(name)
    const lookout = this.#notifier.watch((stream) => stream?.startsWith(group.prefix) ?? true)
    const wake = () => lookout.end()
    signal?.addEventListener('abort', wake)
    try {
      const place = await this.#place(name, holder, leaseMs)
      for (;;) {
        const found = await this.#look(name, { holder, place, limit, leaseMs })
        // Whoever has gone in the meantime has not heard of what it got, and may have left before it got it. If that cannot be
        // given up now, it ends by itself; what is told is why the poll ended.
        if (signal?.aborted) await this.#groups.leave(name, holder).catch(() => {})
        signal?.throwIfAborted()
        if (!found) return []
        const { batches, more, waits, dueMs } = found
        const leftMs = waitMs - since.elapsed()
        if (batches.length > 0 || (leftMs <= 0 && !more)) return batches
        if (!more) await lookout.wait(waits, Math.min(leftMs, dueMs, leaseMs / 3))
        signal?.throwIfAborted()
      }
    } finally {
      signal?.removeEventListener('abort', wake)
      lookout.leave()
    }
  }

  async commit(group: string, batch: BatchEnd, options: { trx?: AnyTransaction } = {}): Promise<void> {
    checkOptions(options)
    const { trx } = options
    if (trx !== undefined) checkTransaction(trx)
    // In a transaction of yours it must not have been committed before: its effects would happen once more.
    const statement = sql`select ${commitEvents(givenOf(group, batch), trx === undefined)}`
    await this.#explained(group, batch, trx !== undefined ? within(trx, statement) : this.#pool.run(statement))
  }

  async fail(group: string, batch: FailOptions): Promise<{ attempts: number; parked: boolean; retryAt: Date | null }> {
    const given = givenOf(group, batch)
    checkPlace('event', batch.event)
    const [row] = await this.#explained(
      group,
      batch,
      this.#pool.run(failEvent(given, batch.event, batch.reason ?? null)),
    )
    const { attempts = 0, due_ms = null } = row ?? {}
    return { attempts, parked: due_ms === null, retryAt: due_ms === null ? null : new Date(due_ms) }
  }

  async leave(name: string, holder: string): Promise<void> {
    checkText('holder', holder)
    const group = await this.#known(name)
    await this.#groups.leave(group.name, holder)
  }

  async parked(name: string, page: { limit?: number; after?: string } = {}): Promise<Parked[]> {
    const { limit, after } = checkPage(page)
    await this.#known(name)
    const rows = await this.#pool.run<Omit<Parked, 'position'> & { position: string }>(
      sql`select s.name as stream, k.position, k.attempts, k.reason, k.at
            from lockstep.stuck k join lockstep.stream s on s.id = k.stream
           where k.group_name = ${name} and k.due_at = 'infinity' and s.name > ${after}
           order by s.name limit ${limit}`,
    )
    return rows.map((row) => ({ ...row, position: BigInt(row.position) }))
  }

  async redeliver(name: string, options: { stream?: string; skip?: boolean } = {}): Promise<number> {
    checkOptions(options)
    const { stream, skip = false } = options
    await this.#known(name)
    if (stream !== undefined) checkText('stream', stream)
    if (typeof skip !== 'boolean') throw wrongType('skip', 'a boolean', skip)
    const [row] = await this.#pool.run<{ done: number }>(
      sql`select lockstep.redeliver(${name}, ${stream ?? null}, ${skip}) as done`,
    )
    return row?.done ?? 0
  }

  async #known(name: string): Promise<Group> {
    checkText('group', name)
    return this.#groups.known(name)
  }

  /** The place of a member: the token of its lease. */
  async #place(name: string, holder: string, leaseMs: number): Promise<bigint> {
    const { leases } = this.#groups
    const ask = { name: memberName(name, holder), holder, ttlMs: leaseMs, meta: null }
    const { token } = await leases.retryWhileBusy(async () => {
      const grant = await leases.grant(ask)
      return 'token' in grant ? { outcome: 'granted', token: grant.token } : { outcome: 'busy', token: 0n }
    })
    return token
  }

  /** The share of a place, and what is next of it; undefined: the place was given up. */
  async #look(
    name: string,
    { holder, place, limit, leaseMs }: { holder: string; place: bigint; limit: number; leaseMs: number },
  ) {
    const { mine, free, quota } = await this.#groups.seats(name, holder)
    await this.#giveUp(name, mine.slice(quota))
    const share = [...mine.slice(0, quota).map(({ partition }) => partition), ...pick(free, quota - mine.length)]
    const held = await this.#groups.take(name, share, holder, leaseMs)
    const asks = held.map(({ partition, grant }) => ({ partition, token: grant.token }))
    const [all, stays] = await Promise.all([
      asks.length === 0 ? [] : readAll(this.#pool, name, asks, limit),
      this.#stays(name, holder, place, leaseMs),
    ])
    if (!stays) {
      await this.#giveUp(name, asks)
      return undefined
    }
    return {
      batches: all.flatMap((next, i) => (next.events.length === 0 ? [] : [batchOf(asks[i] as (typeof asks)[0], next)])),
      more: all.some(({ more }) => more),
      waits: all.some(({ waits }) => waits),
      dueMs: Math.min(...all.map(({ dueMs = Infinity }) => dueMs), Infinity),
    }
  }

  /** Whether it still has its place, for `leaseMs` from now. */
  async #stays(name: string, holder: string, place: bigint, leaseMs: number): Promise<boolean> {
    try {
      await this.#groups.leases.renew(memberName(name, holder), place, leaseMs)
      return true
    } catch (error) {
      if (error instanceof LeaseLostError) return false
      throw error
    }
  }

  async #giveUp(name: string, held: { partition: number; token: bigint }[]): Promise<void> {
    const { leases } = this.#groups
    await Promise.all(
      held.map(({ partition, token }) => leases.revoke(partitionName(name, partition), token).catch(() => {})),
    )
  }

  async #explained<T>(group: string, { partition, token }: BatchEnd, call: Promise<T>): Promise<T> {
    try {
      return await call
    } catch (error) {
      const state = sqlState(error)
      const lost = (why: string) => new LeaseLostError(`${group}, partition ${partition}`, token, why, { cause: error })
      if (state === 'LS001') throw lost('it expired or passed on')
      if (state === 'LS005') throw lost('this is not its last batch: poll again')
      if (state === 'LS007') throw new NotFoundError(`There is no such event in partition ${partition}`)
      throw error
    }
  }
}

const batchOf = ({ partition, token }: { partition: number; token: bigint }, { events, next, turn }: Next): Batch => ({
  partition,
  token,
  events,
  next: `${next}.${turn}`,
})

function givenOf(group: string, batch: BatchEnd): Given {
  checkText('group', group)
  checkOptions(batch, 'batch')
  const { partition, token, next } = batch
  checkInteger('partition', partition, { min: 0, max: 255 })
  if (typeof token !== 'bigint' || token < 1n || token > MOST_PLACE) throw wrongType('token', TOKEN, token)
  const [, seq, turn] = /^(\d{1,18})\.(\d{1,18})$/.exec(String(next)) ?? []
  if (seq === undefined || turn === undefined) throw wrongType('next', 'the next of the batch', next)
  return { group, partition, token, next: BigInt(seq), turn: BigInt(turn) }
}
