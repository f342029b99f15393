/**
 * A migration that has to be alone: the wait between its steps.
 *
 * Some changes can only be made while nobody holds (0008_close.sql tells why of the first of them). The file with the barrier closes:
 * it replaces what grants by functions that refuse, and leaves behind the table lockstep.closed (what was there before) and the
 * functions lockstep.open_transactions, lockstep.unquiet and lockstep.reopen. Then:
 *
 *   closed, committed ─► quiet: every transaction that was open then has ended, and nobody has a lock that counts
 *                    │     └─► the files that follow; the last of them opens again
 *                    └──► not quiet in time, broken off, or a later file failed: reopened, as if nothing had been
 *
 * Nothing is held meanwhile, neither a transaction nor a session's lock: the one would be waited for by itself, the other would stay
 * behind on a transaction pooler. Where the migration stands is in the database. So any number of processes may wait, and the first
 * that finds it quiet goes on; and a process that is killed leaves it closed, for the next to go on with. One closing is told from
 * another by the oid of its table: what was seen quiet is quiet in this closing only.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Kysely, sql } from 'kysely'
import { lockMigrations, type MigrationFiles, pinnedTransaction } from './migration-files.ts'

/** What a migration waits for. */
export interface Blocker {
  /** Null: a prepared transaction, which has no connection. */
  pid: number | null
  /** Its `application_name`; of a prepared transaction its name. */
  application: string
  role: string
  /** When its transaction began, or its connection; null: the role that migrates may not see it. */
  since: Date | null
  /** What it has, such as: a transaction of before · "orders" · 2 advisory locks (…). */
  has: string[]
}

export interface WaitOptions {
  /**
   * Milliseconds, ≥ 0, that a migration which has to be alone waits for the others; meanwhile nobody is granted and nothing appended.
   * Then it takes back what it has done, and fails.
   * @default 30_000
   */
  waitMs?: number
  /** Ends the connections that are in the way after a second, with what they hold and do. @default false */
  terminate?: boolean
  /** Breaks the wait off: what was done is taken back, and the call rejects with the signal's reason. */
  signal?: AbortSignal
  /** Hears, after a second and then every five, what is waited for. */
  onWait?: (blockers: Blocker[]) => void
}

const GRACE_MS = 1_000
const REPORT_MS = 5_000
const POLL_MS = { first: 20, most: 250 }

/** The closing that the database is in; null: it is open. */
export async function closingOf<DB>(trx: Kysely<DB>): Promise<number | null> {
  const { rows } = await sql<{ closing: number | null }>`select to_regclass('lockstep.closed')::oid as closing`.execute(
    trx,
  )
  return rows[0]?.closing ?? null
}

/**
 * Waits until the database is quiet in this closing.
 *
 * @param left  milliseconds that remain of the wait.
 * @returns false: another process has opened it, or gone on.
 * @throws {Error} one sentence: what was in the way for too long, or may not be ended.
 */
export async function untilQuiet<DB>(
  db: Kysely<DB>,
  closing: number,
  { waitMs = 30_000, terminate = false, signal, onWait }: WaitOptions,
  left: () => number,
): Promise<boolean> {
  let reported = performance.now() + GRACE_MS - REPORT_MS
  const terminateFrom = performance.now() + GRACE_MS
  const transactions = await whileClosing(db, closing, openTransactions)
  if (transactions === null) return false
  for (let pauseMs = POLL_MS.first; ; pauseMs = Math.min(pauseMs * 1.5, POLL_MS.most)) {
    signal?.throwIfAborted()
    const blockers = await whileClosing(db, closing, (trx) => unquiet(trx, transactions))
    if (blockers === null || blockers.length === 0) return blockers !== null
    const now = performance.now()
    if (left() <= 0) throw notQuiet(blockers, waitMs, terminate)
    if (onWait && now - reported >= REPORT_MS) {
      reported = now
      onWait(blockers)
    }
    if (terminate && now >= terminateFrom)
      await whileClosing(db, closing, (trx) => terminateBlockers(trx, transactions, blockers))
    await sleep(Math.min(pauseMs, Math.max(left(), 1)), undefined, { signal }).catch(() => {})
  }
}

/** Opens the database again, if it is closed: the files from its barrier on have not been applied. */
export async function reopen<DB>(db: Kysely<DB>, files: MigrationFiles): Promise<void> {
  await pinnedTransaction(db, async (trx) => {
    await lockMigrations(trx)
    if ((await closingOf(trx)) === null) return
    await sql`select lockstep.reopen()`.execute(trx)
    const { rows } = await sql<{ name: string }>`select name from lockstep.migration order by name`.execute(trx)
    const applied = rows.map(({ name }) => name)
    const since = applied.findLastIndex((name) => files.get(name)?.ends === 'barrier')
    if (since >= 0) await sql`delete from lockstep.migration where name = any (${applied.slice(since)})`.execute(trx)
  })
}

/** As "pid 12 (billing, role app, since 2026-01-01T12:00:00.000Z): a transaction of before". */
export function described({ pid, application, role, since, has }: Blocker): string {
  const which = pid === null ? `prepared transaction ${JSON.stringify(application)}` : `pid ${pid}`
  const named = pid === null || application === '' ? [] : [application]
  const about = [...named, `role ${role}`, ...(since ? [`since ${since.toISOString()}`] : [])]
  return `${which} (${about.join(', ')}): ${has.join(' and ')}`
}

function notQuiet(blockers: Blocker[], waitMs: number, terminate: boolean): Error {
  const advice = terminate
    ? 'what --terminate cannot end (prepared transactions, connections that come anew) has to be ended by hand'
    : 'end them, or migrate with --terminate (terminate: true), which does'
  return new Error(
    `The database did not become quiet within ${waitMs} ms, and goes on as before; in the way: ` +
      `${blockers.map(described).join('; ')}; ${advice}`,
  )
}

// In a transaction of its own; null when this closing is over.
async function whileClosing<DB, T>(
  db: Kysely<DB>,
  closing: number,
  work: (trx: Kysely<DB>) => Promise<T>,
): Promise<T | null> {
  try {
    return await pinnedTransaction(db, async (trx) => ((await closingOf(trx)) === closing ? await work(trx) : null))
  } catch (error) {
    if (/^(42883|42P01)$/.test(String((error as { code?: unknown }).code))) return null // opened in this moment
    throw error
  }
}

async function openTransactions<DB>(trx: Kysely<DB>): Promise<string[]> {
  const { rows } = await sql<{ them: string[] }>`select lockstep.open_transactions() as them`.execute(trx)
  return rows[0]?.them ?? []
}

interface Row {
  pid: number | null
  application: string
  role: string
  since: Date | null
  prepared: string | null
  open: boolean
  keys: string[]
}

async function unquiet<DB>(trx: Kysely<DB>, transactions: string[]): Promise<Blocker[]> {
  const { rows } = await sql<Row>`select * from lockstep.unquiet(${transactions})`.execute(trx)
  const keys = rows.flatMap((row) => row.keys)
  const names = new Map<string, string>()
  if (keys.length > 0) {
    // Of a connection hold a name is known if a fence has asked for it.
    const known = sql<{ name: string; key: string }>`
      select l.name, lockstep.key(l.name)::text as key from lockstep.lease l
       where l.holder is not null and l.expires_at = 'infinity' and lockstep.key(l.name) = any (${keys})`
    for (const { name, key } of (await known.execute(trx)).rows) names.set(key, name)
  }
  return rows.map(({ prepared, open, keys, ...row }) => {
    const named = keys.flatMap((key) => names.get(key) ?? []).map((name) => JSON.stringify(name))
    const others = keys.length - named.length
    return {
      ...{ pid: row.pid, application: prepared ?? row.application, role: row.role ?? '', since: row.since },
      has: [
        ...(open ? ['a transaction of before'] : []),
        ...named,
        ...(others === 0
          ? []
          : [
              `${others} advisory lock${others > 1 ? 's' : ''} (a hold, the witness of a candidate, or the application's own)`,
            ]),
      ],
    }
  })
}

async function terminateBlockers<DB>(trx: Kysely<DB>, transactions: string[], blockers: Blocker[]): Promise<void> {
  try {
    await sql`
      select pg_terminate_backend(u.pid) from lockstep.unquiet(${transactions}) u where u.pid is not null`.execute(trx)
  } catch (error) {
    if ((error as { code?: unknown }).code !== '42501') throw error
    throw new Error(
      `The role that migrates may not end the connections that are in the way (${blockers.map(described).join('; ')}): ` +
        'migrate as a member of pg_signal_backend and of their roles, or end them yourself',
      { cause: error },
    )
  }
}
