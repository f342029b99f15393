/** What jobs promise when something breaks: workers, networks, answers, the database. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { sql } from 'kysely'
import type pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { bossOf } from '../../lib/task/pgboss/boss-of.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase, tcpProxy } from '../support/database.ts'
import { observer } from '../support/observer.ts'
import { until } from '../support/until.ts'

let db: FreshDatabase
let b: Lockstep
let tasks: Tasks
beforeAll(async () => {
  db = await freshDatabase()
  await db.pool.query('create table effect (n bigint, at bigserial)')
  b = createLockstep({ connectionString: db.url })
  tasks = createTasks(b)
})
afterAll(async () => {
  await b?.close()
  await db?.close()
})

let n = 0
const fresh = () => `loss-${n++}`
const stateOf = async (queue: string, id: string) => (await tasks.get(queue, id))?.state
const effects = async (pool: pg.Pool, of: number) =>
  Number((await pool.query('select count(*) from effect where n = $1', [of])).rows[0].count)
/** As if the job's worker had sent no heartbeat for long enough. */
const forgotten = (id: string) =>
  db.pool.query(`update lockstep_boss.job set heartbeat_on = now() - interval '1 hour' where id = $1`, [id])

/** A process that works the queue; `says` waits for a line of its output. */
function jobber(queue: string, how = 'plain') {
  const program = fileURLToPath(new URL('worker-process.ts', import.meta.url))
  const child = spawn(process.execPath, [program, db.url, queue, how], { stdio: ['ignore', 'pipe', 'inherit'] })
  const lines: string[] = []
  createInterface({ input: child.stdout }).on('line', (line) => lines.push(line))
  return {
    child,
    lines,
    says: (line: string) => until(line, () => lines.includes(line)),
    async end(signal: NodeJS.Signals) {
      child.kill(signal)
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
    },
  }
}

describe('a worker', () => {
  test('that gives an attempt up cuts its transaction, even if the handler never returns', async () => {
    const queue = fresh()
    await using c = createLockstep({ connectionString: db.url })
    const worker = createTasks(c, { onError: () => {} })
    let pid = 0
    worker.define(
      queue,
      async (_, { trx }) => {
        pid =
          (await sql<{ pid: string }>`select pg_backend_pid()::text as pid`.execute(trx)).rows.map(
            (row) => +row.pid,
          )[0] ?? 0
        await new Promise(() => {})
      },
      { transactional: true, expireInMs: 600_000 },
    )
    worker.work(queue)
    const id = (await worker.send(queue, null)) as string
    await until('it runs', () => pid !== 0)
    await worker.cancel(queue, id)
    await until('its connection has ended', async () => {
      const { rows } = await db.pool.query('select from pg_stat_activity where pid = $1', [pid])
      return rows.length === 0
    })
  })

  test('that is killed mid-job: the job runs again, and its effects are there once', async () => {
    const queue = fresh()
    await tasks.declare(queue)
    const process = jobber(queue, 'transactional')
    const id = (await tasks.send(queue, 1)) as string
    await process.says('began 1')
    await process.end('SIGKILL')
    await until('its transaction is gone', async () => {
      const { rows } = await db.pool.query('select from pg_stat_activity where application_name = $1', [
        `jobber ${queue}`,
      ])
      return rows.length === 0
    })
    expect(await stateOf(queue, id)).toBe('active') // nobody knows yet that the worker is dead
    await forgotten(id)
    await tasks.tick()
    expect(await tasks.get(queue, id)).toMatchObject({ state: 'retry', output: { message: 'job heartbeat timeout' } })
    await using c = createLockstep({ connectionString: db.url })
    const others = createTasks(c)
    others.define(
      queue,
      async (n: number, { trx }) => void (await sql`insert into effect (n) values (${n})`.execute(trx)),
      {
        transactional: true,
      },
    )
    // a drain passes over a job whose row another statement has locked
    await until('it has run', async () => (await others.drain()).jobs === 1)
    expect(await effects(db.pool, 1)).toBe(1)
    expect(await tasks.get(queue, id)).toMatchObject({ state: 'completed', attempts: 2 })
  })

  test('that gets SIGTERM hands its job back before it ends', async () => {
    const queue = fresh()
    await tasks.declare(queue, { retryLimit: 0 })
    const process = jobber(queue)
    const id = (await tasks.send(queue, 2)) as string
    await process.says('began 2')
    await process.end('SIGTERM')
    expect(process.lines).toEqual(['began 2', 'aborted HANDED_BACK', 'stopped'])
    expect(await tasks.get(queue, id)).toMatchObject({ state: 'retry', attempts: 1, retryLimit: 1 })
  })

  test('that was frozen while another worker got its job: its signal aborts when it goes on, and it cannot complete the job', async () => {
    const queue = fresh()
    await tasks.declare(queue)
    const process = jobber(queue)
    const id = (await tasks.send(queue, 3)) as string
    await process.says('began 3')
    process.child.kill('SIGSTOP')
    await forgotten(id)
    await tasks.tick()
    const [job] = await tasks.claim(queue, { leaseMs: 60_000 })
    expect(job).toMatchObject({ id, attempt: 2 })
    process.child.kill('SIGCONT')
    await process.says('aborted LEASE_LOST')
    expect(await stateOf(queue, id)).toBe('active')
    await tasks.complete(queue, id, job?.token as bigint)
    await process.end('SIGKILL')
  })

  test('whose network falls silent: the signal aborts before another worker can get its job', async () => {
    const queue = fresh()
    await tasks.declare(queue, { heartbeatMs: 10_000 })
    await using proxy = await tcpProxy(db.url)
    await using c = createLockstep({ connectionString: proxy.url })
    const silent = createTasks(c, { onError: () => {} })
    const began = Promise.withResolvers<AbortSignal>()
    silent.define(queue, (_: unknown, { signal }) => {
      began.resolve(signal)
      return once(signal, 'abort')
    })
    silent.work(queue)
    const id = (await tasks.send(queue, 4)) as string
    const signal = await began.promise
    proxy.blackhole()
    if (!signal.aborted) await once(signal, 'abort')
    expect(signal.reason).toMatchObject({ code: 'LEASE_LOST', message: expect.stringContaining('no sign of life') })
    await tasks.tick()
    expect(await stateOf(queue, id)).toBe('active') // its heartbeat has not run out: no other worker has it
    proxy.resume()
  })

  test('whose connections are cut goes on: its jobs are completed when it is connected again', async () => {
    const queue = fresh()
    await tasks.declare(queue)
    await using proxy = await tcpProxy(db.url)
    await using c = createLockstep({ connectionString: proxy.url })
    const cut = createTasks(c, { onError: () => {} })
    const began = Promise.withResolvers<void>()
    const go = Promise.withResolvers<string>()
    cut.define(queue, () => {
      began.resolve()
      return go.promise
    })
    cut.work(queue)
    const id = (await tasks.send(queue, 5)) as string
    await began.promise
    proxy.refuse()
    go.resolve('done') // and the completion cannot reach the database
    await until('tried', () => proxy.open() === 0)
    proxy.resume()
    await until('completed', async () => (await stateOf(queue, id)) === 'completed')
    expect(await tasks.get(queue, id)).toMatchObject({ output: 'done', attempts: 1 })
    expect(await cut.run(queue, 'and it works on')).toBe('done')
  })
})

describe('an upkeep that is late', () => {
  test('lets the claimer complete after its lease, until another worker has the job', async () => {
    const queue = fresh()
    await tasks.declare(queue)
    const id = (await tasks.send(queue, 1)) as string
    const [job] = await tasks.claim(queue)
    await forgotten(id)
    await tasks.complete(queue, id, job?.token as bigint, 'late, and never wrong')
    await tasks.tick()
    expect(await stateOf(queue, id)).toBe('completed')
  })

  test('and one that comes while a completion is under way does not take its job', async () => {
    const queue = fresh()
    await tasks.declare(queue)
    const id = (await tasks.send(queue, 1)) as string
    const [job] = await tasks.claim(queue)
    await forgotten(id)
    const client = await db.pool.connect()
    await client.query('begin')
    const { rows } = await client.query(
      `select lockstep.complete_jobs($1, json_build_array(json_build_object('id', $2::uuid, 'attempt', 0, 'output', 1))) as ids`,
      [queue, id],
    )
    expect(rows[0].ids).toEqual([id])
    const tick = tasks.tick()
    await until('upkeep waits for it', async () => {
      const waiting = await db.pool.query(
        `select from pg_stat_activity where wait_event_type = 'Lock' and query like '%lockstep_boss%' and datname = current_database()`,
      )
      return waiting.rows.length > 0
    })
    await client.query('commit')
    client.release()
    await tick
    expect(await stateOf(queue, id)).toBe('completed')
    await tasks.complete(queue, id, job?.token as bigint) // completed already: as if the answer had been lost
  })
})

describe('a transactional completion', () => {
  test('that waits for the upkeep which takes its job finds it taken, and commits nothing', async () => {
    const queue = fresh()
    const go = Promise.withResolvers<void>()
    const began = Promise.withResolvers<AbortSignal>()
    await using c = createLockstep({ connectionString: db.url, applicationName: 'overtaken' })
    const overtaken = createTasks(c)
    overtaken.define(
      queue,
      async (n: number, { trx, signal }) => {
        await sql`insert into effect (n) values (${n})`.execute(trx)
        began.resolve(signal)
        await go.promise
      },
      { transactional: true },
    )
    overtaken.work(queue)
    const id = (await overtaken.send(queue, 50)) as string
    const signal = await began.promise
    // As upkeep does, in a transaction that has not ended yet.
    const client = await db.pool.connect()
    await client.query('begin')
    await client.query(
      `update lockstep_boss.job set state = 'retry', start_after = now() + interval '1 hour' where id = $1`,
      [id],
    )
    go.resolve()
    await until('the completion waits', async () => {
      const { rows } = await db.pool.query(
        `select from pg_stat_activity where application_name = 'overtaken' and wait_event_type = 'Lock'`,
      )
      return rows.length > 0
    })
    await client.query('commit')
    client.release()
    if (!signal.aborted) await once(signal, 'abort')
    expect(signal.reason).toMatchObject({ code: 'LEASE_LOST' })
    expect(await effects(db.pool, 50)).toBe(0)
    expect(await stateOf(queue, id)).toBe('retry')
  })

  test('a handler that never returns does not keep its transaction for ever', async () => {
    const queue = fresh()
    await using c = createLockstep({ connectionString: db.url, applicationName: 'stuck' })
    const stuck = createTasks(c)
    stuck.define(
      queue,
      async (n: number, { trx }) => {
        await sql`insert into effect (n) values (${n})`.execute(trx)
        await new Promise(() => {})
      },
      { transactional: true, expireInMs: 1_000, retryLimit: 0 },
    )
    stuck.work(queue)
    await expect(stuck.run(queue, 51)).rejects.toThrow(/took longer than 1000 ms/)
    await until('nothing is open', async () => {
      const { rows } = await db.pool.query(
        `select from pg_stat_activity where application_name = 'stuck' and state like 'idle in transaction%'`,
      )
      return rows.length === 0
    })
    expect(await effects(db.pool, 51)).toBe(0)
  })
})

describe('the database', () => {
  test('crashes under load: nothing that was sent is lost, nothing is done twice', { timeout: 120_000 }, async () => {
    await using server = await dedicatedServer({ settings: { synchronous_commit: 'on' } })
    await using a = createLockstep({ connectionString: server.url })
    await using observed = observer(server.url)
    await a.kysely.schema.createTable('effect').addColumn('n', 'bigint').execute()
    const sender = createTasks(a)
    const worker = createTasks(a, { onError: () => {} })
    const definition = { retryLimit: 100 }
    sender.define('load', definition)
    worker.define(
      'load',
      async (n: number, { trx }) => void (await sql`insert into effect (n) values (${n})`.execute(trx)),
      {
        ...definition,
        transactional: true,
        concurrency: 8,
      },
    )
    worker.work('load')
    const sent = new Map<string, number>()
    let n = 0
    let over = false
    const send = async () => {
      while (!over) {
        const id = crypto.randomUUID()
        const number = n++
        // The answer may be lost: it sends the same id again, until it is there. A refusal then means that it was sent.
        for (;;) {
          const said = await sender.send('load', number, { id }).catch(() => undefined)
          if (said !== undefined) break
          await new Promise((resolve) => setTimeout(resolve, 20))
        }
        sent.set(id, number)
      }
    }
    const senders = Array.from({ length: 8 }, send)
    for (let crash = 1; crash <= 3; crash++) {
      await until('there is load', () => sent.size > crash * 200)
      await server.crash()
      await server.start()
    }
    over = true
    await Promise.all(senders)
    // Jobs that ran at a crash wait until their heartbeats run out: as if they had.
    await until('all are done', async () => {
      const state = sql<{ n: string }>`
        select count(*) as n from lockstep_boss.job where name = 'load' and state <> 'completed'`
      const left = await state.execute(observed).catch(() => undefined)
      if (left?.rows[0]?.n === '0') return true
      await sql`update lockstep_boss.job set heartbeat_on = now() - interval '1 hour'
                 where name = 'load' and state = 'active' and heartbeat_on < now() - interval '3 seconds'`
        .execute(observed)
        .catch(() => {})
      await sender.tick().catch(() => {})
      await new Promise((resolve) => setTimeout(resolve, 200))
      return false
    })
    const { rows } = await sql<{ n: string }>`select n from effect order by n`.execute(observed)
    expect(rows.map((row) => Number(row.n))).toEqual([...sent.values()].toSorted((x, y) => x - y))
  })

  test('cannot be reached: every verb says so, and works again when it can', async () => {
    await using server = await dedicatedServer()
    await using a = createLockstep({ connectionString: server.url })
    const away = createTasks(a)
    away.define('away')
    const id = (await away.send('away', 1)) as string
    await server.stop()
    const unavailable = { code: 'UNAVAILABLE' }
    await expect(away.send('away', 2)).rejects.toMatchObject(unavailable)
    await expect(away.sendAll('away', [{ data: 2 }])).rejects.toMatchObject(unavailable)
    await expect(away.get('away', id)).rejects.toMatchObject(unavailable)
    await expect(away.cancel('away', id)).rejects.toMatchObject(unavailable)
    await expect(away.counts('away')).rejects.toMatchObject(unavailable)
    await expect(away.claim('away')).rejects.toMatchObject(unavailable)
    await expect(away.complete('away', id, 1n)).rejects.toMatchObject(unavailable)
    await expect(away.fail('away', id, 1n, 'x')).rejects.toMatchObject(unavailable)
    await expect(away.extend('away', id, 1n)).rejects.toMatchObject(unavailable)
    await expect(away.progress('away', id, 1n, 0)).rejects.toMatchObject(unavailable)
    await expect(away.handBack('away', [{ id, token: 1n }])).rejects.toMatchObject(unavailable)
    await expect(away.broadcast('away', 1)).rejects.toMatchObject(unavailable)
    await expect(away.queues()).rejects.toMatchObject(unavailable)
    await expect(away.declare('other')).rejects.toMatchObject(unavailable)
    await expect(away.tick()).rejects.toMatchObject(unavailable)
    await expect(away.schedule('s', '* * * * *', { queue: 'away' })).rejects.toMatchObject(unavailable)
    await expect(away.schedules()).rejects.toMatchObject(unavailable)
    await server.start()
    await until('it is back', async () => (await away.counts('away').catch(() => undefined))?.ready === 1)
    expect((await away.claim('away'))[0]?.id).toBe(id)
  })

  test('does not answer: a tick and a drain end with their budgets all the same, and the next ones do it', async () => {
    const queue = fresh()
    await using c = createLockstep({ connectionString: db.url, applicationName: 'slow' })
    const slow = createTasks(c)
    slow.define(queue, () => {})
    await slow.send(queue, 1)
    const client = await db.pool.connect()
    const budgetMs = 100
    try {
      await client.query('begin; lock table lockstep.schedule')
      await expect(slow.tick({ budgetMs })).rejects.toMatchObject({ code: 'UNAVAILABLE', message: /budget of 100 ms/ })
      await client.query('commit; begin; lock table lockstep_boss.job')
      await expect(slow.drain({ budgetMs, queues: [queue] })).rejects.toMatchObject({
        code: 'UNAVAILABLE',
        message: /budget of 100 ms/,
      })
    } finally {
      await client.query('rollback')
      client.release()
    }
    expect(await slow.drain({ queues: [queue] })).toMatchObject({ jobs: 1 })
    await expect(slow.tick()).resolves.toMatchObject({ failed: 0 })
  })

  test('cannot keep one output: that fails its own job, and none that is completed in the same statement', async () => {
    await using small = await freshDatabase()
    await small.pool.query(`alter database ${small.name} set max_stack_depth = '100kB'`)
    await using a = createLockstep({ connectionString: small.url })
    const some = createTasks(a)
    let deep: unknown = null
    for (let level = 0; level < 2_000; level++) deep = [deep]
    const go = Promise.withResolvers<void>()
    const ready: string[] = []
    some.define(
      'some',
      async (data: string) => {
        ready.push(data)
        await go.promise // so that they are completed at the same time
        return data === 'deep' ? deep : data
      },
      { retryLimit: 0, concurrency: 5 },
    )
    const worker = some.work()
    const runs = ['a', 'b', 'deep', 'c', 'd'].map((data) => some.run('some', data))
    const ended = Promise.allSettled(runs)
    await until('all run', () => ready.length === 5)
    go.resolve()
    expect((await ended).map(({ status }) => status)).toEqual([
      'fulfilled',
      'fulfilled',
      'rejected',
      'fulfilled',
      'fulfilled',
    ])
    await worker.stop()
  })

  test('without our schema says to migrate', async () => {
    await using empty = await freshDatabase({ empty: true })
    await using a = createLockstep({ connectionString: empty.url })
    const early = createTasks(a)
    await expect(early.counts('x')).rejects.toThrow(/run the migrations/)
    await expect(early.declare('x')).rejects.toThrow(/run the migrations/)
    await expect(early.tick()).rejects.toThrow(/run the migrations/)
  })

  test('a worker that was frozen until it was removed comes back, and gets broadcasts again', async () => {
    const queue = fresh()
    await using c = createLockstep({ connectionString: db.url })
    const thawed = createTasks(c, { onError: () => {} })
    const seen: unknown[] = []
    thawed.define(queue, (data) => void seen.push(data))
    thawed.work(queue)
    const worker = async () =>
      (await db.pool.query('select id from lockstep.worker where queue = $1', [queue])).rows[0]?.id as
        | string
        | undefined
    await until('it is seen', worker)
    const id = await worker()
    await db.pool.query(`update lockstep.worker set seen_at = now() - interval '1 hour' where id = $1`, [id])
    await tasks.tick()
    expect(await worker()).toBeUndefined()
    await until('it is seen again', worker) // within ten seconds, at its next heartbeat
    expect(await bossOf(tasks).getQueue(`lockstep.worker/${id}`)).not.toBeNull()
    await tasks.broadcast(queue, 'again')
    await until('it hears', () => seen.includes('again'))
  })
})
