/**
 * Shows who holds which names. This is for people and dashboards, never for decisions: when the caller reads the answer it may be
 * out of date. A decision needs a hold, or a write that is fenced by its token.
 *
 * A lease is in its row. A connection or transaction hold is in the server's lock table, as the advisory lock K, which does not tell
 * the name. What else is known of it the process that has it enters into lockstep.hold, when it has lasted for 250 ms
 * (lock/shown-holds.ts). Until then `list` of another process does not show it, and `get` shows that it is there, with less.
 */
import { sql } from 'kysely'
import { checkPage, exact, type Page } from '../base/index.ts'
import type { Database } from '../database/index.ts'

/** A holder of a name. */
export interface LockHolder {
  /**
   * The `holder` of the request. Of a connection or transaction hold that named none: `host:pid` of its process. Of one that has
   * lasted for less than 250 ms: the `applicationName` of its process. Null: its connection has just ended.
   */
  holder: string | null
  /** The fencing token. Null: a hold of less than 250 ms. */
  token: bigint | null
  /** `connection` also stands for a transaction of less than 250 ms. */
  kind: 'lease' | 'connection' | 'transaction'
  /** When it was granted, on the database's clock; of a lease before its renewals. Null: a hold of less than 250 ms. */
  since: Date | null
  /** When the lease ends unless it is renewed, on the database's clock. Null: it is no lease, and has no expiry. */
  expiresAt: Date | null
  /** The JSON value that the holder gave. Null: there is none. */
  meta: unknown
}

/** The state of a name when the database answered. In JSON its token is a decimal string. */
export interface LockState {
  /** The name. */
  name: string
  /** Whether somebody holds it. */
  held: boolean
  /** `lease`, `connection` or `transaction`: what it is held by, as {@link LockHolder.kind}. Null: it is free. */
  kind: LockHolder['kind'] | null
  /** The holder, as {@link LockHolder.holder}. Null: it is free. */
  holder: string | null
  /** The fencing token of the hold. Null: it is free, or a connection or transaction hold of less than 250 ms. */
  token: bigint | null
  /** When it was granted, on the database's clock. Null: as `token`. */
  grantedAt: Date | null
  /** When the lease ends unless it is renewed, on the database's clock. Null: it is free, or it has no expiry. */
  expiresAt: Date | null
  /** The ttl of the lease, in milliseconds. Null: it is free, or it is not a lease. */
  ttlMs: number | null
  /** The JSON value that the holder gave. Null: there is none. */
  meta: unknown
  /** Its holder, if it has one: at most one today, and more when a name can be shared. */
  holders: LockHolder[]
  /**
   * How many wait for it: each caller of this process, and each connection of others in the server's lock queue. A process has one
   * connection there, however many of its callers wait. A caller that polls, as behind a transaction pooler, is counted only by its own
   * process.
   */
  waiting: number
}

/** What a process knows of its own callers. */
interface Callers {
  /** How many wait for a name. */
  waiting(name: string): number
  /** The pids of its connections that wait for them, or hold what they have waited for. */
  readonly ourPids: number[]
}

interface Row {
  name: string
  holder: string | null
  token: string | null
  granted_at: Date | null
  expires_at: Date | number | null // pg gives 'infinity' as a number
  ttl_ms: number | null
  meta: unknown
}
interface Look extends Row {
  gate_pid: number | null
  gate_application: string | null
  waiting_pids: number[]
  hold_kind: 'connection' | 'transaction' | null
  hold_holder: string | null
  hold_token: string | null
  hold_since: Date | null
  hold_meta: unknown
}

const FREE = {
  held: false,
  kind: null,
  holder: null,
  token: null,
  grantedAt: null,
  expiresAt: null,
  ttlMs: null,
  meta: null,
}

/** For how many milliseconds a holder has a name by a lease, of whichever process; undefined: it has none. */
export async function leasedFor(
  database: Database,
  { name, holder }: { name: string; holder: string },
): Promise<number | undefined> {
  const state = await lockState(database, name, NOBODY)
  return state.kind === 'lease' && state.holder === holder ? (state.ttlMs ?? undefined) : undefined
}

const NOBODY: Callers = { waiting: () => 0, ourPids: [] }

/** The state of one name. */
export async function lockState(database: Database, name: string, callers: Callers): Promise<LockState> {
  const [row] = await database.control<Omit<Look, 'name'>>(sql`select * from lockstep.look(${name})`)
  return row ? shown({ ...row, name }, callers) : exact({ ...FREE, name, holders: [], waiting: callers.waiting(name) })
}

/** The names that are held, a page at a time. */
export async function listLocks(
  database: Database,
  { prefix, after, limit }: { prefix: string; after: string; limit: number },
  callers: Callers,
): Promise<LockState[]> {
  const rows = await database.control<Look>(sql`select * from lockstep.list_locks(${prefix}, ${after}, ${limit})`)
  return rows.map((row) => shown(row, callers))
}

function shown(row: Look, { waiting, ourPids }: Callers): LockState {
  const elsewhere = (pid: number | null) => pid !== null && !ourPids.includes(pid)
  const state = lockedBy(row)
  // A connection that has K while a lease lives waits for that lease, at the front of the queue.
  const front = state.kind === 'lease' && elsewhere(row.gate_pid) ? 1 : 0
  const { held: _held, name: _name, ttlMs: _ttl, grantedAt, ...holder } = state
  return exact({
    ...state,
    holders: state.held ? [exact({ ...(holder as Omit<LockHolder, 'since'>), since: grantedAt })] : [],
    waiting: waiting(row.name) + row.waiting_pids.filter(elsewhere).length + front,
  })
}

function lockedBy(row: Look): Omit<LockState, 'holders' | 'waiting'> {
  if (row.expires_at instanceof Date) return stateOf(row)
  const { name } = row
  if (row.gate_pid === null) return { ...FREE, name } // free, or registered by a connection that is dead
  const registered = row.holder !== null
  const token = registered ? row.token : row.hold_token
  // Of a registered hold the row tells the token, and of one that lasts what it has entered is more: since when, and by which process.
  return {
    ...FREE,
    name,
    held: true,
    kind: row.hold_kind ?? 'connection',
    holder: row.hold_holder ?? row.holder ?? row.gate_application,
    token: token === null ? null : BigInt(token),
    grantedAt: row.hold_since ?? row.granted_at,
    meta: row.hold_meta ?? row.meta,
  }
}

/**
 * The leases of a namespace, a page at a time.
 * @param namespace  the prefix of a namespace. It is removed from the names. Names of other namespaces have a control character.
 */
export async function listHeld(
  database: Database,
  page: Page,
  namespace: string,
): Promise<Omit<LockState, 'holders' | 'waiting'>[]> {
  const { prefix, limit, after } = checkPage(page)
  const rows = await database.control<Row>(
    sql`select substr(name, ${namespace.length + 1}::integer) as name, holder, token, granted_at, expires_at, ttl_ms, meta
          from lockstep.lease l
         where holder is not null and expires_at > clock_timestamp()
           and l.name > ${namespace + after} and l.name >= ${namespace + prefix} and starts_with(l.name, ${namespace + prefix})
           and strpos(substr(l.name, ${namespace.length + 1}::integer), E'\\t') = 0
         order by l.name limit ${limit}`,
  )
  return rows.map(stateOf)
}

function stateOf(row: Row): Omit<LockState, 'holders' | 'waiting'> {
  const leased = row.expires_at instanceof Date
  return exact({
    name: row.name,
    held: true,
    kind: leased ? 'lease' : 'connection',
    holder: row.holder,
    token: row.token === null ? null : BigInt(row.token),
    grantedAt: row.granted_at,
    expiresAt: leased ? (row.expires_at as Date) : null,
    ttlMs: row.ttl_ms,
    meta: row.meta,
  })
}
