/**
 * The promises about streams, as a suite that runs on a direct connection (stream.test.ts) and through a transaction pooler
 * (database/pooler.long.test.ts). Two Locksteps stand for two processes: `ours` and `theirs`.
 */
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEvents, type Events, type StoredEvent } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase, type PooledDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

export function eventSuite({ pooled }: { pooled: boolean }) {
  let db: FreshDatabase
  let url: string
  let a: Lockstep
  let b: Lockstep
  let ours: Events
  let theirs: Events
  const errors: unknown[] = []
  beforeAll(async () => {
    db = pooled ? await freshDatabase({ pooled: true }) : await freshDatabase()
    url = pooled ? (db as PooledDatabase).pooledUrl : db.url
    a = createLockstep({ connectionString: url })
    b = createLockstep({ connectionString: url })
    ours = createEvents(a, { onError: (error) => errors.push(error) })
    theirs = createEvents(b, { onError: (error) => errors.push(error) })
    await db.pool.query('create table account (id text primary key, balance integer not null)')
  })
  afterAll(async () => {
    await Promise.all([a?.close(), b?.close()])
    await db?.close()
    expect(errors).toEqual([])
  })

  let n = 0
  const fresh = (folder = 'stream') => `${folder}-${n++}`
  const types = async (stream: string) => (await ours.read(stream, { limit: 1_000 })).events.map(({ type }) => type)
  /** A new client, between BEGIN and COMMIT. */
  async function transaction(level = 'read committed') {
    const client = new pg.Client(db.url)
    client.on('error', () => {})
    await client.connect()
    await client.query(`begin isolation level ${level}`)
    return Object.assign(client, {
      async [Symbol.asyncDispose]() {
        await client.end()
      },
    })
  }
  async function all(prefix: string): Promise<StoredEvent[]> {
    const found: StoredEvent[] = []
    for (let from: bigint | null = 1n; from !== null; ) {
      const page = await ours.readAll({ prefix, from, limit: 1_000 })
      if (page.events.length === 0) break
      found.push(...page.events)
      from = page.next
    }
    return found
  }

  describe('append', () => {
    test('the first event of a stream has position 1, and the next ones follow', async () => {
      const stream = fresh()
      expect(await ours.append(stream, { type: 'opened' })).toEqual({ first: 1n, last: 1n, repeated: false })
      const more = [
        { type: 'paid', data: { amount: 7 }, meta: { by: 'me' } },
        { type: 'closed', data: null },
      ]
      expect(await theirs.append(stream, more)).toEqual({ first: 2n, last: 3n, repeated: false })
      const { events, next } = await ours.read(stream)
      expect(events.map(({ position, type, data, meta }) => ({ position, type, data, meta }))).toEqual([
        { position: 1n, type: 'opened', data: null, meta: null },
        { position: 2n, type: 'paid', data: { amount: 7 }, meta: { by: 'me' } },
        { position: 3n, type: 'closed', data: null, meta: null },
      ])
      expect(next).toBe(4n)
      expect(events[0]).toMatchObject({ stream, id: null, at: expect.any(Date) })
      expect(await ours.stream(stream)).toEqual({ name: stream, first: 1n, position: 3n })
    })

    test('an event is read as it was appended', async () => {
      const stream = fresh('wörter/😀 "\\\'{},')
      const data = [
        { deep: [{ er: 'ü "quoted" \\ back\nslash' }], n: 1.5, yes: true, nothing: null },
        'text',
        12,
        [],
        null,
      ]
      const meta = { trace: '😀', list: [1, 2] }
      await ours.append(
        stream,
        data.map((each) => ({ type: 'ty"p\\e, ü', data: each, meta })),
      )
      const { events } = await theirs.read(stream)
      expect(events.map((event) => event.data)).toEqual(data)
      expect(events.every((event) => event.type === 'ty"p\\e, ü' && event.stream === stream)).toBe(true)
      expect(events[4]?.meta).toEqual(meta)
    })

    test('an append with `expected` is made only at that position, and the error says the actual one', async () => {
      const [empty, three] = [fresh(), fresh()]
      await ours.append(three, [{ type: '1' }, { type: '2' }, { type: '3' }])
      const event = { type: 'x' }
      for (const expected of [0n, 'none'] as const) {
        await expect(ours.append(three, event, { expected })).rejects.toMatchObject({
          ...{ code: 'POSITION_CONFLICT', stream: three, expected, actual: 3n },
        })
      }
      for (const expected of [1n, 2n, 4n, 2n ** 63n - 1n]) {
        await expect(ours.append(three, event, { expected })).rejects.toMatchObject({ actual: 3n })
        await expect(ours.append(empty, event, { expected })).rejects.toMatchObject({ actual: 0n })
      }
      await expect(ours.append(empty, event, { expected: 'exists' })).rejects.toMatchObject({ actual: 0n })
      expect(await ours.stream(empty)).toBeNull()
      expect(await types(three)).toEqual(['1', '2', '3'])

      expect(await ours.append(three, event, { expected: 3n })).toMatchObject({ first: 4n })
      expect(await ours.append(three, event, { expected: 'exists' })).toMatchObject({ first: 5n })
      expect(await ours.append(three, event, { expected: 'any' })).toMatchObject({ first: 6n })
      expect(await ours.append(empty, event, { expected: 'none' })).toMatchObject({ first: 1n })
      expect(await ours.append(fresh(), event, { expected: 0n })).toMatchObject({ first: 1n })
    })

    test('of many appends that expect the same position one is made', async () => {
      const stream = fresh()
      await ours.append(stream, { type: 'first' })
      const tries = Array.from({ length: 20 }, (_, i) =>
        (i % 2 ? ours : theirs).append(stream, { type: `try-${i}` }, { expected: 1n }),
      )
      const results = await Promise.allSettled(tries)
      expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
      for (const result of results) {
        if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'POSITION_CONFLICT', actual: 2n })
      }
      expect(await types(stream)).toHaveLength(2)
    })

    test('of many appends at the same time positions have no gaps, and those of a process share statements', async () => {
      const streams = Array.from({ length: 5 }, () => fresh())
      const appended = await Promise.all(
        Array.from({ length: 300 }, async (_, i) => {
          const stream = streams[i % 5] as string
          const events = Array.from({ length: 1 + (i % 3) }, (_, k) => ({ type: `${i}.${k}` }))
          return { stream, i, ...(await (i % 2 ? ours : theirs).append(stream, events)) }
        }),
      )
      let statements = new Set<number>()
      for (const stream of streams) {
        const { events } = await ours.read(stream, { limit: 1_000 })
        expect(events.map(({ position }) => position)).toEqual(events.map((_, k) => BigInt(k + 1)))
        for (const { i, first, last } of appended.filter((each) => each.stream === stream)) {
          const those = events.slice(Number(first) - 1, Number(last)).map(({ type }) => type)
          expect(those).toEqual(Array.from({ length: 1 + (i % 3) }, (_, k) => `${i}.${k}`))
        }
        const cursors = events.map(({ cursor }) => cursor)
        expect(cursors).toEqual([...cursors].sort((x, y) => (x < y ? -1 : 1)))
        const { rows } = await db.pool.query(
          'select distinct extract(epoch from e.at)::text as at from lockstep.event e join lockstep.stream s on s.id = e.stream where s.name = $1',
          [stream],
        )
        statements = new Set([...statements, ...rows.map((row) => row.at)])
      }
      expect(statements.size).toBeLessThan(150)
    })

    test.each(['an existing stream', 'a new stream'])(
      'of appends that share a statement one to %s fails alone, and no event is appended twice',
      async (which) => {
        const [old, made, other] = [fresh(), fresh(), fresh()]
        await ours.append(old, { type: '1' })
        await db.pool.query(`
          create function refuse() returns trigger language plpgsql as
            'begin if new.type = ''refused'' then raise exception ''refused''; end if; return new; end';
          create trigger refuse before insert on lockstep.event for each row execute function refuse()`)
        const results = await Promise.allSettled([
          ...['2', '3'].map((type) => ours.append(old, { type })),
          ours.append(which === 'an existing stream' ? old : made, { type: 'refused' }),
          ours.append(other, { type: '1' }),
          ours.append(old, { type: '4' }),
        ])
        await db.pool.query('drop function refuse() cascade')
        const outcomes = ['fulfilled', 'fulfilled', 'rejected', 'fulfilled', 'fulfilled']
        expect(results.map(({ status }) => status)).toEqual(outcomes)
        expect((await types(old)).sort()).toEqual(['1', '2', '3', '4'])
        expect([await types(made), await types(other)]).toEqual([[], ['1']])
      },
    )

    test('10,000 events of one call are appended together', async () => {
      const stream = fresh()
      const events = Array.from({ length: 10_000 }, (_, i) => ({ type: 'n', data: i }))
      expect(await ours.append(stream, events)).toEqual({ first: 1n, last: 10_000n, repeated: false })
      let [from, count]: [bigint, number] = [1n, 0]
      for (;;) {
        const page = await theirs.read(stream, { from, limit: 1_000 })
        for (const event of page.events) expect(event.data).toBe(count++)
        if (page.events.length === 0) break
        from = page.next as bigint
      }
      expect(count).toBe(10_000)
    })

    describe('with ids', () => {
      test('a repeated append stores its events once, wherever the stream is by then', async () => {
        const stream = fresh()
        const events = [
          { type: 'a', id: 'order-7/1' },
          { type: 'b', id: 'order-7/2' },
        ]
        expect(await ours.append(stream, events, { expected: 'none' })).toEqual({
          first: 1n,
          last: 2n,
          repeated: false,
        })
        await ours.append(stream, { type: 'c' })
        expect(await theirs.append(stream, events, { expected: 'none' })).toEqual({
          first: 1n,
          last: 2n,
          repeated: true,
        })
        expect(await types(stream)).toEqual(['a', 'b', 'c'])
        expect((await ours.read(stream)).events.map(({ id }) => id)).toEqual(['order-7/1', 'order-7/2', null])
      })

      test('the same ids in two streams are different ids', async () => {
        const [one, other] = [fresh(), fresh()]
        await ours.append(one, { type: 'a', id: 'x' })
        expect(await ours.append(other, { type: 'a', id: 'x' })).toMatchObject({ repeated: false })
      })

      test('appended by many at the same time they are stored once', async () => {
        const stream = fresh()
        const tries = Array.from({ length: 30 }, (_, i) =>
          (i % 2 ? ours : theirs).append(stream, [
            { type: 'a', id: 'p' },
            { type: 'b', id: 'q' },
          ]),
        )
        const results = await Promise.all(tries)
        expect(results.filter(({ repeated }) => !repeated)).toHaveLength(1)
        expect(results.every(({ first, last }) => first === 1n && last === 2n)).toBe(true)
        expect(await types(stream)).toEqual(['a', 'b'])
      })

      test.each([
        ['some of them', ['p', 'new']],
        ['in another order', ['q', 'p']],
        ['with others between them', ['p', 'r']],
        ['fewer in one place and more', ['p', 'q', 's']],
      ])('that other events have, %s: refused, and nothing is appended', async (_, ids) => {
        const stream = fresh()
        await ours.append(
          stream,
          ['p', 'q', 'r'].map((id) => ({ type: id, id })),
        )
        await expect(
          ours.append(
            stream,
            ids.map((id) => ({ type: 'x', id })),
          ),
        ).rejects.toMatchObject({
          ...{ code: 'INVALID_ARGUMENT', field: 'id' },
        })
        expect(await types(stream)).toEqual(['p', 'q', 'r'])
      })
    })

    describe('in a transaction', () => {
      test.each(['kysely', 'pg'])('of %s: with its commit, or not at all', async (kind) => {
        const stream = fresh()
        const run = async (end: 'commit' | 'rollback') => {
          if (kind === 'pg') {
            await using trx = await transaction()
            await ours.append(stream, { type: end }, { trx })
            await trx.query(end)
            return
          }
          await a.kysely.transaction().execute(async (trx) => {
            await ours.append(stream, { type: end }, { trx })
            if (end === 'rollback') throw new Error('undone')
          })
        }
        await run('rollback').catch((error) => expect(error).toMatchObject({ message: 'undone' }))
        expect(await ours.stream(stream)).toBeNull()
        await run('commit')
        await run('rollback').catch(() => {})
        await run('commit')
        const { events } = await theirs.read(stream)
        expect(events.map(({ position, type }) => [position, type])).toEqual([
          [1n, 'commit'],
          [2n, 'commit'],
        ])
      })

      test('fence, rows, event, task and release: all five, or nothing', async () => {
        const tasks = createTasks(a)
        const stream = fresh()
        const queue = tasks.define('five-parts')
        await tasks.declare('five-parts')
        await db.pool.query(`select lockstep.fence_table('account'); `)
        const attempt = async (fails: boolean) => {
          const held = await a.locks.acquire('five-parts', { ttlMs: 30_000 })
          const done = a.kysely.transaction().execute(async (trx) => {
            await held.assertHeld(trx)
            await sql`insert into account values (${stream}, 100) on conflict (id) do update set balance = account.balance + 1`.execute(
              trx,
            )
            await ours.append(
              stream,
              { type: 'opened', data: { token: String(held.token) } },
              { expected: 'none', trx },
            )
            await tasks.send(queue, { stream }, { trx })
            await held.release({ trx })
            if (fails) throw new Error('undone')
          })
          return { held, done }
        }
        const failed = await attempt(true)
        await expect(failed.done).rejects.toThrow('undone')
        expect(await a.locks.query('five-parts')).toMatchObject({ held: true, token: failed.held.token })
        await failed.held.release()
        const nothing = [await db.pool.query('select from account where id = $1', [stream]), await tasks.counts(queue)]
        expect(nothing).toMatchObject([{ rowCount: 0 }, { ready: 0 }])
        expect(await ours.stream(stream)).toBeNull()

        await (await attempt(false)).done
        expect(await a.locks.query('five-parts')).toMatchObject({ held: false })
        expect((await db.pool.query('select balance from account where id = $1', [stream])).rows).toEqual([
          { balance: 100 },
        ])
        expect(await types(stream)).toEqual(['opened'])
        expect(await tasks.counts(queue)).toMatchObject({ ready: 1 })

        // and if only `expected` fails, all the others fail with it
        const conflict = await attempt(false)
        await expect(conflict.done).rejects.toMatchObject({ code: 'POSITION_CONFLICT', actual: 1n })
        expect((await db.pool.query('select balance from account where id = $1', [stream])).rows).toEqual([
          { balance: 100 },
        ])
        expect(await tasks.counts(queue)).toMatchObject({ ready: 1 })
        await conflict.held.release()
        await tasks.close()
      })

      test('a rollback to a savepoint removes its events, and leaves no gap in the positions', async () => {
        const stream = fresh()
        await using trx = await transaction()
        await ours.append(stream, { type: 'kept' }, { trx })
        await trx.query('savepoint s')
        await ours.append(stream, { type: 'undone' }, { trx })
        await trx.query('rollback to s')
        await ours.append(stream, { type: 'also kept' }, { trx })
        await trx.query('commit')
        const { events } = await ours.read(stream)
        expect(events.map(({ position, type }) => [position, type])).toEqual([
          [1n, 'kept'],
          [2n, 'also kept'],
        ])
      })

      test('a stream that it has locked or made holds up no append to another stream', async () => {
        const [held, made, free] = [fresh(), fresh(), fresh()]
        await ours.append(held, { type: '1' })
        await using trx = await transaction()
        await ours.append(held, { type: '2' }, { trx })
        await ours.append(made, { type: '1' }, { trx })
        const waits = [
          ours.append(held, { type: '3' }),
          ours.append(made, { type: '2' }),
          ours.append(held, { type: '4' }),
        ]
        const passes = await Promise.all([ours.append(free, { type: '1' }), ours.append(free, { type: '2' })])
        expect(passes.map(({ last }) => last)).toEqual([1n, 2n])
        expect((await ours.read(held)).events).toHaveLength(1)
        await until('both wait', async () => {
          const { rows } = await db.pool.query(
            `select count(*)::integer as n from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`,
          )
          return rows[0].n >= 2
        })
        await trx.query('commit')
        expect((await Promise.all(waits)).map(({ last }) => last)).toEqual([3n, 2n, 4n])
        expect(await types(held)).toEqual(['1', '2', '3', '4'])
      })

      test('an append that waited for a new stream that was rolled back makes the stream', async () => {
        const stream = fresh()
        await using trx = await transaction()
        await ours.append(stream, { type: 'undone' }, { trx })
        const waiting = ours.append(stream, { type: 'first' }, { expected: 'none' })
        await until('it waits', async () => {
          const { rows } = await db.pool.query(
            `select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`,
          )
          return rows.length > 0
        })
        await trx.query('rollback')
        expect(await waiting).toMatchObject({ first: 1n })
      })

      test('in a REPEATABLE READ transaction an append behind another fails to serialize, and nothing is lost', async () => {
        const stream = fresh()
        await ours.append(stream, { type: '1' })
        await using trx = await transaction('repeatable read')
        await trx.query('select 1')
        await theirs.append(stream, { type: '2' })
        await expect(ours.append(stream, { type: '3' }, { trx })).rejects.toMatchObject({ code: '40001' })
        await trx.query('rollback')
        expect(await types(stream)).toEqual(['1', '2'])
      })
    })

    describe('refuses', () => {
      const event = { type: 'x' }
      test.each<[string, string, unknown, unknown?]>([
        ['stream', 'an empty name', ['', event]],
        ['stream', 'a name of 256 characters', ['x'.repeat(256), event]],
        ['stream', 'a name with a control character', ['a\tb', event]],
        ['stream', 'no name', [undefined, event]],
        ['events', 'no events', ['s', []]],
        ['events', '10,001 events', ['s', Array.from({ length: 10_001 }, () => event)]],
        [
          'events',
          '17 MiB of events',
          ['s', Array.from({ length: 17 }, () => ({ type: 'x', data: 'x'.repeat(1_048_000) }))],
        ],
        ['event', 'what is no event', ['s', 'x']],
        ['events.1', 'null among events', ['s', [event, null]]],
        ['event.type', 'no type', ['s', {}]],
        ['event.type', 'an empty type', ['s', { type: '' }]],
        ['events.0.type', 'a type of 256 characters', ['s', [{ type: 'x'.repeat(256) }]]],
        ['event.data', 'data over 1 MiB', ['s', { type: 'x', data: 'x'.repeat(1_048_575) }]],
        ['event.data', 'data that JSON cannot say', ['s', { type: 'x', data: () => {} }]],
        ['event.data', 'data with U+0000', ['s', { type: 'x', data: 'a\0b' }]],
        ['event.data', 'data with half a character', ['s', { type: 'x', data: '\ud800' }]],
        ['event.meta', 'meta over 4 KiB', ['s', { type: 'x', meta: 'x'.repeat(4_095) }]],
        ['event.id', 'an empty id', ['s', { type: 'x', id: '' }]],
        ['id', 'an id for one of two', ['s', [{ type: 'x', id: 'a' }, event]]],
        [
          'id',
          'the same id twice',
          [
            's',
            [
              { type: 'x', id: 'a' },
              { type: 'x', id: 'a' },
            ],
          ],
        ],
        ['expected', 'a position below 0', ['s', event, { expected: -1n }]],
        ['expected', 'a position of 2^63', ['s', event, { expected: 2n ** 63n }]],
        ['expected', 'a number', ['s', event, { expected: 1 }]],
        ['expected', 'another word', ['s', event, { expected: 'some' }]],
      ])('%s: %s', async (field, _, args) => {
        const append = ours.append as (...args: unknown[]) => Promise<unknown>
        const error = await append.call(ours, ...(args as unknown[])).catch((e) => e)
        expect(error).toMatchObject({ code: 'INVALID_ARGUMENT', field })
        expect((error as Error).message).toMatch(/to be (.*\d|given|another|a |an |JSON)/)
      })

      test('an append with one invalid event stores nothing', async () => {
        const stream = fresh()
        await expect(ours.append(stream, [event, { type: '' }])).rejects.toMatchObject({ field: 'events.1.type' })
        expect(await ours.stream(stream)).toBeNull()
      })

      test('data of 1 MiB and meta of 4 KiB are stored', async () => {
        const stream = fresh()
        const [data, meta] = ['x'.repeat(1_048_574), 'x'.repeat(4_094)]
        await ours.append(stream, [
          { type: 'x', data, meta },
          { type: 'x', data, meta },
        ])
        const { events, next } = await ours.read(stream, { limit: 1 })
        expect(events[0]?.data).toBe(data)
        expect(events[0]?.meta).toBe(meta)
        expect(next).toBe(2n)
      })
    })
  })

  describe('read', () => {
    test('pages forwards and backwards have every event once', async () => {
      const stream = fresh()
      await ours.append(
        stream,
        Array.from({ length: 25 }, (_, i) => ({ type: String(i + 1) })),
      )
      const forwards: string[] = []
      for (let from = 1n; ; ) {
        const { events, next } = await theirs.read(stream, { from, limit: 10 })
        forwards.push(...events.map(({ type }) => type))
        if (events.length === 0) break
        from = next as bigint
      }
      expect(forwards).toEqual(Array.from({ length: 25 }, (_, i) => String(i + 1)))
      const back: string[] = []
      for (let from: bigint | null | undefined; from !== null; ) {
        const { events, next }: { events: StoredEvent[]; next: bigint | null } = await theirs.read(stream, {
          ...{ limit: 10, backwards: true },
          ...(from && { from }),
        })
        back.push(...events.map(({ type }) => type))
        from = next
      }
      expect(back).toEqual([...forwards].reverse())
    })

    test('a stream that does not exist, and a position after the end, have no events', async () => {
      const stream = fresh()
      expect(await ours.read(stream)).toEqual({ events: [], next: 1n })
      expect(await ours.read(stream, { backwards: true })).toEqual({ events: [], next: null })
      await ours.append(stream, { type: 'x' })
      expect(await ours.read(stream, { from: 2n })).toEqual({ events: [], next: 2n })
      expect(await ours.read(stream, { from: 2n ** 63n - 1n })).toEqual({ events: [], next: 2n ** 63n - 1n })
      expect(await ours.readAll({ from: 2n ** 63n - 1n })).toMatchObject({ events: [] })
    })

    test('a page has at most 5 MB, but always one event', async () => {
      const stream = fresh()
      const data = Array.from({ length: 260_000 }, (_, i) => (i * 7919) % 1_000).join('') // hardly compresses
      await ours.append(
        stream,
        Array.from({ length: 12 }, () => ({ type: 'x', data })),
      )
      let [from, pages, count]: [bigint, number, number] = [1n, 0, 0]
      for (;;) {
        const { events, next } = await ours.read(stream, { from, limit: 100 })
        if (events.length === 0) break
        pages++
        count += events.length
        from = next as bigint
      }
      expect(count).toBe(12)
      expect(pages).toBeGreaterThan(1)
    })

    test('waits for an event of a stream or of a prefix, and no longer than `waitMs`', async () => {
      const folder = fresh('waits/')
      const stream = `${folder}/1`
      expect(await ours.read(stream, { waitMs: 20 })).toEqual({ events: [], next: 1n })
      const waits = [ours.read(stream, { waitMs: 20_000 }), ours.readAll({ prefix: folder, waitMs: 20_000 })]
      await theirs.append(stream, { type: 'came' })
      for (const { events } of await Promise.all(waits)) expect(events.map(({ type }) => type)).toEqual(['came'])
      const stop = new AbortController()
      const stopped = ours.read(stream, { from: 2n, waitMs: 20_000, signal: stop.signal })
      stop.abort(new Error('enough'))
      await expect(stopped).rejects.toThrow('enough')
    })

    test('lists the streams under a prefix that have events', async () => {
      const folder = fresh('list/')
      await Promise.all(['b', 'a', 'c'].map((name) => ours.append(`${folder}/${name}`, { type: 'x' })))
      await ours.append(`${folder}/none`, { type: 'x' }, { expected: 5n }).catch(() => {})
      const names = async (page: object) =>
        (await ours.streams({ prefix: `${folder}/`, ...page })).map(({ name }) => name)
      expect(await names({})).toEqual(['a', 'b', 'c'].map((name) => `${folder}/${name}`))
      expect(await names({ limit: 1, after: `${folder}/a` })).toEqual([`${folder}/b`])
    })

    test.each<[string, object]>([
      ['limit', { limit: 0 }],
      ['limit', { limit: 1_001 }],
      ['limit', { limit: 1.5 }],
      ['from', { from: 0n }],
      ['from', { from: 1 }],
      ['from', { from: 2n ** 63n }],
      ['waitMs', { waitMs: -1 }],
      ['waitMs', { waitMs: 1, backwards: true }],
    ])('refuses %s of %o', async (field, options) => {
      await expect(ours.read('s', options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
      if (!('backwards' in options)) {
        await expect(ours.readAll(options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
      }
    })
  })

  describe('the order of all streams', () => {
    test('an event that commits late is not skipped: readers stop before it', async () => {
      const folder = fresh('late/')
      await ours.append(`${folder}/a`, { type: '0' })
      await using late = await transaction()
      await ours.append(`${folder}/b`, { type: '1' }, { trx: late })
      await ours.append(`${folder}/c`, { type: '2' })
      await theirs.append(`${folder}/d`, { type: '3' })
      expect((await all(folder)).map(({ type }) => type)).toEqual(['0'])
      await late.query('commit')
      expect((await all(folder)).map(({ type }) => type)).toEqual(['0', '1', '2', '3'])
    })

    test('an append that is rolled back holds up no reader any more', async () => {
      const folder = fresh('undone/')
      await using late = await transaction()
      await ours.append(`${folder}/b`, { type: '1' }, { trx: late })
      await ours.append(`${folder}/c`, { type: '2' })
      expect(await all(folder)).toEqual([])
      await late.query('savepoint s')
      await late.query('rollback')
      expect((await all(folder)).map(({ type }) => type)).toEqual(['2'])
    })

    test('an append in a savepoint that is rolled back holds up no reader, though its transaction is open', async () => {
      const folder = fresh('savepoint/')
      await using late = await transaction()
      await late.query('savepoint s')
      await ours.append(`${folder}/b`, { type: '1' }, { trx: late })
      await late.query('rollback to s')
      await ours.append(`${folder}/c`, { type: '2' })
      expect((await all(folder)).map(({ type }) => type)).toEqual(['2'])
      await ours.append(`${folder}/d`, { type: '3' }, { trx: late })
      await ours.append(`${folder}/e`, { type: '4' })
      expect((await all(folder)).map(({ type }) => type)).toEqual(['2'])
      await late.query('commit')
      expect((await all(folder)).map(({ type }) => type)).toEqual(['2', '3', '4'])
    })

    test('each stream keeps its own order, also when the transaction of the later event began earlier', async () => {
      const folder = fresh('early/')
      const stream = `${folder}/a`
      await using early = await transaction()
      await early.query(`insert into lockstep.retention (prefix, max_count) values ($1, 1000)`, [folder]) // it has its id now
      await theirs.append(stream, { type: 'before' })
      await ours.append(stream, { type: 'after' }, { trx: early })
      await early.query('commit')
      const found = await all(folder)
      expect(found.map(({ position, type }) => [position, type])).toEqual([
        [1n, 'before'],
        [2n, 'after'],
      ])
    })

    test('a long transaction that appends nothing holds up no reader, in this database or in another', async () => {
      const folder = fresh('other/')
      await using elsewhere = await freshDatabase()
      const client = new pg.Client(elsewhere.url)
      client.on('error', () => {})
      await client.connect()
      await client.query('begin')
      await client.query('create table x ()')
      await using long = await transaction()
      await long.query(`insert into account values ('other', 1)`)
      await ours.append(`${folder}/a`, { type: '1' })
      expect((await all(folder)).map(({ type }) => type)).toEqual(['1'])
      // nor does one that appends there
      const other = createLockstep({ connectionString: elsewhere.url })
      await createEvents(other).append('there', { type: 'x' }, { trx: client })
      await ours.append(`${folder}/a`, { type: '2' })
      expect((await all(folder)).map(({ type }) => type)).toEqual(['1', '2'])
      await client.end()
      await other.close()
    })

    test('readers beside many writers, late ones and some that roll back, see each event once and in order', async () => {
      const folder = fresh('storm/')
      const committed = new Map<string, number>()
      let over = false
      const writers = Array.from({ length: 8 }, async (_, w) => {
        for (let i = 0; i < 25; i++) {
          const streams = [`${folder}/${(w + i) % 5}`, `${folder}/${5 + ((w * i) % 5)}`].sort()
          const keep = (w + i) % 4 !== 0
          if (i % 3 === 0) {
            await ours.append(streams[0] as string, { type: `${w}.${i}` })
            committed.set(`${w}.${i}`, 1)
            continue
          }
          const pool = w % 2 ? a : b
          await pool.kysely
            .transaction()
            .setIsolationLevel('read committed') // else in the odd run (TEST_ODD) it would have to be run again
            .execute(async (trx) => {
              for (const stream of new Set(streams)) await ours.append(stream, { type: `${w}.${i}` }, { trx })
              if (i % 5 === 0) await sql`select pg_sleep(0.02)`.execute(trx)
              if (!keep) throw new Error('undone')
            })
            .then(() => committed.set(`${w}.${i}`, new Set(streams).size))
            .catch((error) => expect(error).toMatchObject({ message: 'undone' }))
        }
      })
      const seen: StoredEvent[] = []
      const reader = (async () => {
        for (let from = 1n, last = false; ; ) {
          const page = await theirs.readAll({ prefix: folder, from, limit: 7 })
          seen.push(...page.events)
          from = page.next as bigint
          if (last && page.events.length === 0) return
          last = over
        }
      })()
      await Promise.all(writers)
      over = true
      await reader
      const counts = new Map<string, number>()
      for (const { type } of seen) counts.set(type, (counts.get(type) ?? 0) + 1)
      expect(counts).toEqual(committed)
      const cursors = seen.map(({ cursor }) => cursor)
      expect(cursors.every((cursor, i) => i === 0 || cursor > (cursors[i - 1] as bigint))).toBe(true)
      for (const [, events] of Map.groupBy(seen, ({ stream }) => stream)) {
        expect(events.map(({ position }) => position)).toEqual(events.map((_, i) => BigInt(i + 1)))
      }
    })
  })

  describe('subscribe', () => {
    test('catches up over pages, then follows what others append', async () => {
      const stream = fresh()
      await ours.append(
        stream,
        Array.from({ length: 2_500 }, (_, i) => ({ type: String(i + 1) })),
      )
      let count = 0n
      for await (const { position, type } of theirs.subscribe({ stream })) {
        count++
        expect([position, type]).toEqual([count, String(count)])
        if (count === 2_500n) await ours.append(stream, { type: '2501' })
        if (count === 2_501n) void theirs.append(stream, [{ type: '2502' }, { type: '2503' }])
        if (count === 2_503n) break
      }
    })

    test('all streams under a prefix, from a cursor on, in order', async () => {
      const folder = fresh('sub/')
      for (let i = 0; i < 6; i++) await ours.append(`${folder}/${i % 3}`, { type: String(i) })
      const before = await all(folder)
      const from = (before[2] as StoredEvent).cursor
      const seen: string[] = []
      const more = ours
        .append(fresh('elsewhere'), { type: 'no' })
        .then(() => theirs.append(`${folder}/9`, { type: '6' }))
      for await (const { type } of theirs.subscribe({ prefix: folder, from })) {
        seen.push(type)
        if (seen.length === 5) break
      }
      await more
      expect(seen).toEqual(['2', '3', '4', '5', '6'])
    })

    test('from the end: events that are appended from then on, and events that had not committed yet', async () => {
      const folder = fresh('end/')
      await ours.append(`${folder}/a`, { type: 'old' })
      await using late = await transaction()
      await ours.append(`${folder}/b`, { type: 'late' }, { trx: late })
      await using fromEnd = createLockstep({ connectionString: url, applicationName: `from the end ${folder}` })
      const subscription = createEvents(fromEnd).subscribe({ prefix: folder, from: 'end' })
      const first = subscription.next()
      await until('it reads', async () => {
        const { rows } = await db.pool.query(
          `select from pg_stat_activity where query like '%read_all(%' and application_name = $1`,
          [`from the end ${folder}`],
        )
        return rows.length > 0
      })
      await late.query('commit')
      expect((await first).value).toMatchObject({ type: 'late' })
      await ours.append(`${folder}/a`, { type: 'new' })
      expect((await subscription.next()).value).toMatchObject({ type: 'new' })
      await subscription.return(undefined as never)
    })

    test('an append that is rolled back is not waited for, and later events arrive', async () => {
      const folder = fresh('behind/')
      await using late = await transaction()
      await ours.append(`${folder}/b`, { type: 'undone' }, { trx: late })
      const subscription = theirs.subscribe({ prefix: folder })
      const first = subscription.next()
      await ours.append(`${folder}/a`, { type: 'kept' })
      await late.query('rollback')
      expect((await first).value).toMatchObject({ type: 'kept' })
      await subscription.return(undefined as never)
    })

    test('a slow consumer holds up no writer, and misses nothing', async () => {
      const stream = fresh()
      const subscription = theirs.subscribe({ stream })
      await ours.append(stream, { type: '1' })
      expect((await subscription.next()).value).toMatchObject({ type: '1' })
      for (let i = 2; i <= 30; i++) await ours.append(stream, { type: String(i) })
      for (let i = 2; i <= 30; i++) expect((await subscription.next()).value).toMatchObject({ type: String(i) })
      await subscription.return(undefined as never)
    })

    test('ends with its signal, with the reason', async () => {
      const stop = new AbortController()
      const subscription = theirs.subscribe({ stream: fresh(), signal: stop.signal })
      const next = subscription.next()
      stop.abort(new Error('enough'))
      await expect(next).rejects.toThrow('enough')
      expect(await subscription.next()).toEqual({ done: true, value: undefined })
      await expect(theirs.subscribe({ signal: AbortSignal.abort(new Error('before')) }).next()).rejects.toThrow(
        'before',
      )
    })

    test('ends when its Lockstep is closed', async () => {
      const lockstep = createLockstep({ connectionString: url })
      const next = createEvents(lockstep).subscribe({ stream: fresh() }).next()
      next.catch(() => {}) // it rejects before the test awaits it
      await lockstep.close()
      await expect(next).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    })

    test('refuses a stream and a prefix together, and an invalid `from`', async () => {
      for (const [field, options] of [
        ['prefix', { stream: 's', prefix: 'p' }],
        ['from', { from: 0n }],
        ['from', { from: 'start' }],
        ['stream', { stream: '' }],
      ] as const) {
        expect(() => ours.subscribe(options as object)).toThrow(expect.objectContaining({ field }))
      }
    })
  })

  describe('retention', () => {
    test('truncate removes the events before a position, and positions are not used again', async () => {
      const stream = fresh()
      await ours.append(
        stream,
        Array.from({ length: 5 }, (_, i) => ({ type: String(i + 1) })),
      )
      expect(await theirs.truncate(stream, 4n)).toEqual({ removed: 3, first: 4n, waitingFor: [] })
      expect(await theirs.truncate(stream, 4n)).toEqual({ removed: 0, first: 4n, waitingFor: [] })
      expect(await types(stream)).toEqual(['4', '5'])
      expect((await ours.read(stream, { backwards: true })).next).toBeNull()
      expect(await theirs.truncate(stream, 2n ** 63n - 1n)).toEqual({ removed: 2, first: 6n, waitingFor: [] })
      expect(await ours.stream(stream)).toEqual({ name: stream, first: 6n, position: 5n })
      expect(await ours.append(stream, { type: '6' }, { expected: 5n })).toMatchObject({ first: 6n })
      expect(await ours.truncate(fresh(), 10n)).toEqual({ removed: 0, first: 1n, waitingFor: [] })
    })

    test('truncate removes more events than one statement does', async () => {
      const stream = fresh()
      for (let i = 0; i < 3; i++)
        await ours.append(
          stream,
          Array.from({ length: 9_000 }, () => ({ type: 'x' })),
        )
      expect(await ours.truncate(stream, 25_001n)).toEqual({ removed: 25_000, first: 25_001n, waitingFor: [] })
    })

    test('events that a group has not read yet are kept, unless `force` is set', async () => {
      const folder = fresh('unread/')
      const group = fresh('group')
      const stream = `${folder}/a`
      await ours.append(
        stream,
        Array.from({ length: 5 }, (_, i) => ({ type: String(i + 1) })),
      )
      await ours.declareGroup(group, { prefix: folder, partitions: 1 })
      const [batch] = await ours.poll(group, { holder: 'h', limit: 2 })
      expect(await ours.truncate(stream, 5n)).toEqual({ removed: 0, first: 1n, waitingFor: [group] })
      await ours.commit(group, batch as NonNullable<typeof batch>)
      expect(await ours.truncate(stream, 5n)).toEqual({ removed: 2, first: 3n, waitingFor: [group] })
      expect(await ours.truncate(stream, 5n, { force: true })).toEqual({ removed: 2, first: 5n, waitingFor: [] })
      const [rest] = await ours.poll(group, { holder: 'h' })
      expect(rest?.events.map(({ position }) => position)).toEqual([5n])
      await ours.deleteGroup(group)
    })

    test('sweep applies the rules: by count and by age, of the longest prefix', async () => {
      const folder = fresh('swept/')
      const fill = (name: string) =>
        ours.append(
          `${folder}/${name}`,
          Array.from({ length: 10 }, (_, i) => ({ type: String(i + 1) })),
        )
      await Promise.all([fill('count/a'), fill('age/a'), fill('age/kept/a'), fill('free')])
      await db.pool.query(
        `update lockstep.event e set at = at - interval '1 hour' from lockstep.stream s
          where s.id = e.stream and s.name like $1 and e.position <= 6`,
        [`${folder}/age/%`],
      )
      await ours.retain(`${folder}/count/`, { maxCount: 3 })
      await ours.retain(`${folder}/age/`, { maxAgeMs: 600_000 })
      await ours.retain(`${folder}/age/kept/`, { maxCount: 1_000 })
      expect((await theirs.retention()).filter(({ prefix }) => prefix.startsWith(folder))).toEqual([
        { prefix: `${folder}/age/`, maxAgeMs: 600_000 },
        { prefix: `${folder}/age/kept/`, maxCount: 1_000 },
        { prefix: `${folder}/count/`, maxCount: 3 },
      ])
      expect(await theirs.sweep()).toEqual({ removed: 13 })
      expect((await types(`${folder}/count/a`))[0]).toBe('8')
      expect((await types(`${folder}/age/a`))[0]).toBe('7')
      expect(await types(`${folder}/age/kept/a`)).toHaveLength(10)
      expect(await types(`${folder}/free`)).toHaveLength(10)
      for (const { prefix } of await ours.retention()) await ours.retain(prefix, null)
      expect(await ours.retention()).toEqual([])
    })

    test('an archive has every event once, as a line of JSON', async () => {
      const folder = fresh('archive/')
      for (let i = 0; i < 3; i++) {
        await ours.append(
          `${folder}/${i}`,
          Array.from({ length: 600 }, (_, k) => ({ type: 't', data: { k }, id: `${k}` })),
        )
      }
      const lines: string[] = []
      for await (const line of theirs.archive({ prefix: folder })) {
        lines.push(line)
        if (lines.length === 10) await ours.append(`${folder}/0`, { type: 'after it began', id: 'later' })
      }
      expect(lines).toHaveLength(1_800)
      expect(lines.every((line) => line.endsWith('\n') && line.indexOf('\n') === line.length - 1)).toBe(true)
      const [first] = await all(folder)
      expect(JSON.parse(lines[0] as string)).toEqual({
        ...{ stream: `${folder}/0`, type: 't', data: { k: 0 }, meta: null, id: '0', position: '1' },
        ...{ cursor: String(first?.cursor), at: first?.at.toISOString() },
      })
      const some: string[] = []
      for await (const line of ours.archive({ stream: `${folder}/1`, from: 3n, before: 6n }))
        some.push(JSON.parse(line).position)
      expect(some).toEqual(['3', '4', '5'])
    })

    test.each<[string, () => Promise<unknown>]>([
      ['before', () => ours.truncate('s', 0n)],
      ['before', () => ours.truncate('s', 1 as never)],
      ['force', () => ours.truncate('s', 1n, { force: 'yes' as never })],
      ['rule', () => ours.retain('', {})],
      ['maxAgeMs', () => ours.retain('', { maxAgeMs: 999 })],
      ['maxCount', () => ours.retain('', { maxCount: -1 })],
      ['prefix', () => ours.retain('x'.repeat(256), null)],
      ['before', () => ours.archive({ from: 5n, before: 4n }).next()],
      ['prefix', () => ours.archive({ stream: 's', prefix: 'p' }).next()],
      ['options', () => ours.truncate('s', 1n, null as never)],
      ['options', () => ours.sweep(null as never)],
      ['options', () => ours.append('s', { type: 't' }, null as never)],
      ['options', () => ours.read('s', 7 as never)],
      ['options', () => ours.readAll(null as never)],
      ['options', () => ours.archive(null as never).next()],
      ['signal', () => ours.sweep({ signal: {} as never })],
      ['signal', () => ours.read('s', { signal: 'x' as never })],
      ['signal', async () => ours.subscribe({ signal: '' as never }).next()],
      ['rule', () => ours.retain('', 7 as never)],
      ['trx', () => ours.append('s', { type: 't' }, { trx: { query: 7 } as never })],
    ])('refuses %s', async (field, call) => {
      await expect(call()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
    })
  })

  describe('a transaction that holds readers up', () => {
    test('is named: pid, database, application and age', async () => {
      const group = fresh('lag-group')
      const stream = fresh('lag/')
      await ours.declareGroup(group, { prefix: 'lag/', partitions: 2, from: 'end' })
      expect((await ours.lag(group)).horizon.holdups).toEqual([])
      const client = new pg.Client({ connectionString: db.url, application_name: 'forgotten' })
      client.on('error', () => {})
      await client.connect()
      await client.query('begin')
      const { rows } = await client.query(
        'select pg_backend_pid() as pid, current_database() as database, current_user as user',
      )
      await ours.append(stream, { type: 'late' }, { trx: client })
      await ours.append(`${stream}/2`, { type: 'behind it' })
      const { horizon, behind } = await ours.lag(group)
      expect(behind).toBe(1)
      expect(horizon.cursor).toBeLessThan(horizon.last)
      expect(horizon.holdups).toEqual([
        { ...rows[0], application: 'forgotten', state: 'idle in transaction', ageMs: expect.any(Number) },
      ])
      expect((await ours.streamLag(`${stream}/2`)).horizon.holdups).toHaveLength(1)
      const gone = new Promise((resolve) => client.once('end', resolve))
      await db.pool.query('select pg_terminate_backend($1)', [rows[0].pid])
      await gone
      await until('it is gone', async () => (await ours.lag(group)).horizon.holdups.length === 0)
      await ours.deleteGroup(group)
    })
  })
}
