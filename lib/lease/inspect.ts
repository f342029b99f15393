/**
 * Shows who holds which names. This is for people and dashboards, never for decisions: when the caller reads the answer it may be
 * out of date. A decision needs a hold, or a write that is fenced by its token.
 *
 * A lease is in its row. A connection or transaction hold is only in the server's lock table, as the advisory lock K. It gets a row
 * when a fence uses it. So `list` does not show holds without a row; `query` of one name does.
 */
import { sql } from 'kysely'
import { checkPage, exact, type Page } from '../base/index.ts'
import type { Database } from '../database/index.ts'

/** The state of a name when the database answered. In JSON its token is a decimal string. */
export interface LockState {
  /** The name. */
  name: string
  /** Whether somebody holds it. */
  held: boolean
  /** `lease`: held by a lease. `connection`: held by a connection or a transaction. Null: it is free. */
  kind: 'lease' | 'connection' | null
  /** Who holds it; for a connection hold that no fence has used, the `applicationName` of its process. Null: it is free. */
  holder: string | null
  /** The fencing token of the hold. Null: it is free, or it is a connection hold that no fence has used. */
  token: bigint | null
  /** When it was granted, on the database's clock. Null: it is free, or it is a connection hold that no fence has used. */
  grantedAt: Date | null
  /** When the lease ends unless it is renewed, on the database's clock. Null: it is free, or it has no expiry. */
  expiresAt: Date | null
  /** The ttl of the lease, in milliseconds. Null: it is free, or it is not a lease. */
  ttlMs: number | null
  /** The JSON value that the holder gave. Null: there is none. */
  meta: unknown
  /** How many wait for it: each contender of this process, and each other process in the database's lock queue. */
  waiting: number
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

/**
 * The state of one name.
 * @param here     how many contenders of this process wait for it.
 * @param ourPids  the pids of this process's connections that wait, or hold what they have waited for.
 */
export async function lockState(database: Database, name: string, here: number, ourPids: number[]): Promise<LockState> {
  const [row] = await database.control<Look>(sql`select * from lockstep.look(${name})`)
  const elsewhere = (pid: number | null): pid is number => pid !== null && !ourPids.includes(pid)
  const waiting = here + (row?.waiting_pids.filter(elsewhere).length ?? 0)
  if (!row) return exact({ ...FREE, name, waiting })
  const leased = row.expires_at instanceof Date
  // A connection that has K while a lease lives waits for that lease, at the front of the queue.
  if (leased) return exact({ ...stateOf({ ...row, name }), waiting: waiting + (elsewhere(row.gate_pid) ? 1 : 0) })
  if (row.gate_pid === null) return exact({ ...FREE, name, waiting }) // free, or registered by a connection that is dead
  if (row.holder !== null) return exact({ ...stateOf({ ...row, name }), waiting })
  return exact({ ...FREE, name, held: true, kind: 'connection', holder: row.gate_application, waiting })
}

/** For how many milliseconds a holder has a name by a lease, of whichever process; undefined: it has none. */
export async function leasedFor(
  database: Database,
  { name, holder }: { name: string; holder: string },
): Promise<number | undefined> {
  const state = await lockState(database, name, 0, [])
  return state.kind === 'lease' && state.holder === holder ? (state.ttlMs ?? undefined) : undefined
}

/**
 * The holds that have a row, a page at a time.
 * @param namespace  the prefix of a namespace. It is removed from the names. Names of other namespaces have a control character.
 */
export async function listHeld(database: Database, page: Page, namespace = ''): Promise<Omit<LockState, 'waiting'>[]> {
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

function stateOf(row: Row): Omit<LockState, 'waiting'> {
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
