/**
 * The verbs of the protocol as scripts, for orders.ts: what a client of the lock room sends, statement by statement.
 *
 * A party is what a process is to the database: a session of its own, which may have K, and a connection of the pool for
 * transactions. A step is one statement, but for BEGIN and for a write, which nobody can meet and so come with the statement
 * beside them. What a step learns (a token, a refusal, a loss) decides what comes next, as in lib/.
 *
 * What a party believes is written down only when the database has answered it: a lease or an effect inside a
 * transaction counts when the COMMIT was answered.
 */
import pg from 'pg'

export interface Hold {
  kind: 'lease' | 'connection' | 'transaction'
  token: bigint
  /** The backend that has K, if it is not a lease. */
  pid: number
  registered: boolean
  /** Its holder has given it up, or had lost it before they began. */
  over: boolean
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
  /** How often somebody got a hold, or had it confirmed by a COMMIT. */
  claims: number
  /** Somebody was robbed: a lease ran out, or was taken by force, or a connection died. */
  robbed: boolean
  /** Connections were ended. */
  deaths: boolean
}
export function newCase(name: string): Case {
  return { name, clock: 0, grants: [], effects: [], claims: 0, robbed: false, deaths: false }
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
  /** Whether its transaction has K, and no token yet. */
  mayTake = false
  inTransaction = false
  holds: Hold[] = []
  granted: Grant[] = []
  written: bigint[] = []
  case: Case = newCase('')
  /** When its last step began, or went on. */
  moved = 0

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

  has(kind: Hold['kind'], token: string | bigint, begun: number): Hold {
    const pid = kind === 'transaction' ? this.pool.pid : this.session.pid
    const hold = { kind, token: BigInt(token), pid, registered: false, over: false }
    const grant = { token: hold.token, begun, ended: ++this.case.clock }
    // others learn of a lease when it is committed; K keeps them out from the moment it is had
    if (kind === 'lease' && this.inTransaction) this.granted.push(grant)
    else this.case.grants.push(grant)
    this.holds.push(hold)
    this.case.claims++
    return hold
  }

  async begin(): Promise<void> {
    if (this.inTransaction) return
    await this.pool.ask('begin')
    this.inTransaction = true
  }

  async commit(): Promise<void> {
    const { command } = await this.pool.client.query('commit')
    if (command === 'COMMIT') {
      const ended = ++this.case.clock
      this.case.grants.push(...this.granted.map((grant) => ({ ...grant, ended })))
      this.case.effects.push(...this.written.map((token) => ({ token, committing: this.moved })))
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
    if (committed && this.granted.length > 0) this.case.claims++
    this.granted = []
    this.written = []
    this.mayTake = false
    this.inTransaction = false
  }

  /** Gives up what it has, so that a waiting party can go on. What is busy stays. */
  async finish(): Promise<void> {
    await this.rollback()
    for (const hold of this.holds.splice(0)) {
      if (hold.kind !== 'lease' && !hold.registered) continue
      const text = 'select busy from lockstep.revoke_leases(array[$1], array[$2::bigint])'
      if ((await this.pool.ask(text, [this.name, hold.token])).busy) this.holds.push(hold)
    }
    await this.leave()
  }

  /** Goes on to another name: this one is asked for nothing any more. */
  async leave(): Promise<void> {
    if (this.gated && !this.session.lost) await this.session.ask('select pg_advisory_unlock_all()')
    this.gated = false
  }

  forgetConnection(): void {
    this.gated = false
    this.holds = this.holds.filter(({ kind }) => kind === 'lease')
  }
}

/** One statement. */
export interface Step {
  name: string
  /** Where it is sent. */
  on: 'session' | 'pool'
  /** Whether it is sent at all, after what was learnt before. */
  when?: (p: Party) => boolean
  run(p: Party, other: Party): Promise<unknown>
}
export type Script = Step[]

// ---- Acquiring ---------------------------------------------------------------------------------------------------

const tryIt: Step = {
  name: 'try',
  on: 'session',
  when: (p) => !p.gated, // session locks are re-entrant: a process knows what it has
  async run(p) {
    const begun = ++p.case.clock
    const { token } = await p.session.ask('select lockstep.try($1, $2) as token', [p.name, p.session.pid])
    p.gated = token !== null
    if (p.gated) p.has('connection', token, begun)
  },
}
const turn: Step = {
  name: 'turn',
  on: 'session',
  async run(p) {
    const begun = ++p.case.clock
    const given = p.gated ? [p.name] : []
    p.forgetConnection()
    const text = 'select * from lockstep.turn($1, $2, $3)'
    const { base, refused, tokens } = await p.session.ask(text, [given, [p.name], p.session.pid])
    p.gated = !(refused?.length > 0)
    if (p.gated) p.has('connection', tokens?.[0] ?? base, begun)
  },
}
/** For a lease, the place at the front of the queue is no hold. */
const queueFor = (kind: 'connection' | 'lease'): Step => ({
  name: 'queue',
  on: 'session',
  async run(p) {
    const begun = ++p.case.clock
    const again = p.gated
    p.forgetConnection()
    const { token } = await p.session.ask('select * from lockstep.queue($1, $2)', [p.name, again])
    p.gated = true
    if (token !== null && kind === 'connection') p.has(kind, token, begun)
  },
})
const take: Step = {
  name: 'take',
  on: 'session',
  when: (p) => p.gated && p.hold?.kind !== 'connection',
  async run(p) {
    const begun = ++p.case.clock
    const { token } = await p.session.ask('select * from lockstep.take($1)', [p.name])
    if (token !== null) p.has('connection', token, begun)
  },
}
const register: Step = {
  name: 'register',
  on: 'session',
  when: (p) => p.hold?.kind === 'connection' && !p.hold.registered,
  async run(p) {
    const hold = p.hold as Hold
    const text = 'select lockstep.register($1, $2, $3, null, $4)'
    await p.session.ask(text, [p.name, p.holder, hold.token, p.session.pid])
    hold.registered = true
  },
}
const grantOn = (on: Step['on'], begin = false): Step => ({
  name: 'grant',
  on,
  when: (p) => on === 'pool' || p.gated,
  async run(p) {
    if (begin) await p.begin()
    const begun = ++p.case.clock
    const text =
      'select base, granted from lockstep.grant_leases(array[$1], array[$2], array[60000], array[null::jsonb])'
    const { base, granted } = await p[on].ask(text, [p.name, p.holder])
    if (granted?.length > 0) p.has('lease', base, begun)
  },
})
/** As the library sends it, its own COMMIT in it; and apart from it, so that others come between. */
const grant = grantOn('pool')
const grantOpen = grantOn('pool', true)
export const commit: Step = { name: 'commit', on: 'pool', when: (p) => p.inTransaction, run: (p) => p.commit() }
const unlock: Step = {
  name: 'unlock',
  on: 'session',
  when: (p) => p.gated,
  async run(p) {
    await p.session.ask('select pg_advisory_unlock(lockstep.key($1))', [p.name])
    p.forgetConnection()
  },
}
const enter = (wait: number | null): Step => ({
  name: wait === null ? 'enter' : 'enter in the queue',
  on: 'pool',
  when: (p) => !p.gated, // or it would wait for itself
  async run(p) {
    await p.begin()
    const begun = ++p.case.clock
    const { gated, token } = await p.pool.ask('select * from lockstep.enter($1, $2)', [p.name, wait])
    p.mayTake = gated && token === null
    if (gated && token !== null) await entered(p, token, begun)
  },
})
const enterAgain: Step = {
  name: 'enter again',
  on: 'pool',
  when: (p) => p.mayTake,
  async run(p) {
    const begun = ++p.case.clock
    const { token } = await p.pool.ask('select * from lockstep.enter($1, null)', [p.name])
    if (token !== null) await entered(p, token, begun)
  },
}
async function entered(p: Party, token: string, begun: number) {
  p.has('transaction', token, begun)
  await write(p)
}

// ---- Holding -----------------------------------------------------------------------------------------------------

/** To a fenced table. What is written elsewhere is seen by nobody here: that it was committed is all we need to know. */
async function write(p: Party) {
  const { token } = p.hold as Hold
  await p.pool.ask('insert into fenced (name, token) values ($1, $2)', [p.name, token])
  p.written.push(token)
}
const assert: Step = {
  name: 'assert',
  on: 'pool',
  when: (p) => p.hold !== undefined,
  async run(p) {
    await p.begin()
    const { token } = p.hold as Hold
    await p.pool.ask('select lockstep.assert_held($1, $2)', [p.name, token])
    p.written.push(token)
  },
}
const writeFenced: Step = {
  name: 'write',
  on: 'pool',
  async run(p) {
    await p.begin()
    await p.pool.ask(`select set_config('lockstep.fence', $1, true)`, [`${p.name}:${p.hold?.token}`])
    await write(p)
  },
}
const renew: Step = {
  name: 'renew',
  on: 'pool',
  async run(p) {
    await p.begin()
    const text = 'select outcome from lockstep.renew_leases(array[$1], array[$2::bigint], array[60000])'
    await p.pool.ask(text, [p.name, p.hold?.token])
  },
}
const revoke: Step = {
  name: 'revoke',
  on: 'pool',
  async run(p) {
    await p.begin()
    await revokeHold(p, p)
  },
}
/** Two connections of one process: one releases what the other still writes under. */
const revokeOther: Step = { name: `revoke the other's`, on: 'pool', run: revokeHold }
async function revokeHold(p: Party, { hold }: Party) {
  await p.pool.ask('select lockstep.revoke_leases(array[$1], array[$2::bigint])', [p.name, hold?.token ?? 0])
  if (hold) hold.over = true
}
const releaseHeld: Step = {
  name: 'release',
  on: 'pool',
  async run(p) {
    await p.begin()
    const hold = p.hold as Hold
    await p.pool.ask('select lockstep.release_held($1, $2)', [p.name, hold.token])
    p.written.push(hold.token)
    hold.over = true
  },
}

// ---- Against somebody's will -------------------------------------------------------------------------------------

const force: Step = {
  name: 'force',
  on: 'pool',
  async run(p, other) {
    const mayDie = () => [p, other].some(({ gated, inTransaction }) => gated || inTransaction)
    p.case.robbed = true
    p.case.deaths ||= mayDie()
    await p.pool.ask('select lockstep.force_revoke($1)', [p.name])
    p.case.deaths ||= mayDie()
  },
}
/** The ttl is over: as if time had passed. */
const expire: Step = {
  name: 'expire',
  on: 'pool',
  async run(p) {
    p.case.robbed = true
    const text = `update lockstep.lease set expires_at = clock_timestamp() where name = $1 and expires_at < 'infinity'`
    await p.pool.ask(text, [p.name])
  },
}
/** Of all names that nobody holds: therefore each lane has a database of its own. */
const sweep: Step = {
  name: 'sweep',
  on: 'pool',
  async run(p) {
    await p.begin()
    await p.pool.ask(`select lockstep.sweep('0', 1000000)`)
  },
}
const kill = (which: Step['on']): Step => ({
  name: `kill the other's ${which}`,
  on: 'pool',
  async run(p, other) {
    p.case.robbed = true
    p.case.deaths = true
    const { pid } = other[which]
    await p.pool.ask('select pg_terminate_backend($1)', [pid])
    while (await p.pool.ask('select from pg_stat_activity where pid = $1', [pid]));
  },
})
function together(first: Step, second: Step): Step {
  const run = async (p: Party, other: Party) => {
    await first.run(p, other)
    await second.run(p, other)
  }
  return { ...first, name: `${first.name} and ${second.name}`, run }
}

// ---- The verbs of each party -----------------------------------------------------------------------------------------------

/** What anybody may do. */
export const ACQUIRE: Record<string, Script> = {
  'try, connection': [tryIt, register],
  'turn, connection': [turn, register],
  'acquire, connection': [queueFor('connection'), take, register],
  'try, lease': [grantOpen, commit],
  'acquire, lease': [queueFor('lease'), grantOn('session'), unlock],
  'transaction, at once': [enter(null), enterAgain, commit],
  'transaction, in the queue': [enter(0), enterAgain, commit],
  'force, lease': [force, grant],
  'expiry, lease': [expire, grant],
  'expiry, connection': [expire, tryIt],
  'release of the other, lease': [revokeOther, grant],
  sweep: [sweep, commit],
  'death of its session, lease': [kill('session'), grant],
  'death of its session, connection': [kill('session'), tryIt],
  'death of its transaction, lease': [together(kill('pool'), grant)], // the dead does nothing between the two
}

/** What a holder asks for anew: its lease, since the answer was lost; its connection's place, for another of its process. */
export const AGAIN = ['try, lease', 'turn, connection', 'acquire, connection']

/** The verbs of a holder, or of a former holder. */
export const HOLD: Record<string, Script> = {
  renew: [renew, commit],
  revoke: [revoke, commit, unlock],
  'fenced write': [register, assert, commit],
  'write to a fenced table': [register, writeFenced, commit],
  'release inside': [register, releaseHeld, commit],
}

/** The next verb of a party that has got the name. */
export const THEN: Script = [assert, commit]

interface State {
  /** A's relation to the name: its holder, a former holder that may not know it, or a stranger. */
  a: 'holder' | 'stranger'
  make(a: Party, control: Backend): Promise<unknown>
}
/** How a name may be when they begin. */
export const STATES: Record<string, State> = {
  'never used': { a: 'stranger', make: async () => {} },
  free: { a: 'stranger', make: (a, control) => insert(control, a, { holder: null, expires: '0 s' }) },
  'leased by another': { a: 'stranger', make: (a, control) => insert(control, a, { holder: 'another' }) },
  'registered by a connection that is dead': {
    a: 'stranger',
    make: (a, control) => insert(control, a, { holder: 'another', expires: 'infinity' }),
  },
  "A's lease": { a: 'holder', make: (a, control) => insert(control, a, { kind: 'lease' }) },
  "A's lease, expired": {
    a: 'holder',
    make: (a, control) => insert(control, a, { kind: 'lease', expires: '-1 s', over: true }),
  },
  "A's connection": { a: 'holder', make: (a) => tryIt.run(a, a) },
  "A's connection, registered": {
    a: 'holder',
    async make(a) {
      await tryIt.run(a, a)
      await register.run(a, a)
    },
  },
  "registered by A's connection, which is dead": {
    a: 'holder',
    make: (a, control) =>
      insert(control, a, { kind: 'connection', expires: 'infinity', pid: 0, registered: true, over: true }),
  },
}

async function insert(
  control: Backend,
  a: Party,
  { holder = a.holder, kind, expires = '60 s', ...rest }: Partial<Hold> & { holder?: string | null; expires?: string },
) {
  const { token } = await control.ask(
    `insert into lockstep.lease (name, holder, token, granted_at, expires_at, ttl_ms)
     values ($1, $2, nextval('lockstep.token'), clock_timestamp(),
             case $3 when 'infinity' then $3::timestamptz else clock_timestamp() + $3::interval end, 60000)
     returning token`,
    [a.name, holder, expires],
  )
  if (kind) Object.assign(a.has(kind, token, 0), rest)
  else a.case.grants.push({ token: BigInt(token), begun: 0, ended: ++a.case.clock })
}
