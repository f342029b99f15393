/**
 * Groups: which partitions there are, and who has which.
 *
 * A stream belongs to one partition of a group, by a hash of its name; a partition is held by one consumer at a time, by a lease
 * like any other (lease/leases.ts), so that a consumer which was taken for dead can commit nothing any more. Every consumer has a lease
 * as a member besides. The members alone decide the shares: sorted, the first of them have one partition more if they do not
 * divide evenly. Who has less than its share takes what is free, who has more gives up; so the shares are even again soon after
 * one came or went, without anybody in charge.
 */
import { sql } from 'kysely'
import {
  BoundedMap,
  checkInteger,
  checkOptions,
  checkPage,
  checkText,
  LeaseLostError,
  NotFoundError,
  Stopwatch,
  wrongType,
} from '../../base/index.ts'
import type { Database, Pool } from '../../database/index.ts'
import { GROUPS, type Grant, Leases } from '../../lease/index.ts'
import { checkPlace } from '../stream/index.ts'

export interface GroupOptions {
  /** Of the streams that it reads. @default '', all */
  prefix?: string
  /** How many consumers can share the work, 1–256. @default 8 */
  partitions?: number
  /** Where a new group begins: a cursor, the start, or what is appended from now on. @default 'start' */
  from?: bigint | 'start' | 'end'
  /** How often an event is tried again before it is parked, 0–1,000. @default 5 */
  retryLimit?: number
  /** Milliseconds before it is tried again, 0–3,600,000; doubled each time, up to a minute. @default 1_000 */
  retryDelayMs?: number
}

export interface Group {
  name: string
  prefix: string
  partitions: number
  retryLimit: number
  retryDelayMs: number
}

/** A group now, who has which partitions of it, and how many each may have. */
export interface Seats {
  group: Group
  mine: { partition: number; token: bigint }[]
  free: number[]
  quota: number
}

const PARTITIONS = { min: 1, max: 256 }
const RETRIES = { min: 0, max: 1_000 }
const DELAY = { min: 0, max: 3_600_000 }
const MEMBER = 'member\t'
const MOST_KNOWN = 1_000

/** The names of leases; no group has a control character in its name. */
export const partitionName = (group: string, partition: number): string => `${group}\t${partition}`
export const memberName = (group: string, holder: string): string => `${group}\t${MEMBER}${holder}`

/** @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`. */
export function checkGroup(group: string, options: GroupOptions): void {
  checkOptions(options)
  const { prefix, partitions, from = 'start', retryLimit, retryDelayMs } = options
  checkText('group', group)
  if (prefix !== undefined) checkText('prefix', prefix)
  if (partitions !== undefined) checkInteger('partitions', partitions, PARTITIONS)
  if (retryLimit !== undefined) checkInteger('retryLimit', retryLimit, RETRIES)
  if (retryDelayMs !== undefined) checkInteger('retryDelayMs', retryDelayMs, DELAY)
  if (from !== 'start' && from !== 'end') checkPlace('from', from)
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

  async declare(group: string, options: GroupOptions = {}): Promise<boolean> {
    checkGroup(group, options)
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

  /** What never changes of it may be old. @throws {NotFoundError} */
  async known(group: string): Promise<Group> {
    const known = this.#known.get(group) ?? (await this.get(group))
    if (known === null) throw noGroup(group)
    this.#known.set(group, known)
    return known
  }

  list(page: { prefix?: string; limit?: number; after?: string } = {}): Promise<Group[]> {
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

  /** The seats as a member sees them, who has a lease as one. @throws {NotFoundError} */
  async seats(name: string, holder: string): Promise<Seats> {
    const [group, seats] = await Promise.all([this.get(name), this.#seats(name)])
    if (group === null) {
      this.#known.delete(name)
      throw noGroup(name)
    }
    this.#known.set(name, group)
    const { partitions } = group
    const members = seats.filter((seat) => seat.name.startsWith(MEMBER)).map((seat) => seat.holder)
    const rank = members.indexOf(holder)
    const taken = new Map(seats.map((seat) => [seat.name, seat]))
    const all = Array.from({ length: partitions }, (_, partition) => partition)
    return {
      group,
      mine: all.flatMap((partition) => {
        const seat = taken.get(String(partition))
        return seat?.holder === holder ? [{ partition, token: BigInt(seat.token) }] : []
      }),
      free: all.filter((partition) => !taken.has(String(partition))),
      quota: rank < 0 ? 0 : Math.floor(partitions / members.length) + (rank < partitions % members.length ? 1 : 0),
    }
  }

  /** Who has which partition. */
  async holders(group: string): Promise<Map<number, string>> {
    const seats = await this.#seats(group)
    return new Map(
      seats.filter((seat) => !seat.name.startsWith(MEMBER)).map((seat) => [Number(seat.name), seat.holder]),
    )
  }

  /** Gives up all that a holder has of a group: its place first, then its partitions (polls.ts). @throws {UnavailableError} */
  async leave(group: string, holder: string): Promise<void> {
    await this.#giveUp(group, holder, (name) => name.startsWith(MEMBER))
    await this.#giveUp(group, holder, () => true)
  }

  async #giveUp(group: string, holder: string, which: (name: string) => boolean): Promise<void> {
    const seats = (await this.#seats(group)).filter((seat) => seat.holder === holder && which(seat.name))
    const left = await Promise.allSettled(
      seats.map(({ name, token }) => this.leases.revoke(`${group}\t${name}`, BigInt(token))),
    )
    for (const each of left) {
      if (each.status === 'rejected' && !(each.reason instanceof LeaseLostError)) throw each.reason
    }
  }

  #seats(group: string): Promise<{ name: string; holder: string; token: string }[]> {
    const prefix = `${GROUPS.prefix}${group}\t`
    return this.#database.control(
      sql<{ name: string; holder: string; token: string }>`
        select substr(l.name, length(${prefix}) + 1) as name, l.holder, l.token from lockstep.lease l
         where l.name > ${prefix} and l.name < ${`${GROUPS.prefix}${group}\n`}
           and l.holder is not null and l.expires_at > clock_timestamp()
         order by l.name`,
    )
  }

  /** Partitions that are granted of some that look free. */
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

/** Some of them, any: so that two who come at once seldom want the same. */
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
