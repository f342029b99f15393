/**
 * The hold that lasts as long as a transaction.
 *
 * K is taken inside the transaction, so nothing has to be released, renewed or lost: when the transaction ends, however it ends,
 * K is free. On a direct connection the transaction itself waits in the database's queue. Behind a pooler it must not: a
 * transaction that waits there keeps a server connection, which the holder may need to come to its end. So there each attempt is
 * a short transaction, and attempts are 25 to 250 ms apart.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql, type Transaction } from 'kysely'
import { BackoffDelays, exact, fromDatabase, LeaseHeldError, noConnectionLeft, onAbort } from '../base/index.ts'
import { XID } from '../database/index.ts'
import { otherHoldLost } from '../lease/index.ts'
import type { Turn } from './contender.ts'
import type { LockContext } from './context.ts'

/** The work that is done under the lock. `hold.token` is the fencing token, for writes to other systems. */
// biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
export type TransactionWork<T> = (trx: Transaction<any>, hold: { name: string; token: bigint }) => Promise<T>

type Entry = {
  gated: boolean
  token: string | null
  wait_ms: number | null
  pid: number
  idle_timeout: string | null
  /** The id of the transaction, once it has the token. Before that none is asked for: a transaction that has one holds up vacuum. */
  xid: string | null
}
const LOOK_AGAIN_MS = 50
const AGAIN_MS = { firstMs: 25, mostMs: 250, factor: 1.5, spread: 0.25 }

class Refused extends Error {}

/** @param left  milliseconds that remain of the wait. */
export async function transaction<T>(
  context: LockContext,
  turn: Turn,
  name: string,
  left: () => number,
  signal: AbortSignal | undefined,
  work: TransactionWork<T>,
): Promise<T> {
  const delays = new BackoffDelays(AGAIN_MS)
  let refused = false
  for (;;) {
    let entered = false
    try {
      return await context.database.users.supervised(
        async (trx, runWork) => {
          signal?.throwIfAborted()
          const { token, xid, pid } = await enter(trx, context, name, left, signal)
          entered = true
          turn.polls = false
          const shown = { name, kind: 'transaction', holder: undefined, token, pid } as const
          const entry = context.shown.add(shown)
          try {
            return await runWork(() => work(trx, exact({ name, token })), xid)
          } finally {
            context.shown.remove(entry)
          }
        },
        { isolation: 'read committed', identified: false, signal, ms: left() },
      )
    } catch (error) {
      if (entered) throw otherHoldLost(error) // a fenced table answers at COMMIT; K itself cannot be lost
      signal?.throwIfAborted()
      if (error instanceof LeaseHeldError) throw error
      if (refused && left() <= 0) throw new LeaseHeldError(name, 0) // no connection came free to ask once more
      if (!(error instanceof Refused)) throw fromDatabase(error)
      refused = true
      turn.polls = true
    }
    await sleep(Math.min(delays.next(), Math.max(left(), 0)), undefined, { signal }).catch(() => {})
    signal?.throwIfAborted()
  }
}

async function enter(
  // biome-ignore lint/suspicious/noExplicitAny: as above
  trx: Transaction<any>,
  context: LockContext,
  name: string,
  left: () => number,
  signal: AbortSignal | undefined,
): Promise<{ token: bigint; xid: string; pid: number }> {
  let entry = await ask(sql`select *, ${id} from lockstep.enter(${name}, null)`)
  const waits = !entry.gated || entry.token === null
  const { idle_timeout } = entry
  if (waits && left() <= 0) throw held()
  // The role's timeouts are for the user's statements, and not for the wait.
  const [limits] = waits ? (await unlimited.execute(trx)).rows : []
  if (!entry.gated) {
    const direct = context.sessions.shared().then(
      (session) => session !== null,
      (error) => {
        if (noConnectionLeft(error)) return false // not known: asked again, as behind a pooler
        throw error
      },
    )
    if (!(await direct)) throw new Refused()
    entry = await queue(entry.pid)
  }
  // K is ours, and a lease may still live.
  while (entry.token === null) {
    if (left() <= 0) throw held()
    await sleep(Math.min(entry.wait_ms ?? 0, LOOK_AGAIN_MS, Math.max(left(), 0)), undefined, { signal }).catch(() => {})
    signal?.throwIfAborted()
    entry = await ask(sql`select *, ${id} from lockstep.enter(${name}, null)`)
  }
  if (limits) await restored({ ...limits, idle: idle_timeout ?? limits.idle }).execute(trx)
  return { token: BigInt(entry.token), xid: entry.xid as string, pid: entry.pid }

  async function ask(statement: ReturnType<typeof sql<Entry>>): Promise<Entry> {
    return (await statement.execute(trx)).rows[0] as Entry
  }

  async function queue(pid: number): Promise<Entry> {
    signal?.throwIfAborted()
    let waiting = true
    let cancelled: Promise<void> | undefined
    const cancel = () => {
      cancelled = context.database.cancel(pid, () => !waiting)
    }
    const off = onAbort(signal, cancel)
    try {
      const ms = left()
      return await ask(
        sql`select *, ${id} from lockstep.enter(${name}, ${ms < 2 ** 31 ? Math.max(1, Math.ceil(ms)) : 0}::integer)`,
      )
    } catch (error) {
      throw (error as { code?: unknown }).code === '55P03' ? held() : error
    } finally {
      waiting = false
      off()
      await cancelled
    }
  }

  function held() {
    return new LeaseHeldError(name, 0)
  }
}

interface Limits {
  statement: string
  idle: string
  /** PostgreSQL 17 and later. */
  transaction: string | null
}
const unlimited = sql<Limits>`
  with limits as materialized (
    select current_setting('statement_timeout') as statement, current_setting('idle_in_transaction_session_timeout') as idle,
           current_setting('transaction_timeout', true) as transaction)
  select *, set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '15s', true),
         case when transaction is not null then set_config('transaction_timeout', '0', true) end
    from limits`
const restored = ({ statement, idle, transaction }: Limits) => sql`
  select set_config('statement_timeout', ${statement}, true), set_config('idle_in_transaction_session_timeout', ${idle}, true),
         case when ${transaction}::text is not null then set_config('transaction_timeout', ${transaction}, true) end`

const id = sql`case when token is not null then ${sql.raw(XID)} end as xid`
