/**
 * Lockstep works the same whatever settings the role has, and whatever parsers the application has: the main verbs of every room, under
 * each odd thing, on a direct connection and through PgBouncer.
 */
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase, pgbouncerAvailable } from '../support/database.ts'
import { wire } from '../support/faulty-wire.ts'
import { ODD_SETTINGS, replaceParsers } from '../support/odd.ts'
import { pgbouncer } from '../support/pgbouncer.ts'
import { until } from '../support/until.ts'

/** The tests that `npm test` runs: the others last longer. */
const SHORT = ['parsers of the application', 'everything at once']

/** Registers the tests that `npm test` runs, or all others. */
export function oddSettings(which: 'short' | 'others'): void {
  let db: FreshDatabase
  beforeAll(async () => {
    db = await freshDatabase()
    await db.pool.query('create table public.effect (n bigint)')
  })
  afterAll(() => db?.close())

  const all = Object.entries(ODD_SETTINGS)
  const ODD: [what: string, settings: [string, string][], parsers?: boolean][] = [
    ...all.map(([name, value]): [string, [string, string][]] => [`${name} = ${value}`, [[name, value]]]),
    ['parsers of the application', [], true],
    ['everything at once', all, true],
  ]

  // Sharing one pool is tried with all of them at once only.
  const ways = ['direct', 'through PgBouncer', ...(which === 'short' ? ['shared'] : [])]
  for (const way of ways) {
    const pooled = way === 'through PgBouncer'
    describe.skipIf(pooled && !pgbouncerAvailable())(way, () => {
      const meant = ODD.filter(([what]) => SHORT.includes(what) === (which === 'short'))
      test.concurrent.for(meant)('%s', async ([, settings, parsers]) => {
        const role = `odd_${Math.random().toString(36).slice(2)}`
        await db.pool.query(`create role ${role} superuser login`)
        for (const [name, value] of settings) await db.pool.query(`alter role ${role} set ${name} = ${value}`)
        const url = new URL(db.url)
        url.username = role
        const pooler = pooled ? await pgbouncer(url.href, {}) : undefined
        const restore = parsers ? replaceParsers() : () => {}
        try {
          await everyRoom({ connectionString: pooler?.url ?? url.href, shared: way === 'shared' }, pooled)
        } finally {
          restore()
          await pooler?.stop()
          await db.pool.query(`drop role ${role}`)
        }
      })
    })
  }

  // lc_messages: the embedded server has no translations, so the wire translates.
  test('what an error is does not depend on the language of the server', async () => {
    await using broken = await wire(db.url)
    await using lockstep = createLockstep({ connectionString: broken.url })
    const tasks = createTasks(lockstep)
    const [queue, name] = [`queue-${n++}`, `schedule-${n++}`]
    await tasks.declare(queue)
    await tasks.schedule(name, '* * * * * *', { queue })
    // A job that the table refuses is a fault of its schedule, which says so; the tick goes on.
    broken.arm({ like: /^(?!\s*begin)[\s\S]*insert into lockstep_boss\.job/i, fault: 'after', sqlState: '23514' })
    await until('the schedule has met it', async () => {
      await tasks.tick()
      return broken.hit !== undefined
    })
    broken.arm()
    expect(await tasks.getSchedule(name)).toMatchObject({ error: 'iniettato' })

    // A FATAL error ends the connection hold, whatever its SQLSTATE is; an error with the same SQLSTATE does not.
    const hold = await lockstep.locks.acquire(`lock-${n++}`)
    for (const fault of ['before', 'fatal'] as const) {
      broken.arm({ like: /try_key/, fault, sqlState: '53200' })
      const failure = lockstep.locks.tryAcquire(`lock-${n++}`)
      await failure.catch(() => {})
      expect(broken.hit).toBeDefined()
      broken.arm()
      await until(`the hold is ${fault}`, () => hold.isTrusted() === (fault === 'before'))
    }
  })

  let n = 0
  async function everyRoom(options: { connectionString: string; shared: boolean }, pooled: boolean): Promise<void> {
    const { connectionString } = options
    const errors: unknown[] = []
    const onError = (error: unknown) => void errors.push(error)
    await using lockstep = createLockstep(options)
    await using other = createLockstep(options)
    await lockstep.ready()
    await Promise.all([
      locks(lockstep, other, pooled),
      leaders(lockstep, other),
      tasks(lockstep, connectionString, onError),
      events(lockstep, other, connectionString, onError),
      lockstep.time.ready(),
    ])
    expect(errors).toEqual([])
  }

  type Ours = ReturnType<typeof createLockstep>
  const recent = (at: Date) => expect(Math.abs(at.getTime() - Date.now())).toBeLessThan(200_000)

  async function locks(ours: Ours, theirs: Ours, pooled: boolean): Promise<void> {
    const name = `lock-${n++}`
    const lease = await ours.locks.grant(name, { holder: 'me', ttlMs: 60_000, meta: { a: 1 } })
    recent(lease.grantedAt)
    expect(await theirs.locks.get(name)).toMatchObject({
      kind: 'lease',
      token: lease.token,
      meta: { a: 1 },
      ttlMs: 60_000,
    })
    recent((await ours.locks.renew(name, lease.token)).expiresAt)
    expect((await ours.locks.list({ prefix: name }))[0]?.token).toBe(lease.token)
    await ours.locks.revoke(name, lease.token)

    await using hold = await ours.locks.acquire(name, { meta: [null] })
    expect(hold.kind).toBe(pooled ? 'lease' : 'connection')
    const one = await hold.transaction((trx) => sql<{ one: string }>`select 'one' as one`.execute(trx))
    expect(one.rows).toEqual([{ one: 'one' }])
    // A wait that is longer than every timeout of the role, in each way of waiting.
    const waits = [
      theirs.locks.acquire(name).then((next) => next.release()),
      theirs.locks.transaction(name, (trx) => sql`select 1`.execute(trx)),
    ]
    await new Promise((resolve) => setTimeout(resolve, 1_000))
    expect(hold.isTrusted()).toBe(true)
    expect(await ours.locks.get(name)).toMatchObject({ token: expect.anything() })
    await hold.release()
    await Promise.all(waits)
  }

  async function leaders(ours: Ours, theirs: Ours): Promise<void> {
    const name = `leader-${n++}`
    const seen: unknown[] = []
    const stop = new AbortController()
    const observing = (async () => {
      for await (const { leader } of theirs.leaders.observe(name, { signal: stop.signal })) {
        if (leader) recent(leader.grantedAt)
        seen.push(leader?.meta ?? null)
      }
    })().catch(() => {})
    const term = await ours.leaders.campaign(name, { meta: { n: 1 } })
    await until('the leader is seen', () => seen.some((meta) => JSON.stringify(meta) === '{"n":1}'))
    const next = theirs.leaders.campaign(name)
    await until('it waits', async () => (await ours.leaders.members(name)).waiting.length === 1)
    await term.resign()
    await (await next).resign()
    stop.abort()
    await observing
  }

  async function tasks(ours: Ours, url: string, onError: (error: unknown) => void): Promise<void> {
    const tasks = createTasks(ours, { onError })
    const queue = `queue-${n++}`
    tasks.define(queue, async (data: { x: number }) => ({ y: data.x + 1 }))
    tasks.define(
      `${queue}-t`,
      async (_: unknown, { trx }) => (await sql`insert into public.effect values (1)`.execute(trx)) && 'done',
      {
        transactional: true,
      },
    )
    const worker = tasks.work()
    expect(await tasks.run(queue, { x: 1 }, { waitMs: 10_000 })).toEqual({ y: 2 })
    expect(await tasks.run(`${queue}-t`, null, { waitMs: 10_000 })).toBe('done')
    const id = await within(url, (client) => tasks.send(queue, { x: 2 }, { trx: client }))
    await until(
      'the job of a transaction is done',
      async () => (await tasks.get(queue, id as string))?.state === 'completed',
    )
    const job = await tasks.get(queue, id as string)
    recent(job?.createdAt as Date)
    await tasks.schedule(`${queue}-s`, '* * * * *', { queue } as never)
    recent((await tasks.getSchedule(`${queue}-s`))?.nextAt as Date)
    await tasks.tick()
    expect(await tasks.unschedule(`${queue}-s`)).toBeTruthy()
    await worker.stop({ graceMs: 0 })
    const [claim] = [await tasks.send(`${queue}-c`, 1).catch(() => null)]
    expect(claim).toBe(null) // the queue does not exist
    await tasks.declare(`${queue}-c`)
    const sent = await tasks.send(`${queue}-c`, { z: 1 })
    const [claimed] = await tasks.claim(`${queue}-c`, { holder: 'me' } as never)
    expect(claimed).toMatchObject({ id: sent, data: { z: 1 } })
    await tasks.complete(`${queue}-c`, sent as string, claimed?.token as bigint, { ok: true })
    expect(await tasks.get(`${queue}-c`, sent as string)).toMatchObject({ state: 'completed', output: { ok: true } })
  }

  async function events(ours: Ours, theirs: Ours, url: string, onError: (error: unknown) => void): Promise<void> {
    const events = createEvents(ours, { onError })
    const stream = `folder-${n++}/stream`
    expect(await events.append(stream, { type: 'a', data: { s: '\\' } })).toMatchObject({ first: 1n })
    expect(
      await events.append(stream, [{ type: 'b', meta: { m: null } }, { type: 'c' }], { expected: 1n }),
    ).toMatchObject({ last: 3n })
    expect(await events.append(stream, { type: 'd', id: 'once' })).toMatchObject({ first: 4n, repeated: false })
    expect(await events.append(stream, { type: 'd', id: 'once' })).toMatchObject({ first: 4n, repeated: true })
    const inside = await within(url, (client) => events.append(stream, { type: 'e' }, { trx: client }))
    expect(inside).toEqual({ first: 5n, last: 5n, repeated: false })
    const { events: read } = await events.read(stream)
    expect(read.map(({ type, position }) => `${type}${position}`)).toEqual(['a1', 'b2', 'c3', 'd4', 'e5'])
    expect(read[0]?.data).toEqual({ s: '\\' })
    recent(read[0]?.at as Date)

    const group = `group-${n++}`
    const prefix = stream.slice(0, stream.indexOf('/') + 1)
    await events.declareGroup(group, { prefix, partitions: 2, retryDelayMs: 1 } as never)
    const handled: string[] = []
    let failed = false
    const consumer = createEvents(theirs, { onError }).consume(group, { prefix } as never, async (event, { trx }) => {
      if (event.type === 'c' && !failed) {
        failed = true
        throw new Error('once')
      }
      await sql`insert into public.effect values (2)`.execute(trx)
      handled.push(event.type)
    })
    await until('the group has handled all', () => new Set(handled).size === 5)
    expect(handled.filter((type) => type === 'd')).toHaveLength(1)
    await consumer.stop()

    const polled = `group-${n++}`
    await events.declareGroup(polled, { prefix, partitions: 1 } as never)
    const [batch] = await events.poll(polled, { holder: 'me' })
    expect(batch?.events.map(({ type }) => type)).toEqual(['a', 'b', 'c', 'd', 'e'])
    await within(url, (client) => events.commit(polled, batch as never, { trx: client }))
    expect((await events.lag(polled)) as unknown).toBeDefined()
  }

  /** Runs `work` in a transaction of a client of the application. */
  async function within<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
    const client = new pg.Client(url)
    await client.connect()
    await client.query('begin isolation level read committed, read write')
    const result = await work(client)
    await client.query('commit')
    await client.end()
    return result
  }
}
