/**
 * The verbs of the protocol as scripts, for interleave.ts: what a client of the lock room sends, statement by statement.
 *
 * A party is what a process is to the database: a session of its own, which may have K, and a connection of the pool for
 * transactions. A step is one statement, but for BEGIN, which takes nothing and so comes with the statement behind it. What
 * a step learns (a token, a refusal, a loss) decides whether the script goes on, as in lib/.
 *
 * What a party believes is written down only when the database has answered it: a grant or an effect inside a
 * transaction counts when the COMMIT was answered.
 */
import pg from 'pg'

export interface Hold {
  kind: 'lease' | 'connection' | 'transaction'
  token: bigint
  /** The backend that has K, if it is not a lease. */
  pid: number
  registered: boolean
}
export interface Grant {
  token: bigint
  /** When it was asked for and answered, on the clock of steps. */
  begun: number
  ended: number
}
/** A fenced write that was committed. */
export interface Effect {
  token: bigint
  committing: number
}
/** What happens with one name: its history, as its clients know it. */
export interface Case {
  name: string
  clock: number
  grants: Grant[]
  effects: Effect[]
}

export class Backend {
  readonly client: pg.Client
  pid = 0
  lost = false

  constructor(url: string) {
    this.client = new pg.Client({ connectionString: url })
    const lost = () => {
      this.lost = true
    }
    this.client.on('error', lost).on('end', lost)
  }

  static async open(url: string): Promise<Backend> {
    const backend = new Backend(url)
    await backend.client.connect()
    backend.pid = (await backend.ask('select pg_backend_pid() as pid')).pid
    return backend
  }

  // biome-ignore lint/suspicious/noExplicitAny: rows of any shape
  async ask(text: string, values: unknown[] = []): Promise<any> {
    const name = values.length > 0 ? prepared(text) : undefined
    return (await this.client.query({ ...(name && { name }), text, values })).rows[0]
  }
}
const names = new Map<string, string>()
function prepared(text: string): string {
  const name = names.get(text) ?? `verb_${names.size}`
  names.set(text, name)
  return name
}

export class Party {
  readonly holder: string
  session: Backend
  pool: Backend
  /** Whether its session has K. */
  gated = false
  holds: Hold[] = []
  inTransaction = false
  granted: Grant[] = []
  written: bigint[] = []
  case: Case = { name: '', clock: 0, grants: [], effects: [] }

  constructor(holder: string, session: Backend, pool: Backend) {
    this.holder = holder
    this.session = session
    this.pool = pool
  }

  get name() {
    return this.case.name
  }

  get hold(): Hold | undefined {
    return this.holds.at(-1)
  }

  /** Known at once, or when the transaction has committed. */
  has(kind: Hold['kind'], token: string | bigint, begun: number): void {
    const hold = { kind, token: BigInt(token), pid: this.session.pid, registered: false }
    if (kind === 'transaction') hold.pid = this.pool.pid
    const grant = { token: hold.token, begun, ended: ++this.case.clock }
    if (!this.inTransaction) this.case.grants.push(grant)
    else this.granted.push(grant)
    this.holds.push(hold)
  }

  async begin(): Promise<void> {
    if (this.inTransaction) return
    await this.pool.ask('begin')
    this.inTransaction = true
  }

  async commit(): Promise<void> {
    if (!this.inTransaction) return
    const committing = ++this.case.clock
    const { command } = await this.pool.client.query('commit')
    if (command === 'COMMIT') {
      this.case.grants.push(...this.granted)
      this.case.effects.push(...this.written.map((token) => ({ token, committing })))
    }
    this.ended(command === 'COMMIT')
  }

  async rollback(): Promise<void> {
    if (this.inTransaction && !this.pool.lost) await this.pool.ask('rollback')
    this.ended(false)
  }

  ended(committed: boolean): void {
    const undone = new Set(committed ? [] : this.granted.map(({ token }) => token))
    this.holds = this.holds.filter(({ kind, token }) => kind !== 'transaction' && !undone.has(token))
    this.granted = []
    this.written = []
    this.inTransaction = false
  }

  /** Gives up what it has, as a client does at the end. What is busy stays. */
  async finish(): Promise<void> {
    await this.rollback()
    for (const hold of this.holds.splice(0)) {
      if (hold.kind !== 'lease' && !hold.registered) continue
      const text = 'select busy from lockstep.revoke_leases(array[$1], array[$2::bigint])'
      if ((await this.pool.ask(text, [this.name, hold.token])).busy) this.holds.push(hold)
    }
    if (this.gated && !this.session.lost) {
      await this.session.ask('select pg_advisory_unlock(lockstep.key($1))', [this.name])
    }
    this.gated = false
  }
}

/** One statement; `over`: the script ends here. */
export type Step = (p: Party, other: Party) => Promise<unknown>
export const over = 'over'

const step = (pool: 'pool' | 'session', text: string, values: (p: Party) => unknown[]): Step => {
  return (p) => p[pool].ask(text, values(p))
}

const place = async (p: Party, text: string, values: unknown[]) => {
  const begun = ++p.case.clock
  const { token } = await p.session.ask(text, values)
  p.gated = true
  if (token !== null) p.has('connection', token, begun)
}
const tryIt: Step = async (p) => {
  const begun = ++p.case.clock
  const { token } = await p.session.ask('select lockstep.try($1, $2) as token', [p.name, p.session.pid])
  if (token === null) return over
  p.gated = true
  return p.has('connection', token, begun)
}
const turn: Step = async (p) => {
  const begun = ++p.case.clock
  p.holds = p.holds.filter(({ kind }) => kind === 'lease')
  const given = p.gated ? [p.name] : []
  p.gated = false
  const text = 'select * from lockstep.turn($1, $2, $3)'
  const { base, refused, tokens } = await p.session.ask(text, [given, [p.name], p.session.pid])
  if (refused?.length > 0) return over
  p.gated = true
  return p.has('connection', tokens?.[0] ?? base, begun)
}
const queue: Step = (p) => {
  const again = p.gated
  p.gated = false
  p.holds = p.holds.filter(({ kind }) => kind === 'lease')
  return place(p, 'select * from lockstep.queue($1, $2)', [p.name, again])
}
/** For a lease: K is to be asked for it, and is no hold. */
const queueForLease: Step = async (p) => {
  await p.session.ask('select * from lockstep.queue($1, $2)', [p.name, p.gated])
  p.gated = true
}
const take: Step = async (p) => {
  if (p.hold) return
  await place(p, 'select * from lockstep.take($1)', [p.name])
}
const grantOn = (where: 'pool' | 'session') => async (p: Party) => {
  const begun = ++p.case.clock
  const text = 'select base, granted from lockstep.grant_leases(array[$1], array[$2], array[60000], array[null::jsonb])'
  const { base, granted } = await p[where].ask(text, [p.name, p.holder])
  if (granted?.length > 0) p.has('lease', base, begun)
}
const grant: Step = async (p) => {
  await p.begin()
  await grantOn('pool')(p)
}
const unlock: Step = async (p) => {
  if (p.gated) await p.session.ask('select pg_advisory_unlock(lockstep.key($1))', [p.name])
  p.gated = false
}
const commit: Step = (p) => p.commit()

const register: Step = async (p) => {
  const { hold } = p
  if (hold?.kind !== 'connection' || hold.registered) return
  const text = 'select lockstep.register($1, $2, $3, null, $4)'
  await p.session.ask(text, [p.name, p.holder, hold.token, p.session.pid])
  hold.registered = true
}
const assert: Step = async (p) => {
  if (!p.hold) return over
  await p.begin()
  if (p.hold.kind !== 'transaction') await p.pool.ask('select lockstep.assert_held($1, $2)', [p.name, p.hold.token])
}
const writeTo = (table: 'effect' | 'fenced') => async (p: Party) => {
  if (!p.hold) return over
  await p.begin()
  const { kind, token } = p.hold
  if (table === 'fenced' && kind !== 'transaction') {
    await p.pool.ask(`select set_config('lockstep.fence', $1, true)`, [`${p.name}:${token}`])
  }
  await p.pool.ask(`insert into ${table} (name, token) values ($1, $2)`, [p.name, token])
  p.written.push(token)
}
const both: (...steps: Step[]) => Step =
  (...steps) =>
  async (p, other) => {
    for (const each of steps) if ((await each(p, other)) === over) return over
  }
const fenced = both(assert, writeTo('effect'))

const renew: Step = async (p) => {
  await p.begin()
  const text = 'select outcome from lockstep.renew_leases(array[$1], array[$2::bigint], array[60000])'
  await p.pool.ask(text, [p.name, p.hold?.token])
}
const revoke: Step = async (p) => {
  await p.begin()
  await p.pool.ask('select lockstep.revoke_leases(array[$1], array[$2::bigint])', [p.name, p.hold?.token])
}
const releaseHeld: Step = async (p) => {
  await p.pool.ask('select lockstep.release_held($1, $2)', [p.name, p.hold?.token])
}
const enter = (wait: number | null) => async (p: Party) => {
  await p.begin()
  const begun = ++p.case.clock
  const { gated, token } = await p.pool.ask('select * from lockstep.enter($1, $2)', [p.name, wait])
  if (gated && token !== null) p.has('transaction', token, begun)
}
const takeInside: Step = async (p) => {
  if (p.hold?.kind === 'transaction') return
  const begun = ++p.case.clock
  const { token } = await p.pool.ask('select * from lockstep.take($1)', [p.name])
  if (token !== null) p.has('transaction', token, begun)
}
const inside: Step = async (p) => (p.hold?.kind === 'transaction' ? writeTo('fenced')(p) : undefined)
const force: Step = async (p) => {
  await p.begin()
  await p.pool.ask('select lockstep.force($1)', [p.name])
}
const expire = step(
  'pool',
  `update lockstep.lease set expires_at = clock_timestamp() where name = $1 and expires_at < 'infinity'`,
  (p) => [p.name],
)
const kill = (which: 'session' | 'pool') => async (p: Party, other: Party) => {
  const { pid } = other[which]
  await p.pool.ask('select pg_terminate_backend($1)', [pid])
  while (await p.pool.ask('select from pg_stat_activity where pid = $1', [pid]));
}

/** What anybody may do. */
export const ACQUIRE: Record<string, Step[]> = {
  'try, connection': [tryIt, register, fenced, commit],
  'turn, connection': [turn, register, fenced, commit],
  'acquire, connection': [queue, take, register, fenced, commit],
  'try, lease': [grant, commit, fenced, commit],
  'acquire, lease': [queueForLease, grantOn('session'), unlock, fenced, commit],
  'transaction, at once': [enter(null), inside, commit],
  'transaction, in the queue': [enter(0), takeInside, inside, commit],
  'force, lease': [force, commit, grant, commit],
  'expiry, lease': [expire, grant, commit],
  'expiry, connection': [expire, tryIt],
  'death of its session, lease': [kill('session'), grant, commit],
  'death of its session, connection': [kill('session'), tryIt, register],
  'death of its transaction, lease': [kill('pool'), grant, commit],
}

/** What only a holder does, or one who was. */
export const HOLD: Record<string, Step[]> = {
  renew: [renew, commit],
  revoke: [revoke, commit, unlock],
  'fenced write': [register, assert, writeTo('effect'), commit],
  'write to a fenced table': [register, writeTo('fenced'), commit],
  'release inside': [register, fenced, releaseHeld, commit],
}

/** How a name may be when they begin: A has it, or had it, or somebody else, or nobody. */
export const STATES: Record<string, (a: Party, control: Backend) => Promise<unknown>> = {
  'never used': async () => {},
  free: (a, control) => insert(control, a, { holder: null }),
  "leased by A's holder": (a, control) => insert(control, a, { kind: 'lease' }),
  'leased by another': (a, control) => insert(control, a, { holder: 'another' }),
  "A's lease, expired": (a, control) => insert(control, a, { kind: 'lease', expires: '-1 s' }),
  "A's connection": (a) => tryIt(a, a),
  "A's connection, registered": (a) => both(tryIt, register)(a, a),
  "registered by A's connection, which is dead": async (a, control) => {
    const pid = a.session.pid
    await insert(control, a, { kind: 'connection', expires: 'infinity' })
    const [hold] = a.holds as [Hold]
    Object.assign(hold, { registered: true, pid: -pid })
  },
}

async function insert(
  control: Backend,
  a: Party,
  { holder = a.holder, kind, expires = '60 s' }: { holder?: string | null; kind?: Hold['kind']; expires?: string },
) {
  const { token } = await control.ask(
    `insert into lockstep.lease (name, holder, token, granted_at, expires_at, ttl_ms)
     values ($1, $2, nextval('lockstep.token'), clock_timestamp(),
             case $3 when 'infinity' then $3::timestamptz else clock_timestamp() + $3::interval end, 60000)
     returning token`,
    [a.name, holder, expires],
  )
  if (kind) a.has(kind, token, 0)
  else a.case.grants.push({ token: BigInt(token), begun: 0, ended: ++a.case.clock })
}
