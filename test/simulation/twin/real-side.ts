/** The side of a real database: what side.ts says of it. */
import pg from 'pg'
import { keyOf } from '../../../lib/database/lock-key.ts'
import type { FreshDatabase } from '../../support/database.ts'
import { until } from '../../support/until.ts'
import { Session, Side, type State, type Step } from './side.ts'

export class RealSide extends Side {
  readonly #database: FreshDatabase

  constructor(database: FreshDatabase, names: string[]) {
    super(names)
    this.#database = database
  }

  override async open(at: number): Promise<void> {
    const client = new pg.Client(this.#database.url)
    await client.connect()
    const { rows } = await client.query(`select pg_backend_pid() as pid, lockstep.secret_channel('leader') as secret`)
    const session = new Session(client, rows[0].secret)
    session.pid = rows[0].pid
    this.secret = rows[0].secret
    this.sessions[at] = session
  }

  override async step(step: Step, expected?: State): Promise<State> {
    const { pool } = this.#database
    if ('text' in step) this.send(step.session, step.text, step.values)
    if ('expire' in step) {
      await pool.query(
        `update lockstep.lease set expires_at = clock_timestamp() - interval '1 ms' where name =
           (select name from lockstep.lease where name = $1 and holder is not null and expires_at < 'infinity' for no key update skip locked)`,
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
      if (!session.pending) return found !== undefined && session.ready === session.sent
      return found?.waits === true && session !== cancelled
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
