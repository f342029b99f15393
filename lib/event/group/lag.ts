/**
 * How far behind, and what holds it up: so that nothing stalls silently.
 *
 * A reader of all streams waits for transactions that have appended and are still open. Which these are is known exactly, by
 * the locks they publish with (0007_event.sql); a long transaction that has not appended, or of another database, holds up
 * nobody. Of somebody else's session the server shows when it began only to who may see it (pg_read_all_stats).
 */
import { sql } from 'kysely'
import { checkText, NotFoundError } from '../../base/index.ts'
import type { Pool } from '../../database/index.ts'
import type { Groups } from './groups.ts'

/** An open transaction that has appended. */
export interface Holdup {
  /** null: a prepared transaction, of two-phase commit. */
  pid: number | null
  database: string
  application: string | null
  user: string | null
  /** As in pg_stat_activity; null: it may not be seen. */
  state: string | null
  /** Milliseconds since the transaction began; null: it may not be seen. */
  ageMs: number | null
}

export interface Horizon {
  /** Up to here everything is decided, and can be read. */
  cursor: bigint
  /** The last cursor that was given out. */
  last: bigint
  /** What has appended and is still open, the first that did so first. */
  holdups: Holdup[]
}

export interface PartitionLag {
  partition: number
  /** null: nobody reads it. */
  holder: string | null
  /** Up to here everything was applied, but for streams that are retried or parked. */
  cursor: bigint
  /** Events to be applied, of those that are counted. */
  behind: number
  /** Streams of which an event failed, and is tried again. */
  retrying: number
  /** Streams that wait for `redeliver`. */
  parked: number
}

export interface GroupLag {
  group: string
  /** Events to be applied, without those of parked and retried streams; of 100,000 at most. */
  behind: number
  /** When the first of them was appended; null: there is none. */
  oldestAt: Date | null
  partitions: PartitionLag[]
  horizon: Horizon
}

export interface StreamLag {
  stream: string
  /** Of the last event. */
  position: bigint
  groups: {
    group: string
    /** Of the last event that it has applied. */
    position: bigint
    behind: bigint
    state: 'reading' | 'retrying' | 'parked'
  }[]
  horizon: Horizon
}

const MOST_COUNTED = 100_000

export class Lags {
  readonly #pool: Pool
  readonly #groups: Groups

  constructor(pool: Pool, groups: Groups) {
    this.#pool = pool
    this.#groups = groups
  }

  async group(name: string): Promise<GroupLag> {
    checkText('group', name)
    const { partitions, prefix } = await this.#groups.known(name)
    const [rows, [behind], holders, horizon] = await Promise.all([
      this.#pool.run<{ partition: number; seq: string; behind: string; retrying: string; parked: string }>(sql`
        select c.partition, c.seq,
               count(k.*) filter (where k.due_at < 'infinity') as retrying, count(k.*) filter (where k.due_at = 'infinity') as parked
          from lockstep.checkpoint c
          left join lockstep.stuck k on k.group_name = c.group_name and k.partition = c.partition
         where c.group_name = ${name} group by c.partition, c.seq order by c.partition`),
      this.#pool.run<{ oldest_at: Date | null; counts: Record<string, number> | null }>(sql`
        with behind as (
          select e.at, c.partition
            from lockstep.event e join lockstep.stream s on s.id = e.stream
            join lockstep.checkpoint c on c.group_name = ${name} and c.partition = e.bucket % ${partitions}::integer and e.seq > c.seq
           where e.seq > (select min(x.seq) from lockstep.checkpoint x where x.group_name = ${name})
             and (${prefix} = '' or starts_with(s.name, ${prefix}))
             and not exists (select from lockstep.stuck k where k.group_name = ${name} and k.stream = e.stream)
           order by e.seq limit ${MOST_COUNTED})
        select (select min(b.at) from behind b) as oldest_at,
               (select json_object_agg(b.partition, b.n) from (select partition, count(*) as n from behind group by partition) b) as counts`),
      this.#groups.holders(name),
      this.horizon(),
    ])
    const counts = behind?.counts ?? {}
    return {
      group: name,
      behind: Object.values(counts).reduce((sum, n) => sum + n, 0),
      oldestAt: behind?.oldest_at ?? null,
      partitions: rows.map(({ partition, seq, retrying, parked }) => ({
        partition,
        holder: holders.get(partition) ?? null,
        cursor: BigInt(seq),
        behind: counts[partition] ?? 0,
        retrying: Number(retrying),
        parked: Number(parked),
      })),
      horizon,
    }
  }

  async stream(name: string): Promise<StreamLag> {
    checkText('stream', name)
    const [rows, horizon] = await Promise.all([
      this.#pool.run<{
        at: string
        group_name: string | null
        position: string
        state: 'reading' | 'retrying' | 'parked'
      }>(sql`
        select s.position as at, g.name as group_name,
               case when k.stream is not null then k.position - 1
                    else coalesce((select e.position from lockstep.event e
                                    where e.stream = s.id and e.seq <= c.seq order by e.position desc limit 1), s.first - 1) end as position,
               case when k.due_at = 'infinity' then 'parked' when k.stream is not null then 'retrying' else 'reading' end as state
          from lockstep.stream s
          left join lockstep.consumer_group g on starts_with(s.name, g.prefix)
          left join lockstep.checkpoint c on c.group_name = g.name and c.partition = s.bucket % g.partitions
          left join lockstep.stuck k on k.group_name = g.name and k.stream = s.id
         where s.name = ${name} and s.position > 0 order by g.name`),
      this.horizon(),
    ])
    const [first] = rows
    if (!first) throw new NotFoundError(`There is no stream ${JSON.stringify(name)}`)
    const position = BigInt(first.at)
    return {
      stream: name,
      position,
      groups: rows.flatMap((row) => {
        if (row.group_name === null) return []
        const read = BigInt(row.position)
        return [{ group: row.group_name, position: read, behind: position - read, state: row.state }]
      }),
      horizon,
    }
  }

  async horizon(): Promise<Horizon> {
    const [row] = await this.#pool.run<{ horizon: string; last: string; holdups: Holdup[] | null }>(sql`
      select h.horizon, h.last, (
        select json_agg(json_build_object(
                 'pid', a.pid, 'database', current_database(), 'application', s.application_name, 'user', s.usename, 'state', s.state,
                 'ageMs', round(extract(epoch from clock_timestamp() - s.xact_start) * 1000)) order by a.after, s.xact_start)
          from lockstep.appending() a left join pg_stat_activity s on s.pid = a.pid) as holdups
        from lockstep.event_horizon() h`)
    if (!row) throw new Error('event_horizon did not answer')
    return { cursor: BigInt(row.horizon), last: BigInt(row.last), holdups: row.holdups ?? [] }
  }
}
