/**
 * Keeping: for how long events are kept, and what is removed.
 *
 * What a group has yet to read is never removed, unless forced: removing looks at the checkpoints of all groups whose prefix
 * covers the stream, and at its events that failed in them. A position is never used again, and the stream keeps counting. Whoever
 * reads from before the first event that is left begins with that.
 */
import { sql } from 'kysely'
import { checkInteger, checkMs, checkOptions, checkText, outOfRange, wrongType } from '../../base/index.ts'
import type { Pool } from '../../database/index.ts'
import { checkPlace, MOST_PLACE, type Reader, type StoredEvent } from './read.ts'

export interface RetentionRule {
  /** Milliseconds, 1,000–3,155,760,000,000 (a century), by the database's clock. */
  maxAgeMs?: number
  /** The last so many of each stream, 0–1,000,000,000,000. */
  maxCount?: number
}

export interface TruncateOptions {
  /** Also what groups have yet to read. @default false */
  force?: boolean
}

export interface Truncated {
  /** How many events. */
  removed: number
  /** The first position that is left, or the next if none is. */
  first: bigint
  /** Groups that have yet to read what was to be removed. */
  waitingFor: string[]
}

export interface Swept {
  /** How many events. */
  removed: number
}

export interface ArchiveOptions {
  /** One stream. */
  stream?: string
  /** Or those under a prefix. @default '' */
  prefix?: string
  /** The first to write: a position of the stream, or a cursor. @default 1n */
  from?: bigint
  /** The first not to write. @default what is there now */
  before?: bigint
}

const AGE = { min: 1_000, max: 3_155_760_000_000 }
const COUNT = { min: 0, max: 1_000_000_000_000 }
// Removed in a statement, so that none lasts.
const MOST = 10_000
const PAGE = 1_000

export class Retention {
  readonly #pool: Pool
  readonly #reader: Reader

  constructor(pool: Pool, reader: Reader) {
    this.#pool = pool
    this.#reader = reader
  }

  async retain(prefix: string, rule: RetentionRule | null): Promise<void> {
    checkText('prefix', prefix)
    if (rule === null) {
      await this.#pool.run(sql`delete from lockstep.retention where prefix = ${prefix}`)
      return
    }
    checkOptions(rule, 'rule')
    const { maxAgeMs = null, maxCount = null } = rule
    if (maxAgeMs === null && maxCount === null)
      throw wrongType('rule', '{ maxAgeMs, maxCount }, one of them at least', rule)
    if (maxAgeMs !== null) checkMs('maxAgeMs', maxAgeMs, AGE)
    if (maxCount !== null) checkInteger('maxCount', maxCount, COUNT)
    await this.#pool.run(
      sql`insert into lockstep.retention (prefix, max_age_ms, max_count) values (${prefix}, ${maxAgeMs}, ${maxCount})
          on conflict (prefix) do update set max_age_ms = excluded.max_age_ms, max_count = excluded.max_count`,
    )
  }

  async rules(): Promise<({ prefix: string } & RetentionRule)[]> {
    const rows = await this.#pool.run<{ prefix: string; max_age_ms: string | null; max_count: string | null }>(
      sql`select prefix, max_age_ms, max_count from lockstep.retention order by prefix`,
    )
    return rows.map(({ prefix, max_age_ms, max_count }) => ({
      prefix,
      ...(max_age_ms !== null && { maxAgeMs: Number(max_age_ms) }),
      ...(max_count !== null && { maxCount: Number(max_count) }),
    }))
  }

  async sweep(options: { signal?: AbortSignal } = {}): Promise<Swept> {
    checkOptions(options)
    const { signal } = options
    let removed = 0
    if ((await this.rules()).length === 0) return { removed }
    for (let after: string | null = ''; after !== null; ) {
      signal?.throwIfAborted()
      const [row]: { removed: string; last: string | null }[] = await this.#pool.run(
        sql<{ removed: string; last: string | null }>`select removed, last from lockstep.sweep_events(${after})`,
      )
      removed += Number(row?.removed ?? 0)
      after = row?.last ?? null
    }
    return { removed }
  }

  async truncate(stream: string, before: bigint, options: TruncateOptions = {}): Promise<Truncated> {
    checkOptions(options)
    const { force = false } = options
    checkText('stream', stream)
    checkPlace('before', before)
    if (typeof force !== 'boolean') throw wrongType('force', 'a boolean', force)
    for (let removed = 0; ; ) {
      const [row] = await this.#pool.run<{ removed: string; first: string; waiting_for: string[]; more: boolean }>(
        sql`select * from lockstep.truncate_stream(${stream}, ${before}, ${force}, ${MOST}, true)`,
      )
      if (!row) throw new Error('truncate_stream did not answer')
      removed += Number(row.removed)
      if (!row.more) return { removed, first: BigInt(row.first), waitingFor: row.waiting_for }
    }
  }

  async *archive(options: ArchiveOptions = {}): AsyncGenerator<string, void, void> {
    checkOptions(options)
    const { stream, prefix, from = 1n } = options
    if (stream !== undefined) checkText('stream', stream)
    if (prefix !== undefined) checkText('prefix', prefix)
    if (stream !== undefined && prefix !== undefined)
      throw wrongType('prefix', 'left out when there is a stream', prefix)
    checkPlace('from', from)
    if (options.before !== undefined) checkPlace('before', options.before)
    const before = options.before ?? (stream === undefined ? await this.#reader.end() : MOST_PLACE)
    if (before < from) throw outOfRange('before', `a bigint ≥ from, ${from}`, before)
    const read = (place: bigint) =>
      stream === undefined ? this.#reader.all(prefix ?? '', place, PAGE) : this.#reader.stream(stream, place, PAGE)
    for (let place = from; ; ) {
      const { events, next, more } = await read(place)
      for (const event of events) {
        if ((stream === undefined ? event.cursor : event.position) >= before) return
        yield `${lineOf(event)}\n`
      }
      if (!more || next >= before) return
      place = next
    }
  }
}

// Positions as strings: JSON's numbers end at 2⁵³.
const lineOf = ({ position, cursor, at, ...rest }: StoredEvent): string =>
  JSON.stringify({ ...rest, position: String(position), cursor: String(cursor), at: at.toISOString() })
