/**
 * The hold that lasts as long as a transaction.
 *
 * K is taken inside the transaction, so nothing has to be released, renewed or lost: when it ends, however it ends, K
 * is free. On a direct connection the transaction itself stands in the database's queue. Behind a pooler it must not:
 * whoever waits there has a server connection that the holder may need to come to an end; so there each try is a short
 * transaction of its own, 25 to 250 ms apart.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql, type Transaction } from 'kysely'
import { fromDatabase, LeaseHeldError, noConnectionLeft } from '../base/index.ts'
import { XID } from '../database/index.ts'
import { otherHoldLost } from '../lease/index.ts'
import type { Desk } from './wait-queue.ts'

/** What is done under the lock. `hold.token`: the fencing token, for what is written elsewhere. */
// biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
export type TransactionWork<T> = (trx: Transaction<any>, hold: { name: string; token: bigint }) => Promise<T>

type Entry = {
  gated: boolean
  token: string | null
  wait_ms: number | null
  pid: number
  idle_timeout: string | null
  /** Of the transaction, once it has the token; before that none, for it may wait for long. */
  xid: string | null
}
const LOOK_AGAIN_MS = 50

class Refused extends Error {}

/** @param left  milliseconds that remain of the wait. */
export async function transaction<T>(
  desk: Desk,
  name: string,
  left: () => number,
  signal: AbortSignal | undefined,
  work: TransactionWork<T>,
): Promise<T> {
  let refused = false
  for (let pauseMs = 25; ; pauseMs = Math.min(pauseMs * 1.5, 250)) {
    let entered = false
    try {
      return await desk.database.users.supervised(
        async (trx, runWork) => {
          signal?.throwIfAborted()
          const { token, xid } = await enter(trx, desk, name, left, signal)
          entered = true
          return await runWork(() => work(trx, { name, token }), xid)
        },
        { isolation: 'read committed', identified: false, signal, ms: left() },
      )
    } catch (error) {
      if (entered) throw otherHoldLost(error) // a fenced table answers at COMMIT; K itself cannot be lost
      signal?.throwIfAborted()
      if (error instanceof LeaseHeldError) throw error
      if (refused && left() <= 0) throw new LeaseHeldError(name, 0) // and a connection to ask once more was not to be had
      if (!(error instanceof Refused)) throw fromDatabase(error)
      refused = true
    }
    await sleep(Math.min(pauseMs * (0.75 + Math.random() / 2), Math.max(left(), 0)), undefined, { signal }).catch(
      () => {},
    )
    signal?.throwIfAborted()
  }
}

async function enter(
  // biome-ignore lint/suspicious/noExplicitAny: as above
  trx: Transaction<any>,
  desk: Desk,
  name: string,
  left: () => number,
  signal: AbortSignal | undefined,
): Promise<{ token: bigint; xid: string }> {
  let entry = await ask(sql`select *, ${id} from lockstep.enter(${name}, null)`)
  if (!entry.gated) {
    if (left() <= 0) throw held()
    const direct = desk.sessions.shared().then(
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
  const { idle_timeout } = entry
  while (entry.token === null) {
    if (left() <= 0) throw held()
    await sleep(Math.min(entry.wait_ms ?? 0, LOOK_AGAIN_MS, Math.max(left(), 0)), undefined, { signal }).catch(() => {})
    signal?.throwIfAborted()
    entry = await ask(sql`select *, ${id} from lockstep.enter(${name}, null)`)
  }
  if (idle_timeout !== null) {
    await sql`select set_config('idle_in_transaction_session_timeout', ${idle_timeout}, true)`.execute(trx)
  }
  return { token: BigInt(entry.token), xid: entry.xid as string }

  async function ask(statement: ReturnType<typeof sql<Entry>>): Promise<Entry> {
    return (await statement.execute(trx)).rows[0] as Entry
  }

  async function queue(pid: number): Promise<Entry> {
    signal?.throwIfAborted()
    let waiting = true
    let cancelled: Promise<void> | undefined
    const cancel = () => {
      cancelled = desk.database.cancel(pid, () => !waiting)
    }
    signal?.addEventListener('abort', cancel)
    try {
      const ms = left()
      return await ask(
        sql`select *, ${id} from lockstep.enter(${name}, ${ms < 2 ** 31 ? Math.max(1, Math.ceil(ms)) : 0}::integer)`,
      )
    } catch (error) {
      throw (error as { code?: unknown }).code === '55P03' ? held() : error
    } finally {
      waiting = false
      signal?.removeEventListener('abort', cancel)
      await cancelled
    }
  }

  function held() {
    return new LeaseHeldError(name, 0)
  }
}

const id = sql`case when token is not null then ${sql.raw(XID)} end as xid`
