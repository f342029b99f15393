/** Checks a server before anything is created on it: without Lockstep's functions, which are not there yet. */
import { type Kysely, sql } from 'kysely'
import { LOCKS_NOT_SHOWN, read, type ServerFacts, whyOneSession, whyUnsupported } from '../database/index.ts'

/** Checks the server, by statements that any server with the Postgres protocol understands. @throws {Error} it is not supported. */
export async function checkServer<DB>(trx: Kysely<DB>): Promise<ServerFacts> {
  const facts = sql<ServerFacts & { product: string }>`
    select current_setting('server_version_num')::int as version, current_setting('server_encoding') as encoding,
           pg_is_in_recovery() as standby, current_setting('transaction_read_only')::boolean as read_only, null as shown,
           version() as product`
  const [engine] = (await read(trx, facts)) as [ServerFacts & { product: string }]
  const why = whyUnsupported(engine) ?? whyOneSession(engine.product)
  if (why !== undefined) throw new Error(why)
  // 'lock', 'eyed' in ASCII, as in lockstep.engine
  await sql`select pg_advisory_xact_lock_shared(1819239275, 1702454628)`.execute(trx).catch((error) => {
    const { severity, code } = error as { severity?: unknown; code?: unknown }
    const refused = severity !== undefined && !/^(08|25P|53|57)/.test(String(code)) // else the connection has ended
    throw refused ? new Error(LOCKS_NOT_SHOWN, { cause: error }) : error
  })
  const shown = await sql`
    select from pg_locks l
     where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.granted
       and l.classid = 1819239275 and l.objid = 1702454628 and l.objsubid = 2`.execute(trx)
  if (shown.rows.length === 0) throw new Error(LOCKS_NOT_SHOWN)
  return engine
}
