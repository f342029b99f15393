/**
 * The promise of a term when something breaks: the leader's process, its event loop, its network, the database, or the
 * database's clock. Its signal aborts before anybody else can lead.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { SQLSTATE } from '../../lib/base/errors.ts'
import { createLockstep, LeaseLostError, type Lockstep, type Term } from '../../lib/index.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase, tcpProxy } from '../support/database.ts'
import { until } from '../support/until.ts'

let db: FreshDatabase
let b: Lockstep
beforeAll(async () => {
  db = await freshDatabase()
  b = createLockstep({ connectionString: db.url })
  // It watches the database's clock from here on, as a process does that was started earlier.
  await (await b.leaders.campaign('warm')).resign()
})
afterAll(async () => {
  await b?.close()
  await db?.close()
})

let n = 0
const fresh = () => `term ${n++}`
const SHORT = { ttlMs: 1_000 }
const lost = async (term: Term) => {
  if (!term.signal.aborted) await once(term.signal, 'abort')
  expect(term.signal.reason).toBeInstanceOf(LeaseLostError)
  expect(term.isTrusted()).toBe(false)
}
const queueOf = async (name: string) => (await b.leaders.members(name)).waiting.map(({ holder }) => holder)
const candidate = (name: string) => until('a candidate', async () => (await queueOf(name)).length === 1)
/** The next leader, and whether the signal of the last one had aborted when it was elected. */
const successor = (to: Term, by: Lockstep = b, options = {}) =>
  by.leaders.campaign(to.name, options).then((term) => ({ term, warned: to.signal.aborted, trusted: to.isTrusted() }))

/** A process that leads, or waits to, until it is killed. */
function member(name: string, ...how: string[]): Promise<{ child: ChildProcess; line: () => Promise<string> }> {
  const child = spawn(
    process.execPath,
    [fileURLToPath(new URL('leader-process.ts', import.meta.url)), db.url, name, ...how],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  )
  const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]()
  const line = async () => String((await lines.next()).value)
  return line().then((first) => {
    expect(first).toBe('ready')
    return { child, line }
  })
}

describe('a holder that resigns while another of its campaigns is answered with the same term', () => {
  test('is elected anew: what was answered before the resignation reached the server counts no more', async () => {
    await using a = createLockstep({ connectionString: db.url })
    const name = fresh()
    const options = { ttlMs: 60_000, holder: 'same' }
    const first = await a.leaders.campaign(name, options)
    // The next campaign is answered on the server, and its answer is kept back until the resignation has been answered too.
    const query = pg.Client.prototype.query
    const [answered, go] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    let kept = 0
    pg.Client.prototype.query = async function (this: pg.Client, ...asked: unknown[]) {
      const { text } = asked[0] as { text?: string }
      const answer = await (query as (...all: unknown[]) => Promise<unknown>).apply(this, asked)
      if (!/lockstep\.campaign/.test(text ?? '') || kept++ > 0) return answer
      answered.resolve()
      await go.promise
      return answer
    } as typeof query
    try {
      const asking = a.leaders.campaign(name, options)
      await answered.promise
      await first.resign()
      go.resolve()
      await using second = await asking
      expect(second.token).toBeGreaterThan(first.token)
      expect(second.isTrusted()).toBe(true)
      expect(await b.leaders.tryCampaign(name)).toBeNull()
    } finally {
      pg.Client.prototype.query = query
    }
  })
})

describe('a leader', () => {
  test('whose process is killed is succeeded when its lease expires', async () => {
    const name = fresh()
    const { child, line } = await member(name, '1000')
    expect(await line()).toBe('leads')
    const next = b.leaders.campaign(name)
    await candidate(name)
    child.kill('SIGKILL')
    const term = await next
    await term.resign()
  })

  test('whose term ends with its connection is succeeded when its process is killed, long before its lease expires', async () => {
    const name = fresh()
    const { child, line } = await member(name, '3600000', 'connection')
    expect(await line()).toBe('leads')
    const before = await b.leaders.leader(name)
    const next = b.leaders.campaign(name)
    await candidate(name)
    child.kill('SIGKILL')
    const term = await next
    expect(term.token).toBeGreaterThan(before?.token ?? 0n)
    await term.resign()
  })

  test('whose term ends with its connection loses it when that is cut, and its fenced writes fail', async () => {
    await using proxy = await tcpProxy(db.url)
    await using a = createLockstep({ connectionString: proxy.url })
    const term = await a.leaders.campaign(fresh(), { ttlMs: 3_600_000, failover: 'connection' })
    expect(term.failover).toBe('connection')
    const next = successor(term)
    await candidate(term.name)
    proxy.cut()
    await lost(term)
    const { term: second } = await next
    const late = db.pool.query('select lockstep.assert_leader($1, $2)', [term.name, term.token])
    await expect(late).rejects.toMatchObject({ code: SQLSTATE.leaseLost })
    await second.resign()
  })

  test('that was stopped past its ttl knows it before anything else runs', async () => {
    const name = fresh()
    const { child, line } = await member(name, '1000')
    expect(await line()).toBe('leads')
    child.kill('SIGSTOP')
    const term = await b.leaders.campaign(name)
    child.kill('SIGCONT')
    expect(await line()).toBe('trusted false')
    child.kill('SIGKILL')
    await term.resign()
  })

  test('whose event loop stalls past its ttl is not trusted, and its signal has aborted, though no timer ran', async () => {
    const term = await b.leaders.campaign(fresh(), SHORT)
    const { signal } = term
    const end = performance.now() + 950
    while (performance.now() < end); // nothing else can run
    expect(term.isTrusted()).toBe(false)
    expect(term.signal.aborted).toBe(true)
    expect(signal.aborted).toBe(true)
  })

  test('in a network that went silent: its signal aborts before anybody else can lead', async () => {
    await using proxy = await tcpProxy(db.url)
    await using a = createLockstep({ connectionString: proxy.url })
    const term = await a.leaders.campaign(fresh(), SHORT)
    const next = successor(term)
    await candidate(term.name)
    proxy.blackhole()
    expect(await next).toMatchObject({ warned: true, trusted: false })
    proxy.resume()
    await (await next).term.resign()
  })

  test('whose renewals hang: its signal aborts before anybody else can lead', async () => {
    await using proxy = await tcpProxy(db.url)
    await using a = createLockstep({ connectionString: proxy.url })
    const term = await a.leaders.campaign(fresh(), SHORT)
    const next = successor(term)
    await candidate(term.name)
    proxy.hold() // messages are delivered later
    expect(await next).toMatchObject({ warned: true, trusted: false })
    proxy.resume()
    await expect(term.resign()).rejects.toThrow(LeaseLostError)
    expect((await b.leaders.leader(term.name))?.token).toBe((await next).term.token)
    await (await next).term.resign()
  })

  test('survives a restart of the database that is shorter than its ttl; a longer one ends its term in time', async () => {
    await using server = await dedicatedServer({ settings: { synchronous_commit: 'on' } }) // grants survive the crash
    await using a = createLockstep({ connectionString: server.url })
    await using other = createLockstep({ connectionString: server.url })
    const long = await a.leaders.campaign('long', { ttlMs: 60_000 })
    const short = await a.leaders.campaign('short', SHORT)
    const waits = other.leaders.campaign('long', { holder: 'patient' })
    const next = successor(short, other)
    await until('both in their queues', async () => {
      const elections = await Promise.all(['long', 'short'].map((name) => a.leaders.members(name)))
      return elections.every(({ waiting }) => waiting.length === 1)
    })
    await server.crash() // the queue is empty after it
    await lost(short)
    await server.start()
    expect(await next).toMatchObject({ warned: true, trusted: false })
    expect(long.isTrusted()).toBe(true)
    await until('in the queue again', async () => {
      const { waiting } = await a.leaders.members('long').catch(() => ({ waiting: [] }))
      return waiting[0]?.holder === 'patient'
    })
    await long.resign()
    await (await waits).resign()
    await (await next).term.resign()
  })

  test('renews all its terms in one statement', async () => {
    await using quiet = await freshDatabase()
    await using a = createLockstep({ connectionString: quiet.url, applicationName: 'the leader' })
    const terms = await Promise.all(Array.from({ length: 200 }, (_, i) => a.leaders.campaign(`${i}`, { ttlMs: 3_000 })))
    // Each renewal of a row is a version of its own; the statement that made it is its transaction.
    const writers = async () => {
      const { rows } = await quiet.pool.query('select xmin::text, expires_at from lockstep.lease')
      return {
        count: new Set(rows.map((row) => row.xmin)).size,
        first: Math.min(...rows.map((row) => +row.expires_at)),
      }
    }
    const { first } = await writers()
    await until('all renewed twice', async () => (await writers()).first > first + 1_500)
    await until('one writer', async () => (await writers()).count === 1)
    expect(terms.every((term) => term.isTrusted())).toBe(true)
  })
})

describe('a candidate', () => {
  test.each(['cut', 'killed'])('that is %s leaves no trace', async (how) => {
    const name = fresh()
    await using leader = await b.leaders.campaign(name, { ttlMs: 60_000 })
    expect(leader.isTrusted()).toBe(true)
    const { child } = await member(name, '60000')
    await candidate(name)
    const stop = how === 'killed' ? 'SIGKILL' : 'SIGSTOP'
    await until('its witness', async () => {
      const { rows } = await db.pool.query(
        'select from lockstep.candidate where name = lockstep.election($1) and witness is not null',
        [name],
      )
      return rows.length === 1
    })
    child.kill(stop)
    if (how === 'cut') {
      await db.pool.query(
        `select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1 and datname = current_database()`,
        [`member of ${name}`],
      )
    }
    await until('an empty queue', async () => (await queueOf(name)).length === 0)
    child.kill('SIGKILL')
  })

  test('whose connection is cut stays in the queue, at its position', async () => {
    await using proxy = await tcpProxy(db.url)
    await using a = createLockstep({ connectionString: proxy.url })
    const name = fresh()
    const leader = await b.leaders.campaign(name, { ttlMs: 60_000 })
    const first = a.leaders.campaign(name, { holder: 'first' })
    await candidate(name)
    const second = b.leaders.campaign(name, { holder: 'second' })
    await until('two', async () => (await queueOf(name)).length === 2)
    const witness = async () => {
      const { rows } = await db.pool.query(
        `select witness from lockstep.candidate where name = lockstep.election($1) and holder = 'first'`,
        [name],
      )
      return rows[0]?.witness as string | null | undefined
    }
    await until('its witness', witness)
    const before = await witness()
    proxy.cut()
    await until('a witness of its new connection', async () => ![before, null, undefined].includes(await witness()))
    expect(await queueOf(name)).toEqual(['first', 'second'])
    await leader.resign()
    await (await first).resign()
    await (await second).resign()
  })

  test('waits for a database that is away; a new one gets an error', async () => {
    await using proxy = await tcpProxy(db.url)
    await using a = createLockstep({ connectionString: proxy.url })
    const name = fresh()
    const leader = await b.leaders.campaign(name, { ttlMs: 60_000 })
    const waits = a.leaders.campaign(name)
    await candidate(name)
    proxy.refuse()
    await expect(a.leaders.campaign(name)).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await expect(a.leaders.leader(name)).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await expect(a.leaders.observe(name).next()).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await leader.resign()
    proxy.resume()
    await (await waits).resign()
  })

  test('that misses the notification of its turn asks again when the lease would have expired', async () => {
    const name = fresh()
    const leader = await b.leaders.campaign(name, SHORT)
    await using a = createLockstep({ connectionString: db.url })
    const waits = a.leaders.campaign(name)
    await candidate(name)
    await db.pool.query(
      'update lockstep.lease set holder = null, expires_at = clock_timestamp() where name = lockstep.election($1)',
      [name],
    )
    await (await waits).resign()
    await lost(leader)
  })
})

test('an observer that is not read any more lets its process end', async () => {
  const { child } = await member(fresh(), '1000', 'observe')
  expect(await once(child, 'exit')).toEqual([7, null])
})

describe("when the database's clock is set", () => {
  /** A database whose clock can be set: our functions there find this clock_timestamp() before the server's own. */
  async function settable() {
    const database = await freshDatabase()
    await database.pool.query(`
      create schema fake;
      create table fake.clock (ahead interval);
      insert into fake.clock values ('0');
      create function fake.clock_timestamp() returns timestamptz language sql volatile
        as 'select pg_catalog.clock_timestamp() + (select ahead from fake.clock)';
    `)
    await database.pool.query(`
      alter database ${database.name} set search_path = fake, pg_catalog, public;
      do $$ declare f regprocedure; begin
        for f in select oid::regprocedure from pg_proc
                  where pronamespace = 'lockstep'::regnamespace and array_to_string(proconfig, ',') like '%search_path=%'
        loop execute format('alter function %s set search_path = fake, pg_catalog, pg_temp', f); end loop;
      end $$`)
    const set = (ahead: string) => database.pool.query('update fake.clock set ahead = $1', [ahead])
    /** Makes every candidate ask now. */
    const notify = (name: string) =>
      database.pool.query(`select pg_notify(lockstep.secret_channel('leader'), $1)`, [JSON.stringify({ name })])
    return { database, set, notify }
  }

  test.each(['has watched it for long', 'has just started', 'only tries, again and again'])(
    'forward, the signal of a leader that cannot be reached aborts before a candidate leads that %s',
    async (candidate) => {
      const { database, set, notify } = await settable()
      await using _ = database
      await using proxy = await tcpProxy(database.url)
      await using a = createLockstep({ connectionString: proxy.url })
      const other = () => createLockstep({ connectionString: database.url })
      await using c = other()
      const ttl = { ttlMs: 2_000 }
      if (candidate === 'has watched it for long') {
        await (await c.leaders.campaign('warm')).resign()
        await new Promise((resolve) => setTimeout(resolve, ttl.ttlMs))
      }
      const term = await a.leaders.campaign('x', ttl)
      const early = candidate === 'has watched it for long' ? successor(term, c) : undefined
      if (early) await until('in the queue', async () => (await c.leaders.members('x')).waiting.length === 1)
      proxy.blackhole() // it gets no notification, and its renewals do not arrive
      await set('1 hour')
      let next = early
      if (candidate === 'only tries, again and again') {
        next = (async () => {
          for (;;) {
            await using each = other() // another process, that has watched nothing
            const elected = await each.leaders.grant('x').catch(() => undefined)
            if (elected) return { term: elected as never, warned: term.signal.aborted, trusted: term.isTrusted() }
          }
        })()
      }
      next ??= successor(term, c)
      const notifying = setInterval(() => void notify('x').catch(() => {}), 20)
      expect(await next).toMatchObject({ warned: true, trusted: false })
      clearInterval(notifying)
      proxy.resume()
    },
  )

  test('back, the leader stays, and nobody else leads before it resigns', async () => {
    const { database, set, notify } = await settable()
    await using _ = database
    await using a = createLockstep({ connectionString: database.url })
    await using c = createLockstep({ connectionString: database.url })
    const term = await a.leaders.campaign('x', SHORT)
    const next = successor(term, c)
    await until('in the queue', async () => (await a.leaders.members('x')).waiting.length === 1)
    await set('-1 hour')
    const { expiresAt } = (await a.leaders.leader('x')) as { expiresAt: Date }
    await until('a renewal', async () => (await a.leaders.leader('x'))?.expiresAt.getTime() !== expiresAt.getTime())
    await notify('x')
    expect(term.isTrusted()).toBe(true)
    await term.resign()
    await (await next).term.resign()
  })
})
