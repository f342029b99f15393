/**
 * The promises of go-micro's `sync`, in its own order, each with our names; and the faults of its backends, which are named in
 * parentheses and must not happen here.
 */
import { once } from 'node:events'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEvents } from '../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../lib/index.ts'
import { createTasks, type Tasks } from '../lib/task/index.ts'
import { ntp } from '../lib/time/ntp/index.ts'
import { type FreshDatabase, freshDatabase } from './support/database.ts'
import { until } from './support/until.ts'
import { fakeServer, wallOffset } from './time/ntp-server.ts'

let db: FreshDatabase
let a: Lockstep
let b: Lockstep
beforeAll(async () => {
  db = await freshDatabase()
  a = createLockstep({ connectionString: db.url })
  b = createLockstep({ connectionString: db.url })
})
afterAll(async () => {
  await Promise.all([a?.close(), b?.close()])
  await db?.close()
})

let n = 0
const fresh = () => `group ${n++}`
const waitQueue = async (name: string) => (await b.leaders.members(name)).waiting.map(({ holder }) => holder)

describe('Leader', () => {
  test('Elect(id) in a Group: campaign(group, { holder: id })', async () => {
    const group = fresh()
    const elected = await a.leaders.campaign(group, { holder: 'node-1' })
    expect(elected).toMatchObject({ name: group, holder: 'node-1' }) // Id()
    await elected.resign()
  })

  test('two nodes of a group with different ids: one leads (etcd ignored the group, and both led)', async () => {
    const group = fresh()
    const one = await a.leaders.campaign(group, { holder: 'node-1' })
    expect(await b.leaders.tryCampaign(group, { holder: 'node-2' })).toBeNull()
    await one.resign()
  })

  test('Revoked(): term.signal, before another node is elected (etcd compared ids; with one id for all nodes it never signalled)', async () => {
    const group = fresh()
    const first = await a.leaders.campaign(group, { holder: 'node-1', ttlMs: 1_000 })
    const revoked = once(first.signal, 'abort')
    const waits = b.leaders.campaign(group, { holder: 'node-2' })
    await until('in the wait queue', async () => String(await waitQueue(group)) === 'node-2')
    await b.leaders.stepDown(group)
    await revoked
    await first[Symbol.asyncDispose]()
    const second = await waits
    expect(second.token).toBeGreaterThan(first.token)
    await second.resign()
  })

  test('Revoked(), without another candidate after the leader was lost (etcd emitted nothing)', async () => {
    const group = fresh()
    const term = await a.leaders.campaign(group, { ttlMs: 1_000 })
    const revoked = once(term.signal, 'abort')
    await b.leaders.stepDown(group)
    await revoked
    await term[Symbol.asyncDispose]()
    expect(await b.leaders.leader(group)).toBeNull()
  })

  test('Reelect(): campaign again, on a live session (etcd used the old one), with a new signal', async () => {
    const group = fresh()
    const first = await a.leaders.campaign(group, { holder: 'node-1', ttlMs: 1_000 })
    const revoked = once(first.signal, 'abort')
    await b.leaders.stepDown(group)
    await revoked
    await first[Symbol.asyncDispose]()
    const again = await a.leaders.campaign(group, { holder: 'node-1' })
    expect(again.token).toBeGreaterThan(first.token)
    expect(again.signal.aborted).toBe(false) // the README's loop read the old, closed channel for ever
    await again.resign()
  })

  test('Resign(): the next one leads at once, and a late resignation has no effect on it', async () => {
    const group = fresh()
    const first = await a.leaders.campaign(group, { holder: 'node-1' })
    const waits = b.leaders.campaign(group, { holder: 'node-2' })
    await until('in the wait queue', async () => String(await waitQueue(group)) === 'node-2')
    await first.resign()
    const second = await waits
    await first.resign()
    expect((await a.leaders.leader(group))?.holder).toBe('node-2')
    await second.resign()
  })

  test('Follow(): observe(group), of this group only (etcd mixed all groups), the current leader first', async () => {
    const [group, other] = [fresh(), fresh()]
    const first = await a.leaders.campaign(group, { holder: 'node-1' })
    const seen: (string | undefined)[] = []
    const controller = new AbortController()
    const following = (async () => {
      for await (const { leader } of b.leaders.observe(group, { signal: controller.signal })) seen.push(leader?.holder)
    })().catch((error) => error)
    await until('the current leader', () => seen.at(-1) === 'node-1')
    await (await a.leaders.campaign(other, { holder: 'other' })).resign()
    await first.resign()
    const second = await b.leaders.campaign(group, { holder: 'node-2' })
    await until('the next leader', () => seen.at(-1) === 'node-2')
    expect(seen).not.toContain('other')
    controller.abort(new Error('ends')) // its goroutine never ended
    expect(await following).toMatchObject({ message: 'ends' })
    await second.resign()
  })

  test('a follower survives the loss of its connection (its channel yielded nothing more after an error of the session)', async () => {
    const group = fresh()
    await using c = createLockstep({ connectionString: db.url, applicationName: 'follower' })
    const seen: (string | undefined)[] = []
    const controller = new AbortController()
    const following = (async () => {
      for await (const { leader } of c.leaders.observe(group, { signal: controller.signal })) seen.push(leader?.holder)
    })().catch((error) => error)
    await until('the first observation', () => seen.length === 1)
    await db.pool.query(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'follower'`)
    const term = await a.leaders.campaign(group, { holder: 'node-1' })
    await until('the leader', () => seen.at(-1) === 'node-1')
    controller.abort(new Error('ends'))
    await following
    await term.resign()
  })

  test('Elect can be cancelled (it blocked for ever), by a signal or by waitMs, and leaves no candidate behind', async () => {
    const group = fresh()
    await using leader = await a.leaders.campaign(group)
    expect(leader.isTrusted()).toBe(true)
    await expect(b.leaders.campaign(group, { waitMs: 10 })).rejects.toMatchObject({ code: 'LEASE_HELD' })
    await expect(b.leaders.campaign(group, { signal: AbortSignal.timeout(10) })).rejects.toMatchObject({
      name: 'TimeoutError',
    })
    await until('the wait queue is empty', async () => (await waitQueue(group)).length === 0)
  })

  test('a leader has a term number and a fence, and others see the leader and the candidates (it had none of these)', async () => {
    const group = fresh()
    const term = await a.leaders.campaign(group, { holder: 'node-1', meta: { address: '10.0.0.1' } })
    expect(term.token).toBeGreaterThan(0n)
    await term.transaction(async () => {})
    expect((await b.leaders.members(group)).leader).toMatchObject({ holder: 'node-1', meta: { address: '10.0.0.1' } })
    await term.resign()
    await expect(term.transaction(async () => {})).rejects.toMatchObject({ code: 'LEASE_LOST' })
  })
})

describe('Lock', () => {
  test('Acquire(id, TTL, Wait) and Release(id): acquire(name, { ttlMs, waitMs }), held.release()', async () => {
    const id = fresh()
    const held = await a.locks.acquire(id, { ttlMs: 5_000 })
    // The option Wait was ignored, or meant "once", or "for ever".
    await expect(b.locks.acquire(id, { ttlMs: 5_000, waitMs: 10 })).rejects.toMatchObject({ code: 'LEASE_HELD' })
    const waits = b.locks.acquire(id, { ttlMs: 5_000, waitMs: 20_000 })
    await held.release()
    await (await waits).release()
  })

  test('the ids a/b and a-b are different (etcd mapped both to one)', async () => {
    const id = fresh()
    await using one = await a.locks.acquire(`${id}/b`, { ttlMs: 5_000 })
    await using two = await b.locks.acquire(`${id}-b`, { ttlMs: 5_000 })
    expect(one.name).not.toBe(two.name)
  })

  test('a late release does not release another holder’s lock (in memory, any caller could release any lock)', async () => {
    const id = fresh()
    const first = await a.locks.acquire(id, { ttlMs: 1_000 })
    await b.locks.forceRevoke(id)
    const second = await b.locks.acquire(id, { ttlMs: 5_000 })
    await expect(first.release()).rejects.toMatchObject({ code: 'LEASE_LOST' })
    expect(first.signal.aborted).toBe(true) // a loss was never signalled
    expect((await a.locks.query(id)).token).toBe(second.token)
    await second.release()
  })
})

describe('Task', () => {
  /** Two nodes that both work a queue, as with the broker; a third one calls. */
  async function nodes(handler: (data: unknown, node: number) => unknown, options = {}) {
    const queue = fresh().replaceAll(' ', '-')
    await caller.declare(queue, options)
    const lockstep = [1, 2].map(() => createLockstep({ connectionString: db.url }))
    const tasks = lockstep.map((each) => createTasks(each, { onError: () => {} }))
    for (const [node, each] of tasks.entries()) {
      each.define(queue, (data: unknown) => handler(data, node), options)
      each.work(queue)
    }
    const close = async () => {
      await Promise.all(lockstep.map((each) => each.close()))
    }
    return { queue, tasks: tasks as [Tasks, Tasks], [Symbol.asyncDispose]: close }
  }
  let caller: Tasks
  beforeAll(() => {
    caller = createTasks(a)
  })

  test('Run(Command): waits for completion, and returns the output (it had no result)', async () => {
    await using their = await nodes((data) => ({ echo: data }))
    expect(await caller.run(their.queue, 'x')).toEqual({ echo: 'x' }) // the caller need not be a worker
  })

  test('its error is returned (the local backend checked the wrong variable and always returned nil)', async () => {
    await using their = await nodes(
      () => {
        throw new Error('boom', { cause: 'fuse' })
      },
      { retryLimit: 0 },
    )
    await expect(caller.run(their.queue, {})).rejects.toMatchObject({ message: 'boom', cause: 'fuse' })
  })

  test('Status(): the state of the job (it was always empty)', async () => {
    await using their = await nodes(() => 'done')
    const id = (await caller.send(their.queue, {})) as string
    await until('done', async () => (await caller.get(their.queue, id))?.state === 'completed')
    expect(await caller.get(their.queue, id)).toMatchObject({ output: 'done', attempts: 1 })
  })

  test('WithPool(n): runs n times, on any workers, and returns when all are done', async () => {
    let calls = 0
    await using their = await nodes(() => {
      calls += 1
      return calls
    })
    expect((await caller.run(their.queue, {}, { pool: 3 })).toSorted()).toEqual([1, 2, 3])
    expect(calls).toBe(3)
  })

  test('with a pool, the errors of the failed runs, together (they were joined into a text, and lost)', async () => {
    await using their = await nodes(
      (_, node) => {
        throw new Error(`boom ${node}`)
      },
      { retryLimit: 0 },
    )
    const error = await caller.run(their.queue, {}, { pool: 3 }).catch((error) => error)
    expect(error).toBeInstanceOf(AggregateError)
    expect(error.errors).toHaveLength(3)
  })

  test('a dead worker does not hang Run (it blocked for ever): another one runs the job', async () => {
    await using their = await nodes((_, node) => `by ${node}`)
    await using dead = createLockstep({ connectionString: db.url })
    const queue = fresh().replaceAll(' ', '-')
    await caller.declare(queue)
    const run = caller.run(queue, {})
    const [job] = await createTasks(dead).claim(queue, { waitMs: 20_000 }) // and then it is silent
    await db.pool.query(`update lockstep_boss.job set heartbeat_on = now() - interval '1 hour' where id = $1`, [
      job?.id,
    ])
    await caller.tick()
    their.tasks[0].define(queue, () => 'by another')
    their.tasks[0].work(queue)
    expect(await run).toBe('by another')
  })

  test('without a worker, Run ends after waitMs, and its job is not lost (there was no timeout, and no queue)', async () => {
    const queue = fresh().replaceAll(' ', '-')
    await caller.declare(queue)
    const error = await caller.run(queue, 'x', { waitMs: 10 }).catch((error) => error)
    expect(error).toMatchObject({ code: 'RUN_TIMEOUT' })
    expect((await caller.claim(queue))[0]).toMatchObject({ id: error.id, data: 'x' })
  })

  test('two Runs at once do not count each other’s results (each returned after any n of them)', async () => {
    await using their = await nodes((data) => data)
    const [one, two] = await Promise.all([
      caller.run(their.queue, 'one', { pool: 4 }),
      their.tasks[1].run(their.queue, 'two', { pool: 4 }),
    ])
    expect(one).toEqual(['one', 'one', 'one', 'one'])
    expect(two).toEqual(['two', 'two', 'two', 'two'])
  })
})

describe('Cron', () => {
  test('Schedule(Schedule, Command): each slot once, on any number of nodes (nodes that started a second apart all ran it)', async () => {
    const queue = fresh().replaceAll(' ', '-')
    const [one, two] = [createTasks(a), createTasks(b)]
    await one.declare(queue)
    await one.schedule('seed', '* * * * * *', { queue, missed: 'all' })
    await db.pool.query(`update lockstep.schedule set next_at = date_trunc('second', now()) - interval '20 seconds'`)
    await Promise.all([one.tick(), two.tick(), one.tick(), two.tick()])
    const { rows } = await db.pool.query(
      'select count(*)::int as jobs, count(distinct start_after)::int as slots from lockstep_boss.job where name = $1',
      [queue],
    )
    expect(rows[0].jobs).toBe(rows[0].slots)
    expect(rows[0].jobs).toBeGreaterThanOrEqual(21)
    expect(await one.unschedule('seed')).toBe(true) // it could not be stopped
    expect(await one.unschedule('seed')).toBe(false)
  })
})

describe('Time', () => {
  const hour = 3_600_000
  /** Three servers whose time is an hour later than this machine’s, and one that is an hour earlier. */
  async function servers({ timeoutMs = 5_000 } = {}) {
    const asked = await Promise.all([hour, hour, hour, -hour].map((wrongMs) => fakeServer({ wrongMs })))
    return {
      asked,
      ntp: ntp({ servers: asked.map(({ name }) => name), timeoutMs }),
      times: () => asked.reduce((sum, each) => sum + each.asked, 0),
      async [Symbol.asyncDispose]() {
        for (const each of asked) await each[Symbol.asyncDispose]()
      },
    }
  }
  const truth = () => performance.now() + wallOffset() / 1_000 + hour

  test('Now(): time.now(), without a query (each call made one, and took five seconds without an answer)', async () => {
    await using some = await servers()
    await using lockstep = createLockstep({ connectionString: db.url, time: { ntp: some.ntp } })
    await lockstep.time.ready()
    const asked = some.times()
    let last = 0
    for (let i = 0; i < 10_000; i++) {
      const before = truth()
      const { timeMs, boundMs } = lockstep.time.now()
      expect(Math.max(before - timeMs, timeMs - truth())).toBeLessThanOrEqual(Number(boundMs)) // there was no bound
      expect(timeMs).toBeGreaterThanOrEqual(last) // it could go back from one call to the next
      last = timeMs
    }
    expect(some.times()).toBe(asked)
  })

  test('one wrong server is outvoted, and named (it trusted the only one that it asked)', async () => {
    await using some = await servers()
    await using lockstep = createLockstep({ connectionString: db.url, time: { ntp: some.ntp, source: 'ntp' } })
    const { falsetickers } = await lockstep.time.ready()
    expect(falsetickers).toEqual([some.asked[3]?.name])
    expect(Math.abs(lockstep.time.now().timeMs - truth())).toBeLessThan(1_000)
  })

  test('no server answers: an error from ready(), and no bounds (it returned local time together with an error)', async () => {
    await using some = await servers({ timeoutMs: 200 })
    for (const each of some.asked) each.behaviour = { sends: () => null }
    await using lockstep = createLockstep({ connectionString: db.url, time: { ntp: some.ntp, source: 'ntp' } })
    await expect(lockstep.time.ready()).rejects.toThrow(/Only 0 of 4 NTP servers gave a time/)
    expect(lockstep.time.now()).toMatchObject({ status: 'unsynchronized', source: 'local', boundMs: null })
  })

  test('the option source decides how time is defined', async () => {
    for (const source of ['database+ntp', 'database', 'local'] as const) {
      await using lockstep = createLockstep({ connectionString: db.url, time: { source } })
      await lockstep.time.ready()
      expect(lockstep.time.now().time).toBeInstanceOf(Date)
    }
  })
})

describe('Log, the interface of an event stream that was never implemented', () => {
  test('Write(Record{ Metadata, Data }): append, strongly consistent: in order, on disk, all or nothing', async () => {
    const events = createEvents(a)
    const record = { type: 'record', data: 'of any kind', meta: { trace: 7 } }
    await events.append('log', record)
    await expect(events.append('log', record, { expected: 'none' })).rejects.toMatchObject({
      code: 'POSITION_CONFLICT',
    })
    expect(await events.stream('log')).toMatchObject({ name: 'log', position: 1n }) // Id()
  })

  test('Read(), repeatedly: the stored records, and then new ones, in another process too', async () => {
    const [writer, reader] = [createEvents(a), createEvents(b)]
    await writer.append('read', [{ type: '1' }, { type: '2' }])
    const log = reader.subscribe({ stream: 'read' })
    const read = async () => (await log.next()).value?.type
    expect([await read(), await read()]).toEqual(['1', '2'])
    const third = read()
    await writer.append('read', { type: '3' })
    expect(await third).toBe('3')
    await log.return(undefined as never) // Close()
    expect(await log.next()).toEqual({ done: true, value: undefined })
  })

  test('Seek(offset): read and subscribe from a position', async () => {
    const events = createEvents(a)
    await events.append(
      'seek',
      Array.from({ length: 9 }, (_, i) => ({ type: String(i + 1) })),
    )
    const { events: page } = await events.read('seek', { from: 8n })
    expect(page.map(({ type }) => type)).toEqual(['8', '9'])
    const { value } = await events.subscribe({ stream: 'seek', from: 5n }).next()
    expect(value?.type).toBe('5')
  })
})
