/**
 * The delivery of a partition's events, and its outcome: the statements that a consumer needs, in this process or
 * elsewhere.
 */
import { type RawBuilder, sql } from 'kysely'
import { batched, LIMITS, storableError } from '../../base/index.ts'
import { column, type Pool } from '../../database/index.ts'
import { attemptsOf, type StoredEvent } from '../stream/index.ts'

/** An event as it is delivered to a consumer. */
export type DeliveredEvent = StoredEvent & {
  /** The number of this attempt to apply it: 1 for the first. */
  attempt: number
}

/** What is delivered of a partition. */
export interface Delivery {
  /** Whether the caller holds the partition; if not, nothing is delivered. */
  held: boolean
  events: DeliveredEvent[]
  /** The checkpoint after this delivery, and the delivery's number: `commit` and `fail` need both. */
  next: bigint
  turn: bigint
  /** There may be more to read at once. */
  more: boolean
  /** An append is in an open transaction, and may still commit. */
  undecided: boolean
  /** Milliseconds until an event that failed is due again. */
  dueMs: number | undefined
}

/** A delivery to be committed or failed. */
export interface DeliveryEnd {
  group: string
  partition: number
  token: bigint
  next: bigint
  turn: bigint
}

/** A partition, and the token under which the caller holds it. */
export interface HeldPartition {
  partition: number
  token: bigint
}

type DeliveryRow = {
  held: boolean
  events: string | null
  next: string | null
  turn: string | null
  more: boolean
  waits: boolean
  wait_ms: number | null
}

/** Reads the next events of a partition; calls that are made at the same time share a statement. */
export function partitionReader(pool: Pool, group: string, most: number): (held: HeldPartition) => Promise<Delivery> {
  return batched(
    (held) => readPartitions(pool, group, held, most),
    ({ partition }) => String(partition),
    64,
  )
}

/**
 * The next events of several partitions, in their order. All partitions together get `LIMITS.answerBytes`, but always
 * one event: so the read begins at a random partition, for each to have its turn.
 */
export async function readPartitions(
  pool: Pool,
  group: string,
  all: HeldPartition[],
  most: number,
): Promise<Delivery[]> {
  const first = Math.floor(Math.random() * all.length)
  const rotated = [...all.slice(first), ...all.slice(0, first)]
  const partitions = column(rotated, 'integer', ({ partition }) => partition)
  const tokens = column(rotated, 'bigint', ({ token }) => token)
  const rows = await pool.run<DeliveryRow>(
    sql`select r.held, r.events::text, r.next, r.turn, r.more, r.waits, r.wait_ms
          from lockstep.read_partitions(${group}, ${partitions}, ${tokens}, ${most}, ${LIMITS.answerBytes}) r`,
  )
  const inOrder = [...rows.slice(-first), ...rows.slice(0, -first)]
  return (first === 0 ? rows : inOrder).map(({ held, events, next, turn, more, waits, wait_ms }) => ({
    held,
    events: attemptsOf(events),
    next: BigInt(next ?? 0),
    turn: BigInt(turn ?? 0),
    more,
    undecided: waits,
    dueMs: wait_ms ?? undefined,
  }))
}

/** @param again  a delivery that was committed before is a success too. */
export const commitEvents = (
  { group, partition, token, next, turn }: DeliveryEnd,
  again: boolean,
): RawBuilder<unknown> => sql`lockstep.commit_events(${group}, ${partition}, ${token}, ${next}, ${turn}, ${again})`

/** An event failed; those before it were applied. `due_ms`: milliseconds since 1970; null: the event is parked. */
export const failEvent = ({ group, partition, token, next, turn }: DeliveryEnd, event: bigint, reason: unknown) =>
  sql<{ attempts: number; due_ms: number | null }>`
    select f.attempts, case when f.due_at < 'infinity' then extract(epoch from f.due_at)::double precision * 1000 end as due_ms
      from lockstep.fail_event(${group}, ${partition}, ${token}, ${next}, ${turn}, ${event}, ${reasonText(reason)}::jsonb) f`

/** Why an event failed, as JSON to store, at most 4 KiB; a handler may throw any value. What is too long is cut. */
function reasonText(reason: unknown): string {
  const shown = storableError(reason)
  const whole = JSON.stringify(shown)
  if (fits(whole)) return whole
  const { name, code, message, stack, cause } = (typeof shown === 'object' ? shown : {}) as Record<string, unknown>
  const why = (cause ?? {}) as Record<string, unknown>
  for (let most = 1_500; ; most /= 2) {
    const cut = (part: unknown) => (isShort(part) ? part : text(part).slice(0, most).toWellFormed())
    const brief = { name: cut(name), code: cut(code), message: cut(message ?? shown), stack: cut(stack) }
    const causes = cause !== undefined && {
      cause: { name: cut(why.name), code: cut(why.code), message: cut(why.message ?? cause) },
    }
    const kept = JSON.stringify({ ...brief, ...causes })
    if (fits(kept)) return kept
  }
}
const isShort = (part: unknown): boolean => part === undefined || typeof part === 'number'
const text = (part: unknown): string => (typeof part === 'string' ? part : JSON.stringify(part))
const fits = (json: string): boolean => new TextEncoder().encode(json).length <= LIMITS.metaBytes
