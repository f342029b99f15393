/**
 * Faults in statements: whichever statement fails, and in whatever way, no name is granted twice and nothing stays behind.
 *
 * Each verb runs over a wire (support/faulty-wire.ts) on which its first statement fails, then its second, and so on, in each of the ways in
 * which a statement can fail. The verb may succeed or fail; in both cases:
 * - every call settles;
 * - a hold that is trusted is held in the database, and the signal of a hold that is not held any more has aborted;
 * - when all holds are released nothing is locked any more, and another process is granted the name;
 * - the token of an earlier hold fences nothing then;
 * - the same Lockstep goes on working, and leaves nothing behind on the server when it is closed;
 * - when all are over, this process has the timers, handles and heap that it had before.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { SQLSTATE } from '../../lib/base/errors.ts'
import { createLockstep, type Hold, type Lockstep, type Term } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { FAULTS, type Fault, type Wire, wire } from '../support/faulty-wire.ts'
import { leftInProcess, leftOnServer, ofProcess, type ProcessResources } from '../support/resources.ts'
import { until } from '../support/until.ts'
import { SETTLES_MS, settles } from './settles.ts'

let db: FreshDatabase
/** Another process, on a separate wire without faults. */
let b: Lockstep
/** Of this process. */
let before: ProcessResources
beforeAll(async () => {
  before = await ofProcess()
  db = await freshDatabase()
  b = createLockstep({ connectionString: db.url })
})
afterAll(async () => {
  await b?.close()
  await db?.close()
  expect(await leftInProcess(before)).toEqual([])
})

/** The SQLSTATEs of a server without memory, disk or time, or with an internal error. */
const STATES = ['53200', '57014', '40001', 'XX000', '53100', '40P01', '55P03', '25P02']
const TTL_MS = 1_500

/** The tools of a scenario. */
interface Stage {
  a: Lockstep
  /** A name that only this run uses. */
  name(label: string): string
  /** Remembers a hold, to check it afterwards. */
  keep<H extends Hold | Term | null>(hold: H): H
  /** The scenario releases this hold: it is not released again, as after `await using`. */
  letGo<H extends Hold | Term>(hold: H): H
  /** A transaction releases this hold, if it commits. */
  letGoWithin<H extends Hold | Term>(hold: H): H
  /** Runs when the faults are over, whatever the outcome was. */
  later(cleanUp: () => unknown): void
}
/** What a scenario does before the faults begin, and what it does during them. */
type Scenario = (stage: Stage) => Promise<() => Promise<unknown>>

const many = (count: number) => Array.from({ length: count }, (_, i) => String(i))

const SCENARIOS: Record<string, Scenario> = {
  'the first try of a process': async ({ a, name, keep }) => {
    return async () => keep(await a.locks.tryAcquire(name('x')))
  },
  'a try': async ({ a, name, keep }) => {
    await (await a.locks.acquire(name('warm'))).release()
    return async () => keep(await a.locks.tryAcquire(name('x')))
  },
  'a release': async ({ a, name, keep, letGo }) => {
    const held = keep(await a.locks.acquire(name('x')))
    return () => letGo(held).release()
  },
  'tries at once, two turns of them under way': async ({ a, name, keep }) => {
    await (await a.locks.acquire(name('warm'))).release()
    return () => Promise.allSettled(many(70).map(async (n) => keep(await a.locks.tryAcquire(name(n)))))
  },
  'releases and tries at once, two turns of them under way': async ({ a, name, keep, letGo }) => {
    const held = await Promise.all(many(40).map((n) => a.locks.acquire(name(`held ${n}`))))
    for (const each of held) letGo(keep(each))
    return () =>
      Promise.allSettled([
        ...held.map((each) => each.release()),
        ...many(40).map(async (n) => keep(await a.locks.tryAcquire(name(n)))),
      ])
  },
  'releases, and behind them tries of the same names by others': async ({ a, name, keep, letGo }) => {
    const held = await Promise.all(many(20).map((n) => a.locks.acquire(name(n))))
    for (const each of held) letGo(keep(each))
    return () =>
      Promise.allSettled([
        ...held.map((each) => each.release()),
        ...many(20).map(async (n) => {
          await new Promise((resolve) => setImmediate(resolve)) // the releases are under way
          keep(await a.locks.tryAcquire(name(n)))
        }),
      ])
  },
  'contenders of one process, one after the other': async ({ a, name, keep, letGo }) => {
    await (await a.locks.acquire(name('warm'))).release()
    return () =>
      Promise.allSettled(
        many(6).map(async () => {
          const held = keep(await a.locks.acquire(name('x'), { waitMs: 3_000 }))
          await letGo(held).release()
        }),
      )
  },
  'contenders that fence their writes, one after the other': async ({ a, name, keep, letGo }) => {
    await (await a.locks.acquire(name('warm'))).release()
    return () =>
      Promise.allSettled(
        many(4).map(async () => {
          await using held = letGo(keep(await a.locks.acquire(name('x'), { waitMs: 3_000 })))
          await held.transaction(async () => {})
        }),
      )
  },
  'a fenced transaction of a connection hold': async ({ a, name, keep }) => {
    const held = keep(await a.locks.acquire(name('x')))
    return () => held.transaction(async () => {})
  },
  'a release after a fenced transaction': async ({ a, name, keep, letGo }) => {
    const held = keep(await a.locks.acquire(name('x')))
    await held.transaction(async () => {})
    return () => letGo(held).release()
  },
  'a release inside a transaction': async ({ a, name, keep, letGoWithin }) => {
    const held = keep(await a.locks.acquire(name('x')))
    return () => a.kysely.transaction().execute((trx) => letGoWithin(held).release({ trx }))
  },
  'an assertion in a transaction of the user': async ({ a, name, keep }) => {
    const held = keep(await a.locks.acquire(name('x')))
    const term = keep(await a.leaders.campaign(name('y'), { ttlMs: TTL_MS }))
    return () =>
      a.kysely.transaction().execute(async (trx) => {
        await held.assertHeld(trx)
        await term.assertHeld(trx)
      })
  },
  'a grant of a lease': async ({ a, name, keep }) => {
    return async () => keep(await a.locks.acquire(name('x'), { ttlMs: TTL_MS }))
  },
  'grants of leases at once': async ({ a, name, keep }) => {
    return () =>
      Promise.allSettled(many(70).map(async (n) => keep(await a.locks.tryAcquire(name(n), { ttlMs: TTL_MS }))))
  },
  'a renewal': async ({ a, name, keep }) => {
    const held = keep(await a.locks.acquire(name('x'), { ttlMs: TTL_MS }))
    return async () => {
      await new Promise((resolve) => setTimeout(resolve, TTL_MS * 0.6))
      return held
    }
  },
  'a release of a lease': async ({ a, name, keep, letGo }) => {
    const held = keep(await a.locks.acquire(name('x'), { ttlMs: TTL_MS }))
    return () => letGo(held).release()
  },
  'a fenced transaction of a lease, and its release': async ({ a, name, keep, letGo }) => {
    const held = keep(await a.locks.acquire(name('x'), { ttlMs: TTL_MS }))
    return () => Promise.allSettled([held.transaction(async () => {}), letGo(held).release()])
  },
  'a wait for another process': async ({ a, name, keep }) => {
    const other = await b.locks.acquire(name('x'))
    const waits = async () => keep(await a.locks.acquire(name('x'), { waitMs: 4_000 }))
    return async () => {
      const waiting = waits()
      waiting.catch(() => {})
      await Promise.race([until('the wait', async () => (await b.locks.query(name('x'))).waiting > 0), waiting]).catch(
        () => {},
      )
      await other.release()
      return waiting
    }
  },
  'a wait of several kinds for another process': async ({ a, name, keep, letGo }) => {
    const other = await b.locks.acquire(name('x'))
    return async () => {
      const waiting = Promise.allSettled([
        a.locks.acquire(name('x'), { waitMs: 4_000 }).then(async (held) => letGo(keep(held)).release()),
        a.locks.acquire(name('x'), { waitMs: 4_000, ttlMs: TTL_MS }).then(async (held) => letGo(keep(held)).release()),
        a.locks.transaction(name('x'), { waitMs: 4_000 }, async () => {}),
        a.locks.acquire(name('x'), { waitMs: 4_000 }).then(async (held) => letGo(keep(held)).release()),
      ])
      await new Promise((resolve) => setTimeout(resolve, 100))
      await other.release()
      return waiting
    }
  },
  'a wait for a lease of another process': async ({ a, name, keep }) => {
    const other = await b.locks.acquire(name('x'), { ttlMs: 60_000 })
    return async () => {
      const waiting = a.locks.acquire(name('x'), { waitMs: 4_000 }).then(keep)
      waiting.catch(() => {})
      await new Promise((resolve) => setTimeout(resolve, 100))
      await other.release()
      return waiting
    }
  },
  'a wait that runs out': async ({ a, name, keep, later }) => {
    const other = await b.locks.acquire(name('x'))
    later(() => other.release())
    return async () => keep(await a.locks.acquire(name('x'), { waitMs: 100 }))
  },
  'a transaction under a lock': async ({ a, name }) => {
    return () => a.locks.transaction(name('x'), { waitMs: 2_000 }, async () => {})
  },
  'a holder forced out': async ({ a, name, later }) => {
    const other = await b.locks.acquire(name('x'), { ttlMs: 60_000 })
    later(() => other.release().catch(() => {}))
    return () => a.locks.forceRevoke(name('x'))
  },
  'a campaign': async ({ a, name, keep }) => {
    return async () => keep(await a.leaders.campaign(name('x'), { ttlMs: TTL_MS, waitMs: 4_000 }))
  },
  'a campaign for a term that ends with its connection': async ({ a, name, keep }) => {
    return async () =>
      keep(await a.leaders.campaign(name('x'), { ttlMs: TTL_MS, waitMs: 4_000, failover: 'connection' }))
  },
  'a campaign against another process': async ({ a, name, keep }) => {
    const other = await b.leaders.campaign(name('x'), { ttlMs: TTL_MS })
    return async () => {
      const waiting = a.leaders.campaign(name('x'), { ttlMs: TTL_MS, waitMs: 6_000 }).then(keep)
      waiting.catch(() => {})
      await new Promise((resolve) => setTimeout(resolve, 100))
      await other.resign()
      return waiting
    }
  },
  'a resignation': async ({ a, name, keep, letGo }) => {
    const term = keep(await a.leaders.campaign(name('x'), { ttlMs: TTL_MS }))
    return () => letGo(term).resign()
  },
  'a resignation inside a transaction': async ({ a, name, keep, letGoWithin }) => {
    const term = keep(await a.leaders.campaign(name('x'), { ttlMs: TTL_MS }))
    return () => a.kysely.transaction().execute((trx) => letGoWithin(term).resign({ trx }))
  },
  'a proclamation, and a renewal': async ({ a, name, keep }) => {
    const term = keep(await a.leaders.campaign(name('x'), { ttlMs: TTL_MS }))
    return async () => {
      await Promise.allSettled([term.proclaim({ version: 2 }), term.transaction(async () => {})])
      await new Promise((resolve) => setTimeout(resolve, TTL_MS * 0.6))
    }
  },
}

let runs = 0

/** Runs a scenario with one fault. @returns how many statements there were. */
async function run(scenario: Scenario, fault?: { nth: number; fault: Fault; sqlState: string }) {
  const application = `faults ${runs++}`
  await using line: Wire = await wire(db.url)
  const a = createLockstep({ connectionString: line.url, applicationName: application })
  const names = new Set<string>()
  const holds: (Hold | Term)[] = []
  const given = new Set<Hold | Term>()
  const inTransactions = new Set<Hold | Term>()
  const cleanUps: (() => unknown)[] = []
  const stage: Stage = {
    a,
    name(label) {
      names.add(`${application}/${label}`)
      return `${application}/${label}`
    },
    keep(hold) {
      if (hold) holds.push(hold)
      return hold
    },
    letGo(hold) {
      given.add(hold)
      return hold
    },
    letGoWithin(hold) {
      inTransactions.add(hold)
      return hold
    },
    later: (cleanUp) => void cleanUps.push(cleanUp),
  }
  try {
    const act = await scenario(stage)
    line.arm(fault)
    // It may succeed or fail.
    await settles(
      'the verb',
      act().catch(() => {}),
    )
    const { length } = line.statements
    await trustedAreHeld(
      holds.filter((hold) => !given.has(hold)),
      inTransactions,
    )
    await settles('the releases', Promise.allSettled(holds.filter((hold) => !given.has(hold)).map(release)))
    for (const cleanUp of cleanUps) await cleanUp()
    for (const hold of holds) expect(hold.isTrusted(), 'trusted after its release').toBe(false)
    await settles('nothing of ours is locked', nothingLocked(application))
    // Every lost hold was reported, no hold is without an owner, and no old token fences anything.
    await settles(
      'others are served',
      Promise.all(
        [...names].slice(0, 20).map(async (name) => {
          await using _other = await b.locks.acquire(name, { waitMs: SETTLES_MS })
          await using _term = await b.leaders.campaign(name, { waitMs: SETTLES_MS })
          for (const hold of holds) {
            if (hold.name !== name) continue
            const row = 'failover' in hold ? `leader\t${name}` : name
            const stale = db.pool.query('select lockstep.assert_held($1, $2)', [row, hold.token])
            await expect(stale, `the token of ${name} is dead`).rejects.toMatchObject({ code: SQLSTATE.leaseLost })
          }
        }),
      ),
    )
    const { hit } = line
    line.arm()
    await settles(
      'it goes on with the same names',
      Promise.all(
        ['again', ...names].slice(0, 20).map(async (name) => {
          await using _held = await a.locks.acquire(name)
        }),
      ),
    )
    return { length, hit }
  } finally {
    await settles('close', a.close())
    expect(await leftOnServer(db.url, application)).toEqual([])
  }
}

/** Checks that the database agrees with every hold that may be trusted. */
async function trustedAreHeld(holds: (Hold | Term)[], inTransactions: Set<Hold | Term>) {
  for (const hold of holds) {
    if (!hold.isTrusted()) {
      const told = hold.signal.aborted || inTransactions.has(hold)
      expect(told, `${hold.name} is not held, and its holder was told`).toBe(true)
      continue
    }
    const state =
      'failover' in hold ? { ...(await b.leaders.leader(hold.name)), held: true } : await b.locks.query(hold.name)
    if (!hold.isTrusted()) continue // it was lost during the check
    expect(state, `${hold.name} is trusted`).toMatchObject({ held: true })
    if (state.token) expect(state.token).toBe(hold.token)
    expect(hold.signal.aborted).toBe(false)
  }
}

async function release(hold: Hold | Term) {
  await ('failover' in hold ? hold.resign() : hold.release())
}

/** Checks that no connection of Lockstep has the advisory lock of a name; it may have a witness. */
async function nothingLocked(application: string) {
  const labels = ['x', 'warm', ...many(70), ...many(40).map((n) => `held ${n}`)]
  const names = labels.map((label) => `${application}/${label}`)
  await until('nothing locked', async () => {
    const { rows } = await db.pool.query(
      `select from pg_locks k join pg_stat_activity s using (pid)
        where k.locktype = 'advisory' and k.objsubid = 1 and k.mode = 'ExclusiveLock' and s.application_name = $1
          and (k.classid::bigint << 32 | k.objid::bigint) in (select lockstep.key(n) from unnest($2::text[]) n)`,
      [application, names],
    )
    return rows.length === 0
  })
}

/** The scenarios that `npm test` runs: the others need minutes. */
const SHORT = [
  'the first try of a process',
  'a release',
  'a fenced transaction of a lease, and its release',
  'a campaign',
  'releases, and behind them tries of the same names by others',
]

/** Registers the tests of the scenarios that `npm test` runs, or those of all others. */
export function faultsOfLocks(which: 'short' | 'others'): void {
  const chosen = Object.entries(SCENARIOS).filter(([label]) => SHORT.includes(label) === (which === 'short'))
  describe.each(chosen)('%s', (label, scenario) => {
    test.each(FAULTS)('whichever of its statements meets: %s', { timeout: 300_000 }, async (fault) => {
      const { length } = await run(scenario)
      expect(length).toBeGreaterThan(0)
      // The number of statements of a loop differs from run to run; the last ones may be missing.
      const cases = Array.from({ length: Math.min(length, 12) }, (_, i) => ({
        nth: i + 1,
        fault,
        sqlState: STATES[(i + FAULTS.indexOf(fault) + label.length) % STATES.length] as string,
      }))
      const failures: string[] = []
      while (cases.length > 0) {
        await Promise.all(
          cases.splice(0, 6).map(async (each) => {
            try {
              await run(scenario, each)
            } catch (error) {
              failures.push(`${JSON.stringify(each)}: ${(error as Error).message}`)
            }
          }),
        )
      }
      expect(failures).toEqual([])
    })
  })
}
