/**
 * `close()`: processes that use a room, close, and must then end by themselves (closing-process.ts); and work that is under way.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { sql } from 'kysely'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { Database } from '../../lib/database/index.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase, tcpProxy } from '../support/database.ts'
import { until } from '../support/until.ts'
import { fakeServer } from '../time/ntp-server.ts'

let db: FreshDatabase
beforeAll(async () => {
  db = await freshDatabase()
})
afterAll(() => db?.close())

let count = 0
const fresh = () => `closer-${++count}`
const backends = async (application: string) => {
  const counted = `select count(*)::integer as n from pg_stat_activity where application_name = $1`
  return (await db.pool.query(counted, [application])).rows[0].n as number
}

const children: ChildProcess[] = []
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
})

/** Starts a process that uses a room. It closes when it gets a line on its standard input. */
async function closer(url: string, room: string, application: string, servers: string[] = []) {
  const file = path.join(import.meta.dirname, 'closing-process.ts')
  const child = spawn(process.execPath, [file, url, room, application, servers.join()], { stdio: 'pipe' })
  children.push(child)
  const errors = text(child.stderr)
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const exited = once(child, 'exit')
  const line = async (word: string): Promise<unknown> => {
    const { value, done } = await lines.next()
    if (done || !value.startsWith(word)) throw new Error(`It said ${value} instead of ${word}: ${await errors}`)
    return value === word ? undefined : JSON.parse(value.slice(word.length))
  }
  await line('ready')
  return {
    pid: child.pid as number,
    tell: () => child.stdin?.write('close\n'),
    /** @param failed  whether its waits may have ended before, because the database failed. */
    async closes(failed = false) {
      expect(await line('closed')).toEqual([])
      expect(await line('rejected')).toEqual([])
      const waited = await line('waited')
      if (!failed) expect(waited).toEqual([])
      // It ends by itself. The limit is ten times as long as it may take: a fault would keep it for ever, or for ten seconds.
      const late = setTimeout(() => child.kill('SIGKILL'), 10_000)
      expect(await exited).toEqual([0, null])
      clearTimeout(late)
      if (!failed) expect(await errors).toBe('')
    },
  }
}

describe('a process that has closed', () => {
  test.each([
    ...['nothing', 'again', 'locks', 'leaders', 'send', 'work', 'events', 'time', 'kysely', 'all', 'shared', 'early'],
    ...['node', 'cloudflare'],
  ])('ends by itself, and has no connection, timer or handle left, and every verb rejects: %s', async (room) => {
    const application = fresh()
    await using one = await fakeServer()
    await using two = await fakeServer()
    await using three = await fakeServer()
    const servers = ['time', 'all', 'node'].includes(room) ? [one, two, three].map((each) => each.name) : []
    const process = await closer(db.url, room, application, servers)
    process.tell()
    await process.closes(room === 'early') // some may have been answered
    await until('its backends are gone', async () => (await backends(application)) === 0)
    await using other = createLockstep({ connectionString: db.url })
    for (const n of [1, 2, 3]) {
      expect(await other.locks.query(`n ${application} ${n}`)).toMatchObject({ held: false, waiting: 0 })
      expect(await other.leaders.members(`n ${application} ${n}`)).toEqual({ leader: null, waiting: [] })
    }
  })

  test('has no cancel under way: one that is between two attempts ends before its database is closed', async () => {
    const database = new Database({ connectionString: db.url, applicationName: fresh() })
    let asked = 0
    let ended = false
    const cancelling = database
      .cancel(0, () => {
        asked++
        return ended
      })
      .then(() => 'ended')
    await until('it has tried once, and waits', () => asked === 2)
    ended = true
    await database.close()
    expect(await Promise.race([cancelling, Promise.resolve('under way')])).toBe('ended')
  })

  test('that was never used, and never closed, ends by itself', async () => {
    const file = path.join(import.meta.dirname, 'unused-process.ts')
    const child = spawn(process.execPath, [file, db.url], { stdio: 'inherit' })
    children.push(child)
    expect(await once(child, 'exit')).toEqual([0, null])
  })

  test.each(['all', 'shared'])('and the database has stopped answering, ends all the same: %s', async (room) => {
    await using proxy = await tcpProxy(db.url)
    const process = await closer(proxy.url, room, fresh())
    proxy.blackhole()
    process.tell()
    await process.closes()
  })

  test('and the database stands still, ends all the same', async () => {
    await using server = await dedicatedServer()
    const application = fresh()
    const process_ = await closer(server.url, 'all', application)
    await using lockstep = createLockstep({ connectionString: server.url })
    const { rows } = await sql<{ pid: number }>`
      select pid from pg_stat_activity where application_name = ${application}`.execute(lockstep.kysely)
    expect(rows.length).toBeGreaterThan(3)
    for (const { pid } of rows) process.kill(pid, 'SIGSTOP')
    try {
      process_.tell()
      await process_.closes()
    } finally {
      for (const { pid } of rows) process.kill(pid, 'SIGCONT')
    }
  })

  test('before it was connected, ends all the same, and all its calls are rejected', async () => {
    await using proxy = await tcpProxy(db.url)
    proxy.hold()
    const process = await closer(proxy.url, 'early', fresh())
    await until('it connects', () => proxy.open() > 0)
    process.tell()
    await process.closes()
  })

  test('while the database is away, ends all the same', async () => {
    await using proxy = await tcpProxy(db.url)
    const process = await closer(proxy.url, 'all', fresh())
    proxy.refuse()
    process.tell()
    await process.closes(true)
  })
})

describe('work that is under way', () => {
  test('a transaction of the user is waited for', async () => {
    const lockstep = createLockstep({ connectionString: db.url, applicationName: fresh() })
    await db.pool.query('create table written (n integer)')
    const [began, go] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    const write = (n: number) => sql`insert into written values (${n})`
    const ours = lockstep.locks.transaction('under way', async (trx) => {
      await write(1).execute(trx)
      began.resolve()
      await go.promise
      await write(2).execute(trx)
      return 'its result'
    })
    await began.promise
    const closed = lockstep.close()
    await expect(lockstep.kysely.transaction().execute(async () => {})).rejects.toThrow('Lockstep was closed')
    go.resolve()
    expect(await ours).toBe('its result')
    await closed
    expect((await db.pool.query('select n from written order by n')).rows).toEqual([{ n: 1 }, { n: 2 }])
  })

  test('a transaction that does not end is cut off after 5 s: nothing of it is kept', async () => {
    const application = fresh()
    const lockstep = createLockstep({ connectionString: db.url, applicationName: application })
    const held = await lockstep.locks.acquire('never', { ttlMs: 60_000 })
    const began = Promise.withResolvers<void>()
    const never = held.transaction(async (trx) => {
      await sql`create table never_written (n integer)`.execute(trx)
      began.resolve()
      await new Promise((resolve) => held.signal.addEventListener('abort', resolve))
      await sql`select 1`.execute(trx)
    })
    const failed = expect(never).rejects.toThrow('Lockstep was closed')
    await began.promise
    await lockstep.close()
    await failed
    expect(held.isTrusted()).toBe(false)
    expect(held.signal.aborted).toBe(true)
    await until('its backends are gone', async () => (await backends(application)) === 0)
    const { rows } = await db.pool.query(`select to_regclass('never_written') as there`)
    expect(rows).toEqual([{ there: null }])
  })

  test('handlers of jobs and events get one second, and every room works for them', async () => {
    const lockstep = createLockstep({ connectionString: db.url, applicationName: fresh() })
    const [tasks, events] = [createTasks(lockstep), createEvents(lockstep)]
    const [job, event, go] = [1, 2, 3].map(() => Promise.withResolvers<void>()) as PromiseWithResolvers<void>[]
    const use = async (began: PromiseWithResolvers<void> | undefined, n: number) => {
      began?.resolve()
      await go?.promise
      await (await lockstep.locks.acquire(`second ${n}`)).release()
      await tasks.send('after-close', n)
      await events.append('after close', { type: String(n) })
    }
    await tasks.declare('after-close')
    tasks.define('last', () => use(job, 1))
    const id = await tasks.send('last', null)
    tasks.work()
    events.consume('last', { prefix: 'to consume' }, () => use(event, 2))
    await events.append('to consume', { type: 'x' })
    await Promise.all([job?.promise, event?.promise])
    const closed = lockstep.close()
    go?.resolve()
    await closed
    await expect(tasks.send('after-close', 3)).rejects.toThrow('Lockstep was closed')
    await using other = createLockstep({ connectionString: db.url })
    const [jobs, streams] = [createTasks(other), createEvents(other)]
    expect(await jobs.get('last', id as string)).toMatchObject({ state: 'completed', attempts: 1 })
    expect((await jobs.counts('after-close')).ready).toBe(2)
    expect((await streams.read('after close')).events.map(({ type }) => type).sort()).toEqual(['1', '2'])
    expect((await streams.lag('last')).behind).toBe(0)
  })

  test('one room can be closed alone, and the others go on', async () => {
    await using lockstep = createLockstep({ connectionString: db.url, applicationName: fresh() })
    for (let i = 0; i < 3; i++) {
      const [tasks, events] = [createTasks(lockstep), createEvents(lockstep)]
      await tasks.declare('alone')
      await events.append('alone', { type: 'x' })
      await Promise.all([tasks.close(), events.close()])
      await expect(tasks.send('alone', 1)).rejects.toThrow('Lockstep was closed')
      await expect(events.read('alone')).rejects.toThrow('Lockstep was closed')
      await (await lockstep.locks.acquire('alone')).release()
    }
  })

  test('a lease whose grant was under way is given back', async () => {
    await using proxy = await tcpProxy(db.url)
    const lockstep = createLockstep({ connectionString: proxy.url, directConnectionString: null })
    await lockstep.locks.query('granted late') // so that there is a connection
    proxy.hold()
    const late = lockstep.locks.acquire('granted late', { ttlMs: 3_600_000 })
    const rejected = expect(late).rejects.toThrow('Lockstep was closed')
    await new Promise((resolve) => setImmediate(resolve)) // it is sent
    const closed = lockstep.close()
    await rejected
    proxy.resume()
    await closed
    const { rows } = await db.pool.query(`select holder from lockstep.lease where name = 'granted late'`)
    expect(rows.filter(({ holder }) => holder !== null)).toEqual([])
  })
})
