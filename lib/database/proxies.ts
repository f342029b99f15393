/**
 * What is between a connection and the server, and whether Lockstep works through it.
 *
 * - A pooler in STATEMENT MODE (PgBouncer) allows no transactions. It is found by beginning one.
 * - PGLITE gives all its connections one session, so two holders would get one advisory lock. Its version() has its name.
 * - PGPOOL-II announces the pid of a backend: of its own, as a direct connection does, or of another server's. With load balancing it
 *   reads on a standby, where no advisory lock of the primary is seen: an event that commits late would be skipped. In its mode
 *   `raw` (4.3.5) it begins a transaction before an INSERT, and does not end it: what was acknowledged is rolled back at the
 *   disconnect, and a job is not seen until then. In its replicating modes each server would grant on its own. So only streaming
 *   replication without load balancing, and without its cache, is accepted.
 *
 * Only Pgpool-II answers `show pool_version`; a server logs an error. So it is asked only if something is odd: the port that the server
 * sees is not the port of this socket, or the announced pid may be that of another server's backend. In a Worker it is not asked:
 * there Hyperdrive is in front, each request is a process of its own, and the port of this socket is not known.
 */
import type pg from 'pg'
import { endsConnection } from '../base/index.ts'
import { PARSERS } from './parsers.ts'

/** A connection to look through. */
export interface Probe {
  /** The pid that was announced at login. */
  processID: number
  /** The port of this end of the connection; undefined: it has none. */
  localPort: number | undefined
  // biome-ignore lint/suspicious/noExplicitAny: rows of any statement
  query(text: string): Promise<{ rows: any[] }>
}

/** The pid that the server, or a pooler in front of it, announced at login (BackendKeyData). Not in `pg`'s types. */
export const announcedPid = (client: pg.Client): number => (client as unknown as { processID: number }).processID

/** A view of a client, to look through it. */
export function probeOf(client: pg.Client): Probe {
  const { localPort } = (client.connection?.stream ?? {}) as { localPort?: number | undefined }
  return { processID: announcedPid(client), localPort, query: (text) => client.query({ text, types: PARSERS }) }
}

/** What a statement on a connection says about it. */
export interface Facts {
  /** Whether the connection is one to a backend of its own. */
  direct: boolean
  /** The port of the other end of the server's connection; null: it has none. */
  port: number | null
  /** The server's version(). */
  product: string
}

/** Selects the {@link Facts}. */
export const factsOf = (announced: number): string =>
  `select pg_catalog.pg_backend_pid() operator(pg_catalog.=) ${Number(announced)} as direct,
          pg_catalog.inet_client_port() as port, pg_catalog.version() as product`

// The largest pid of Linux. PgBouncer announces random numbers of 32 bits.
const MAX_PID = 2 ** 22

/**
 * The error for a statement after which a transaction is open that nobody has asked for. Its connection is closed, so the statement
 * has had no effect.
 */
export const BEGUN_BY_PROXY =
  'What is in front of the database begins transactions and leaves them open, as Pgpool-II does in its mode raw: ' +
  'set backend_clustering_mode = streaming_replication, or connect to the server directly'

/**
 * Why Lockstep does not work through a connection, in one sentence; undefined: it does.
 * @param how.facts  if they are known already.
 * @param how.cached  whether a proxy in front may answer from a cache: then it is not asked whether it is Pgpool-II. @default false
 */
export async function whyUnfit(
  probe: Probe,
  how: { facts?: Facts; cached?: boolean } = {},
): Promise<{ direct: boolean; why: string | undefined }> {
  const { direct, port, product } = how.facts ?? ((await probe.query(factsOf(probe.processID))).rows[0] as Facts)
  const odd = direct ? port !== (probe.localPort ?? null) : probe.processID > 0 && probe.processID <= MAX_PID
  return { direct, why: whyOneSession(product) ?? (odd && !how.cached ? await whyPgpool(probe) : undefined) }
}

/** Begins a transaction and ends it. @throws the error of a pooler that allows none. */
export async function beginOnce(probe: Probe): Promise<void> {
  await probe.query('begin')
  await probe.query('commit')
}

/** Why a server of this version() is not supported; undefined: it is not known to share sessions. */
export function whyOneSession(product: string): string | undefined {
  return /PGlite/i.test(product)
    ? 'Lockstep needs a session for each connection, and PGlite gives all connections one: use PostgreSQL 14 or newer'
    : undefined
}

async function whyPgpool(probe: Probe): Promise<string | undefined> {
  try {
    await probe.query('show pool_version')
  } catch (error) {
    if (endsConnection(error)) throw error
    return undefined // the server has answered: it is another proxy, or a network that translates addresses
  }
  const wrong: string[] = []
  for (const [setting, needed] of Object.entries(PGPOOL)) {
    const value = Object.values((await probe.query(`pgpool show ${setting}`)).rows[0] ?? {})[0]
    if (value !== undefined && value !== needed) wrong.push(`${setting} = ${needed} (it is ${value})`)
  }
  return wrong.length === 0
    ? undefined
    : `Behind Pgpool-II Lockstep needs ${wrong.join(' and ')}: set it so, or connect to the primary directly`
}

const PGPOOL = {
  backend_clustering_mode: 'streaming_replication',
  load_balance_mode: 'off',
  memory_cache_enabled: 'off',
}
