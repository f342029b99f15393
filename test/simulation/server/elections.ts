/** Twins of the functions of elections (db/schema.sql): the queue of candidates, and what a campaign answers. */
import type { Session } from './functions.ts'
import { assertHeld } from './functions.ts'
import type { Blocked } from './locks.ts'
import type { LeaseRow } from './rows.ts'

/** What a name of lockstep.lease begins with, if it is an election's. */
const PREFIX = 'leader\t'
/** For how long the candidates before have the first right to a free election. */
const GRACE_MS = 1_000
/** For how long a candidate without a connection waits unless it asks again. */
const ASKS_AGAIN_MS = 15_000
/** The channel on which elections are told: on a real server nobody can guess its name. */
export const SECRET_CHANNEL = 'lockstep_leader_secret'
const LAST = 9_223_372_036_854_775_807n

export interface Candidate {
  readonly name: string
  readonly holder: string
  readonly priority: number
  readonly place: bigint
  readonly since: number
  readonly meta: string | null
  readonly witness: string | null
  readonly expiresAt: number
}

/** The table lockstep.candidate. What a transaction has changed is undone if it does not commit. */
export class CandidateTable {
  readonly #rows = new Map<string, Candidate>()

  of(name: string): Candidate[] {
    const all = [...this.#rows.values()].filter((each) => each.name === name)
    return all.sort((a, b) => b.priority - a.priority || (a.place < b.place ? -1 : 1))
  }

  get(name: string, holder: string): Candidate | undefined {
    return this.#rows.get(`${name}\t${holder}`)
  }

  set(name: string, holder: string, row: Candidate | undefined, { trx }: Session): void {
    const key = `${name}\t${holder}`
    const before = this.#rows.get(key)
    trx.undo.push(() => (before ? this.#rows.set(key, before) : this.#rows.delete(key)))
    if (row) this.#rows.set(key, row)
    else this.#rows.delete(key)
  }

  /** The table is unlogged. */
  crash(): void {
    this.#rows.clear()
  }
}

const gone = ({ server, backend }: Session, witness: string): boolean =>
  server.locks.try(backend, witness, 'share', 'transaction')

const waits = (s: Session, { expiresAt, witness }: Candidate): boolean =>
  expiresAt > s.server.now && (witness === null || !gone(s, witness))

/** Of one candidate, in the JSON of a campaign. */
export interface Campaigner {
  name: string
  holder: string
  ttl_ms: number
  meta?: unknown
  priority: number
  failover: boolean
  waits: boolean
  place?: string
  witness?: string
  over?: string
}

export interface CampaignRow {
  i: number
  outcome: 'granted' | 'kept' | 'waiting'
  token: bigint | null
  grantedAt: number | null
  expiresAt: number | null
  place: bigint
  first: boolean | null
  waitMs: number | null
  leaderWitness: string | null
  over: bigint | null
  ttlMs: number | null
}

export function campaign(s: Session, asks: Campaigner[]): CampaignRow[] {
  const { server, trx } = s
  const { leases, candidates, now } = server
  const base = server.nextToken()
  const placed = asks.map((ask, k) => ({ ...ask, i: k + 1, place: BigInt(ask.place ?? base + BigInt(k + 1)) }))
  const json = (value: unknown) => (value === undefined || value === null ? null : JSON.stringify(value))
  for (const ask of placed) {
    if (!ask.waits) continue
    const old = candidates.get(ask.name, ask.holder)
    const place = old && old.place < ask.place ? old.place : ask.place
    const expiresAt = ask.witness === undefined ? now + ASKS_AGAIN_MS : Infinity
    const said = { priority: ask.priority, meta: json(ask.meta), witness: ask.witness ?? null }
    const row = { name: ask.name, holder: ask.holder, ...said, place, since: old?.since ?? now, expiresAt }
    candidates.set(ask.name, ask.holder, row, s)
  }
  const inOrder = placed
    .map((ask) => ({ ...ask, place: ask.waits ? ask.place : LAST }))
    .sort((a, b) => compare(a.name, b.name) || b.priority - a.priority || (a.place < b.place ? -1 : 1))
  // As in SQL, what an earlier candidate was told stays in these until it is set.
  let grantedAt: number | null = null
  let expiresAt: number | null = null
  let first: boolean | null = null
  let waitMs: number | null = null
  return inOrder.map((ask): CampaignRow => {
    const { name, holder, i, place } = ask
    let l = leases.get(name, trx)
    if (!l) {
      leases.tryLock(name, 'no key update', trx)
      const [from, until] = [now, now - GRACE_MS]
      leases.write(
        name,
        { ...VACANT, token: base, revision: base, grantedAt: from, expiresAt: until, ttlMs: null },
        trx,
      )
      l = leases.get(name, trx) as LeaseRow
    }
    if (l.holder !== null && l.witness != null && gone(s, l.witness) && leases.tryLock(name, 'update', trx)) {
      vacate(s, name)
      l = leases.get(name, trx) as LeaseRow
    }
    const { ttlMs } = l
    const leaderWitness = l.witness ?? null
    const answer = (outcome: CampaignRow['outcome'], token: bigint | null, over: bigint | null): CampaignRow => ({
      ...{ i, outcome, token, grantedAt, expiresAt, place, first, waitMs, leaderWitness, over, ttlMs },
    })
    const mine = l.holder === holder && l.expiresAt > now && !l.deposed
    const witness = ask.failover ? (ask.witness ?? null) : null
    if (mine && leases.tryLock(name, 'no key update', trx)) {
      grantedAt = l.grantedAt
      expiresAt = Math.max(l.expiresAt, now + ask.ttl_ms)
      leases.write(name, { ...l, expiresAt, ttlMs: ask.ttl_ms, witness }, trx)
      candidates.set(name, holder, undefined, s)
      return answer('kept', l.token, null)
    }
    first = !candidates.of(name).some((c) => {
      const before = c.priority > ask.priority || (c.priority === ask.priority && c.place < place)
      return c.holder !== holder && before && waits(s, c)
    })
    const expired = l.holder !== null && l.expiresAt <= now
    const overAt = l.overAt ?? null
    if (expired && overAt === null && leases.tryLock(name, 'no key update', trx)) {
      leases.write(name, { ...l, overAt: now }, trx)
    }
    const standsUntil = (overAt ?? now) + (l.ttlMs ?? 0)
    if (expired && ask.over !== String(l.token) && (overAt === null || now < standsUntil)) {
      waitMs = 1 + standsUntil - now
      return answer('waiting', null, l.token)
    }
    if (l.holder !== null && !expired) waitMs = 1 + l.expiresAt - now + (first ? 0 : GRACE_MS)
    else if (!first && l.expiresAt >= now - GRACE_MS && l.expiresAt <= now) waitMs = 1 + l.expiresAt + GRACE_MS - now
    else if (leases.tryLock(name, 'update', trx)) {
      const token = server.nextToken()
      grantedAt = now
      expiresAt = now + ask.ttl_ms
      const term = { holder, token, grantedAt, expiresAt, ttlMs: ask.ttl_ms, meta: json(ask.meta), witness }
      leases.write(name, { ...VACANT, ...term, revision: server.nextToken() }, trx)
      candidates.set(name, holder, undefined, s)
      tell(s, name)
      return answer('granted', token, null)
    } else waitMs = 100
    return answer('waiting', null, null)
  })
}

const VACANT = { holder: null, meta: null, witness: null, deposed: false, overAt: null }
const compare = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0)

function vacate(s: Session, name: string): void {
  const { server, trx } = s
  const row = server.leases.get(name, trx) as LeaseRow
  server.leases.write(name, { ...row, ...VACANT, expiresAt: server.now, revision: server.nextToken() }, trx)
  tell(s, name)
}

function tell(s: Session, election: string): void {
  const l = s.server.leases.get(election, s.trx)
  if (!l) return
  const next = s.server.candidates.of(election).find((each) => waits(s, each))?.holder ?? null
  const leader = l.holder !== null && {
    ...{ holder: l.holder, token: String(l.token), ttlMs: l.ttlMs, meta: l.meta === null ? null : JSON.parse(l.meta) },
    ...{ grantedAt: new Date(l.grantedAt).toISOString(), expiresAt: new Date(l.expiresAt).toISOString() },
  }
  const news = { name: election.slice(PREFIX.length), revision: text(l.revision), deposed: l.deposed ?? false }
  const payload = JSON.stringify({ ...news, leader: leader || null, next })
  s.trx.notifies.set(`leader ${payload}`, { channel: SECRET_CHANNEL, payload })
  s.trx.notifies.set('leader', { channel: 'lockstep_leader', payload: '' })
}
const text = (value: bigint | null | undefined) => (value == null ? null : String(value))

export function withdraw(s: Session, name: string, holder: string): void {
  if (!s.server.candidates.get(name, holder)) return
  s.server.candidates.set(name, holder, undefined, s)
  tell(s, name)
}

export const candidatesOf = (s: Session, name: string): Candidate[] =>
  s.server.candidates.of(name).filter((each) => waits(s, each))

/** The leaders of elections, and the revisions of their last changes. */
export function leaders(s: Session, names: string[]) {
  return names.map((name, k) => {
    const row = s.server.leases.get(name, s.trx)
    const led =
      row && row.holder !== null && row.expiresAt > s.server.now && (row.witness == null || !gone(s, row.witness))
    return { i: k + 1, revision: row?.revision ?? 0n, leader: led ? row : undefined }
  })
}

export function proclaim(s: Session, name: string, token: bigint, meta: string | null): string {
  const { server, trx } = s
  const row = server.leases.get(name, trx)
  const leads = row && row.token === token && row.holder !== null && !row.deposed && row.expiresAt > server.now
  if (!leads) return 'lost'
  if (!server.leases.tryLock(name, 'no key update', trx)) return 'busy'
  server.leases.write(name, { ...row, meta, revision: server.nextToken() }, trx)
  tell(s, name)
  return 'proclaimed'
}

export function stepDown(s: Session, name: string): string {
  const { server, trx } = s
  const row = server.leases.get(name, trx)
  if (!row || row.holder === null || row.expiresAt <= server.now) return 'none'
  if (!server.leases.tryLock(name, 'no key update', trx)) return 'busy'
  if (!row.deposed) {
    server.leases.write(name, { ...row, deposed: true }, trx)
    tell(s, name)
  }
  return 'asked'
}

export function resign(s: Session, asks: { name: string; token: bigint }[]) {
  const { server, trx } = s
  const found: Record<'revoked' | 'late' | 'busy', number[]> = { revoked: [], late: [], busy: [] }
  for (const [i, { name, token }] of asks.entries()) {
    const row = server.leases.get(name, trx)
    if (!row || row.token !== token || row.holder === null) continue
    if (!server.leases.tryLock(name, 'update', trx)) found.busy.push(i)
    else {
      found[row.expiresAt > server.now && !row.deposed ? 'revoked' : 'late'].push(i)
      vacate(s, name)
    }
  }
  return found
}

export function* resignHeld(s: Session, name: string, token: bigint): Generator<Blocked, void> {
  yield* assertHeld(s, name, token)
  yield* s.server.leases.lock(name, 'update', s.trx)
  vacate(s, name)
}
