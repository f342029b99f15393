/**
 * A process of Lockstep 0.6 (fixtures/lockstep-0.6.mjs) that runs commands. A command is one line, the JSON array `[id, verb,
 * …arguments]`; an answer is one line, `[id, value]` or `[id, null, { code, message }]`. For tests that migrate the database while it
 * runs (exclusive-migration.suite.ts).
 *
 * `contend` tries the names again and again, until `rest`. While it has a hold it keeps a row in the table `inside`: two at once are a
 * unique violation. The test's own process does the same, with the present code (`contend`, exported).
 */
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import type { Hold, Lockstep } from '../../lib/index.ts'

export const INSIDE = 'create table inside (name text primary key, "by" text not null)'

/** The outcomes of the attempts. */
export interface Contended {
  held: number
  refused: number
  unavailable: number
  /** Errors that must not occur. */
  wrong: string[]
}

/** Tries names by connection, lease and transaction until `over` aborts. */
export async function contend(lockstep: Lockstep, url: string, by: string, over: AbortSignal): Promise<Contended> {
  const done: Contended = { held: 0, refused: 0, unavailable: 0, wrong: [] }
  const pool = new pg.Pool({ connectionString: url, max: 2 })
  pool.on('error', () => {})
  const inside = async (name: string) => {
    done.held += 1
    await pool
      .query('insert into inside values ($1, $2)', [name, by])
      .catch((error) => done.wrong.push(`${by} holds ${name}: ${error.detail ?? error}`))
    await sleep(2)
    await pool.query('delete from inside where name = $1 and "by" = $2', [name, by])
  }
  const kept = async (name: string, held: Hold | null) => {
    if (held === null) done.refused += 1
    else {
      await inside(name)
      await held.release()
    }
  }
  const { locks } = lockstep
  const kinds = [
    async (name: string) => kept(name, await locks.tryAcquire(name)),
    async (name: string) => kept(name, await locks.tryAcquire(name, { ttlMs: 60_000 })),
    (name: string) => locks.transaction(name, { waitMs: 0 }, () => inside(name)),
    async (name: string) => kept(name, await locks.acquire(name, { waitMs: 200 })),
  ]
  const worker = async (n: number) => {
    for (let i = n; !over.aborted; i++) {
      try {
        await kinds[i % kinds.length]?.(`name ${Math.floor(Math.random() * 3)}`)
      } catch (error) {
        const { code } = error as { code?: string }
        if (code === 'LEASE_HELD') done.refused += 1
        else if (code === 'UNAVAILABLE') done.unavailable += 1
        else done.wrong.push(`${by}: ${error}`)
      }
      await sleep(1)
    }
  }
  await Promise.all([0, 1, 2, 3].map(worker))
  await pool.end()
  return done
}

if (process.argv[1] === import.meta.filename) await serve(process.argv[2] as string)

async function serve(connectionString: string): Promise<void> {
  // @ts-expect-error: a bundle; its types are those of lib/ at that version
  const { createLockstep, createEvents } = await import('../fixtures/lockstep-0.6.mjs')
  const lockstep: Lockstep = createLockstep({ connectionString, applicationName: 'older' })
  const events = createEvents(lockstep)
  const holds = new Map<string, Hold>()
  const lost: string[] = []
  const over = new AbortController()
  let contending: Promise<Contended> | undefined
  const keep = (name: string, held: Hold | null) => {
    if (held === null) return null
    holds.set(name, held)
    held.signal.addEventListener('abort', () => lost.push(name))
    return { token: String(held.token), kind: held.kind }
  }
  // biome-ignore lint/suspicious/noExplicitAny: what a line says
  const verbs: Record<string, (...args: any[]) => unknown> = {
    acquire: async (name, options) => keep(name, await lockstep.locks.acquire(name, options)),
    tryAcquire: async (name, options) => keep(name, await lockstep.locks.tryAcquire(name, options)),
    release: (name) => holds.get(name)?.release(),
    // Whether it writes to a fenced table or not, its row is registered.
    fence: (name) => holds.get(name)?.transaction(async () => {}),
    trusted: (name) => holds.get(name)?.isTrusted(),
    lost: () => lost,
    query: async (name) => (await lockstep.locks.query(name)).held,
    ready: () => lockstep.ready(),
    append: async (stream) => String((await events.append(stream, { type: 'x' })).last),
    lead: async (name, options) => String((await lockstep.leaders.campaign(name, options)).token),
    follow: (name, options) => void lockstep.leaders.campaign(name, options).catch(() => {}),
    contend: () => {
      contending = contend(lockstep, connectionString, 'older', over.signal)
    },
    rest: () => {
      over.abort()
      return contending
    },
  }
  console.log('ready')
  for await (const line of createInterface(process.stdin)) {
    const [id, verb, ...args] = JSON.parse(line)
    const say = (...answer: unknown[]) => console.log(JSON.stringify([id, ...answer]))
    Promise.resolve()
      .then(() => verbs[verb]?.(...args))
      .then(
        (value) => say(value ?? null),
        (error) => say(null, { code: error.code, message: error.message }),
      )
  }
  process.exit()
}
