/**
 * The protocol of locks (0001_lease.sql, the essay in lib/lease/leases.ts) in every order in which two parties can come: each pair of
 * verbs on one name, in each state that a name can be in. Enumerated, not sampled. First at the boundaries of the statements
 * that clients send, then with one of the two stopped at each boundary inside the functions: of these only what the mutants
 * below are about, because all of them are some 150,000 orders. TEST_LONG=1 runs all, and those in which the party that has got the
 * name goes on to write.
 *
 * The same again with one rule of the protocol taken out: each such mutant is found, and the message says by which
 * order of steps.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type FreshDatabase, freshDatabase } from '../../support/database.ts'
import { addStops, mutate } from './breakpoints.ts'
import { type Pair, pairs, Stage } from './orders.ts'

const LONG = process.env.TEST_LONG !== undefined
const LIMIT = { timeout: LONG ? 7_200_000 : 120_000 }

/** What can be explored at once: a database of its own (a sweep goes over all names) and its connections. */
interface Lane {
  db: FreshDatabase
  stage: Stage
}
let lanes: Lane[]

async function openLane(): Promise<Lane> {
  const db = await freshDatabase()
  await db.pool.query('create table fenced (name text, token bigint)')
  await db.pool.query(`select lockstep.fence_table('fenced')`)
  expect(await addStops(db.pool)).toBeGreaterThan(100) // they stop only a backend that is asked to stop
  return { db, stage: await Stage.open(db.url) }
}
beforeAll(async () => {
  lanes = await Promise.all([1, 2, 3].map(openLane))
})
afterAll(async () => {
  for (const { db, stage } of lanes) {
    await stage.close()
    await db.close()
  }
})
/** Where rules are taken out. */
const mutable = () => lanes[0] as Lane

/** All violations, but no more than twenty pairs that have some. */
async function explored(todo: Pair[], on: Lane[], explore: (stage: Stage, pair: Pair) => Promise<string[]>) {
  const since = performance.now()
  const before = on.reduce((sum, { stage }) => sum + stage.runs, 0)
  const found: string[] = []
  const queue = [...todo]
  await Promise.all(
    on.map(async ({ stage }) => {
      for (let pair = queue.shift(); pair && found.length < 20; pair = queue.shift()) {
        found.push(...(await explore(stage, pair)))
      }
    }),
  )
  const orders = on.reduce((sum, { stage }) => sum + stage.runs, 0) - before
  console.log(`${todo.length} pairs, ${orders} orders, ${((performance.now() - since) / 1_000).toFixed(1)} s`)
  return { found, orders }
}
const statements = async (stage: Stage, pair: Pair) => (await stage.explore(pair)).violations
const stops = (stage: Stage, pair: Pair) => stage.exploreStops(pair, 1)

/** "state: a × b" */
const only = (which: string[]) => pairs(({ state, a, b }) => which.includes(`${state}: ${a} × ${b}`))

const TAKEN_OUT: [rule: string, name: string, from: string | RegExp, to: string, where: string, violation: RegExp][] = [
  [
    'an assertion locks the row until the end of its transaction',
    ...(['assert_held', /\s+for key share/, ''] as const),
    "A's lease: fenced write × expiry, lease",
    /A assert, B expire, B grant, A commit: a write under \d+ was committed after \d+ had been granted/,
  ],
  [
    'tokens come from the sequence, not from the row',
    'grant_leases',
    `base := nextval('lockstep.token')`,
    `base := coalesce((select max(l.token) from lockstep.lease l where l.name = any (names)), 0) + 1`,
    'free: try, lease × sweep', // the row knew the last token, and was deleted
    /B sweep, B commit, A grant, A commit: token 1 was granted after token \d+/,
  ],
  [
    'a lease is granted to the caller that has gained K',
    ...(['grant_leases', /pg_try_advisory_xact_lock\(lockstep.key\(a.name\)\)/, 'true'] as const),
    'never used: try, lease × transaction, at once',
    /A grant, B enter, A commit.*two holders: A by lease \d+, B by transaction \d+/,
  ],
  [
    'a caller that waited for K looks at the row after the wait, not before',
    'queue',
    /(perform pg_advisory_lock\(.*\);)([\s\S]*)(select t.token.*;)/,
    '$3\n$1',
    'never used: acquire, connection × acquire, lease',
    /A queue, A register, B queue.*A lost its connection \d+, and nobody had a right to it/,
  ],
  [
    'taking an expired row does not pass a transaction that is fenced by it',
    ...(['take', /for update skip locked/, ''] as const),
    "A's lease: fenced write × expiry, connection",
    /A assert, B expire, B try, A commit: a write under \d+ was committed after \d+ had been granted/,
  ],
  [
    'taking a name by force does not pass a transaction that is fenced by it',
    ...(['force_revoke', /for update skip locked/, ''] as const),
    "A's lease: fenced write × force, lease",
    /A assert, B force, B grant, A commit: a write under \d+ was committed after \d+ had been granted/,
  ],
  [
    'a release does not pass a transaction that is fenced by its hold',
    ...(['revoke_leases', /for update skip locked/, ''] as const),
    "A's lease: fenced write × release of the other, lease",
    /A assert, B revoke the other's, B grant, A commit: a write under \d+ was committed after \d+ had been granted/,
  ],
  [
    'a release frees what is held under its token, and nothing else',
    ...(['revoke_leases', 'and x.token = a.token', ''] as const),
    "A's lease, expired: revoke × try, lease",
    /B grant, B commit, A revoke, A commit: B lost its lease \d+, and nobody had a right to it/,
  ],
  [
    'a lease that has not expired is not taken',
    'take',
    /if found_row\.expires_at >[\s\S]*?end if;([\s\S]*?)and \(l\.expires_at.*\)/,
    '$1',
    "A's lease: renew × try, connection",
    /B try.*A lost its lease \d+, and nobody had a right to it/,
  ],
  [
    'a write to a fenced table is checked at COMMIT',
    ...(['check_fence', /ignored := lockstep.check_hold\(tg_relid, tg_argv.*/, ''] as const),
    "A's lease: write to a fenced table × expiry, lease",
    /B expire, B grant, A commit: a write under \d+ was committed after \d+ had been granted/,
  ],
  [
    'a refused caller gives K back',
    ...(['try_key', 'ignored := pg_catalog.pg_advisory_unlock(key);', 'null;'] as const),
    'leased by another: try, connection × try, lease',
    /A try.*A still has K/,
  ],
]
const WITHIN: typeof TAKEN_OUT = [
  [
    'an attempt for a connection hold looks at the row when K is gained, not before',
    'try_key',
    /holder pg_catalog\.text;([\s\S]*)select l\.holder into holder.*;/,
    'holder text := (select l.holder from lockstep.lease l where l.name = try_key.name);$1',
    'free: try, connection × try, lease',
    /A try, B grant, B commit, A goes on.*two holders: A by connection \d+, B by lease \d+/,
  ],
  [
    'an attempt for a lease looks at the row once more when K is gained',
    ...(['grant_leases', /and l\.ctid = a\.at (and l\.name = .*) and l\.holder is null/, '$1'] as const),
    'free: try, lease × try, lease',
    /A grant, B grant, B commit, A goes on, A commit: B lost its lease \d+, and nobody had a right to it/,
  ],
  [
    'what was checked at COMMIT is held until the commit has ended',
    ...(['check_hold', /\s+for key share/, ''] as const),
    "A's lease: write to a fenced table × expiry, lease",
    /A commit, B expire, B grant, A goes on: a write under \d+ was committed after \d+ had been granted/,
  ],
]

describe('every order of two verbs on one name', () => {
  test('statement by statement', LIMIT, async () => {
    const { found, orders } = await explored(pairs(undefined, LONG), lanes, statements)
    expect(found).toEqual([])
    expect(orders).toBeGreaterThan(4_500)
  })

  test('with one of the two stopped within its functions', LIMIT, async () => {
    const todo = LONG ? pairs() : only(WITHIN.map(([, , , , where]) => where))
    const { found, orders } = await explored(todo, lanes, stops)
    expect(found).toEqual([])
    expect(orders).toBeGreaterThan(200)
  })
})

describe('it is found out when a rule is taken out', () => {
  test.each(TAKEN_OUT)('%s', LIMIT, async (_, name, from, to, where, violation) => {
    await using _without = await mutate(mutable().db.pool, name, from, to)
    const { found } = await explored(only([where]), [mutable()], statements)
    expect(found.join('\n')).toMatch(violation)
  })

  test.each(WITHIN)('which only shows within the functions: %s', LIMIT, async (_, name, from, to, where, violation) => {
    await using _without = await mutate(mutable().db.pool, name, from, to)
    const [pair] = only([where]) as [Pair]
    expect(await statements(mutable().stage, pair)).toEqual([])
    const { found } = await explored([pair], [mutable()], stops)
    expect(found.join('\n')).toMatch(violation)
  })
})
