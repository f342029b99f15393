/**
 * The protocol of locks (0001_lease.sql, the essay in lib/lease.ts) in every order in which two parties can come: each pair of
 * verbs on one name, in each state that a name can be in. Enumerated, not sampled. First at the boundaries of the statements
 * that clients send, then with one of the two stopped at each boundary inside the functions.
 *
 * All of it are some 1,500 pairs in tens of thousands of orders, and takes minutes: TEST_LONG=1. Else one pair in 41 is tried, in all of
 * its orders.
 *
 * And with teeth: the same on databases where one rule of the protocol was taken out. Each of these is found out.
 */
import { describe, expect, test } from 'vitest'
import { type FreshDatabase, freshDatabase } from './database.ts'
import { type Plan, Stage } from './interleave.ts'
import { addStops, mutate } from './stops.ts'
import { ACQUIRE, HOLD, STATES } from './verbs.ts'

const LONG = process.env.TEST_LONG !== undefined
const LANES = 4
type Pair = Omit<Plan, 'stops'>

/**
 * A has the name, or had it, in the states that say so: what only a holder does makes sense there. And who has K on its session
 * does not ask for it there again, since session locks are re-entrant (lock.ts tells apart who of a process has a name), nor
 * waits for itself.
 */
function pairs(wanted: (state: string, a: string, b: string) => boolean = () => true): Pair[] {
  const all: Pair[] = []
  for (const state of Object.entries(STATES)) {
    const asks = ([name]: [string, unknown]) => /^acquire|connection$|in the queue/.test(name)
    const scripts = Object.entries({ ...(state[0].includes('A') && HOLD), ...ACQUIRE }).filter(
      (script) => !(state[0].startsWith("A's connection") && asks(script)),
    )
    for (const a of scripts) {
      for (const b of Object.entries(ACQUIRE)) {
        if (wanted(state[0], a[0], b[0])) all.push({ state, scripts: [a, b] })
      }
    }
  }
  return all
}
const oneIn = (n: number, all: Pair[]) => (LONG ? all : all.filter((_, i) => i % n === 0))

async function prepared(): Promise<FreshDatabase> {
  const db = await freshDatabase()
  await db.pool.query('create table effect (name text, token bigint)')
  await db.pool.query('create table fenced (name text, token bigint)')
  await db.pool.query(`select lockstep.fence_table('fenced')`)
  return db
}

/** All of it, a few pairs at a time; `enough` violations end it. */
async function run(db: FreshDatabase, todo: Pair[], how: 'statements' | 'stops', enough = 20) {
  const since = performance.now()
  const stages = await Promise.all(Array.from({ length: LANES }, (_, i) => Stage.open(db.url, i)))
  const found: string[] = []
  const queue = [...todo]
  await Promise.all(
    stages.map(async (stage) => {
      for (let pair = queue.shift(); pair && found.length < enough; pair = queue.shift()) {
        if (how === 'statements') found.push(...(await stage.explore(pair)).violations)
        else found.push(...(await stopped(stage, pair, enough)))
      }
    }),
  )
  const orders = stages.reduce((sum, stage) => sum + stage.runs, 0)
  await Promise.all(stages.map((stage) => stage.close()))
  console.log(`${todo.length} pairs, ${orders} orders, ${Math.round((performance.now() - since) / 100) / 10} s`)
  return { orders, found }
}

/** One of the two stands still once, at each boundary inside its functions. */
async function stopped(stage: Stage, pair: Pair, enough: number): Promise<string[]> {
  const found: string[] = []
  for (const who of [0, 1]) {
    for (const backend of ['session', 'pool'] as const) {
      for (let n = 1; found.length < enough; n++) {
        const stop = [backend, n] as const
        const { violations, reached } = await stage.explore({ ...pair, stops: who === 0 ? [stop] : [undefined, stop] })
        found.push(...violations)
        if (!reached) break
      }
    }
  }
  return found
}

describe('every order of two verbs on one name', () => {
  test('statement by statement', { timeout: 1_800_000 }, async () => {
    await using db = await prepared()
    const { orders, found } = await run(db, oneIn(41, pairs()), 'statements')
    expect(found).toEqual([])
    expect(orders).toBeGreaterThan(500)
  })

  test('and with one of them stopped within its functions', { timeout: 7_200_000 }, async () => {
    await using db = await prepared()
    expect(await addStops(db.pool)).toBeGreaterThan(30)
    const some = pairs((state, a, b) => `${state}: ${a} × ${b}` === "A's lease, expired: renew × try, connection")
    const { orders, found } = await run(db, LONG ? pairs() : some, 'stops')
    expect(found).toEqual([])
    expect(orders).toBeGreaterThan(50)
  })
})

const TOKEN_OF_THE_ROW =
  'base := coalesce((select max(l.token) from lockstep.lease l where l.name = any (grant_leases.names)), 0) + 1'

// Each on the pair that it is about; TEST_LONG=1 looks for it in all.
test.each<[string, string, string | RegExp, string, [string, string, string], RegExp]>([
  [
    'FOR KEY SHARE: an assertion looks, and locks nothing',
    ...(['assert_held', /\s+for key share/, ''] as const),
    ["leased by A's holder", 'fenced write', 'force, lease'],
    /a write under \d+ was committed after \d+ had been granted/,
  ],
  [
    'the sequence: tokens come from the row',
    ...(['grant_leases', `base := nextval('lockstep.token')`, TOKEN_OF_THE_ROW] as const),
    ['never used', 'transaction, at once', 'try, lease'],
    /token \d+ was granted after \d+/,
  ],
  [
    'the gate: a lease is granted beside a connection that has K',
    ...(['grant_leases', 'pg_try_advisory_xact_lock(lockstep.key(a.name))', 'true'] as const),
    ["A's connection", 'fenced write', 'try, lease'],
    /two holders|a write under \d+ was committed after \d+ had been granted/,
  ],
  [
    'the check of a fenced table at COMMIT',
    ...(['check_fence', 'perform lockstep.assert_held(part[1], part[2]::bigint);', ''] as const),
    ["leased by A's holder", 'write to a fenced table', 'force, lease'],
    /a write under \d+ was committed after \d+ had been granted/,
  ],
  [
    'the wait of who frees an expired row for transactions that are fenced by it',
    ...(['take', /\s+for update skip locked/, ''] as const),
    ["leased by A's holder", 'fenced write', 'expiry, lease'],
    /a write under \d+ was committed after \d+ had been granted/,
  ],
])('it is found out when this is taken out: %s', { timeout: 1_800_000 }, async (_, name, from, to, pair, violation) => {
  await using db = await prepared()
  await mutate(db.pool, name, from, to)
  const all = pairs((...which) => LONG || which.every((each, i) => each === pair[i]))
  const { found } = await run(db, all, 'statements', 1)
  expect(found.join()).toMatch(violation)
})
