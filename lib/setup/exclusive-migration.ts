/**
 * An exclusive migration: one that needs the database without any holds. This file is the wait between its steps.
 *
 * Some changes can only be made while nobody holds anything (0008_close.sql explains why for the first of them). The file with the
 * barrier closes the database: it replaces the functions that grant by functions that refuse. It makes the table lockstep.closed,
 * which keeps the replaced functions, and the functions lockstep.open_transactions, lockstep.unquiet and lockstep.reopen. Then:
 *
 *   closed, committed ─► quiet: every transaction that was open then has ended, and nobody has a lock that counts
 *                    │     └─► the files that follow; the last of them opens the database again
 *                    └──► not quiet in time, aborted, or a later file failed: reopened, and everything is as before
 *
 * During the wait the process holds neither a transaction nor a session lock: the wait would wait for that transaction, and the
 * session lock would stay behind on a transaction pooler. The state of the migration is in the database. So any number of
 * processes may wait, and the first one that finds the database quiet goes on. A process that is killed leaves the database closed, and
 * the next process continues. The oid of the table identifies one closing: quiet in one closing says nothing about another.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Kysely, sql } from 'kysely'
import { BackoffDelays } from '../base/index.ts'
import { read } from '../database/index.ts'
import { lockMigrations, type MigrationFiles, pinnedTransaction } from './migration-files.ts'

/** A connection or prepared transaction that an exclusive migration waits for. */
export interface Blocker {
  /** The pid of its backend; null: it is a prepared transaction, which has no connection. */
  pid: number | null
  /** Its `application_name`; for a prepared transaction, the name of that. */
  application: string
  /** Its role. */
  role: string
  /** When its transaction began, or else its connection; null: the role that migrates may not see it. */
  since: Date | null
  /** What it has, such as: a transaction of before · "orders" · 2 advisory locks (…). */
  has: string[]
}

/** How an exclusive migration waits. */
export interface WaitOptions {
  /**
   * How long an exclusive migration waits for transactions and holds to end, in milliseconds ≥ 0. During the wait nothing is granted
   * and nothing is appended. After it the migration undoes its changes and fails.
   * @default 30_000
   */
  waitMs?: number | undefined
  /** Whether it ends the connections that are in the way after a second; their holds and transactions end too. @default false */
  terminate?: boolean | undefined
  /** Aborts the wait: the changes are undone, and the call rejects with the signal's reason. */
  signal?: AbortSignal | undefined
  /** Called after one second of waiting, and then every five seconds, with what the migration waits for. */
  onWait?: ((blockers: Blocker[]) => void) | undefined
}

const GRACE_MS = 1_000
const REPORT_MS = 5_000
const POLL = { firstMs: 20, mostMs: 250, factor: 1.5 }

/** The id of the present closing; null: the database is open. */
export async function closingOf<DB>(trx: Kysely<DB>): Promise<number | null> {
  const [row] = await read(
    trx,
    sql<{ closing: number | null }>`select to_regclass('lockstep.closed')::oid::int8 as closing`,
  )
  return row?.closing ?? null
}

/**
 * Waits until the database is quiet in this closing.
 *
 * @param left  how many milliseconds of the wait are left.
 * @returns false: another process has reopened the database, or continued the migration.
 * @throws {Error} one sentence that says what was in the way for too long, or what may not be ended.
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
  const delays = new BackoffDelays(POLL)
  for (;;) {
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
    await sleep(Math.min(delays.next(), Math.max(left(), 1)), undefined, { signal }).catch(() => {})
  }
}

/** Opens the database again, if it is closed. Then the files from the barrier on count as not applied. */
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

/** A blocker in words, like "pid 12 (billing, role app, since 2026-01-01T12:00:00.000Z): a transaction of before". */
export function described({ pid, application, role, since, has }: Blocker): string {
  const which = pid === null ? `prepared transaction ${JSON.stringify(application)}` : `pid ${pid}`
  const named = pid === null || application === '' ? [] : [application]
  const about = [...named, `role ${role}`, ...(since ? [`since ${since.toISOString()}`] : [])]
  return `${which} (${about.join(', ')}): ${has.join(' and ')}`
}

function notQuiet(blockers: Blocker[], waitMs: number, terminate: boolean): Error {
  const advice = terminate
    ? 'end by hand what --terminate cannot end (prepared transactions, connections that come again and again)'
    : 'end them, or migrate with --terminate (terminate: true), which ends them'
  return new Error(
    `The database did not become quiet within ${waitMs} ms, and goes on as before; in the way: ` +
      `${blockers.map(described).join('; ')}; ${advice}`,
  )
}

// Runs `work` in a separate transaction, if this closing goes on; null: it is over.
async function whileClosing<DB, T>(
  db: Kysely<DB>,
  closing: number,
  work: (trx: Kysely<DB>) => Promise<T>,
): Promise<T | null> {
  try {
    return await pinnedTransaction(db, async (trx) => ((await closingOf(trx)) === closing ? await work(trx) : null))
  } catch (error) {
    if (/^(42883|42P01)$/.test(String((error as { code?: unknown }).code))) return null // it was opened just now
    throw error
  }
}

async function openTransactions<DB>(trx: Kysely<DB>): Promise<string[]> {
  const [row] = await read(trx, sql<{ them: string[] }>`select lockstep.open_transactions()::text[] as them`)
  return row?.them ?? []
}

interface Row {
  pid: number | null
  application: string
  role: string
  since: string | null
  prepared: string | null
  open: boolean
  keys: string[]
}

async function unquiet<DB>(trx: Kysely<DB>, transactions: string[]): Promise<Blocker[]> {
  const rows = await read(
    trx,
    sql<Row>`select pid, application, role, since, prepared, open, keys::text[] from lockstep.unquiet(${transactions})`,
  )
  const keys = rows.flatMap((row) => row.keys)
  const names = new Map<string, string>()
  if (keys.length > 0) {
    // The name of a connection hold is known if a fence has used the hold.
    const known = sql<{ name: string; key: string }>`
      select l.name, lockstep.key(l.name)::text as key from lockstep.lease l
       where l.holder is not null and l.expires_at = 'infinity' and lockstep.key(l.name) = any (${keys})`
    for (const { name, key } of (await known.execute(trx)).rows) names.set(key, name)
  }
  return rows.map(({ prepared, open, keys, ...row }) => {
    const named = keys.flatMap((key) => names.get(key) ?? []).map((name) => JSON.stringify(name))
    const others = keys.length - named.length
    return {
      ...{
        pid: row.pid,
        application: prepared ?? row.application,
        role: row.role ?? '',
        since: row.since === null ? null : new Date(row.since),
      },
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
