/**
 * Groups for consumers elsewhere, over HTTP and in any language: each verb is one call, and nothing is kept in this
 * process.
 *
 * A poll renews the holder's membership and the leases of its partitions, takes its quota of them, and returns the next
 * batch of each. A batch is delivered again until it is committed: an answer may be lost, and a commit may be repeated.
 * A holder that has not polled for `leaseMs` counts as dead. Then its partitions go to other consumers, and its commits
 * are refused by their tokens.
 */
import { sql } from 'kysely'
import {
  checkInteger,
  checkMs,
  checkOptions,
  checkPage,
  checkText,
  exact,
  known,
  LeaseLostError,
  NotFoundError,
  onAbort,
  type Page,
  SQLSTATE,
  Stopwatch,
  TRX,
  WAIT,
  wrongType,
} from '../../base/index.ts'
import { type AnyTransaction, checkTransaction, type Pool, sqlState, within } from '../../database/index.ts'
import type { StreamNotifier } from '../stream/index.ts'
import { checkLimit, checkPosition, LIMIT, MAX_POSITION } from '../stream/index.ts'
import {
  commitEvents,
  type DeliveredEvent,
  type Delivery,
  type DeliveryEnd,
  failEvent,
  type HeldPartition,
  readPartitions,
} from './delivery.ts'
import { type Group, type Groups, memberName, partitionName, pick } from './groups.ts'

/** Options of `poll`. */
export interface PollOptions {
  /** The consumer's name, 1–255 characters. One consumer makes one call at a time. */
  holder: string
  /** The most events of each partition, 1–1,000. @default 100 */
  limit?: number | undefined
  /** Milliseconds for which the consumer holds its partitions from each poll on, 1,000–3,600,000. @default 30_000 */
  leaseMs?: number | undefined
  /** Milliseconds to wait for an event when there is none, ≥ 0. @default 0 */
  waitMs?: number | undefined
  /** Ends the wait: the call rejects with `signal.reason`. */
  signal?: AbortSignal | undefined
}

/** The next events of a partition, as `poll` returns them. */
export interface Batch {
  /** The partition's number, 0–255. */
  partition: number
  /** The fencing token under which the consumer holds the partition, ≥ 1n. Pass it to `commit` and `fail`. */
  token: bigint
  /** The events, in the order of cursors, each with the number of its `attempt`. */
  events: DeliveredEvent[]
  /** The end of the batch, an opaque string. Pass it to `commit` and `fail`. */
  next: string
}

/** Which batch `commit` ends: three fields of a {@link Batch}. */
export interface BatchEnd {
  /** The partition's number. */
  partition: number
  /** The fencing token of the partition. */
  token: bigint
  /** The `next` of the batch. */
  next: string
}

/** Which event of which batch failed. */
export interface FailOptions extends BatchEnd {
  /** The cursor of the event that failed. */
  event: bigint
  /** Why it failed, shown by `parked`: an error or any JSON value; 4 KiB are kept. @default null */
  reason?: unknown
}

/** A stream that is stopped in a group, since one of its events failed too often. */
export interface Parked {
  /** The stream's name. */
  stream: string
  /** The position of the event that failed. */
  position: bigint
  /** How often it was tried. */
  attempts: number
  /** Why it failed last, as JSON; of an error `name`, `message` and `stack`. */
  reason: unknown
  /** When it failed last, by the database's clock. */
  at: Date
}

const POLL = known<PollOptions>({ holder: true, limit: true, leaseMs: true, waitMs: true, signal: true })
const PARKED = known<Omit<Page, 'prefix'>>({ limit: true, after: true })
const REDELIVER = known<{ stream?: string; skip?: boolean }>({ stream: true, skip: true })
// A batch may be passed as it came.
const COMMIT = known<Batch>({ partition: true, token: true, next: true, events: true })
const FAIL = known<Batch & FailOptions>({
  ...{ partition: true, token: true, next: true, events: true, event: true, reason: true },
})
const LEASE = { min: 1_000, max: 3_600_000 }
const TOKEN = 'a bigint ≥ 1n'

export class Polls {
  readonly #pool: Pool
  readonly #groups: Groups
  readonly #notifier: StreamNotifier

  constructor(pool: Pool, groups: Groups, notifier: StreamNotifier) {
    this.#pool = pool
    this.#groups = groups
    this.#notifier = notifier
  }

  async poll(name: string, options: PollOptions): Promise<Batch[]> {
    checkOptions(options, POLL)
    const { holder, limit = LIMIT.default, leaseMs = 30_000, waitMs = 0, signal } = options
    checkText('group', name)
    checkText('holder', holder)
    checkLimit(limit)
    checkMs('leaseMs', leaseMs, LEASE)
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    const since = new Stopwatch()
    const group = await this.#groups.known(name)
    const watch = this.#notifier.watch((stream) => stream?.startsWith(group.prefix) ?? true)
    const off = onAbort(signal, () => watch.end())
    try {
      const membership = await this.#join(name, holder, leaseMs)
      for (;;) {
        const found = await this.#fetch(name, { holder, membership, limit, leaseMs })
        // A caller that has gone does not know which partitions it was granted, and may have called `leave` before it
        // was. If they cannot be released now, their leases expire; the poll rejects with the signal's reason either
        // way.
        if (signal?.aborted) await this.#groups.leave(name, holder).catch(() => {})
        signal?.throwIfAborted()
        if (!found) return []
        const { batches, more, undecided, dueMs } = found
        const leftMs = waitMs - since.elapsed()
        if (batches.length > 0 || (leftMs <= 0 && !more)) return batches
        if (!more) await watch.wait(undecided, Math.min(leftMs, dueMs, leaseMs / 3))
        signal?.throwIfAborted()
      }
    } finally {
      off()
      watch.close()
    }
  }

  async commit(group: string, batch: BatchEnd, options: { trx?: AnyTransaction | undefined } = {}): Promise<void> {
    checkOptions(options, TRX)
    const { trx } = options
    if (trx !== undefined) checkTransaction(trx)
    // In the caller's transaction a batch that was committed before is refused: its effects would happen a second time.
    const statement = sql`select ${commitEvents(deliveryEnd(group, batch), trx === undefined)}`
    await this.#explained(group, batch, trx !== undefined ? within(trx, statement) : this.#pool.run(statement))
  }

  async fail(group: string, batch: FailOptions): Promise<{ attempts: number; parked: boolean; retryAt: Date | null }> {
    const end = deliveryEnd(group, batch, FAIL)
    checkPosition('event', batch.event)
    const failure = failEvent(end, batch.event, batch.reason ?? null)
    const [row] = await this.#explained(group, batch, this.#pool.run(failure))
    const { attempts = 0, due_ms = null } = row ?? {}
    return { attempts, parked: due_ms === null, retryAt: due_ms === null ? null : new Date(due_ms) }
  }

  async leave(name: string, holder: string): Promise<void> {
    checkText('holder', holder)
    const group = await this.#known(name)
    await this.#groups.leave(group.name, holder)
  }

  async parked(name: string, page: { limit?: number | undefined; after?: string | undefined } = {}): Promise<Parked[]> {
    const { limit, after } = checkPage(page, PARKED)
    await this.#known(name)
    const rows = await this.#pool.run<Omit<Parked, 'position'> & { position: string }>(
      sql`select s.name as stream, k.position, k.attempts, k.reason, k.at
            from lockstep.stuck k join lockstep.stream s on s.id = k.stream
           where k.group_name = ${name} and k.due_at = 'infinity' and s.name > ${after}
           order by s.name limit ${limit}`,
    )
    return rows.map((row) => exact({ ...row, position: BigInt(row.position) }))
  }

  async redeliver(
    name: string,
    options: { stream?: string | undefined; skip?: boolean | undefined } = {},
  ): Promise<number> {
    checkOptions(options, REDELIVER)
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

  /** Takes or renews the holder's lease as a member. @returns its token. */
  async #join(name: string, holder: string, leaseMs: number): Promise<bigint> {
    const { leases } = this.#groups
    const request = { name: memberName(name, holder), holder, ttlMs: leaseMs, meta: null }
    const { token } = await leases.retryWhileBusy(async () => {
      const grant = await leases.grant(request)
      return 'token' in grant ? { outcome: 'granted', token: grant.token } : { outcome: 'busy', token: 0n }
    })
    return token
  }

  /** Takes the holder's quota of partitions, and reads the next events of each; undefined: the membership was given up. */
  async #fetch(
    name: string,
    { holder, membership, limit, leaseMs }: { holder: string; membership: bigint; limit: number; leaseMs: number },
  ) {
    const { mine, free, quota } = await this.#groups.assignment(name, holder)
    await this.#release(name, mine.slice(quota))
    const wanted = [...mine.slice(0, quota).map(({ partition }) => partition), ...pick(free, quota - mine.length)]
    const granted = await this.#groups.take(name, wanted, holder, leaseMs)
    const held = granted.map(({ partition, grant }) => ({ partition, token: grant.token }))
    const [all, stays] = await Promise.all([
      held.length === 0 ? [] : readPartitions(this.#pool, name, held, limit),
      this.#renewMembership(name, holder, membership, leaseMs),
    ])
    if (!stays) {
      await this.#release(name, held)
      return undefined
    }
    return {
      batches: all.flatMap((each, i) => (each.events.length === 0 ? [] : [batchOf(held[i] as HeldPartition, each)])),
      more: all.some(({ more }) => more),
      undecided: all.some(({ undecided }) => undecided),
      dueMs: Math.min(...all.map(({ dueMs = Infinity }) => dueMs), Infinity),
    }
  }

  /** @returns whether the holder is still a member, for `leaseMs` from now. */
  async #renewMembership(name: string, holder: string, membership: bigint, leaseMs: number): Promise<boolean> {
    try {
      await this.#groups.leases.renew(memberName(name, holder), membership, leaseMs)
      return true
    } catch (error) {
      if (error instanceof LeaseLostError) return false
      throw error
    }
  }

  async #release(name: string, held: HeldPartition[]): Promise<void> {
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
      if (state === SQLSTATE.leaseLost) throw lost('it expired or passed on')
      if (state === SQLSTATE.staleBatch) throw lost('this is not its last batch: poll again')
      if (state === SQLSTATE.notInBatch) throw new NotFoundError(`There is no such event in partition ${partition}`)
      throw error
    }
  }
}

const batchOf = ({ partition, token }: HeldPartition, { events, next, turn }: Delivery): Batch =>
  exact({ partition, token, events, next: `${next}.${turn}` })

function deliveryEnd(group: string, batch: BatchEnd, names = COMMIT): DeliveryEnd {
  checkText('group', group)
  checkOptions(batch, names, 'batch')
  const { partition, token, next } = batch
  checkInteger('partition', partition, { min: 0, max: 255 })
  if (typeof token !== 'bigint' || token < 1n || token > MAX_POSITION) throw wrongType('token', TOKEN, token)
  const [, seq, turn] = /^(\d{1,18})\.(\d{1,18})$/.exec(String(next)) ?? []
  if (seq === undefined || turn === undefined) throw wrongType('next', 'the next of the batch', next)
  return { group, partition, token, next: BigInt(seq), turn: BigInt(turn) }
}
