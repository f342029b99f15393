/**
 * Lag: how far behind a group is, and what holds it up, so that nothing stalls silently.
 *
 * A reader of all streams waits for transactions that have appended and are still open. These are known exactly, by the
 * advisory locks in which they publish their start (0007_event.sql). A long transaction that has not appended, or of
 * another database, holds up no reader. PostgreSQL shows when the session of another role began its transaction only to
 * roles that may see it (pg_read_all_stats).
 */
import { sql } from 'kysely'
import { checkText, exact, NotFoundError } from '../../base/index.ts'
import type { Pool } from '../../database/index.ts'
import type { Groups } from './groups.ts'

/** An open transaction that has appended events. Readers of all streams wait for it. */
export interface Holdup {
  /** The process id of its backend; null: a prepared transaction, of two-phase commit. */
  pid: number | null
  /** The name of its database. */
  database: string
  /** Its `application_name`; null: a prepared transaction. */
  application: string | null
  /** The name of its role; null: a prepared transaction. */
  user: string | null
  /**
   * As in pg_stat_activity, for example `idle in transaction`; null: not visible to this role, or a prepared
   * transaction.
   */
  state: string | null
  /** Milliseconds since the transaction began, by the database's clock; null as for `state`. */
  ageMs: number | null
}

/** How far all streams can be read. */
export interface Horizon {
  /** All events up to this cursor are committed or rolled back, and can be read. */
  cursor: bigint
  /** The last cursor that was assigned, also to events that have not committed. */
  last: bigint
  /** The open transactions that have appended, the earliest append first. */
  holdups: Holdup[]
}

/** The progress of a partition of a group. */
export interface PartitionLag {
  /** The partition's number, from 0. */
  partition: number
  /** The consumer that holds it; null: none. */
  holder: string | null
  /** The checkpoint: events up to this cursor are applied, except those of streams that are retried or parked. */
  cursor: bigint
  /** The number of events to apply, of those that {@link GroupLag.behind} counts. */
  behind: number
  /** The number of streams with an event that failed and will be retried. */
  retrying: number
  /** The number of streams that are parked, until `redeliver`. */
  parked: number
}

/** How far behind a group is. */
export interface GroupLag {
  /** The group's name. */
  group: string
  /** The number of events to apply, without those of parked and retried streams; 100,000 at most are counted. */
  behind: number
  /** When the first of these events was appended; null: there is none. */
  oldestAt: Date | null
  /** The partitions, in the order of their numbers. */
  partitions: PartitionLag[]
  /** How far all streams can be read, and what holds readers up. */
  horizon: Horizon
}

/** How far behind the groups are that read a stream. */
export interface StreamLag {
  /** The stream's name. */
  stream: string
  /** The position of the stream's last event. */
  position: bigint
  /** The groups that read the stream, in the order of their names. */
  groups: {
    /** The group's name. */
    group: string
    /** The position of the last event of the stream that the group has applied. */
    position: bigint
    /** The number of events of the stream to apply. */
    behind: bigint
    /** `retrying`: an event failed and will be retried; `parked`: an event failed too often; else `reading`. */
    state: 'reading' | 'retrying' | 'parked'
  }[]
  /** How far all streams can be read, and what holds readers up. */
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
      partitions: rows.map(({ partition, seq, retrying, parked }) =>
        exact({
          partition,
          holder: holders.get(partition) ?? null,
          cursor: BigInt(seq),
          behind: counts[partition] ?? 0,
          retrying: Number(retrying),
          parked: Number(parked),
        }),
      ),
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
    return exact({
      stream: name,
      position,
      groups: rows.flatMap((row) => {
        if (row.group_name === null) return []
        const read = BigInt(row.position)
        return [exact({ group: row.group_name, position: read, behind: position - read, state: row.state })]
      }),
      horizon,
    })
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
    return exact({ cursor: BigInt(row.horizon), last: BigInt(row.last), holdups: row.holdups ?? [] })
  }
}
