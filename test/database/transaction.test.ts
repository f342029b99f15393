/**
 * A `trx` that is not an open transaction is refused. And when Lockstep runs a user's work in its own transaction, that transaction
 * is still the same afterwards. On a direct connection, and through PgBouncer.
 */
import { CamelCasePlugin, Kysely, PostgresDialect, sql, type Transaction } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { controlsTransaction } from '../../lib/database/transaction-control.ts'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { type AnyTransaction, createLockstep, type Hold, type Lockstep, type Term } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase, pgbouncerAvailable } from '../support/database.ts'
import { until } from '../support/until.ts'

// ── Types ──

/** Compiled, never run: the types of a `trx`. */
export function types(
  held: Hold,
  pool: pg.Pool,
  client: pg.Client,
  lent: pg.PoolClient,
  kysely: Kysely<{ x: { y: number } }>,
  trx: Transaction<{ x: { y: number } }>,
) {
  void held.assertHeld(trx)
  void held.assertHeld(client)
  void held.assertHeld(lent)
  // @ts-expect-error a pool: it may run each statement on another connection
  void held.assertHeld(pool)
  // @ts-expect-error a Kysely that is not a transaction
  void held.assertHeld(kysely)
  // @ts-expect-error nothing
  void held.release({ trx: null })
  // @ts-expect-error a pool
  const none: AnyTransaction = pool
  return none
}

describe.each([
  ['direct', false],
  ['through PgBouncer', true],
] as const)('%s', (_how, pooled) => {
  describe.skipIf(pooled && !pgbouncerAvailable())('(skipped without PgBouncer)', () => suite(pooled))
})

function suite(pooled: boolean) {
  let db: FreshDatabase
  let url: string
  let a: Lockstep
  let tasks: Tasks
  let events: Events
  // biome-ignore lint/suspicious/noExplicitAny: in any schema
  let own: Kysely<any>
  let client: pg.Client
  const errors: unknown[] = []
  const ROOM = { onError: (error: unknown) => errors.push(error) }
  beforeAll(async () => {
    const made = await freshDatabase(pooled ? { pooled: { size: 20 } } : {})
    db = made
    url = 'pooledUrl' in made ? (made.pooledUrl as string) : made.url
    a = createLockstep({ connectionString: url, max: 20 })
    tasks = createTasks(a, ROOM)
    events = createEvents(a, ROOM)
    own = new Kysely({ dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: url }) }) })
    client = new pg.Client({ connectionString: url })
    await client.connect()
    await tasks.declare('refused')
    await db.pool.query('create table effect (n bigserial, what text)')
  })
  afterAll(async () => {
    await a?.close()
    await Promise.all([own?.destroy(), client?.end()])
    await db?.close()
  })
  let n = 0
  const fresh = () => `trx-${n++}`
  const effects = async (what: string): Promise<string[]> => {
    const { rows } = await db.pool.query('select what from effect where starts_with(what, $1) order by n', [what])
    return rows.map((row) => row.what.slice(what.length))
  }
  // biome-ignore lint/suspicious/noExplicitAny: in any schema
  const note = (trx: Transaction<any>, what: string) => sql`insert into effect (what) values (${what})`.execute(trx)

  // ── A transaction of the caller ──

  /** Every verb with a `trx`; each has an effect that can be seen. */
  interface Case {
    call(trx: AnyTransaction): Promise<unknown>
    /** Whether its effect is there. */
    done(): Promise<boolean>
    end(): Promise<unknown>
  }
  const held = async (): Promise<Hold> => a.locks.acquire(fresh(), { ttlMs: 60_000 })
  const freed = async (name: string) =>
    (await db.pool.query('select from lockstep.lease where name = $1 and holder is not null', [name])).rowCount === 0
  const jobs = async (queue: string) =>
    ((await db.pool.query('select from lockstep_boss.job where name = $1', [queue])).rowCount ?? 0) > 0
  const VERBS: Record<string, () => Promise<Case>> = {
    async assertHeld() {
      const hold = await held()
      return { call: (trx) => hold.assertHeld(trx), done: async () => !hold.isTrusted(), end: () => hold.release() }
    },
    async 'release of a lease'() {
      const hold = await held()
      return { call: (trx) => hold.release({ trx }), done: () => freed(hold.name), end: () => hold.release() }
    },
    async 'release of a hold by connection'() {
      const hold = await a.locks.acquire(fresh())
      const done = async () => (await a.locks.query(hold.name)).held === false
      return { call: (trx) => hold.release({ trx }), done, end: () => hold.release() }
    },
    async resign() {
      const term = (await a.leaders.campaign(fresh(), { ttlMs: 60_000 })) as Term
      return {
        call: (trx) => term.resign({ trx }),
        done: () => freed(`leader\t${term.name}`),
        end: () => term.resign(),
      }
    },
    async send() {
      const queue = fresh()
      await tasks.declare(queue)
      return { call: (trx) => tasks.send(queue, {}, { trx }), done: () => jobs(queue), end: async () => {} }
    },
    async sendAll() {
      const queue = fresh()
      await tasks.declare(queue)
      const call = (trx: AnyTransaction) => tasks.sendAll(queue, [{ data: 1 }, { data: 2 }], { trx })
      return { call, done: () => jobs(queue), end: async () => {} }
    },
    async append() {
      const stream = fresh()
      const call = (trx: AnyTransaction) => events.append(stream, { type: 'x' }, { trx })
      return { call, done: async () => (await events.stream(stream)) !== null, end: async () => {} }
    },
    async commit() {
      const group = fresh()
      await events.declareGroup(group, { prefix: `${group}/`, partitions: 1 })
      await events.append(`${group}/a`, { type: 'x' })
      const [batch] = await events.poll(group, { holder: 'h', leaseMs: 60_000 })
      const call = (trx: AnyTransaction) => events.commit(group, batch as never, { trx })
      return { call, done: async () => (await events.lag(group)).behind === 0, end: async () => {} }
    },
  }
  const REFUSED = { code: 'INVALID_ARGUMENT', field: 'trx' }
  /** The shapes of other libraries' objects; the real ones have more. */
  const OTHERS: [string, () => unknown, RegExp][] = [
    ['a pool', () => db.pool, /a pool/],
    ['a plain Kysely', () => own, /a Kysely that is no transaction/],
    ['Lockstep’s own Kysely', () => a.kysely, /a Kysely that is no transaction/],
    ['null', () => null, /null/],
    ['a string', () => 'begin', /a string/],
    ['a number', () => 7, /7/],
    ['an object', () => ({}), /without `query`/],
    ['an array', () => [client], /an array/],
    ['Knex’s', () => Object.assign(() => {}, { isTransaction: true, raw() {}, commit() {} }), /Knex/],
    ['postgres.js’s', () => Object.assign(() => {}, { unsafe() {}, savepoint() {} }), /postgres\.js/],
    [
      'Drizzle’s',
      () => ({ query: {}, constructor: { [Symbol.for('drizzle:entityKind')]: 'PgTransaction' } }),
      /Drizzle/,
    ],
    ['Prisma’s', () => ({ $queryRaw() {}, $executeRaw() {} }), /Prisma/],
    ['TypeORM’s', () => ({ query: async () => [], isTransactionActive: true }), /TypeORM/],
    ['one whose query answers rows alone', () => ({ query: async () => [{ xid: '1' }] }), /does not answer \{ rows \}/],
    ['one whose query answers nothing', () => ({ query() {} }), /does not answer \{ rows \}/],
    ['one whose query fails', () => ({ query: () => (undefined as unknown as Date).getTime() }), /fails/],
    [
      'one that throws when it is inspected',
      () =>
        new Proxy(
          {},
          {
            get: () => {
              throw new Error('no')
            },
          },
        ),
      /cannot be inspected/,
    ],
  ]

  describe.each(Object.entries(VERBS))('%s', (_verb, begin) => {
    test('outside of a transaction is refused; it has no effect, and everything goes on', async () => {
      const it = await begin()
      for (const [what, make, says] of OTHERS) {
        const refusal = await it.call(make() as AnyTransaction).catch((error) => error)
        expect(refusal, what).toMatchObject({ ...REFUSED, message: expect.stringMatching(says) })
      }
      const one = await own.connection().execute((c) => it.call(c as never).catch((error) => error))
      expect(one).toMatchObject(REFUSED)
      expect(await it.done()).toBe(false)
      for (const outside of [client, { query: client.query.bind(client) } as AnyTransaction]) {
        await expect(it.call(outside)).rejects.toMatchObject({ ...REFUSED, message: /outside of a transaction/ })
      }
      expect(await it.done()).toBe(false)
      // the connection can still be used, and the verb too
      await client.query('begin')
      await it.call(client)
      await client.query('rollback')
      await it.end()
    })

    test.each<[string, (call: Case['call']) => Promise<unknown>]>([
      [
        'a client of pg',
        async (call) => {
          await client.query('begin')
          await call(client)
          await client.query('commit')
        },
      ],
      [
        'a client whose BEGIN was not awaited',
        async (call) => {
          const all = [client.query('begin'), call(client)]
          await Promise.all(all)
          await client.query('commit')
        },
      ],
      [
        'a client of a pool',
        async (call) => {
          const pool = new pg.Pool({ connectionString: url })
          const lent = await pool.connect()
          await lent.query('begin')
          await call(lent)
          await lent.query('commit')
          lent.release()
          await pool.end()
        },
      ],
      [
        'a client that shows nothing of its state',
        async (call) => {
          await client.query('begin')
          await call({ query: (text, values) => client.query(text, values) })
          await client.query('commit')
        },
      ],
      ['Kysely', (call) => own.transaction().execute(call)],
      [
        'Kysely in a savepoint that is undone, and again',
        async (call) => {
          const trx = await own.startTransaction().execute()
          const inner = await trx.savepoint('a' as never).execute()
          await call(inner as never)
          await trx.rollbackToSavepoint('a' as never).execute()
          await call(inner as never)
          await trx.commit().execute()
        },
      ],
      [
        'Kysely with plugins',
        (call) => {
          const camel = own.withPlugin(new CamelCasePlugin({ upperCase: true })).withSchema('elsewhere')
          return camel.transaction().execute((trx) => call(trx as never))
        },
      ],
    ])('in a transaction of %s happens when that commits', async (_whose, run) => {
      const it = await begin()
      await run(it.call)
      if (begin !== VERBS.assertHeld) await until('done', it.done)
      await it.end()
    })
  })

  test('a failed transaction is refused by the server', async () => {
    const hold = await held()
    await client.query('begin')
    await client.query('nonsense').catch(() => {})
    await expect(hold.assertHeld(client)).rejects.toMatchObject({ code: '25P02' })
    await client.query('rollback')
    expect(hold.isTrusted()).toBe(true)
    await hold.release()
  })

  test('a transaction that has ended is refused: one of Kysely that was committed, or one that was ended by SQL', async () => {
    const hold = await held()
    const trx = await own.startTransaction().execute()
    await hold.assertHeld(trx)
    await trx.commit().execute()
    await expect(hold.assertHeld(trx)).rejects.toMatchObject({ ...REFUSED, message: /has ended/ })
    await own
      .transaction()
      .execute(async (ended) => {
        await hold.assertHeld(ended)
        await sql`commit`.execute(ended)
        await expect(hold.release({ trx: ended })).rejects.toMatchObject({ ...REFUSED, message: /has ended/ })
        await sql`begin`.execute(ended)
        await expect(hold.release({ trx: ended })).rejects.toMatchObject({ ...REFUSED, message: /has ended/ })
      })
      .catch(() => {})
    expect(hold.isTrusted()).toBe(true)
    expect(await freed(hold.name)).toBe(false)
    await hold.release()
  })

  test('from SQL a fence can be asserted outside of a transaction, as before', async () => {
    const hold = await held()
    await client.query('select lockstep.assert_held($1, $2)', [hold.name, hold.token])
    await hold.release()
  })

  // ── A transaction of Lockstep ──

  const ENDINGS = [
    ...[
      'commit',
      'rollback',
      'end',
      'abort',
      'COMMIT AND CHAIN',
      'rollback work and chain',
      'begin',
      'start transaction',
    ],
    ...[
      "prepare transaction 'x'",
      '/* a /* b */ */ commit -- c',
      ';; rollback',
      "select ';', $x$;$x$; commit",
      'commit; begin',
    ],
  ]
  /** Not recognized before it is sent: the second quote ends the string only where a backslash is not an escape. */
  const slips = (ending: string) => `select 'a\\''; ${ending} -- '`
  // biome-ignore lint/suspicious/noExplicitAny: in any schema
  type Trx = Transaction<any>
  const slip = async (trx: Trx, ending: string) => {
    await sql`set local standard_conforming_strings = off`.execute(trx)
    await sql.raw(slips(ending)).execute(trx)
  }
  const refused = async (trx: Trx) => {
    for (const ending of ENDINGS) {
      const refusal = { code: 'INVALID_ARGUMENT', field: 'sql' }
      await expect(sql.raw(ending).execute(trx), ending).rejects.toMatchObject(refusal)
    }
  }
  /** Work under a lock or a term, in every way to get one. */
  const UNDER: Record<string, (work: (trx: Trx) => Promise<unknown>) => Promise<unknown>> = {
    'locks.transaction': (work) => a.locks.transaction(fresh(), work),
    async 'held.transaction'(work) {
      await using hold = await a.locks.acquire(fresh())
      return await hold.transaction(work)
    },
    async 'held.transaction of a lease'(work) {
      await using hold = await held()
      return await hold.transaction(work)
    },
    async 'term.transaction'(work) {
      await using term = (await a.leaders.campaign(fresh())) as Term
      return await term.transaction(work)
    },
  }

  describe.each(Object.entries(UNDER))('%s', (_verb, under) => {
    test('cannot be ended by its work, and nothing is lost', async () => {
      const what = `${fresh()} `
      await under(async (trx) => {
        await note(trx, `${what}before`)
        await refused(trx)
        await note(trx, `${what}after`)
      })
      expect(await effects(what)).toEqual(['before', 'after'])
    })

    test('allows everything else: savepoints, functions, several statements at once', async () => {
      const what = `${fresh()} `
      await under(async (trx) => {
        await sql`savepoint a`.execute(trx)
        await note(trx, `${what}undone`)
        await sql.raw('rollback to savepoint a; release savepoint a; savepoint b').execute(trx)
        await sql`ROLLBACK WORK TO b`.execute(trx)
        await sql
          .raw(`do $$ begin perform 'x;commit'; end $$; select case when true then 1 end; select 'a''; commit'`)
          .execute(trx)
        await sql
          .raw(`create or replace function pg_temp.f() returns int language sql begin atomic select 1; select 2; end`)
          .execute(trx)
        await sql`select ${'; commit'} as "a;commit"`.execute(trx)
        await note(trx, `${what}kept`)
      })
      expect(await effects(what)).toEqual(['kept'])
    })

    test.each(['commit', 'rollback', 'commit; begin', 'commit and chain', 'rollback; begin'])(
      'rejects if its work has ended it with %s, and lets the work write no more',
      async (ending) => {
        const what = `${fresh()} `
        const kept = ending.startsWith('commit')
        const work = under(async (trx) => {
          await note(trx, `${what}before`)
          await slip(trx, ending)
          await note(trx, `${what}after`).catch(() => {})
          return 'swallowed'
        })
        const outcome = kept ? 'committed' : 'rolled back'
        await expect(work).rejects.toMatchObject({ code: 'TRANSACTION_ENDED', outcome })
        expect(await effects(what)).toEqual(kept ? ['before'] : [])
      },
    )

    test('rejects with that also if the work throws; if it was not ended, it rejects with the error of the work', async () => {
      const thrown = new Error('mine')
      await expect(under(() => Promise.reject(thrown))).rejects.toBe(thrown)
      const failed = under(async (trx) => {
        await sql`nonsense`.execute(trx).catch(() => {})
        throw thrown
      })
      await expect(failed).rejects.toBe(thrown)
      const ended = under(async (trx) => {
        await slip(trx, 'commit; begin')
        throw thrown
      })
      await expect(ended).rejects.toMatchObject({ code: 'TRANSACTION_ENDED', outcome: 'committed', cause: thrown })
      const twice = under(async (trx) => {
        await slip(trx, 'commit; begin')
        await sql`nonsense`.execute(trx)
      })
      await expect(twice).rejects.toMatchObject({ code: 'TRANSACTION_ENDED', outcome: 'committed' })
    })

    test('leaves no connection with an open transaction, in whatever way it was ended', async () => {
      for (const ending of ['commit', 'commit; begin', 'rollback; begin']) {
        await under((trx) => slip(trx, ending)).catch(() => {})
      }
      const { rows } = await db.pool.query(
        `select state, query from pg_stat_activity where datname = current_database() and state like 'idle in%'`,
      )
      expect(rows).toEqual([])
    })
  })

  describe('a transactional handler', () => {
    const job = async (handler: (trx: Trx) => Promise<unknown>, retryLimit = 3) => {
      const queue = fresh()
      let runs = 0
      tasks.define(
        queue,
        async (_, { trx }) => {
          runs++
          await handler(trx)
        },
        { transactional: true, retryLimit },
      )
      const id = (await tasks.send(queue, {})) as string
      const worker = tasks.work(queue)
      let state: string | undefined
      await until('over', async () => {
        const now = await tasks.get(queue, id)
        state = now?.state
        return state === 'completed' || state === 'failed'
      })
      await worker.stop()
      return { runs, state, output: (await tasks.get(queue, id))?.output as Record<string, unknown> }
    }

    test('cannot end its transaction; if it goes on, its effects and its completion commit together', async () => {
      const what = `${fresh()} `
      const { runs, state } = await job(async (trx) => {
        await note(trx, `${what}before`)
        await refused(trx)
        await note(trx, `${what}after`)
      })
      expect({ runs, state, effects: await effects(what) }).toEqual({
        runs: 1,
        state: 'completed',
        effects: ['before', 'after'],
      })
    })

    test('that tries to end it, and fails because of that, is tried again, because it had no effect', async () => {
      const what = `${fresh()} `
      const { runs, state, output } = await job(async (trx) => {
        await note(trx, `${what}x`)
        await sql`rollback`.execute(trx)
      }, 1)
      expect({ runs, state, effects: await effects(what) }).toEqual({ runs: 2, state: 'failed', effects: [] })
      expect(output.message).toMatch(/does not begin or end the transaction/)
    })

    test.each(['commit', 'rollback', 'commit; begin', 'commit and chain', 'rollback; begin'])(
      'that has ended it with %s has failed for good: its effects never happen twice',
      async (ending) => {
        for (const throws of [false, true]) {
          const what = `${fresh()} `
          const { runs, state, output } = await job(async (trx) => {
            await note(trx, `${what}x`)
            await slip(trx, ending)
            await note(trx, `${what}y`).catch(() => {})
            if (throws) throw new Error('and failed')
          })
          const kept = ending.startsWith('commit')
          expect({ runs, state }).toEqual({ runs: 1, state: 'failed' })
          expect(output).toMatchObject({ name: 'TransactionEndedError', outcome: kept ? 'committed' : 'rolled back' })
          expect(await effects(what)).toEqual(kept ? ['x'] : [])
        }
      },
    )
  })

  describe('a handler of a group', () => {
    const consume = async (
      handler: (trx: Trx, position: bigint) => Promise<unknown>,
      over: (group: string) => Promise<unknown>,
    ) => {
      const group = fresh()
      await events.declareGroup(group, { prefix: `${group}/`, partitions: 1, retryLimit: 1, retryDelayMs: 0 })
      await events.append(`${group}/a`, [{ type: '1' }, { type: '2' }, { type: '3' }])
      const consumer = events.consume(
        group,
        { prefix: `${group}/`, partitions: 1, retryLimit: 1, retryDelayMs: 0 },
        async ({ position }, { trx }) => void (await handler(trx, position)),
      )
      await until('over', () => over(group))
      await consumer.stop()
      return group
    }
    const applied = async (group: string) => (await events.lag(group)).behind === 0

    test('cannot end its transaction: its effects and the checkpoint commit together', async () => {
      const what = `${fresh()} `
      await consume(async (trx, position) => {
        await refused(trx)
        await note(trx, what + position)
      }, applied)
      expect(await effects(what)).toEqual(['1', '2', '3'])
    })

    test.each(['commit', 'rollback', 'commit; begin', 'rollback; begin'])(
      'that has ended it with %s is reported, and nothing is applied twice',
      async (ending) => {
        errors.splice(0)
        const what = `${fresh()} `
        const told = () => errors.some((error) => (error as { code?: unknown }).code === 'TRANSACTION_ENDED')
        await consume(
          async (trx, position) => {
            await note(trx, what + position)
            if (position === 2n) await slip(trx, ending)
          },
          async (group) =>
            told() && ((await applied(group)) || (await events.parked(group).catch(() => [])).length > 0),
        )
        expect(told()).toBe(true)
        const all = await effects(what)
        expect(new Set(all).size).toBe(all.length)
        errors.splice(0)
      },
    )
  })
}

describe('text that begins or ends a transaction', () => {
  test.each([
    ...[
      'commit',
      ' Commit ',
      'END',
      'abort work',
      'rollback',
      'rollback and no chain',
      'begin isolation level serializable',
    ],
    ...[
      'start transaction',
      'start\n/**/transaction',
      "prepare transaction 'a'",
      "commit prepared 'a'",
      '-- x\ncommit',
    ],
    ...[
      '/* /* */ */commit',
      'select 1; commit',
      'select $$;$$; end',
      "select E'a\\'; --';commit",
      ';commit;',
      'rollback to_x',
    ],
    ...['select 1 /* ; */; /* x */ rollback', "rollback prepared 'a'", '"a;"; commit'],
  ])('%s does', (text) => {
    expect(controlsTransaction(text)).toBe('yes')
  })

  test.each([
    ...['select 1', 'savepoint a', 'release savepoint a', 'rollback to a', 'ROLLBACK TRANSACTION TO SAVEPOINT a'],
    ...[
      "select 'commit; commit'",
      "select 'a''; commit'",
      'select "a; commit"',
      '-- ; commit',
      '/* ; commit */ select 1',
    ],
    ...[
      'select $a$ ; commit $b$ ; end $a$',
      'do $$ begin commit; end $$',
      'select case when true then 1 end; select 2',
      "select 'commit'; select 2",
    ],
    ...[
      'prepare a as select 1',
      'start_of(1)',
      'update a set commit = 1',
      "select E'\\'; commit'",
      'select a$b$; select 1',
      '',
    ],
    ...['insert into "end" values (1)', 'with commit as (select 1) select 2'],
  ])('%s does not', (text) => {
    expect(controlsTransaction(text)).toBe('no')
  })

  test('an SQL function with such words is left to the server', () => {
    expect(controlsTransaction('create function f() returns int begin atomic select 1; end')).toBe('perhaps')
  })

  test('a long text does not take long', () => {
    const since = performance.now()
    controlsTransaction(`${"select 'x''y' /* a */; ".repeat(50_000)} end`)
    const long = ['x'.repeat(30_000_000), "it''s ".repeat(300_000), '\\n'.repeat(300_000)]
    controlsTransaction(`select '${long[0]}', '${long[1]}', e'${long[2]}' end; begin`)
    controlsTransaction(`begin ${"'".repeat(50_001)}`)
    controlsTransaction(`x; ${'/*'.repeat(50_000)} end`)
    expect(performance.now() - since).toBeLessThan(10_000)
  })
})

test('a connection that the server ended while it was idle (idle_session_timeout) costs no transaction', async () => {
  await using db = await freshDatabase()
  await db.pool.query(`alter database ${db.name} set idle_session_timeout = '50ms'`)
  await using lockstep = createLockstep({ connectionString: db.url, max: 1 })
  await using held = await lockstep.locks.acquire('held')
  const runs = [
    () => lockstep.locks.transaction('a', async (trx) => (await sql`select 1 as n`.execute(trx)).rows),
    () => held.transaction(async (trx) => (await sql`select 1 as n`.execute(trx)).rows),
  ]
  for (const run of runs) {
    await run() // the connection is open, and then idle
    // This process does not run, and so does not learn that the server has ended it.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300)
    expect(await run()).toEqual([{ n: 1 }])
  }
})

test('a connection on which a transaction was begun and not ended is not used again: the next write is not lost in it', async () => {
  await using db = await freshDatabase()
  await db.pool.query('create table effect (what text)')
  await using lockstep = createLockstep({ connectionString: db.url, max: 1 })
  for (const begins of ['begin', 'start transaction']) {
    await sql.raw(begins).execute(lockstep.kysely)
    await sql`insert into effect values (${begins})`.execute(lockstep.kysely)
  }
  expect((await db.pool.query('select what from effect')).rows).toEqual([
    { what: 'begin' },
    { what: 'start transaction' },
  ])
})
