/**
 * What tasks promise, as a suite that runs on a direct connection (task.test.ts) and through a transaction pooler
 * (database/pooler.long.test.ts). Two Locksteps stand for two processes: `a` sends, `b` works.
 */
import { once } from 'node:events'
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { z } from 'zod'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type HandlerContext, type Tasks, type Worker } from '../../lib/task/index.ts'
import { bossOf } from '../../lib/task/pgboss/boss-of.ts'
import { type FreshDatabase, freshDatabase, type PooledDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

export function taskSuite({ pooled }: { pooled: boolean }) {
  let db: FreshDatabase
  let url: string
  let a: Lockstep
  let b: Lockstep
  let sender: Tasks
  let worker: Tasks
  const errors: unknown[] = []
  beforeAll(async () => {
    db = pooled ? await freshDatabase({ pooled: true }) : await freshDatabase()
    url = pooled ? (db as PooledDatabase).pooledUrl : db.url
    a = createLockstep({ connectionString: url })
    b = createLockstep({ connectionString: url })
    sender = createTasks(a)
    worker = createTasks(b, { onError: (error) => errors.push(error) })
    await db.pool.query('create table effect (n bigint, at bigserial)')
  })
  afterAll(async () => {
    await Promise.all([a?.close(), b?.close()])
    await db?.close()
  })
  const workers: Worker[] = []
  afterEach(async () => {
    await Promise.all(workers.splice(0).map((each) => each.stop({ graceMs: 0 })))
    expect(errors.splice(0)).toEqual([])
  })
  const works = (queue: string) => {
    const each = worker.work(queue)
    workers.push(each)
    return each
  }

  let n = 0
  const fresh = () => `queue-${n++}`
  /** A queue that b works at, and that a sends to. */
  function working<I, O>(
    handler: (data: I, context: HandlerContext) => Promise<O> | O,
    options: Parameters<Tasks['declare']>[1] & { concurrency?: number } = {},
  ): string {
    const name = fresh()
    worker.define(name, handler, options)
    sender.define(name, options)
    works(name)
    return name
  }
  const stateOf = async (queue: string, id: string) => (await sender.get(queue, id))?.state
  const ends = (queue: string, id: string, state: string) =>
    until(`${id} ${state}`, async () => (await stateOf(queue, id)) === state)
  const effects = async (of: number) =>
    Number((await db.pool.query('select count(*) from effect where n = $1', [of])).rows[0].count)
  const neverEnds = () => new Promise<never>(() => {})

  describe('send', () => {
    test('a job runs with its data, and its output is kept', async () => {
      const queue = working(({ x }: { x: number }) => ({ twice: x * 2 }))
      const id = (await sender.send(queue, { x: 21 })) as string
      await ends(queue, id, 'completed')
      expect(await sender.get(queue, id)).toMatchObject({ data: { x: 21 }, output: { twice: 42 }, attempts: 1, queue })
    })

    test.each([['a string'], [7], [null], [true], [[1, [2]]], [{}]])('data and output may be %j', async (value) => {
      const queue = working((data: unknown) => data)
      expect(await sender.run(queue, value)).toEqual(value)
    })

    test('what is sent at once shares statements, and each gets its own answer', async () => {
      const queue = fresh()
      sender.define(queue)
      const all = Array.from({ length: 200 }, (_, i) => sender.send(queue, i))
      const ids = await Promise.all(all)
      expect(new Set(ids).size).toBe(200)
      const { rows } = await db.pool.query(
        'select count(distinct xmin::text)::int as n from lockstep_boss.job where name = $1',
        [queue],
      )
      expect(rows[0].n).toBeLessThan(20)
      const jobs = await Promise.all(ids.map((id) => sender.get(queue, id as string)))
      expect(jobs.map((job) => job?.data)).toEqual(Array.from({ length: 200 }, (_, i) => i))
    })

    test('one that is refused, or wrong, does not fail the others', async () => {
      const queue = fresh()
      sender.define(queue)
      const id = (await sender.send(queue, 0)) as string
      const answers = await Promise.allSettled([
        sender.send(queue, 1),
        sender.send(queue, 2, { id }),
        sender.send(queue, 3, { deadLetter: 'there-is-none' }),
        sender.send(queue, 4),
      ])
      expect(
        answers.map((answer) => (answer.status === 'fulfilled' ? typeof answer.value : answer.reason.code)),
      ).toEqual(['string', 'object', 'NOT_FOUND', 'string'])
    })

    test('in a transaction: with it or not at all', async () => {
      const queue = fresh()
      sender.define(queue)
      const roll = a.kysely.transaction().execute(async (trx) => {
        await sender.send(queue, 'rolled back', { trx })
        throw new Error('no')
      })
      await expect(roll).rejects.toThrow('no')
      const client = await db.pool.connect()
      await client.query('begin')
      const id = (await sender.send(queue, 'of a pg client', { trx: client })) as string
      expect(await sender.get(queue, id)).toBeNull()
      await client.query('commit')
      client.release()
      expect((await sender.get(queue, id))?.data).toBe('of a pg client')
      expect(await sender.counts(queue)).toMatchObject({ ready: 1 })
    })

    test('in a transaction that cannot see the new queue it is refused at once, and nothing fails at COMMIT', async () => {
      const queue = fresh()
      sender.define(queue)
      const send = (level: 'repeatable read' | 'serializable') =>
        a.kysely
          .transaction()
          .setIsolationLevel(level)
          .execute(async (trx) => {
            await sql`select 1`.execute(trx) // the snapshot: the first send makes the queue after it
            await sender.send(queue, level, { trx })
          })
      await expect(send('repeatable read')).rejects.toMatchObject({
        code: 'UNAVAILABLE',
        message: expect.stringContaining('run the transaction again'),
      })
      await send('serializable')
      expect(await sender.counts(queue)).toMatchObject({ ready: 1 }) // the second transaction sees it
    })

    test('many in one statement: all or none', async () => {
      const queue = fresh()
      sender.define(queue)
      const ids = await sender.sendAll(queue, [{ data: 1 }, { data: 2, priority: 5 }])
      expect(ids).toHaveLength(2)
      await expect(sender.sendAll(queue, [{ data: 3 }, { data: 4, deadLetter: 'nowhere' }])).rejects.toMatchObject({
        code: 'NOT_FOUND',
      })
      expect((await sender.counts(queue)).ready).toBe(2)
    })

    test('a used id, a singleton and a policy refuse: null', async () => {
      const queue = fresh()
      sender.define(queue, { policy: 'exclusive' })
      const id = crypto.randomUUID()
      expect(await sender.send(queue, 1, { id })).toBe(id)
      expect(await sender.send(queue, 2)).toBeNull()
      const other = fresh()
      sender.define(other)
      expect(await sender.send(other, 1, { singletonKey: 'k', singletonSeconds: 3_600 })).not.toBeNull()
      expect(await sender.send(other, 1, { singletonKey: 'k', singletonSeconds: 3_600 })).toBeNull()
      expect(await sender.send(other, 1, { id })).toBe(id) // in another queue
      expect(await sender.send(other, 1, { id })).toBeNull()
    })

    test('a throttle keeps the first data; with `replace` the latest, until the job has begun', async () => {
      const queue = fresh()
      sender.define(queue)
      const throttle = { singletonKey: 'k', singletonSeconds: 31_536_000 }
      const id = await sender.send(queue, 'first', throttle)
      expect(await sender.send(queue, 'second', throttle)).toBeNull()
      const data = async () => (await sender.get(queue, id as string))?.data
      expect(await data()).toBe('first')
      const latest = { ...throttle, replace: true }
      expect(await sender.send(queue, 'third', latest)).toBe(id)
      expect(await data()).toBe('third')
      const all = ['fourth', null, { n: 'last' }].map((each) => ({ data: each, ...latest }))
      expect(await sender.sendAll(queue, all)).toEqual([id, id, id])
      expect(await data()).toEqual({ n: 'last' })
      await expect(
        a.kysely.transaction().execute(async (trx) => {
          expect(await sender.send(queue, 'rolled back', { ...latest, trx })).toBe(id)
          throw new Error('back')
        }),
      ).rejects.toThrow('back')
      expect(await data()).toEqual({ n: 'last' })
      const other = await sender.send(queue, 'other', { ...latest, singletonKey: 'j' })
      expect([other === id, await data()]).toEqual([false, { n: 'last' }])
      const [job] = await sender.claim(queue, { limit: 1 })
      expect(job).toMatchObject({ id, data: { n: 'last' } })
      expect(await sender.send(queue, 'too late', latest)).toBeNull()
      await sender.handBack(queue, [{ id: job?.id as string, token: job?.token as bigint }])
      expect(await sender.send(queue, 'it has begun', latest)).toBeNull()
      expect(await data()).toEqual({ n: 'last' })
      for (const options of [
        { replace: true },
        { ...latest, id: crypto.randomUUID() },
        { ...throttle, replace: 'x' as never },
      ]) {
        await expect(sender.send(queue, 1, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
      }
      await expect(sender.run(queue, 1, latest as never)).rejects.toMatchObject({ field: 'replace' })
    })

    test('a delay is kept, and a higher priority comes first', async () => {
      const seen: unknown[] = []
      const queue = fresh()
      worker.define(queue, (data) => void seen.push(data), { concurrency: 1 })
      await worker.send(queue, 'low')
      await worker.send(queue, 'high', { priority: 9 })
      await worker.send(queue, 'late', { startAfterMs: 3_600_000 })
      await worker.send(queue, 'later', { startAfter: '2999-01-01T00:00:00+01:00' })
      works(queue)
      await until('both', () => seen.length === 2)
      expect(seen).toEqual(['high', 'low'])
      expect(await worker.counts(queue)).toMatchObject({ ready: 0, deferred: 2 })
    })

    test('a job that is due later runs when it is due, without a notification', async () => {
      const queue = working(() => 'ran')
      expect(await sender.run(queue, null, { startAfterMs: 700 })).toBe('ran')
    })

    test('a payload that does not fit its schema fails the send, not the worker', async () => {
      const queue = fresh()
      const schema = z.object({ to: z.object({ mail: z.email() }), when: z.coerce.date().optional() })
      const seen: unknown[] = []
      worker.define(queue, (data) => void seen.push(data), { schema })
      await expect(worker.send(queue, { to: { mail: 'nobody' } })).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        field: 'data.to.mail',
      })
      await expect(worker.send(queue, 7)).rejects.toMatchObject({ field: 'data' })
      works(queue)
      await worker.run(queue, { to: { mail: 'a@b.org' }, when: '2030-01-01T00:00:00Z' })
      expect(seen).toEqual([{ to: { mail: 'a@b.org' }, when: new Date('2030-01-01T00:00:00Z') }]) // as the schema has changed it
    })

    test('an unknown queue is a NotFoundError', async () => {
      const unknown = { code: 'NOT_FOUND', message: expect.stringContaining('"no-such-queue"') }
      await expect(sender.send('no-such-queue', 1)).rejects.toMatchObject(unknown)
      await expect(sender.run('no-such-queue', 1)).rejects.toMatchObject(unknown)
      await expect(sender.counts('no-such-queue')).rejects.toMatchObject(unknown)
      await expect(sender.get('no-such-queue', crypto.randomUUID())).rejects.toMatchObject(unknown)
      await expect(sender.claim('no-such-queue')).rejects.toMatchObject(unknown)
      expect(() => sender.work('no-such-queue')).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }))
    })

    test('a queue that was deleted under us is unknown, and can be made again', async () => {
      const queue = fresh()
      sender.define(queue)
      await sender.send(queue, 1)
      await bossOf(worker).deleteQueue(queue)
      await expect(sender.send(queue, 2)).rejects.toMatchObject({ code: 'NOT_FOUND' })
      expect(await sender.send(queue, 3)).not.toBeNull() // it was defined here, so it is made at its next use
    })
  })

  describe('a definition', () => {
    test('changes a queue that exists with other options', async () => {
      const queue = fresh()
      expect(await sender.declare(queue, { retryLimit: 1 })).toBe(true)
      expect(await sender.declare(queue, { retryLimit: 7, expireInMs: 60_000 })).toBe(false)
      const stored = await bossOf(sender).getQueue(queue)
      expect(stored).toMatchObject({ retryLimit: 7, expireInSeconds: 60, heartbeatSeconds: 30, notify: true })
      await sender.declare(queue, { retryDelayMs: 1_500 })
      expect(await bossOf(sender).getQueue(queue)).toMatchObject({ retryLimit: 7, retryDelay: 2 }) // the other options stay
    })

    test('cannot change the policy or the partition of a queue, and says so', async () => {
      const queue = fresh()
      await sender.declare(queue, { policy: 'singleton' })
      await expect(sender.declare(queue, { policy: 'short' })).rejects.toMatchObject({
        field: 'policy',
        message: expect.stringContaining('singleton'),
      })
    })

    test('is made once for a queue', () => {
      const queue = fresh()
      sender.define(queue)
      expect(() => sender.define(queue)).toThrow(/defined only once/)
    })

    test('makes its dead letter queue, which gets what has failed for good', async () => {
      const [queue, dead] = [fresh(), `${fresh()}/dead`]
      worker.define(
        queue,
        () => {
          throw new Error('always')
        },
        { retryLimit: 0, deadLetter: dead },
      )
      works(queue)
      await expect(worker.run(queue, 'x')).rejects.toThrow('always')
      expect((await worker.claim(dead))[0]?.data).toBe('x')
    })

    test('queues are listed by name', async () => {
      const names = ['list/b', 'list/a', 'list/B']
      for (const name of names) await sender.declare(name)
      expect(await sender.queues({ prefix: 'list/' })).toEqual(['list/B', 'list/a', 'list/b'])
      expect(await sender.queues({ prefix: 'list/', limit: 1, after: 'list/B' })).toEqual(['list/a'])
    })
  })

  describe('run', () => {
    test('returns the output', async () => {
      const queue = working((x: number) => x + 1)
      expect(await sender.run(queue, 1)).toBe(2)
    })

    test('throws the error of the job, with its message and cause', async () => {
      const queue = working(
        () => {
          throw Object.assign(new TypeError('no such file', { cause: new Error('disk') }), { code: 'ENOENT' })
        },
        { retryLimit: 0 },
      )
      const error = await sender.run(queue, {}).catch((error) => error)
      expect(error).toMatchObject({
        name: 'JobFailedError',
        code: 'JOB_FAILED',
        message: 'no such file',
        state: 'failed',
      })
      expect(error.cause).toMatchObject({ message: 'disk' })
      expect(error.output).toMatchObject({ name: 'TypeError', code: 'ENOENT', stack: expect.any(String) })
    })

    test('waits through the retries', async () => {
      let attempts = 0
      const queue = working(() => {
        attempts += 1
        if (attempts < 3) throw new Error('not yet')
        return attempts
      })
      expect(await sender.run(queue, {})).toBe(3)
    })

    test('a pool of copies: all their outputs, or an AggregateError of those that failed', async () => {
      let calls = 0
      const queue = working(
        () => {
          calls += 1
          return calls
        },
        { concurrency: 3 },
      )
      expect((await sender.run(queue, {}, { pool: 5 })).toSorted()).toEqual([1, 2, 3, 4, 5])
      let odd = 0
      const failing = working(
        () => {
          odd += 1
          if (odd % 2 === 0) throw new Error('even')
        },
        { retryLimit: 0 },
      )
      const error = await sender.run(failing, {}, { pool: 4 }).catch((error) => error)
      expect(error).toBeInstanceOf(AggregateError)
      expect(error.errors.map(({ message }: Error) => message)).toEqual(['even', 'even'])
    })

    test('waitMs runs out: the error has the id, and the job goes on', async () => {
      const queue = fresh()
      sender.define(queue)
      const error = await sender.run(queue, 'x', { waitMs: 20 }).catch((error) => error)
      expect(error).toMatchObject({ name: 'RunTimeoutError', code: 'RUN_TIMEOUT', queue })
      expect(await stateOf(queue, error.id)).toBe('created')
    })

    test('aborting the signal cancels the job, and rejects with its reason', async () => {
      const seen = Promise.withResolvers<AbortSignal>()
      const queue = working((_: unknown, { signal }) => {
        seen.resolve(signal)
        return once(signal, 'abort')
      })
      const stop = new AbortController()
      const run = sender.run(queue, {}, { signal: stop.signal })
      const signal = await seen.promise
      stop.abort(new Error('enough'))
      await expect(run).rejects.toThrow('enough')
      await until('its handler’s signal', () => signal.aborted)
      expect(signal.reason).toMatchObject({ code: 'LEASE_LOST' })
    })

    test('a job that another caller cancels rejects', async () => {
      const queue = fresh()
      sender.define(queue)
      const id = crypto.randomUUID()
      const run = sender.run(queue, {}, { id })
      run.catch(() => {}) // it may reject before cancel() resolves
      await until('sent', async () => (await stateOf(queue, id)) === 'created')
      expect(await worker.cancel(queue, id)).toBe(true)
      await expect(run).rejects.toMatchObject({ code: 'JOB_FAILED', state: 'cancelled' })
      expect(await worker.cancel(queue, id)).toBe(false)
    })
  })

  describe('a handler', () => {
    test('that throws a value that is no Error fails its job all the same', async () => {
      const thrown: unknown[] = ['text', { any: 'thing' }, null, undefined, 7n, 'a\0b', new Error('a\0b\ud800')]
      const queue = working(
        (i: number) => {
          throw thrown[i]
        },
        { retryLimit: 0 },
      )
      const messages = await Promise.all(thrown.map((_, i) => sender.run(queue, i).catch((error) => error.message)))
      expect(messages).toEqual(['text', '{"any":"thing"}', 'null', 'null', '7', 'a\\0b', 'a\\0b\ufffd'])
    })

    test.each([
      ['a BigInt', () => 1n],
      ['a circle', () => Object.assign([], { 0: globalThis })],
      ['a function', () => () => {}],
      ['half a character', () => '\ud800'],
      ['too much', () => 'x'.repeat(1_048_577)],
    ])('that returns %s fails its job, with a reason', async (_, handler) => {
      const queue = working(handler as () => unknown, { retryLimit: 0 })
      await expect(sender.run(queue, {})).rejects.toThrow(/output.*JSON of at most 1048576 bytes/)
    })

    test('that never returns is left to itself when its time is up: the job is tried again, the queue goes on', async () => {
      const signals: AbortSignal[] = []
      const queue = working(
        (data: string, { signal }) => {
          if (data === 'good') return 'ran'
          signals.push(signal)
          return neverEnds()
        },
        { concurrency: 1, expireInMs: 1_000, retryLimit: 1 },
      )
      const stuck = sender.run(queue, 'stuck')
      await until('it runs', () => signals.length === 1)
      await expect(stuck).rejects.toThrow(/took longer than 1000 ms/)
      expect(signals).toHaveLength(2)
      expect(signals.map(({ aborted }) => aborted)).toEqual([true, true])
      expect(await sender.run(queue, 'good')).toBe('ran')
    })

    test('shows its progress', async () => {
      const go = Promise.withResolvers<void>()
      const queue = working(async (_: unknown, { progress }) => {
        await progress(0.5, 'half of it')
        await go.promise
      })
      const id = (await sender.send(queue, {})) as string
      await until('progress', async () => (await sender.get(queue, id))?.progress !== null)
      expect((await sender.get(queue, id))?.progress).toMatchObject({ fraction: 0.5, note: 'half of it' })
      go.resolve()
      await ends(queue, id, 'completed')
    })

    test('knows its job: id, queue, attempt, and a token that rises', async () => {
      const seen: HandlerContext['job'][] = []
      const queue = working((_: unknown, { job }) => {
        seen.push(job)
        if (seen.length < 2) throw new Error('again')
      })
      const id = (await sender.send(queue, {})) as string
      await ends(queue, id, 'completed')
      expect(seen).toEqual([
        { id, queue, attempt: 1, token: 1n },
        { id, queue, attempt: 2, token: 2n },
      ])
    })

    test('as many at a time as it was defined for', async () => {
      let now = 0
      let most = 0
      const queue = working(
        async () => {
          now += 1
          most = Math.max(most, now)
          await new Promise((resolve) => setTimeout(resolve, 5))
          now -= 1
        },
        { concurrency: 3 },
      )
      await sender.run(queue, {}, { pool: 12 })
      expect(most).toBe(3)
    })
  })

  describe('a stale attempt', () => {
    /** A handler that runs, and the jobs's next attempt, begun by force while it still does. */
    async function overtaken() {
      const go = Promise.withResolvers<unknown>()
      const began = Promise.withResolvers<void>()
      const queue = fresh()
      worker.define(
        queue,
        async () => {
          began.resolve()
          return await go.promise
        },
        { concurrency: 1 },
      )
      const first = works(queue)
      const id = (await worker.send(queue, {})) as string
      await began.promise
      // As upkeep does with the job of a worker that it takes for dead; then another worker fetches it.
      await db.pool.query(`update lockstep_boss.job set state = 'retry' where id = $1`, [id])
      const [second] = await sender.claim(queue)
      expect(second).toMatchObject({ id, attempt: 2, token: 2n })
      return { queue, id, token: second?.token as bigint, first, go }
    }

    test('cannot complete its successor', async () => {
      const { queue, id, token, first, go } = await overtaken()
      go.resolve('stale')
      await first.stop()
      expect(await sender.get(queue, id)).toMatchObject({ state: 'active', output: null })
      await sender.complete(queue, id, token, 'fresh')
      expect(await sender.get(queue, id)).toMatchObject({ state: 'completed', output: 'fresh' })
    })

    test('cannot fail it', async () => {
      const { queue, id, token, first, go } = await overtaken()
      go.reject(new Error('stale'))
      await first.stop()
      expect(await stateOf(queue, id)).toBe('active')
      await sender.complete(queue, id, token)
    })

    test('cannot hand it back, extend it or report its progress', async () => {
      const { queue, id, token, first } = await overtaken()
      await first.stop({ graceMs: 0 })
      expect(await stateOf(queue, id)).toBe('active')
      await expect(sender.progress(queue, id, 1n, 0.5)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      await expect(sender.extend(queue, id, 1n)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      await expect(sender.complete(queue, id, 1n)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      await expect(sender.fail(queue, id, 1n, 'x')).rejects.toMatchObject({ code: 'LEASE_LOST' })
      await sender.handBack(queue, [{ id, token: 1n }])
      expect(await stateOf(queue, id)).toBe('active')
      await sender.complete(queue, id, token)
    })

    test('cannot commit its transaction', async () => {
      const go = Promise.withResolvers<void>()
      const began = Promise.withResolvers<void>()
      const queue = fresh()
      worker.define(
        queue,
        async (of: number, { trx }) => {
          await sql`insert into effect (n) values (${of})`.execute(trx)
          began.resolve()
          await go.promise
        },
        { transactional: true, concurrency: 1 },
      )
      const first = works(queue)
      const id = (await worker.send(queue, 100)) as string
      await began.promise
      await db.pool.query(`update lockstep_boss.job set state = 'retry' where id = $1`, [id])
      const [second] = await sender.claim(queue)
      go.resolve()
      await first.stop()
      expect(await effects(100)).toBe(0)
      await sender.complete(queue, id, second?.token as bigint)
    })
  })

  describe('a transactional handler', () => {
    test('commits its effects and the completion together', async () => {
      const queue = fresh()
      worker.define(
        queue,
        async (of: number, { trx }) => {
          await sql`insert into effect (n) values (${of})`.execute(trx)
          const { rows } = await db.pool.query('select count(*)::int as n from effect where n = $1', [of])
          return rows[0].n
        },
        { transactional: true },
      )
      works(queue)
      expect(await worker.run(queue, 200)).toBe(0) // the effect was not visible before
      expect(await effects(200)).toBe(1)
    })

    test('that throws leaves nothing behind, however often', async () => {
      const queue = fresh()
      worker.define(
        queue,
        async (of: number, { trx, job }) => {
          await sql`insert into effect (n) values (${of})`.execute(trx)
          if (job.attempt < 3) throw new Error('not yet')
        },
        { transactional: true },
      )
      works(queue)
      await worker.run(queue, 201)
      expect(await effects(201)).toBe(1)
    })

    test('sends on in its transaction: both, or neither', async () => {
      const [queue, next] = [fresh(), fresh()]
      worker.define(next)
      worker.define(
        queue,
        async (_: unknown, { trx, job }) => {
          await worker.send(next, job.attempt, { trx })
          if (job.attempt === 1) throw new Error('not yet')
        },
        { transactional: true },
      )
      works(queue)
      await worker.run(queue, {})
      expect((await worker.claim(next, { limit: 9 })).map(({ data }) => data)).toEqual([2])
    })
  })

  describe('stopping', () => {
    test('gives back what runs: it runs again at once, elsewhere, and costs no retry', async () => {
      const queue = fresh()
      const began = Promise.withResolvers<AbortSignal>()
      worker.define(
        queue,
        (_: unknown, { signal }) => {
          began.resolve(signal)
          return once(signal, 'abort')
        },
        { retryLimit: 0 },
      )
      const first = works(queue)
      const id = (await worker.send(queue, {})) as string
      const signal = await began.promise
      const other = sender.claim(queue, { waitMs: 20_000 })
      await first.stop({ graceMs: 0 })
      expect(signal.reason).toMatchObject({ code: 'HANDED_BACK' })
      const [job] = await other
      expect(job).toMatchObject({ id, attempt: 2 })
      await sender.fail(queue, id, job?.token as bigint, 'now it fails')
      expect(await stateOf(queue, id)).toBe('failed') // it failed for the first time, and has no retries
    })

    test('lets what runs end within the grace', async () => {
      const queue = fresh()
      const began = Promise.withResolvers<void>()
      const go = Promise.withResolvers<string>()
      worker.define(queue, () => {
        began.resolve()
        return go.promise
      })
      const first = works(queue)
      const id = (await worker.send(queue, {})) as string
      await began.promise
      const stopped = first.stop({ graceMs: 20_000 })
      go.resolve('ended')
      await stopped
      expect(await sender.get(queue, id)).toMatchObject({ state: 'completed', output: 'ended' })
    })

    test('does not wait for a handler that ignores its signal', async () => {
      const queue = fresh()
      const began = Promise.withResolvers<void>()
      worker.define(queue, () => {
        began.resolve()
        return neverEnds()
      })
      const first = works(queue)
      const id = (await worker.send(queue, {})) as string
      await began.promise
      await first.stop({ graceMs: 0 })
      expect(await stateOf(queue, id)).toBe('retry')
    })

    test('the whole Lockstep: its workers hand back, and callers that wait get an error', async () => {
      const mine = createLockstep({ connectionString: url })
      const tasks = createTasks(mine)
      const queue = fresh()
      const began = Promise.withResolvers<void>()
      tasks.define(queue, (_: unknown, { signal }) => {
        began.resolve()
        return once(signal, 'abort')
      })
      tasks.work(queue)
      const id = (await tasks.send(queue, {})) as string
      await began.promise
      const other = fresh()
      tasks.define(other)
      const rejected = expect(tasks.run(other, {})).rejects.toMatchObject({ code: 'UNAVAILABLE' })
      await until('sent', async () => (await tasks.counts(other).catch(() => undefined))?.ready === 1)
      await mine.close()
      await rejected
      expect(await stateOf(queue, id)).toBe('retry')
    })
  })

  describe('drain', () => {
    test('works until nothing is ready', async () => {
      const seen: unknown[] = []
      const queue = fresh()
      worker.define(queue, (data) => void seen.push(data), { concurrency: 2 })
      await worker.sendAll(
        queue,
        Array.from({ length: 25 }, (_, data) => ({ data })),
      )
      await worker.send(queue, 'not yet', { startAfterMs: 60_000 })
      expect(await worker.drain({ queues: [queue] })).toMatchObject({ jobs: 25, failed: 0, handedBack: 0 })
      expect(seen).toHaveLength(25)
      expect(await worker.drain({ queues: [queue] })).toMatchObject({ jobs: 0 })
    })

    test('when the budget ends what runs is stopped and given back', async () => {
      const queue = fresh()
      let signal: AbortSignal | undefined
      worker.define(queue, (_: unknown, context) => {
        signal = context.signal
        return once(context.signal, 'abort')
      })
      const id = (await worker.send(queue, {})) as string
      expect(await worker.drain({ queues: [queue], budgetMs: 500 })).toMatchObject({ jobs: 0, handedBack: 1 })
      expect(signal?.reason).toMatchObject({ code: 'HANDED_BACK' })
      expect(await worker.get(queue, id)).toMatchObject({ state: 'retry' })
    })

    test('counts what failed', async () => {
      const queue = fresh()
      worker.define(
        queue,
        () => {
          throw new Error('no')
        },
        { retryLimit: 1, retryDelayMs: 0 },
      )
      await worker.send(queue, {})
      expect(await worker.drain({ queues: [queue] })).toMatchObject({ jobs: 0, failed: 2 })
    })
  })

  describe('tick', () => {
    test('gives the job of a dead worker to another one', async () => {
      const queue = fresh()
      await sender.declare(queue, { retryLimit: 1 })
      const id = (await sender.send(queue, 'x')) as string
      await sender.claim(queue, { leaseMs: 1_000 })
      // as if its lease had run out
      await db.pool.query(`update lockstep_boss.job set heartbeat_on = now() - interval '1 hour' where id = $1`, [id])
      await sender.tick()
      expect((await sender.claim(queue))[0]).toMatchObject({ id, data: 'x', attempt: 2 })
    })

    test('fails a job that took too long and has no retries left', async () => {
      const queue = fresh()
      await sender.declare(queue, { retryLimit: 0, expireInMs: 1_000 })
      const id = (await sender.send(queue, 'x')) as string
      await sender.claim(queue)
      await db.pool.query(`update lockstep_boss.job set started_on = now() - interval '1 hour' where id = $1`, [id])
      await sender.tick()
      expect(await sender.get(queue, id)).toMatchObject({ state: 'failed', output: { message: 'job timed out' } })
    })

    test('unblocks flows', async () => {
      const queue = fresh()
      await sender.declare(queue)
      const ids = await bossOf(sender).flow([
        { ref: 'first', name: queue, data: { n: 1 } },
        { ref: 'then', name: queue, data: { n: 2 }, dependsOn: ['first'] },
      ])
      const [job] = await sender.claim(queue, { limit: 5 })
      expect(job?.id).toBe(ids.first)
      expect(await sender.counts(queue)).toMatchObject({ blocked: 1 })
      await sender.complete(queue, job?.id as string, job?.token as bigint)
      await sender.tick()
      expect((await sender.claim(queue))[0]?.data).toEqual({ n: 2 })
    })

    test('drains too', async () => {
      const queue = fresh()
      const seen: unknown[] = []
      worker.define(queue, (data) => void seen.push(data))
      await worker.send(queue, 'x')
      expect((await worker.tick()).jobs).toBeGreaterThan(0)
      expect(seen).toEqual(['x'])
    })

    test('deletes what was kept long enough, and forgets its attempts', async () => {
      const queue = fresh()
      await sender.declare(queue, { deleteAfterSeconds: 60 })
      const id = (await sender.send(queue, 'x')) as string
      const [job] = await sender.claim(queue, { holder: 'me' })
      await sender.complete(queue, id, job?.token as bigint)
      await db.pool.query(`update lockstep_boss.job set completed_on = now() - interval '2 days' where id = $1`, [id])
      await db.pool.query(`update lockstep.attempt set at = now() - interval '31 days' where id = $1`, [id])
      await db.pool.query(`update lockstep_boss.queue set maintain_on = null`)
      await sender.tick()
      expect(await sender.get(queue, id)).toBeNull()
      expect((await db.pool.query(`select from lockstep.attempt where id = $1`, [id])).rows).toEqual([])
    })

    test('an idle one is at most three statements', async () => {
      await using mine = await freshDatabase()
      await using lockstep = createLockstep({ connectionString: mine.url })
      const tasks = createTasks(lockstep)
      tasks.define('idle', () => {})
      await tasks.schedule('never', '0 0 1 1 *', { queue: 'idle' })
      await tasks.tick() // makes the queue
      await tasks.tick() // its first upkeep
      const statements = vi.spyOn(pg.Client.prototype, 'query')
      const [one, another] = [await tasks.tick(), await tasks.tick()]
      const sent = statements.mock.calls.map(([statement]) => statement)
      statements.mockRestore()
      expect([one, another]).toMatchObject([
        { slots: 0, jobs: 0 },
        { slots: 0, jobs: 0 },
      ])
      expect(sent.length).toBeGreaterThan(0)
      expect(sent.length / 2).toBeLessThanOrEqual(3)
    })
  })

  describe('claims', () => {
    test('a claimed job is the claimer’s, until it is completed', async () => {
      const queue = fresh()
      await sender.declare(queue)
      const id = (await sender.send(queue, { x: 1 })) as string
      const [job] = await sender.claim(queue, { holder: 'python-1', leaseMs: 60_000 })
      expect(job).toMatchObject({ id, data: { x: 1 }, token: 1n, attempt: 1 })
      expect(job?.expiresAt.getTime()).toBeGreaterThan(Date.now())
      expect(await sender.claim(queue)).toEqual([])
      await sender.progress(queue, id, 1n, 0.25, 'a quarter')
      expect(await sender.get(queue, id)).toMatchObject({
        state: 'active',
        holder: 'python-1',
        progress: { fraction: 0.25, note: 'a quarter' },
      })
      expect((await sender.extend(queue, id, 1n, { leaseMs: 120_000 })).getTime()).toBeGreaterThan(
        job?.expiresAt.getTime() ?? 0,
      )
      await sender.complete(queue, id, 1n, { done: true })
      await sender.complete(queue, id, 1n, { done: true }) // as if the answer had been lost
      expect(await sender.get(queue, id)).toMatchObject({ state: 'completed', output: { done: true } })
      await expect(sender.fail(queue, id, 1n, 'too late')).rejects.toMatchObject({ code: 'LEASE_LOST' })
    })

    test('waits for a job', async () => {
      const queue = fresh()
      await sender.declare(queue)
      const claimed = worker.claim(queue, { waitMs: 20_000 })
      await sender.send(queue, 'came')
      expect((await claimed)[0]?.data).toBe('came')
      expect(await worker.claim(queue, { waitMs: 30 })).toEqual([])
    })

    test('a wait ends with its signal', async () => {
      const queue = fresh()
      await sender.declare(queue)
      await expect(sender.claim(queue, { waitMs: 20_000, signal: AbortSignal.timeout(20) })).rejects.toMatchObject({
        name: 'TimeoutError',
      })
    })

    test('a short lease of a claim is not that of the worker that runs the job next', async () => {
      const queue = fresh()
      const go = Promise.withResolvers<void>()
      worker.define(queue, () => go.promise)
      const id = (await worker.send(queue, {})) as string
      const [job] = await sender.claim(queue, { leaseMs: 1_000 })
      await sender.handBack(queue, [{ id, token: job?.token as bigint }])
      works(queue)
      await ends(queue, id, 'active')
      await until('its own heartbeat', async () => {
        const { rows } = await db.pool.query('select heartbeat_seconds from lockstep_boss.job where id = $1', [id])
        return rows[0].heartbeat_seconds === 30
      })
      go.resolve()
      await ends(queue, id, 'completed')
    })
  })

  describe('broadcast', () => {
    test('once on every live worker of the queue', async () => {
      const queue = fresh()
      const seen: string[] = []
      const others = [createLockstep({ connectionString: url }), createLockstep({ connectionString: url })]
      const live: Worker[] = []
      for (const [i, each] of others.entries()) {
        const tasks = createTasks(each)
        tasks.define(queue, (data: string) => void seen.push(`${i} ${data}`))
        live.push(tasks.work(queue))
      }
      const count = async () =>
        (await db.pool.query('select count(*)::int as n from lockstep.worker where queue = $1', [queue])).rows[0].n
      await until('both are seen', async () => (await count()) === 2)
      const sent = await sender.broadcast(queue, 'reload')
      expect(sent).toHaveLength(2)
      await until('both', () => seen.length >= 2)
      expect(seen.toSorted()).toEqual(['0 reload', '1 reload'])
      await live[0]?.stop()
      expect(await sender.broadcast(queue, 'again')).toHaveLength(1)
      await until('the one', () => seen.length >= 3)
      expect(seen.at(-1)).toBe('1 again')
      await Promise.all(others.map((each) => each.close()))
      expect(await count()).toBe(0)
      expect(await sender.broadcast(queue, 'nobody')).toEqual([])
      const { rows } = await db.pool.query(`select name from lockstep_boss.queue where name like 'lockstep.worker/%'`)
      expect(rows).toEqual([])
    })

    test('a worker that died is removed by a tick, with its queue', async () => {
      const queue = fresh()
      await sender.declare(queue)
      const id = crypto.randomUUID()
      await bossOf(sender).createQueue(`lockstep.worker/${id}`)
      await db.pool.query(`insert into lockstep.worker values ($1, $2, now() - interval '1 hour')`, [id, queue])
      expect(await sender.broadcast(queue, 'x')).toEqual([])
      await sender.tick()
      expect(await bossOf(sender).getQueue(`lockstep.worker/${id}`)).toBeNull()
    })
  })

  describe('bad input names the field and the range', () => {
    test.each<[string, object, string]>([
      ['priority', { priority: 1.5 }, '-1000000–1000000'],
      ['retryLimit', { retryLimit: -1 }, '0–1000'],
      ['retryDelayMs', { retryDelayMs: -1 }, '0–31536000000'],
      ['expireInMs', { expireInMs: 999 }, '1000–86400000'],
      ['heartbeatMs', { heartbeatMs: 9_999 }, '10000–86400000'],
      ['startAfterMs', { startAfterMs: -5 }, '0–315360000000'],
      ['startAfter', { startAfter: 'tomorrow' }, '2030-01-01T09:00:00Z'],
      ['startAfter', { startAfter: '2030-01-01T09:00:00' }, '2030-01-01T09:00:00Z'],
      ['startAfter', { startAfter: new Date('nonsense') }, '2030-01-01T09:00:00Z'],
      ['startAfter', { startAfter: new Date(), startAfterMs: 1 }, 'left out'],
      ['singletonKey', { singletonKey: '' }, '1–255'],
      ['singletonSeconds', { singletonSeconds: 0 }, '1–31536000'],
      ['backoff', { backoff: 'yes' }, '{ maxMs }'],
      ['backoff.maxMs', { backoff: { maxMs: -1 } }, '0–31536000000'],
      ['deadLetter', { deadLetter: 'not a name' }, '1–255 letters'],
      ['id', { id: 'x' }, 'UUID'],
      ['group', { group: 'x' }, '{ id, tier? }'],
      ['group.id', { group: { id: '' } }, '1–255'],
      ['retentionSeconds', { retentionSeconds: 0 }, '1–2147483647'],
      ['deleteAfterSeconds', { deleteAfterSeconds: -1 }, '0–2147483647'],
    ])('%s', async (field, options, range) => {
      const queue = fresh()
      sender.define(queue)
      const error = await sender.send(queue, {}, options).catch((error) => error)
      expect(error).toMatchObject({ code: 'INVALID_ARGUMENT', field })
      expect(error.message).toContain(range)
    })

    test.each<[string, (tasks: Tasks) => unknown]>([
      ['queue', (tasks) => tasks.send('not a name', {})],
      ['queue', (tasks) => tasks.send('', {})],
      ['queue', (tasks) => tasks.cancel('constructor', crypto.randomUUID())],
      ['queue', (tasks) => tasks.declare('__proto__')],
      ['deadLetter', (tasks) => tasks.declare('x', { deadLetter: 'toString' })],
      ['queue', async (tasks) => tasks.define('lockstep.worker/x')],
      ['concurrency', async (tasks) => tasks.define('x', () => {}, { concurrency: 0 })],
      ['groupConcurrency', async (tasks) => tasks.define('x', () => {}, { groupConcurrency: 1_001 })],
      ['policy', (tasks) => tasks.declare('x', { policy: 'none' as 'short' })],
      ['schema', async (tasks) => tasks.define('x', { schema: {} as never })],
      ['data', (tasks) => tasks.send('x', 1n)],
      ['data', (tasks) => tasks.send('x', 'a\0b')],
      ['data', (tasks) => tasks.send('x', 'x'.repeat(1_048_577))],
      ['waitMs', (tasks) => tasks.run('x', {}, { waitMs: -1 })],
      ['pool', (tasks) => tasks.run('x', {}, { pool: 0 })],
      ['budgetMs', (tasks) => tasks.drain({ budgetMs: 99 })],
      ['budgetMs', (tasks) => tasks.tick({ budgetMs: 0 })],
      ['limit', (tasks) => tasks.claim('x', { limit: 101 })],
      ['leaseMs', (tasks) => tasks.claim('x', { leaseMs: 999 })],
      ['holder', (tasks) => tasks.claim('x', { holder: '' })],
      ['token', (tasks) => tasks.complete('x', crypto.randomUUID(), 0n)],
      ['id', (tasks) => tasks.get('x', 'y')],
      ['fraction', (tasks) => tasks.progress('x', crypto.randomUUID(), 1n, 1.1)],
      ['note', (tasks) => tasks.progress('x', crypto.randomUUID(), 1n, 1, 'x'.repeat(1_001))],
      ['options', async (tasks) => tasks.define('x', () => {}, null as never)],
      ['options', (tasks) => tasks.send('x', {}, 7 as never)],
      ['options', (tasks) => tasks.run('x', {}, null as never)],
      ['options', (tasks) => tasks.outcome('x', {}, 'x' as never)],
      ['options', (tasks) => tasks.claim('x', null as never)],
      ['options', (tasks) => tasks.tick(null as never)],
      ['signal', (tasks) => tasks.run('x', {}, { signal: 'x' as never })],
      ['signal', (tasks) => tasks.claim('x', { signal: null as never })],
      ['signal', (tasks) => tasks.tick({ budgetMs: 100, signal: false as never })],
      ['signal', (tasks) => tasks.drain({ budgetMs: 100, signal: [] as never })],
      ['queues', (tasks) => tasks.drain({ budgetMs: 100, queues: 'x' as never })],
      ['trx', (tasks) => tasks.declare('x').then(() => tasks.sendAll('x', [{ data: 1 }], { trx: {} as never }))],
      ['jobs.1', (tasks) => tasks.sendAll('x', [{ data: 1 }, null as never])],
      ['jobs', (tasks) => tasks.handBack('x', undefined as never)],
      ['id', (tasks) => tasks.handBack('x', [undefined as never])],
    ])('%s', async (field, call) => {
      await expect((async () => call(sender))()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
    })
  })
}
