/**
 * What is next of a partition, and what becomes of it: the calls that a consumer makes, wherever it lives.
 */
import { type RawBuilder, sql } from 'kysely'
import { batched, jsonText, LIMITS } from '../../base/index.ts'
import { column, type Pool } from '../../database/index.ts'
import { attemptsOf, type StoredEvent } from '../stream/index.ts'

/** An event as it is given to be applied. */
export type GivenEvent = StoredEvent & {
  /** 1 for the first. */
  attempt: number
}

/** What is next of a partition. */
export interface Next {
  /** Whether the asker holds the partition; if not, nothing is given. */
  held: boolean
  events: GivenEvent[]
  next: bigint
  turn: bigint
  more: boolean
  waits: boolean
  /** Milliseconds until an event that failed is due. */
  dueMs: number | undefined
}

/** What was given, to be ended. */
export interface Given {
  group: string
  partition: number
  token: bigint
  next: bigint
  turn: bigint
}

type NextRow = {
  held: boolean
  events: string | null
  next: string | null
  turn: string | null
  more: boolean
  waits: boolean
  wait_ms: number | null
}
type Ask = { partition: number; token: bigint }

// Of events on disk, in an answer.
const PAGE_BYTES = 4_194_304

/** What is next of partitions of a group; all that ask at a time share a statement. */
export function nextOf(pool: Pool, group: string, most: number): (ask: Ask) => Promise<Next> {
  return batched(
    (asks) => readAll(pool, group, asks, most),
    ({ partition }) => String(partition),
    64,
  )
}

/** In the order of the asks. All together they get {@link PAGE_BYTES}, and one event always: so it is another's turn each time. */
export async function readAll(pool: Pool, group: string, all: Ask[], most: number): Promise<Next[]> {
  const first = Math.floor(Math.random() * all.length)
  const asks = [...all.slice(first), ...all.slice(0, first)]
  const partitions = column(asks, 'integer', ({ partition }) => partition)
  const tokens = column(asks, 'bigint', ({ token }) => token)
  const rows = await pool.run<NextRow>(
    sql`select r.held, r.events::text, r.next, r.turn, r.more, r.waits, r.wait_ms
          from lockstep.read_partitions(${group}, ${partitions}, ${tokens}, ${most}, ${PAGE_BYTES}) r`,
  )
  const inOrder = [...rows.slice(-first), ...rows.slice(0, -first)]
  return (first === 0 ? rows : inOrder).map(({ held, events, next, turn, more, waits, wait_ms }) => ({
    held,
    events: attemptsOf(events),
    next: BigInt(next ?? 0),
    turn: BigInt(turn ?? 0),
    more,
    waits,
    dueMs: wait_ms ?? undefined,
  }))
}

/** @param again  it may have been committed before, which is as good. */
export const commitEvents = ({ group, partition, token, next, turn }: Given, again: boolean): RawBuilder<unknown> =>
  sql`lockstep.commit_events(${group}, ${partition}, ${token}, ${next}, ${turn}, ${again})`

/** An event failed; those before it were applied. `due_ms`: since 1970; null: it is parked. */
export const failEvent = ({ group, partition, token, next, turn }: Given, event: bigint, reason: unknown) =>
  sql<{ attempts: number; due_ms: number | null }>`
    select f.attempts, case when f.due_at < 'infinity' then extract(epoch from f.due_at)::double precision * 1000 end as due_ms
      from lockstep.fail_event(${group}, ${partition}, ${token}, ${next}, ${turn}, ${event}, ${reasonText(reason)}::jsonb) f`

/** Why an event failed, as it is kept: whatever was thrown. */
function reasonText(reason: unknown): string {
  try {
    const shown = reason instanceof Error ? { name: reason.name, message: reason.message, stack: reason.stack } : reason
    return jsonText('reason', shown ?? null, LIMITS.metaBytes)
  } catch {}
  try {
    const text = String(reason instanceof Error ? reason.message : reason)
    return JSON.stringify({ message: text.replaceAll('\0', '').slice(0, 1_000).toWellFormed() })
  } catch {
    return JSON.stringify({ message: 'What was thrown cannot be shown' })
  }
}
