/**
 * Retention: how long events are kept, and what is removed.
 *
 * Events that a group has not read yet are never removed, unless `force` is set: a removal looks at the checkpoints of
 * all groups whose prefix covers the stream, and at the events of the stream that failed in those groups. A position is
 * never used again: the stream counts on. A reader that begins before the first event that is left begins with that
 * event.
 */
import { sql } from 'kysely'
import {
  checkInteger,
  checkMs,
  checkOptions,
  checkText,
  exact,
  known,
  outOfRange,
  SIGNAL,
  wrongType,
} from '../../base/index.ts'
import type { Pool } from '../../database/index.ts'
import { checkPosition, MAX_POSITION, type Reader, type StoredEvent } from './read.ts'

/**
 * Which events of a stream are kept; at least one of the two fields is set. With both, an event is removed as soon as
 * either allows it.
 */
export interface RetentionRule {
  /**
   * Events are kept for so many milliseconds by the database's clock, 1,000–3,155,760,000,000 (a century).
   * @default for ever
   */
  maxAgeMs?: number | undefined
  /** So many of the last events of each stream are kept, 0–1,000,000,000,000. @default all */
  maxCount?: number | undefined
}

/** Options of `truncate`. */
export interface TruncateOptions {
  /** Also removes events that groups have not read yet; those groups never see them. @default false */
  force?: boolean | undefined
}

/** What a `truncate` did. */
export interface Truncated {
  /** The number of events that were removed. */
  removed: number
  /** The position of the first event that is left; if none is, of the next event. */
  first: bigint
  /** The groups that have not read all events before the position, in the order of their names; empty with `force`. */
  waitingFor: string[]
}

/** What a `sweep` did. */
export interface Swept {
  /** The number of events that were removed. */
  removed: number
}

/** Options of `archive`. */
export interface ArchiveOptions {
  /** The stream to archive. Not together with `prefix`. @default all streams under `prefix` */
  stream?: string | undefined
  /** The streams to archive, by what their names begin with. Not together with `stream`. @default '', all streams */
  prefix?: string | undefined
  /** The first event to write: a position of the stream or, without `stream`, a cursor. @default 1n */
  from?: bigint | undefined
  /** The first event not to write: a position or a cursor, ≥ `from`. @default after the last event that can be read now */
  before?: bigint | undefined
}

const RULE = known<RetentionRule>({ maxAgeMs: true, maxCount: true })
const TRUNCATE = known<TruncateOptions>({ force: true })
const ARCHIVE = known<ArchiveOptions>({ stream: true, prefix: true, from: true, before: true })
const AGE = { min: 1_000, max: 3_155_760_000_000 }
const COUNT = { min: 0, max: 1_000_000_000_000 }
// Events removed in one statement, so that none takes long.
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
    checkOptions(rule, RULE, 'rule')
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

  async sweep(options: { signal?: AbortSignal | undefined } = {}): Promise<Swept> {
    checkOptions(options, SIGNAL)
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
    checkOptions(options, TRUNCATE)
    const { force = false } = options
    checkText('stream', stream)
    checkPosition('before', before)
    if (typeof force !== 'boolean') throw wrongType('force', 'a boolean', force)
    for (let removed = 0; ; ) {
      const [row] = await this.#pool.run<{ removed: string; first: string; waiting_for: string[]; more: boolean }>(
        sql`select * from lockstep.truncate_stream(${stream}, ${before}, ${force}, ${MOST}, true)`,
      )
      if (!row) throw new Error('truncate_stream did not answer')
      removed += Number(row.removed)
      if (!row.more) return exact({ removed, first: BigInt(row.first), waitingFor: row.waiting_for })
    }
  }

  async *archive(options: ArchiveOptions = {}): AsyncGenerator<string, void, void> {
    checkOptions(options, ARCHIVE)
    const { stream, prefix, from = 1n } = options
    if (stream !== undefined) checkText('stream', stream)
    if (prefix !== undefined) checkText('prefix', prefix)
    if (stream !== undefined && prefix !== undefined)
      throw wrongType('prefix', 'left out when there is a stream', prefix)
    checkPosition('from', from)
    if (options.before !== undefined) checkPosition('before', options.before)
    const before = options.before ?? (stream === undefined ? await this.#reader.end() : MAX_POSITION)
    if (before < from) throw outOfRange('before', `a bigint ≥ from, ${from}`, before)
    const read = (start: bigint) =>
      stream === undefined ? this.#reader.all(prefix ?? '', start, PAGE) : this.#reader.stream(stream, start, PAGE)
    for (let start = from; ; ) {
      const { events, next, more } = await read(start)
      for (const event of events) {
        if ((stream === undefined ? event.cursor : event.position) >= before) return
        yield `${lineOf(event)}\n`
      }
      if (!more || next >= before) return
      start = next
    }
  }
}

// Positions as strings: numbers in JSON are exact only up to 2⁵³.
const lineOf = ({ position, cursor, at, ...rest }: StoredEvent): string =>
  JSON.stringify({ ...rest, position: String(position), cursor: String(cursor), at: at.toISOString() })
