/**
 * Groups: their partitions, and how these are assigned to consumers.
 *
 * A stream belongs to one partition of a group, by a hash of its name. A partition is held by one consumer at a time,
 * by a lease like any other (lease/leases.ts), so a consumer whose lease has expired can commit nothing any more. Each
 * consumer also holds a lease as a member of the group. The list of members alone decides the quotas: if the partitions
 * do not divide evenly, the first members in the order of their names have one partition more. A consumer with fewer
 * than its quota takes free partitions; a consumer with more gives some up. So the quotas are even again soon after a
 * consumer came or went, and no coordinator is needed.
 */
import { sql } from 'kysely'
import {
  BoundedMap,
  checkInteger,
  checkOptions,
  checkPage,
  checkText,
  type Known,
  known,
  LeaseLostError,
  NotFoundError,
  type Page,
  Stopwatch,
  wrongType,
} from '../../base/index.ts'
import type { Database, Pool } from '../../database/index.ts'
import { GROUPS, type Grant, Leases } from '../../lease/index.ts'
import { checkPosition } from '../stream/index.ts'
import type { HeldPartition } from './delivery.ts'

/** Options of `declareGroup`. `prefix`, `partitions` and `from` are fixed when the group is made. */
export interface GroupOptions {
  /** The streams that the group reads, by what their names begin with. Fixed. @default '', all streams */
  prefix?: string | undefined
  /** The number of partitions, 1–256: at most so many consumers share the work. Fixed. @default 8 */
  partitions?: number | undefined
  /**
   * Where a new group begins: at a cursor, ≥ 1n; at the `start`; or at the `end`, with events that are appended from
   * now on. Ignored if the group exists.
   * @default 'start'
   */
  from?: bigint | 'start' | 'end' | undefined
  /** How often a failed event is retried before it is parked, 0–1,000. @default 5 */
  retryLimit?: number | undefined
  /** Milliseconds before the first retry, 0–3,600,000; doubled for each further one, up to a minute. @default 1_000 */
  retryDelayMs?: number | undefined
}

/** A group of consumers. */
export interface Group {
  /** The group's name. */
  name: string
  /** The streams that it reads, by what their names begin with; '': all. */
  prefix: string
  /** The number of its partitions. */
  partitions: number
  /** How often a failed event is retried before it is parked. */
  retryLimit: number
  /** Milliseconds before the first retry of a failed event. */
  retryDelayMs: number
}

/** A group, the partitions that a member holds, those that nobody holds, and how many the member may hold. */
export interface Assignment {
  group: Group
  mine: HeldPartition[]
  free: number[]
  quota: number
}

const PARTITIONS = { min: 1, max: 256 }
const RETRIES = { min: 0, max: 1_000 }
const DELAY = { min: 0, max: 3_600_000 }
const MEMBER = 'member\t'
const MOST_KNOWN = 1_000

// The names of leases. They are unambiguous: no group has a control character in its name.
export const partitionName = (group: string, partition: number): string => `${group}\t${partition}`
export const memberName = (group: string, holder: string): string => `${group}\t${MEMBER}${holder}`

export const GROUP_NAMES = { prefix: true, partitions: true, from: true, retryLimit: true, retryDelayMs: true } as const
const GROUP = known<GroupOptions>(GROUP_NAMES)

/** @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`. */
export function checkGroup(group: string, options: GroupOptions, names: Known): void {
  checkOptions(options, names)
  const { prefix, partitions, from = 'start', retryLimit, retryDelayMs } = options
  checkText('group', group)
  if (prefix !== undefined) checkText('prefix', prefix)
  if (partitions !== undefined) checkInteger('partitions', partitions, PARTITIONS)
  if (retryLimit !== undefined) checkInteger('retryLimit', retryLimit, RETRIES)
  if (retryDelayMs !== undefined) checkInteger('retryDelayMs', retryDelayMs, DELAY)
  if (from !== 'start' && from !== 'end') checkPosition('from', from)
}

export class Groups {
  readonly leases: Leases
  readonly #database: Database
  readonly #pool: Pool
  readonly #known = new BoundedMap<string, Group>(MOST_KNOWN)

  constructor(database: Database, pool: Pool) {
    this.#database = database
    this.#pool = pool
    this.leases = new Leases(database, GROUPS)
  }

  /** @param names  of the options that there may be. */
  async declare(group: string, options: GroupOptions = {}, names = GROUP): Promise<boolean> {
    checkGroup(group, options, names)
    const { prefix, partitions, from = 'start', retryLimit, retryDelayMs } = options
    const after = from === 'start' ? 0n : from === 'end' ? null : from - 1n
    const [row] = await this.#pool.run<{ made: boolean; has_prefix: string; has_partitions: number }>(
      sql`select * from lockstep.declare_group(${group}, ${prefix ?? null}, ${partitions ?? null}::integer, ${after}::bigint,
                                               ${retryLimit ?? null}::integer, ${retryDelayMs ?? null}::integer)`,
    )
    this.#known.delete(group)
    if (row === undefined) throw new Error('declare_group did not answer')
    if (prefix !== undefined && prefix !== row.has_prefix) {
      throw wrongType('prefix', `${JSON.stringify(row.has_prefix)}, as when the group was made`, prefix)
    }
    if (partitions !== undefined && partitions !== row.has_partitions) {
      throw wrongType('partitions', `${row.has_partitions}, as when the group was made`, partitions)
    }
    return row.made
  }

  async get(group: string): Promise<Group | null> {
    checkText('group', group)
    const [row] = await this.#pool.run<Group>(sql`${SELECT} where name = ${group}`)
    return row ?? null
  }

  /** A group, perhaps as it was earlier: for its prefix and partitions, which are fixed. @throws {NotFoundError} */
  async known(group: string): Promise<Group> {
    const known = this.#known.get(group) ?? (await this.get(group))
    if (known === null) throw noGroup(group)
    this.#known.set(group, known)
    return known
  }

  list(page: Page = {}): Promise<Group[]> {
    const { prefix, limit, after } = checkPage(page)
    return this.#pool.run<Group>(
      sql`${SELECT} where name > ${after} and name >= ${prefix} and starts_with(name, ${prefix}) order by name limit ${limit}`,
    )
  }

  async delete(group: string): Promise<boolean> {
    checkText('group', group)
    const [row] = await this.#pool.run<{ deleted: boolean }>(sql`select lockstep.delete_group(${group}) as deleted`)
    this.#known.delete(group)
    return row?.deleted ?? false
  }

  /** The assignment of a member; its quota is 0 while it has no lease as a member. @throws {NotFoundError} */
  async assignment(name: string, holder: string): Promise<Assignment> {
    const [group, leases] = await Promise.all([this.get(name), this.#leases(name)])
    if (group === null) {
      this.#known.delete(name)
      throw noGroup(name)
    }
    this.#known.set(name, group)
    const { partitions } = group
    const members = leases.filter((lease) => lease.name.startsWith(MEMBER)).map((lease) => lease.holder)
    const rank = members.indexOf(holder)
    const taken = new Map(leases.map((lease) => [lease.name, lease]))
    const all = Array.from({ length: partitions }, (_, partition) => partition)
    return {
      group,
      mine: all.flatMap((partition) => {
        const lease = taken.get(String(partition))
        return lease?.holder === holder ? [{ partition, token: BigInt(lease.token) }] : []
      }),
      free: all.filter((partition) => !taken.has(String(partition))),
      quota: rank < 0 ? 0 : Math.floor(partitions / members.length) + (rank < partitions % members.length ? 1 : 0),
    }
  }

  /** The holder of each partition that is held. */
  async holders(group: string): Promise<Map<number, string>> {
    const leases = await this.#leases(group)
    return new Map(
      leases.filter((lease) => !lease.name.startsWith(MEMBER)).map((lease) => [Number(lease.name), lease.holder]),
    )
  }

  /**
   * Revokes all leases of a holder in a group: its membership first, then its partitions (polls.ts).
   * @throws {UnavailableError}
   */
  async leave(group: string, holder: string): Promise<void> {
    await this.#revoke(group, holder, (name) => name.startsWith(MEMBER))
    await this.#revoke(group, holder, () => true)
  }

  async #revoke(group: string, holder: string, which: (name: string) => boolean): Promise<void> {
    const leases = (await this.#leases(group)).filter((lease) => lease.holder === holder && which(lease.name))
    const revoked = await Promise.allSettled(
      leases.map(({ name, token }) => this.leases.revoke(`${group}\t${name}`, BigInt(token))),
    )
    for (const each of revoked) {
      if (each.status === 'rejected' && !(each.reason instanceof LeaseLostError)) throw each.reason
    }
  }

  /** The unexpired leases of a group, by name. */
  #leases(group: string): Promise<{ name: string; holder: string; token: string }[]> {
    const prefix = `${GROUPS.prefix}${group}\t`
    return this.#database.control(
      sql<{ name: string; holder: string; token: string }>`
        select substr(l.name, length(${prefix}) + 1) as name, l.holder, l.token from lockstep.lease l
         where l.name > ${prefix} and l.name < ${`${GROUPS.prefix}${group}\n`}
           and l.holder is not null and l.expires_at > clock_timestamp()
         order by l.name`,
    )
  }

  /** Takes or renews partitions. @returns those that were granted: another consumer may have been first. */
  async take(
    group: string,
    partitions: number[],
    holder: string,
    ttlMs: number,
  ): Promise<{ partition: number; grant: Grant; attempted: Stopwatch }[]> {
    const attempted = new Stopwatch()
    const answers = await Promise.all(
      partitions.map((partition) =>
        this.leases.grant({ name: partitionName(group, partition), holder, ttlMs, meta: null }),
      ),
    )
    return answers.flatMap((grant, i) =>
      'token' in grant ? [{ partition: partitions[i] as number, grant, attempted }] : [],
    )
  }
}

/** A random choice: so that two consumers that start at once seldom choose the same. */
export function pick(from: number[], most: number): number[] {
  const rest = [...from]
  for (let i = rest.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1))
    ;[rest[i], rest[j]] = [rest[j] as number, rest[i] as number]
  }
  return rest.slice(0, Math.max(0, most))
}

const SELECT = sql`select name, prefix, partitions, retry_limit as "retryLimit", retry_delay_ms as "retryDelayMs" from lockstep.consumer_group`

const noGroup = (group: string): NotFoundError => new NotFoundError(`There is no group ${JSON.stringify(group)}`)
