/**
 * The two sides that one script runs on: a real database, and the simulated server. Both are asked by pg, so that what is compared is
 * what the code of lib/ would be given: columns, types, values, SQLSTATEs, notifications, the state of the transaction.
 *
 * After each step a side settles: every session has answered, or waits for a lock, or is gone. Then its rows and its locks are read.
 */
import pg from 'pg'
import { keyOf } from '../../../lib/database/lock-key.ts'
import { seeded } from '../../chaos/random.ts'
import type { FreshDatabase } from '../../support/database.ts'
import { until } from '../../support/until.ts'
import { Process, World } from '../scheduler.ts'
import type { Backend } from '../server/backend.ts'
import { type LeaseRow, Transaction } from '../server/rows.ts'
import { Server } from '../server/server.ts'
import { Socket } from '../socket.ts'
import { type Answered, answered, failed, Known, type Value } from './compared.ts'

const HOUR_MS = 3_600_000
const read = (json: string | null) => (json === null ? null : JSON.parse(json))

/** What a script does in one step. */
export type Step =
  | { session: number; text: string; values: Value[] }
  | { expire: string }
  | { cancel: number }
  | { terminate: number }
  | { end: number }

/** What is compared after a step. */
export interface State {
  answers: Answered[]
  /** Of each session: I, T or E, as ReadyForQuery says it; what it waits in; or that it has ended. */
  sessions: string[]
  rows: Record<string, unknown>[]
  candidates: Record<string, unknown>[]
  /** Of each name that somebody has or waits for: the session that has it, and those that wait, in their order. */
  locks: Record<string, { holder: number; waiting: number[] }>
}

/** A connection, seen from its client. */
export class Session {
  readonly client: pg.Client
  pending = false
  ended = false
  status = 'I'
  pid = 0
  readonly heard: string[] = []

  constructor(client: pg.Client) {
    this.client = client
    client.on('error', () => {})
    client.on('end', () => {
      this.ended = true
    })
    client.on('notification', ({ channel, payload }) => this.heard.push(`${channel} ${said(payload)}`))
    const { connection } = client as unknown as { connection: NodeJS.EventEmitter }
    connection.on('readyForQuery', ({ status }: { status: string }) => {
      this.status = status
    })
  }

  get shown(): string {
    return this.ended ? 'ended' : this.pending ? 'waits' : this.status
  }
}

/** A notification, without its tokens and instants. */
function said(payload = ''): string {
  if (payload === '') return ''
  const { name, deposed, leader, next } = JSON.parse(payload)
  return JSON.stringify([name, deposed, leader && [leader.holder, leader.ttlMs, leader.meta], next])
}

export abstract class Side {
  readonly names: string[]
  sessions: Session[] = []
  readonly known = new Known()
  protected answers: Answered[] = []

  constructor(names: string[]) {
    this.names = names
  }

  /** Opens a session in the place of one that has ended. */
  abstract open(at: number): Promise<void>
  /** @param expected  the state of the other side: a session that has ended there may end a moment later here. */
  abstract step(step: Step, expected?: State): Promise<State>
  abstract close(): Promise<void>

  /** Sends a statement; its answer is noted when it comes. */
  protected send(at: number, text: string, values: Value[]): void {
    const session = this.sessions[at] as Session
    session.pending = true
    const pids = this.sessions.map(({ pid }) => pid)
    session.client.query(text, this.known.resolved(values, pids)).then(
      (result) => this.#note(at, session, answered(at, result, this.known, pids)),
      (error) => this.#note(at, session, failed(at, error)),
    )
  }

  #note(at: number, session: Session, answer: Answered): void {
    session.pending = false
    const { xid, ...compared } = answer
    if (xid !== undefined) this.known.xids[at] = xid
    else if (session.status === 'I') delete this.known.xids[at]
    this.answers.push(compared)
  }

  protected seen(rows: Record<string, unknown>[], candidates: Record<string, unknown>[], locks: State['locks']): State {
    for (const row of [...rows, ...candidates]) {
      for (const name of ['token', 'revision', 'place']) if (name in row) row[name] = this.known.label(row[name])
    }
    const answers = this.answers.sort((a, b) => a.session - b.session)
    this.answers = []
    return { answers, sessions: this.sessions.map(({ shown }) => shown), rows, candidates, locks }
  }

  /** The transaction that a session is known to be in. */
  transactionOf(at: number): string | undefined {
    return this.known.xids[at]
  }

  /** The notifications that each session has been sent since it was opened. */
  heard(): string[][] {
    return this.sessions.map(({ heard, ended }) => (ended ? [] : [...heard].sort()))
  }
}

export class RealSide extends Side {
  readonly #database: FreshDatabase

  constructor(database: FreshDatabase, names: string[]) {
    super(names)
    this.#database = database
  }

  override async open(at: number): Promise<void> {
    const session = new Session(new pg.Client(this.#database.url))
    await session.client.connect()
    const { rows } = await session.client.query('select pg_backend_pid() as pid')
    session.pid = rows[0].pid
    this.sessions[at] = session
  }

  override async step(step: Step, expected?: State): Promise<State> {
    const { pool } = this.#database
    if ('text' in step) this.send(step.session, step.text, step.values)
    if ('expire' in step) {
      await pool.query(
        `update lockstep.lease set expires_at = clock_timestamp() - interval '1 ms' where name =
           (select name from lockstep.lease where name = $1 and holder is not null and expires_at < 'infinity' for update skip locked)`,
        [step.expire],
      )
    }
    if ('cancel' in step) await pool.query('select pg_cancel_backend($1)', [this.sessions[step.cancel]?.pid])
    if ('terminate' in step)
      await pool.query('select pg_terminate_backend($1, 10000)', [this.sessions[step.terminate]?.pid])
    if ('end' in step) await this.sessions[step.end]?.client.end()
    const cancelled = 'cancel' in step ? this.sessions[step.cancel] : undefined
    // A signal arrives when it does: if it never does, the comparison says so.
    let patience = 400
    const signalled = () => this.sessions.every(({ ended }, i) => ended || expected?.sessions[i] !== 'ended')
    await until('every session has answered, waits or is gone', async () => {
      return (await this.#settled(cancelled)) && (signalled() || patience-- === 0)
    })
    const locks = this.#locks()
    const { rows } = await pool.query(
      `select name, holder, token, ttl_ms, meta, witness, deposed, revision, over_at is not null as seen_over, case when holder is null then 'free' when expires_at = 'infinity' then 'connection'
          when expires_at > clock_timestamp() then 'live' else 'over' end as state from lockstep.lease order by name`,
    )
    const { rows: candidates } = await pool.query(
      `select name, holder, priority, place, meta, witness, expires_at = 'infinity' as stays from lockstep.candidate
        order by name, priority desc, place`,
    )
    const state = this.seen(rows, candidates, await locks)
    await pool.query(
      `update lockstep.lease set expires_at = clock_timestamp() - interval '1 hour'
        where holder is null and starts_with(name, 'leader') and expires_at > clock_timestamp() - interval '30 minutes'`,
    )
    return state
  }

  // Whoever gives up a lock gives it to the next before its own answer. So after an answer, a session that still waits will wait on.
  async #settled(cancelled: Session | undefined): Promise<boolean> {
    const { rows } = await this.#database.pool.query(
      `select pid, exists (select from pg_locks l where l.pid = a.pid and not l.granted) as waits
         from pg_stat_activity a where pid = any ($1)`,
      [this.sessions.map(({ pid }) => pid)],
    )
    await new Promise((resolve) => setImmediate(resolve))
    return this.sessions.every((session) => {
      const found = rows.find(({ pid }) => pid === session.pid)
      if (session.ended) return found === undefined
      return found !== undefined && (!session.pending || (found.waits && session !== cancelled))
    })
  }

  async #locks(): Promise<State['locks']> {
    const { rows } = await this.#database.pool.query(
      `select (classid::int8 << 32 | objid::int8)::text as key, pid, granted from pg_locks
        where locktype = 'advisory' and objsubid = 1 and database = (select oid from pg_database where datname = current_database())
        order by waitstart`,
    )
    const at = (pid: number) => this.sessions.findIndex((session) => session.pid === pid)
    const found: State['locks'] = {}
    for (const name of this.names) {
      const of = rows.filter(({ key }) => key === keyOf(name))
      const holder = of.find(({ granted }) => granted)
      const waiting = of.filter(({ granted }) => !granted).map(({ pid }) => at(pid))
      if (holder || waiting.length > 0) found[name] = { holder: holder ? at(holder.pid) : -1, waiting }
    }
    return found
  }

  override async close(): Promise<void> {
    const pids = this.sessions.map(({ pid }) => pid)
    await this.#database.pool.query('select pg_terminate_backend(pid, 10000) from unnest($1::integer[]) pid', [pids])
    await until('every session is gone', () => this.sessions.every(({ ended }) => ended))
    await this.#database.pool.query('truncate lockstep.lease, lockstep.candidate')
  }
}

export class TwinSide extends Side {
  readonly world = new World()
  readonly server: Server
  readonly backends: Backend[] = []
  readonly #process = new Process('script')

  constructor(names: string[]) {
    super(names)
    const faults = { fate: () => ({}), refusal: () => undefined, notification: () => [0.1] }
    this.server = new Server(this.world, seeded(1), faults)
  }

  override async open(at: number): Promise<void> {
    let backend: Backend | undefined
    const socket = () => {
      backend = this.server.open()
      return new Socket(this.world, backend, () => 0.1)
    }
    this.#do(() => {
      const session = new Session(new pg.Client('postgres://u@server:5432/d'))
      this.sessions[at] = session
      session.client.connect().catch((error) => this.world.fail(error))
    })
    await this.#run(socket)
    this.backends[at] = backend as unknown as Backend
    const session = this.sessions[at] as Session
    session.pid = this.backends[at]?.pid as number
  }

  override async step(step: Step): Promise<State> {
    this.#do(() => {
      if ('text' in step) this.send(step.session, step.text, step.values)
      if ('expire' in step)
        this.#set(step.expire, ({ holder, expiresAt }) => holder !== null && expiresAt < Infinity, -1)
      if ('cancel' in step) this.server.cancel(this.sessions[step.cancel]?.pid as number)
      if ('terminate' in step && !this.backends[step.terminate]?.ended)
        this.server.terminate(this.backends[step.terminate] as Backend)
      if ('end' in step) this.sessions[step.end]?.client.end()
    })
    await this.#run()
    const { leases, locks, now } = this.server
    const rows = leases.names.sort().map((name) => {
      const row = leases.get(name) as NonNullable<ReturnType<typeof leases.get>>
      const { holder, token, ttlMs, expiresAt, meta, witness = null, deposed = false, revision = null } = row
      const state = holder === null ? 'free' : expiresAt === Infinity ? 'connection' : expiresAt > now ? 'live' : 'over'
      const shown = { name, holder, token, ttl_ms: ttlMs, meta: read(meta), witness, deposed, revision, state }
      return { ...shown, seen_over: row.overAt != null }
    })
    const candidates = leases.names.sort().flatMap((of) =>
      this.server.candidates.of(of).map(({ name, holder, priority, place, meta, witness, expiresAt }) => ({
        ...{ name, holder, priority, place, meta: read(meta), witness, stays: expiresAt === Infinity },
      })),
    )
    const found: State['locks'] = {}
    for (const name of this.names) {
      const holder = locks.holder(keyOf(name))
      const waiting = locks.waiting(keyOf(name)).map((backend) => this.backends.indexOf(backend))
      if (holder || waiting.length > 0) found[name] = { holder: holder ? this.backends.indexOf(holder) : -1, waiting }
    }
    const state = this.seen(rows, candidates, found)
    for (const name of leases.names)
      if (name.startsWith('leader')) this.#set(name, (row) => row.holder === null, -HOUR_MS)
    return state
  }

  #do(what: () => void): void {
    this.world.after(0, what, this.#process)
  }

  // As a statement of another session would, if nobody has the row.
  #set(name: string, which: (row: LeaseRow) => boolean, ms: number): void {
    const { leases, now } = this.server
    const row = leases.get(name)
    const trx = new Transaction('1', this.backends[0] as Backend)
    if (!row || !which(row) || !leases.tryLock(name, 'no key update', trx)) return
    leases.write(name, { ...row, expiresAt: now + ms }, trx)
    leases.end(trx, true)
  }

  // Until nothing is planned any more: then each session has answered, or waits.
  async #run(socket: () => object = () => ({})): Promise<void> {
    await this.world.run(
      1,
      socket,
      () => false,
      () => {},
    )
  }

  override async close(): Promise<void> {}
}
