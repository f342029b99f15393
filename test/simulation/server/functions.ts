/**
 * Twins of the functions that carry the promises of locks (db/schema.sql). Each does what the SQL does, in its order. What is one statement
 * there is one step here: a lock that it takes on the way is taken at that place, and a wait is a `yield`. twin.test.ts compares them.
 */
import { SQLSTATE } from '../../../lib/base/index.ts'
import { keyOf } from '../../../lib/database/lock-key.ts'
import type { Backend } from './backend.ts'
import type { Blocked } from './locks.ts'
import { PgError } from './pg-error.ts'
import type { LeaseRow, Transaction } from './rows.ts'
import type { Server } from './server.ts'

export interface Session {
  server: Server
  backend: Backend
  trx: Transaction
}

const channel = (name: string): string => `lockstep_${keyOf(name)}`
const lost = (name: string, token: bigint) =>
  new PgError(
    SQLSTATE.leaseLost,
    `lockstep: '${name}' is not held under token ${token}`,
    JSON.stringify([{ name, token: String(token) }]),
  )

const live = (row: LeaseRow | undefined, now: number): row is LeaseRow =>
  row !== undefined && row.holder !== null && row.expiresAt > now && row.expiresAt < Infinity
const free = (row: LeaseRow, now: number): LeaseRow => ({ ...row, holder: null, expiresAt: now, meta: null })

export function checkBackend({ backend }: Session, pid: number): void {
  if (backend.pid !== pid)
    throw new PgError(SQLSTATE.wrongBackend, `lockstep: backend ${backend.pid} answers instead of ${pid}`)
}

export function take({ server, trx }: Session, name: string): { token: bigint | null; waitMs: number | null } {
  const { leases, now } = server
  const row = leases.get(name, trx)
  if (!row || row.holder === null) return { token: server.nextToken(), waitMs: null }
  if (live(row, now)) return { token: null, waitMs: 1 + row.expiresAt - now }
  if (!leases.tryLock(name, 'update', trx)) return { token: null, waitMs: 20 }
  leases.write(name, free(row, now), trx)
  return { token: server.nextToken(), waitMs: null }
}

export function tryKey(s: Session, name: string, key: string, pid: number): bigint | null {
  checkBackend(s, pid)
  const { server, backend, trx } = s
  if (!server.locks.try(backend, key, 'exclusive', 'session')) return null
  const row = server.leases.get(name, trx)
  if (!row || row.holder === null) return server.nextToken()
  const { token } = take(s, name)
  if (token === null) server.locks.unlock(backend, key)
  return token
}

export function turnKeys(s: Session, releases: string[], names: string[], keys: string[], pid: number) {
  checkBackend(s, pid)
  const { server, backend, trx } = s
  for (const key of releases) server.locks.unlock(backend, key)
  const gated = keys.map((key) => server.locks.try(backend, key, 'exclusive', 'session'))
  const refused = gated.flatMap((gained, i) => (gained ? [] : [i + 1]))
  const taken: number[] = []
  const tokens: bigint[] = []
  let base: bigint | null = null
  if (refused.length < names.length) {
    base = server.nextToken()
    for (const [i, name] of names.entries()) {
      const row = server.leases.get(name, trx)
      if (!gated[i] || !row || row.holder === null) continue
      const { token } = take(s, name)
      if (token !== null) {
        taken.push(i + 1)
        tokens.push(token)
        continue
      }
      server.locks.unlock(backend, keys[i] as string)
      refused.push(i + 1)
    }
  }
  return { base, refused, taken, tokens }
}

export function* queue(s: Session, name: string, again: boolean): Generator<Blocked, ReturnType<typeof take>> {
  const { server, backend } = s
  if (again) server.locks.unlock(backend, keyOf(name))
  yield* server.locks.lock(backend, keyOf(name), 'exclusive', 'session')
  return take(s, name)
}

export function* enter(s: Session, name: string, waits: boolean): Generator<Blocked, Entered> {
  const { server, backend } = s
  const key = keyOf(name)
  if (waits) yield* server.locks.lock(backend, key, 'exclusive', 'transaction')
  else if (!server.locks.try(backend, key, 'exclusive', 'transaction'))
    return { gated: false, token: null, waitMs: null, idleTimeout: null }
  const taken = take(s, name)
  if (taken.token !== null) return { gated: true, ...taken, idleTimeout: null }
  const { idleTimeout } = s.trx
  s.trx.idleTimeout = '15s'
  return { gated: true, ...taken, idleTimeout }
}
type Entered = { gated: boolean; idleTimeout: string | null } & ReturnType<typeof take>

export function register(
  s: Session,
  name: string,
  holder: string,
  token: bigint,
  meta: string | null,
  pid: number,
): void {
  checkBackend(s, pid)
  const { server, backend, trx } = s
  if (!server.locks.keysOf(backend).includes(keyOf(name))) throw lost(name, token)
  const row = server.leases.get(name, trx)
  const may = !row || row.token === token || (row.holder === null && row.token < token)
  if (!may) throw lost(name, token)
  server.leases.write(name, { holder, token, grantedAt: server.now, expiresAt: Infinity, ttlMs: null, meta }, trx)
}

export function keepOnly(s: Session, names: string[], others: string[], pid: number): number {
  checkBackend(s, pid)
  const kept = new Set([...others, ...names.map(keyOf)])
  const given = s.server.locks.keysOf(s.backend).filter((key) => !kept.has(key))
  return given.filter((key) => s.server.locks.unlock(s.backend, key)).length
}

export interface Ask {
  name: string
  holder: string
  ttlMs: number
  meta: string | null
}

export function grantLeases(s: Session, asks: Ask[]) {
  const { server, backend, trx } = s
  const { leases, now } = server
  const before = asks.map(({ name }) => leases.get(name, trx))
  const gated = asks.flatMap(({ name }, i) => {
    const row = before[i]
    const open = !row || row.holder === null || row.expiresAt <= now || row.expiresAt === Infinity
    return open && server.locks.try(backend, keyOf(name), 'exclusive', 'transaction') ? [i] : []
  })
  const mine = asks.flatMap(({ holder }, i) => (before[i]?.holder === holder ? [i] : []))
  const granted: number[] = []
  let base: bigint | null = null
  if (gated.length > 0) {
    for (const i of gated) {
      const { name } = asks[i] as Ask
      const row = before[i]
      if (row && row.holder !== null && !live(row, now)) take(s, name)
    }
    base = server.nextToken()
    for (const i of gated) {
      const { name, holder, ttlMs, meta } = asks[i] as Ask
      const row = leases.get(name, trx)
      if (row && row.holder !== null) continue
      if (!leases.tryLock(name, 'no key update', trx)) continue
      const token = base + 64n * BigInt(i)
      leases.write(name, { holder, token, grantedAt: now, expiresAt: now + ttlMs, ttlMs, meta }, trx)
      granted.push(i)
    }
  }
  const kept: { i: number; row: LeaseRow }[] = []
  for (const i of mine) {
    const { name, holder, ttlMs } = asks[i] as Ask
    const row = leases.get(name, trx)
    if (granted.includes(i) || !live(row, now) || row.holder !== holder) continue
    if (!leases.tryLock(name, 'no key update', trx)) continue
    const next = { ...row, expiresAt: Math.max(row.expiresAt, now + ttlMs), ttlMs }
    leases.write(name, next, trx)
    kept.push({ i, row: next })
  }
  const refused = asks.flatMap(({ name }, i) => {
    if (granted.includes(i) || kept.some((each) => each.i === i)) return []
    const row = leases.get(name, trx)
    return [{ i, ms: live(row, now) ? row.expiresAt - now : null }]
  })
  return { base, grantedAt: gated.length > 0 ? now : null, granted, kept, refused }
}

export function renewLeases(s: Session, asks: { name: string; token: bigint; ttlMs: number | null }[]) {
  const { leases, now } = s.server
  return asks.map(({ name, token, ttlMs }) => {
    const row = leases.get(name, s.trx)
    if (!row || row.token !== token) return { outcome: 'lost', row: undefined }
    if (live(row, now) && !row.deposed && leases.tryLock(name, 'no key update', s.trx)) {
      const ms = ttlMs ?? row.ttlMs ?? 0
      const next = { ...row, expiresAt: now + ms, ttlMs: ms, overAt: null }
      leases.write(name, next, s.trx)
      return { outcome: 'renewed', row: next }
    }
    if (row.holder !== null && row.deposed) return { outcome: 'deposed', row }
    return { outcome: row.holder !== null && row.expiresAt > now ? 'busy' : 'lost', row }
  })
}

export function revokeLeases(s: Session, asks: { name: string; token: bigint }[]) {
  const { server, backend, trx } = s
  const { leases, now } = server
  const revoked: number[] = []
  const late: number[] = []
  const freed = new Set<number>()
  for (const [i, { name, token }] of asks.entries()) {
    const row = leases.get(name, trx)
    if (!row || row.token !== token || row.holder === null || !leases.tryLock(name, 'update', trx)) continue
    ;(row.expiresAt > now ? revoked : late).push(i)
    freed.add(i)
    leases.write(name, free(row, now), trx)
    if (!server.locks.try(backend, keyOf(name), 'exclusive', 'transaction')) notify(trx, name)
  }
  const busy = asks.flatMap(({ name, token }, i) => {
    const row = leases.get(name, trx)
    return !freed.has(i) && row && row.token === token && row.holder !== null ? [i] : []
  })
  return { revoked, late, busy }
}

function notify(trx: Transaction, name: string): void {
  trx.notifies.set(channel(name), { channel: channel(name), payload: '' })
}

export function listen({ backend }: Session, name: string): string {
  backend.listensTo(channel(name))
  return channel(name)
}

export function* assertHeld(s: Session, name: string, token: bigint): Generator<Blocked, void> {
  const { leases } = s.server
  const held = () => {
    const row = leases.get(name, s.trx)
    return row && row.token === token && row.holder !== null && row.expiresAt > s.server.now && !row.deposed
  }
  if (held()) yield* leases.lock(name, 'key share', s.trx)
  if (!held()) throw lost(name, token)
}

export function* releaseHeld(s: Session, name: string, token: bigint): Generator<Blocked, void> {
  yield* assertHeld(s, name, token)
  yield* s.server.leases.lock(name, 'update', s.trx)
  const row = s.server.leases.get(name, s.trx) as LeaseRow
  s.server.leases.write(name, free(row, s.server.now), s.trx)
  notify(s.trx, name)
}

export function forceRevoke(s: Session, name: string): string {
  const { server, trx } = s
  const { leases, now } = server
  const row = leases.get(name, trx)
  const leased = live(row, now)
  if (row && row.holder !== null) {
    if (!leases.tryLock(name, 'update', trx)) return 'busy'
    leases.write(name, free(row, now), trx)
    server.forced.push({ name, at: server.world.now })
  }
  if (leased) {
    notify(trx, name)
    return 'forced'
  }
  const holder = server.locks.holder(keyOf(name))
  if (!holder) return 'none'
  server.terminate(holder)
  return 'forced'
}
