/** What the processes of a world do: callers that take names in every way, use them, and give them back. */
import { sql, type Transaction } from 'kysely'
import { createLockstep, type Hold, type Lockstep } from '../../lib/index.ts'
import { candidate } from './candidates.ts'
import { pick, type Random } from './faults.ts'
import { type Ledger, Violation } from './ledger.ts'
import type { Process, World } from './scheduler.ts'

export interface Stage {
  world: World
  ledger: Ledger
  process: Process
  lockstep: Lockstep
  names: string[]
  /** Whether its callers are candidates of elections, too. */
  leads: boolean
  /** Whether callers begin nothing more. */
  over(): boolean
}

/** How a call may end that was not granted. */
const EXPECTED = new Set(['UNAVAILABLE', 'LEASE_HELD', 'LEASE_LOST', 'TRANSACTION_ENDED', 'FORBIDDEN'])
const SQLSTATE = /^[0-9A-Z]{5}$/

/** One caller. `doing` is told what it is doing, for a message. */
export async function caller(stage: Stage, random: Random, doing: (what: string) => void): Promise<void> {
  const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))
  const acts = [connection, connection, connection, lease, lease, attempt, transaction, sameHolder, look, force]
  if (stage.leads) acts.push(...candidate(stage, random))
  await sleep(random() * 200)
  while (!stage.over()) {
    const act = pick(random, acts)
    const name = pick(random, stage.names)
    doing(`${act.name} ${name}`)
    try {
      await act(name)
    } catch (error) {
      expected(error)
    }
    doing('rests')
    await sleep(random() * 300)
  }
  doing('has ended')

  function waits(): { waitMs?: number; signal?: AbortSignal } {
    const kind = random()
    if (kind < 0.6) return {}
    if (kind < 0.8) return { waitMs: Math.floor(random() * 4_000) }
    const controller = new AbortController()
    setTimeout(
      () => controller.abort(Object.assign(new Error('The caller has left'), { code: 'LEASE_HELD' })),
      random() * 3_000,
    )
    return { signal: controller.signal }
  }

  async function use(hold: Hold, ttlMs: number): Promise<void> {
    const entry = stage.ledger.granted(hold, stage.process, ttlMs)
    try {
      if (random() < 0.5) await sleep(random() * (random() < 0.2 ? 6_000 : 200))
      if (random() < 0.4) {
        await hold.transaction(async (trx) => {
          await write(trx, hold.name, hold.token)
        })
      }
    } catch (error) {
      expected(error)
    }
    try {
      await hold.release()
    } catch (error) {
      expected(error)
      if (random() < 0.5) await hold.release().catch(expected)
    } finally {
      entry.over = true
    }
  }

  /** Writes to the fenced table, and perhaps takes its time. */
  async function write(trx: Transaction<unknown>, name: string, token: bigint): Promise<void> {
    try {
      await sql`select simulated_effect(${name}, ${token})`.execute(trx)
    } catch (error) {
      throw new OwnStatement('the statement failed', { cause: error })
    }
    if (random() < 0.3) await sleep(random() * 500)
  }
  async function connection(name: string): Promise<void> {
    await use(await stage.lockstep.locks.acquire(name, waits()), 0)
  }
  async function lease(name: string): Promise<void> {
    const ttlMs = Math.floor(1_000 + random() * 4_000)
    await use(await stage.lockstep.locks.acquire(name, { ttlMs, ...waits() }), ttlMs)
  }
  async function attempt(name: string): Promise<void> {
    const hold = await stage.lockstep.locks.tryAcquire(name, random() < 0.5 ? { ttlMs: 1_000 } : {})
    if (hold) await use(hold, 1_000)
  }
  async function sameHolder(name: string): Promise<void> {
    const holder = `holder ${Math.floor(random() * 2)} of ${stage.process.name}`
    const ttlMs = random() < 0.5 ? 2_000 : undefined
    await use(await stage.lockstep.locks.acquire(name, { holder, ttlMs, ...waits() }), ttlMs ?? 0)
  }
  async function transaction(name: string): Promise<void> {
    await stage.lockstep.locks.transaction(name, waits(), async (trx, { token }) => {
      await write(trx, name, token)
    })
  }
  async function look(name: string): Promise<void> {
    await stage.lockstep.locks.get(name)
  }
  async function force(name: string): Promise<void> {
    if (random() < 0.3) await stage.lockstep.locks.forceRevoke(name)
  }
}

/** The error of a statement of the caller's own: the driver's. */
export class OwnStatement extends Error {}

/** @throws {Violation} unless it is documented that a call may end so. */
export function expected(error: unknown): void {
  if (error instanceof Violation) throw error
  if (error instanceof OwnStatement) return
  const { code } = (error ?? {}) as { code?: unknown }
  if (typeof code === 'string' && (EXPECTED.has(code) || SQLSTATE.test(code))) return
  throw new Violation(`An error that no document names: ${error instanceof Error ? error.stack : String(error)}`)
}

/** A Lockstep of a process. @param pooled  behind a transaction pooler. @param seed  the world: what is known of one is not known of another. */
export const open = (pooled: boolean, seed: number): Lockstep =>
  createLockstep({
    connectionString: `postgres://u:without@${pooled ? 'pooler' : 'server'}:5432/world${seed}`,
    // Told, or found out at the first connection.
    ...(pooled && seed % 2 === 0 && { directConnectionString: null }),
    maxWaiting: 2,
    max: 3,
  })
