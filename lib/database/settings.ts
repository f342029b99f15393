/**
 * The settings that Lockstep's statements run with, whatever the role and the database have.
 *
 * A role may have any default: a style of dates, an isolation level, a timeout of a second. Lockstep's statements depend on some of
 * these, so each of its connections is greeted when it is opened ({@link greet}), by one statement that does one of two things:
 *
 * - A direct connection that only Lockstep uses gets the settings for as long as it lives.
 * - Behind a pooler they must not be set: they would stay on a connection of the server that other clients use too. The same holds
 *   for the connections that Lockstep shares with its user (`shared`). There the greeting only reads what the role has. If
 *   anything of that is odd, each statement goes into a transaction with the settings: BEGIN, the settings, the statement and COMMIT,
 *   in one message ({@link queryPinned}). So it takes no more time on the network, and no pooler can divide it.
 *
 * Direct is a connection on which the server's pid is the one that was announced at login (database.ts).
 *
 * The user's transactions keep the settings of their role. `default_transaction_read_only` is left as it is everywhere: an operator,
 * or a provider whose disk is full, sets it so that nothing is written.
 */
import pg from 'pg'
import { BoundedMap, Stopwatch } from '../base/index.ts'
import { PARSERS } from './parsers.ts'
import { announcedPid, type Facts, factsOf } from './proxies.ts'
import { uncached } from './uncached.ts'

/** Every setting, its value, and when another value is as good. */
const SETTINGS: [name: string, value: string, harmless?: (value: string) => boolean][] = [
  ['search_path', 'pg_catalog, pg_temp', () => true], // statements name the schema of what they use
  ['DateStyle', 'ISO, MDY', (value) => value.startsWith('ISO')],
  ['IntervalStyle', 'postgres', () => true],
  ['TimeZone', 'UTC', () => true], // in the style ISO every instant has its offset
  ['bytea_output', 'hex'],
  ['extra_float_digits', '1', (value) => Number(value) > 0],
  ['array_nulls', 'on'],
  ['transform_null_equals', 'off'],
  ['standard_conforming_strings', 'on'],
  ['default_transaction_isolation', 'read committed'],
  ['default_transaction_deferrable', 'off'],
  ['statement_timeout', '0'],
  ['lock_timeout', '0'],
  ['idle_in_transaction_session_timeout', '0'],
]
// These only make sense for a connection of one client.
const OF_SESSIONS = [['idle_session_timeout', '0']] as const
// Since PostgreSQL 17. Older servers do not know it.
const SINCE_17 = [['transaction_timeout', '0']] as const
const since17 = "pg_catalog.current_setting('server_version_num')::pg_catalog.int4 operator(pg_catalog.>=) 170000"

const set = ([name, value]: readonly [string, string, ...unknown[]], local: boolean) =>
  `pg_catalog.set_config('${name}', '${value}', ${local})`

const VALUES = `pg_catalog.json_build_array(${SETTINGS.map(([name]) => `pg_catalog.current_setting('${name}')`).join()})::pg_catalog.text`

/**
 * Greets a new connection on which only Lockstep's own statements run: with the settings, if it is direct.
 * @returns what the connection is (proxies.ts), and whether the role has anything odd that was not set.
 */
export async function greet(client: pg.Client): Promise<Facts & { odd: boolean }> {
  const [direct, port, product, values] = await rowOf(
    client,
    `select direct, port, product, ${VALUES},
            case when direct then pg_catalog.concat(${[...SETTINGS, ...OF_SESSIONS].map((each) => set(each, false)).join()}) end,
            case when direct and ${since17} then pg_catalog.concat(${SINCE_17.map((each) => set(each, false)).join()}) end
       from (${factsOf(announcedPid(client))} offset 0) as connection`,
  )
  const facts = { direct, port, product } as Facts
  return { ...facts, odd: !facts.direct && isOdd(values as string) }
}

/**
 * Sets what a session needs for as long as it lives. `tcp_user_timeout` limits unanswered data and keepalives; `idle_session_timeout`
 * limits a process that is frozen, whose kernel goes on answering; `client_connection_check_interval` ends a wait in a lock queue whose
 * process has died. The planner's settings are those of the functions on leases (0001_lease.sql), set once instead of at every call.
 *
 * @param giveUpMs  how long after it last heard from the client the server ends the connection.
 */
export const settingsOfSessions = (giveUpMs: number): string =>
  `set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off; set plan_cache_mode = force_generic_plan;
   set tcp_user_timeout = ${giveUpMs}; set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5;
   set client_connection_check_interval = 2000; set idle_session_timeout = ${giveUpMs}`

// How long a process that shares its connections with its user does not ask again what the role has: a Worker opens one a request.
const KNOWN_MS = 60_000
const known = new BoundedMap<string, { odd: boolean; since: Stopwatch }>(100)

/** Whether the role of a connection has anything odd. It is not changed. @param url  the connection string. */
export async function hasOddSettings(client: pg.Client | pg.PoolClient, url: string): Promise<boolean> {
  const last = known.get(url)
  if (last && last.since.elapsed() < KNOWN_MS) return last.odd
  const since = new Stopwatch()
  const [values] = await rowOf(client, uncached(`select ${VALUES}`))
  const odd = isOdd(values as string)
  known.set(url, { odd, since })
  return odd
}

async function rowOf(client: pg.Client | pg.PoolClient, text: string): Promise<unknown[]> {
  const { rows } = await client.query({ text, rowMode: 'array', types: PARSERS } as pg.QueryArrayConfig)
  return rows[0] as unknown[]
}

const isOdd = (values: string): boolean =>
  (JSON.parse(values) as string[]).some((value, i) => {
    const [, wanted, harmless] = SETTINGS[i] as (typeof SETTINGS)[number]
    return value !== wanted && !harmless?.(value)
  })

/** How Lockstep's own transactions begin. */
const BEGIN = 'begin isolation level read committed, not deferrable'
const SET_LOCAL = `select ${SETTINGS.map((each) => set(each, true)).join()}, case when ${since17} then ${SINCE_17.map((each) => set(each, true)).join()} end`

/** The beginning of a text that begins a transaction: Kysely's, or one of pg-boss's texts of several statements. */
const BEGINS = /^\s*(?:begin|start\s+transaction)\b[^;]*/i

/** The connection of a client of pg, as its queries use it. */
interface Messages {
  parse(of: { text: string; name: string }): void
  bind(of: { portal: string; statement: string; values: unknown[] }): void
  execute(of: { portal: string; rows: number }): void
  sync(): void
}

// What pg's types do not show of a query.
const Query = pg.Query as unknown as new (
  config: object,
) => {
  prepare(connection: Messages): void
  handleDataRow(message: unknown): void
  handleCommandComplete(message: unknown, connection: unknown): void
}

/**
 * A statement in a transaction with the settings, all in one message. If it fails the transaction is left open, and must be rolled
 * back.
 */
class Pinned extends Query {
  /** How many statements have been answered: BEGIN, the settings, the statement, COMMIT. */
  #answered = 0

  override prepare(connection: Messages): void {
    send(connection, BEGIN)
    send(connection, SET_LOCAL)
    super.prepare(connection)
  }

  /** Ends the message that `prepare` has begun. */
  _getRows(connection: Messages): void {
    connection.execute({ portal: '', rows: 0 })
    send(connection, 'commit')
    connection.sync()
  }

  override handleDataRow(message: unknown): void {
    if (this.#answered === 2) super.handleDataRow(message)
  }

  override handleCommandComplete(message: unknown, connection: unknown): void {
    if (this.#answered++ === 2) super.handleCommandComplete(message, connection)
  }
}

function send(connection: Messages, text: string): void {
  connection.parse({ text, name: '' })
  connection.bind({ portal: '', statement: '', values: [] })
  connection.execute({ portal: '', rows: 0 })
}

/** Runs a statement, or a text of several, in a transaction with the settings. After a failure that must be rolled back. */
// biome-ignore lint/suspicious/noExplicitAny: rows of any statement
export async function queryPinned(client: pg.PoolClient, config: pg.QueryConfig): Promise<any> {
  const { text, values = [] } = config
  if (values.length === 0 && BEGINS.test(text)) {
    const rest = text.replace(BEGINS, '')
    const [begun, , ...results] = await severalResults(client, { ...config, text: `${BEGIN}; ${SET_LOCAL}${rest}` })
    return results.length === 0 ? begun : [begun, ...results]
  }
  if (values.length === 0 && /;\s*\S/.test(text)) {
    const whole = `${BEGIN}; ${SET_LOCAL}; ${text.replace(/;\s*$/, '')}; commit`
    const own = (await severalResults(client, { ...config, text: whole })).slice(2, -1)
    return own.length === 1 ? own[0] : own
  }
  return new Promise((resolve, reject) => {
    const callback = (error: Error | null, result: unknown) => (error ? reject(error) : resolve(result))
    const query = new Pinned({ ...config, queryMode: 'extended', callback })
    client.query(Object.assign(query, { query_timeout: (config as { query_timeout?: number }).query_timeout }) as never)
  })
}

const severalResults = (client: pg.PoolClient, config: pg.QueryConfig): Promise<pg.QueryResult[]> =>
  client.query(config) as unknown as Promise<pg.QueryResult[]>
