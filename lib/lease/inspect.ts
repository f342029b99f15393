/**
 * Who holds what: to lockState at, never to decide by. By the time the answer is read it may be otherwise; what must not
 * be otherwise is done under a hold, or fenced by its token.
 *
 * A lease is in its row. A connection or transaction hold is only in the server's lock table, as K, until a fence asks
 * for it; then it has a row too. So `listHeld` cannot name the holds that have no row, and `query` of one name can.
 */
import { sql } from 'kysely'
import { checkPage } from '../base/index.ts'
import type { Database } from '../database/index.ts'

/** A name as it was a moment ago. */
export interface LockState {
  name: string
  held: boolean
  /** `connection`: by a connection or a transaction. */
  kind: 'lease' | 'connection' | null
  /** Of a connection hold that no fence has asked for, the `applicationName` of its process. */
  holder: string | null
  /** Null also for a connection hold that no fence has asked for. */
  token: bigint | null
  grantedAt: Date | null
  /** Null: no expiry. */
  expiresAt: Date | null
  ttlMs: number | null
  meta: unknown
  /** Contenders of this process, and other processes in the database's queue, each counted once. */
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
 * @param here      contenders of this process.
 * @param ourPids   its connections that wait or have waited.
 */
export async function lockState(database: Database, name: string, here: number, ourPids: number[]): Promise<LockState> {
  const [row] = await database.control<Look>(sql`select * from lockstep.look(${name})`)
  const elsewhere = (pid: number | null): pid is number => pid !== null && !ourPids.includes(pid)
  const waiting = here + (row?.waiting_pids.filter(elsewhere).length ?? 0)
  if (!row) return { ...FREE, name, waiting }
  const leased = row.expires_at instanceof Date
  // Who has K while a lease lives waits for it, at the front of the queue.
  if (leased) return { ...stateOf({ ...row, name }), waiting: waiting + (elsewhere(row.gate_pid) ? 1 : 0) }
  if (row.gate_pid === null) return { ...FREE, name, waiting } // free, or registered by a connection that is dead
  if (row.holder !== null) return { ...stateOf({ ...row, name }), waiting }
  return { ...FREE, name, held: true, kind: 'connection', holder: row.gate_application, waiting }
}

/** @param room  what stands before the names of the room; it is not shown. Names of other rooms have a control character. */
export async function listHeld(
  database: Database,
  page: { prefix?: string; limit?: number; after?: string },
  room = '',
): Promise<Omit<LockState, 'waiting'>[]> {
  const { prefix, limit, after } = checkPage(page)
  const rows = await database.control<Row>(
    sql`select substr(name, ${room.length + 1}::integer) as name, holder, token, granted_at, expires_at, ttl_ms, meta
          from lockstep.lease l
         where holder is not null and expires_at > clock_timestamp()
           and l.name > ${room + after} and l.name >= ${room + prefix} and starts_with(l.name, ${room + prefix})
           and strpos(substr(l.name, ${room.length + 1}::integer), E'\\t') = 0
         order by l.name limit ${limit}`,
  )
  return rows.map(stateOf)
}

function stateOf(row: Row): Omit<LockState, 'waiting'> {
  const leased = row.expires_at instanceof Date
  return {
    name: row.name,
    held: true,
    kind: leased ? 'lease' : 'connection',
    holder: row.holder,
    token: row.token === null ? null : BigInt(row.token),
    grantedAt: row.granted_at,
    expiresAt: leased ? (row.expires_at as Date) : null,
    ttlMs: row.ttl_ms,
    meta: row.meta,
  }
}
