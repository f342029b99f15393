/**
 * The database takes no connection, or no writes, for a while: a role, a database or the server is at its limit of connections, the
 * database is closed, the server starts, stops, or can only be read. In each of these states every verb waits or answers UNAVAILABLE,
 * and HTTP answers 503. When the state has ended everything goes on by itself, and nothing was granted twice.
 *
 * Lockstep reaches the server through a proxy, so that a state can begin with the loss of every connection. Refusals that a test server
 * cannot be brought to in time are answered by a server of the test.
 */
import { once } from 'node:events'
import * as net from 'node:net'
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { createApp } from '../../functions/app.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Hold } from '../../lib/index.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { createTasks } from '../../lib/task/index.ts'
import { calls } from '../close/every-verb.ts'
import { type DedicatedServer, dedicatedServer, type TcpProxy, tcpProxy } from '../support/database.ts'
import { until } from '../support/until.ts'
import { primary, template } from './standby.ts'

let server: DedicatedServer
let proxy: TcpProxy
/** Superuser, past the proxy: the states are made by it. */
let admin: pg.Pool
/** A role with the rights of `migrate --grant`, through the proxy. */
let url: string
let n = 0
const fresh = () => `limits-${n++}`

beforeAll(async () => {
  server = await dedicatedServer({ settings: { max_connections: 40 } })
  proxy = await tcpProxy(server.url)
  admin = new pg.Pool({ connectionString: elsewhere(server.url, 'template1'), max: 1 })
  // Its connection may end after the server.
  admin.on('connect', (client) => client.on('error', () => {}))
  admin.on('error', () => {})
  await admin.query(`create role app login password 'app'`)
  await migrate(server.url, { grant: 'app' })
  const login = new URL(proxy.url)
  login.username = login.password = 'app'
  url = login.href
})
afterAll(async () => {
  await admin?.end()
  await proxy?.close()
  await server?.close()
})

const elsewhere = (from: string, database: string) => Object.assign(new URL(from), { pathname: `/${database}` }).href

type End = () => Promise<unknown>
/** Begins the state. @param cut  whether open connections may be lost. @default true @returns a function that ends it. */
type Begin = (cut?: boolean) => Promise<End>

const ends: End[] = []
afterEach(async () => {
  for (const end of ends.splice(0)) await end()
  wrong.splice(0)
})
/** Begins the state; it ends at the latest with its test. */
async function begun(begin: Begin): Promise<End> {
  let over: Promise<unknown> | undefined
  const end = await begin()
  const once = () => (over ??= end())
  ends.push(once)
  return once
}

const setting =
  (on: string, off: string): Begin =>
  async () => {
    await admin.query(on)
    return () => admin.query(off)
  }

/** All connections that the server allows are in use. @param reserved  all but those that are kept for superusers. */
const hogged =
  (reserved: boolean) =>
  async (cut = true): Promise<End> => {
    const who = new URL(server.url)
    if (reserved) who.username = who.password = 'app'
    const hogs: pg.Client[] = []
    const fill = async () => {
      for (;;) {
        const client = new pg.Client({ connectionString: who.href, application_name: 'hog' })
        client.on('error', () => {})
        try {
          await client.connect()
        } catch (error) {
          expect(error).toMatchObject({ code: '53300' })
          return
        }
        hogs.push(client)
      }
    }
    await fill()
    if (cut) {
      proxy.cut()
      await new Promise((resolve) => setTimeout(resolve, 20)) // the server notices
      await fill()
    }
    return () => Promise.all(hogs.map((client) => client.end()))
  }

const readOnlyServer: Begin = async () => {
  await reload('on')
  return () => reload('off')
}

async function reload(value: string): Promise<void> {
  await admin.query(`alter system set default_transaction_read_only = ${value}`)
  await admin.query('select pg_reload_conf()')
  await until(
    'it is reloaded',
    async () =>
      (await admin.query('show default_transaction_read_only')).rows[0].default_transaction_read_only === value,
  )
}

/** A server that refuses every connection by the same FATAL answer. */
const refusing =
  (code: string, message: string, { severity = 'FATAL', routine = 'ProcessStartupPacket' } = {}): Begin =>
  async () => {
    const listener = net.createServer((socket) => {
      socket.on('error', () => {})
      socket.once('data', () => {
        const fields = Buffer.from(
          [`S${severity}`, 'VFATAL', `C${code}`, `M${message}`, `R${routine}`, '', ''].join('\0'),
        )
        const head = Buffer.alloc(5)
        head.write('E')
        head.writeInt32BE(fields.length + 4, 1)
        socket.end(Buffer.concat([head, fields]))
      })
    })
    listener.listen(0, '127.0.0.1')
    await once(listener, 'listening')
    proxy.target(
      Object.assign(new URL(server.url), { port: String((listener.address() as net.AddressInfo).port) }).href,
    )
    return async () => {
      proxy.target(server.url)
      listener.close()
    }
  }

const NO_CONNECTION = {
  'the role is at its limit': setting('alter role app connection limit 0', 'alter role app connection limit -1'),
  'the database is at its limit': setting(
    'alter database postgres connection limit 0',
    'alter database postgres connection limit -1',
  ),
  'all slots but the reserved ones are in use': hogged(true),
  'max_connections is reached': hogged(false),
  'the database is closed': setting(
    'alter database postgres allow_connections false',
    'alter database postgres allow_connections true',
  ),
  'the database is closed, in the language of the server': refusing('55000', 'база данных не принимает', {
    severity: 'ВАЖНО',
    routine: 'CheckMyDatabase',
  }),
  'the server starts': refusing('57P03', 'the database system is starting up'),
  'the server recovers': refusing('57P03', 'the database system is not yet accepting connections'),
  'the server stops': refusing('57P03', 'the database system is shutting down'),
  'the role may not connect': refusing('42501', 'permission denied for database "postgres"', { severity: '致命错误' }),
}
const READ_ONLY = {
  'the role can only read': setting(
    'alter role app set default_transaction_read_only = on',
    'alter role app reset default_transaction_read_only',
  ),
  'the server can only be read': readOnlyServer,
}

const PUBLIC = /^(LEASE_HELD|LEASE_LOST|POSITION_CONFLICT|UNAVAILABLE|NOT_FOUND|FORBIDDEN|HANDED_BACK)$/
const wrong: string[] = []
const expected = (error: unknown) => {
  const { name, code, message } = error as Error & { code?: string }
  if (!PUBLIC.test(String(code))) wrong.push(`${name} ${code}: ${message}`)
}

function make(connectionString = url) {
  const lockstep = createLockstep({ connectionString, applicationName: 'ours' })
  const [tasks, events] = [createTasks(lockstep, { onError: expected }), createEvents(lockstep, { onError: expected })]
  const app = createApp(lockstep, { tasks, events })
  ends.push(() => lockstep.close())
  return { lockstep, tasks, events, app }
}
type Made = ReturnType<typeof make>

/** What a call answers within 0.7 s: `done`, `waits`, or the code of its error. */
async function answer(run: () => Promise<unknown>): Promise<string> {
  const answered = (async () => run())().then(
    () => 'done',
    (error) => {
      expected(error)
      return String(error.code)
    },
  )
  return Promise.race([answered, new Promise<string>((resolve) => setTimeout(resolve, 700, 'waits'))])
}

const verbs = ({ lockstep, tasks, events }: Made) =>
  calls(lockstep, tasks, events).filter(([verb]) => verb !== 'time.waitUntilAfter') // without NTP nothing is certain
async function ask(made: Made, which?: string[]): Promise<Map<string, string>> {
  const asked = verbs(made).filter(([verb]) => which?.includes(verb) ?? true)
  return new Map(await Promise.all(asked.map(async ([verb, run]) => [verb, await answer(run)] as const)))
}
const unavailable = (answers: Map<string, string>) =>
  [...answers].flatMap(([verb, code]) => (code === 'UNAVAILABLE' ? [verb] : []))

const REQUESTS: [string, string, object?][] = [
  ['GET', '/readyz'],
  ['POST', '/v1/locks/http', { ttlMs: 1_000, holder: 'me' }],
  ['GET', '/v1/locks/http'],
  ['POST', '/v1/leaders/http', { ttlMs: 1_000, holder: 'me' }],
  ['GET', '/v1/leaders/http'],
  ['GET', '/v1/leaders/http/observe'],
  ['GET', '/v1/time'],
  ['PUT', '/v1/schedules/http', { cron: '0 0 1 1 *', queue: 'q' }],
  ['GET', '/v1/tasks'],
  ['POST', '/v1/streams/http', { events: [{ type: 't' }] }],
  ['GET', '/v1/streams/http'],
  ['GET', '/v1/events'],
  ['PUT', '/v1/groups/http', {}],
]
async function request({ app }: Made): Promise<number[]> {
  const statuses: number[] = []
  for (const [method, path, body] of REQUESTS) {
    const headers = { 'content-type': 'application/json' }
    const response = await app.request(path, { method, headers, ...(body && { body: JSON.stringify(body) }) })
    if (response.status === 503) expect(response.headers.get('retry-after')).toBe('1')
    if (response.status === 500) wrong.push(`${method} ${path}: 500`)
    await response.body?.cancel()
    statuses.push(response.status)
  }
  return statuses
}

/** Every verb answers again, one after another as their connections are renewed. And nothing is left behind. */
async function goesOn(made: Made, refused: string[]): Promise<void> {
  let left = refused
  await until('every verb answers', async () => {
    left = unavailable(await ask(made, left))
    return left.length === 0
  })
  await until('HTTP answers', async () => !(await request(made)).includes(503))
}

async function nothingLeft(): Promise<void> {
  await until('no connection is left', async () => {
    const { rows } = await admin.query(`select from pg_stat_activity where application_name = 'ours'`)
    return rows.length === 0
  })
  expect(wrong.splice(0)).toEqual([])
}

describe.each(Object.entries(NO_CONNECTION))('%s:', (_, begin) => {
  test('every verb waits or is UNAVAILABLE, HTTP answers 503, and all go on', async () => {
    const [made, other] = [make(), make()]
    const end = await begun(begin)
    const refused = await ask(made)
    const idle = [...refused].flatMap(([verb, code]) => (code === 'done' ? [verb] : []))
    // `define`, `work` and `consume` begin something; a drain has no handler, a process without NTP servers nothing to measure
    const begins = ['time.synchronize', 'tasks.define', 'tasks.work', 'tasks.drain', 'events.consume']
    expect(idle.filter((verb) => !begins.includes(verb) && verb !== 'locks.tryAcquire')).toEqual([])
    expect(new Set(await request(other))).toEqual(new Set([503]))
    await expect(migrate(url)).rejects.toMatchObject({
      code: 'UNAVAILABLE',
      message: expect.stringMatching(/^The database /),
    })
    await end()
    await Promise.all([goesOn(made, unavailable(refused)), goesOn(other, [])])
    await Promise.all([made.lockstep.close(), other.lockstep.close()])
    await nothingLeft()
  })

  test('what runs goes on by itself when all connections were lost', async () => {
    await using running = await run()
    const end = await begun(begin)
    proxy.cut()
    await new Promise((resolve) => setTimeout(resolve, 300))
    await end()
    await running.goesOn()
    await running.close()
    await nothingLeft()
  })
})

describe.each(Object.entries(READ_ONLY))('%s:', (_, begin) => {
  test('every verb that writes is UNAVAILABLE, HTTP answers 503, and all go on: also on connections of that time', async () => {
    const made = make()
    const end = await begun(begin)
    const refused = unavailable(await ask(made))
    expect(refused).toEqual(
      expect.arrayContaining(['locks.acquire', 'leaders.campaign', 'time.tick', 'events.append', 'ready']),
    )
    const statuses = await request(made)
    expect(statuses.filter((status) => status === 503).length).toBeGreaterThan(4)
    await expect(made.lockstep.ready()).rejects.toThrow(/default_transaction_read_only is on/)
    await end()
    await goesOn(made, refused)
    await made.lockstep.close()
    await nothingLeft()
  })

  test('what runs goes on by itself, also when all connections were lost', async () => {
    await using running = await run()
    const end = await begun(begin)
    proxy.cut()
    await until('it is felt', () =>
      answer(() => running.ours.lockstep.locks.acquire(fresh())).then((code) => code === 'UNAVAILABLE'),
    )
    const { lease } = running
    await expect(lease.transaction(async () => {})).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    expect(lease.isTrusted()).toBe(true)
    await end()
    await running.goesOn()
    await running.close()
    await nothingLeft()
  })
})

test.each(Object.entries(NO_CONNECTION))(
  '%s: a transactional job waits for its connection, and spends no attempt',
  async (_, begin) => {
    const { lockstep, tasks } = make()
    const [queue, ran] = [fresh(), [] as number[]]
    tasks.define(queue, async (_, { job }) => void ran.push(job.attempt), { transactional: true, retryLimit: 0 })
    const worker = tasks.work(queue)
    await tasks.declare(queue)
    await until('it looks for jobs', async () => (await tasks.counts(queue)).active === 0) // the pool of jobs has a connection
    const end = await begun(() => begin(false)) // it keeps that connection, by which the job is sent and fetched
    let id: string | null = null
    await until('it is sent', async () => {
      id = await tasks
        .send(queue, 1)
        .catch(expected)
        .then((sent) => sent ?? null)
      return id
    })
    await until(
      'it is fetched',
      async () => (await tasks.get(queue, id as unknown as string).catch(expected))?.state !== 'created',
    )
    await new Promise((resolve) => setTimeout(resolve, 100))
    await end()
    await until('it is completed', async () => (await tasks.get(queue, id as unknown as string))?.state === 'completed')
    expect(ran).toEqual([1])
    await worker.stop()
    await lockstep.close()
    await nothingLeft()
  },
)

test('a transaction whose connection has ended at its COMMIT is UNAVAILABLE', async () => {
  const { lockstep } = make()
  const held = await lockstep.locks.acquire(fresh(), { ttlMs: 60_000 })
  const cut = async () => proxy.cut()
  await expect(held.transaction(cut)).rejects.toMatchObject({ code: 'UNAVAILABLE' })
  await expect(lockstep.locks.transaction(fresh(), cut)).rejects.toMatchObject({ code: 'UNAVAILABLE' })
  await lockstep.close()
})

test('a standby: every verb answers or is UNAVAILABLE, and all go on when it is promoted', async () => {
  await using folder = await template()
  await using first = await primary(folder)
  await using standby = await first.standby()
  const made = make(standby.url)
  const refused = unavailable(await ask(made))
  expect(refused).toEqual(
    expect.arrayContaining(['locks.acquire', 'locks.sweep', 'leaders.members', 'events.append', 'ready']),
  )
  await request(made)
  await standby.promote()
  await goesOn(made, refused)
  await made.lockstep.close()
  expect(wrong.splice(0)).toEqual([])
})

/** A process in which everything runs that goes on by itself. */
async function run() {
  const ours = make()
  const { lockstep, tasks, events } = ours
  const [name, queue, group] = [fresh(), fresh(), fresh()]
  const stop = new AbortController()
  const done = { jobs: [] as number[], transactions: [] as number[], applied: [] as number[], seen: [] as number[] }
  const tokens: bigint[] = []
  const lease = await lockstep.locks.acquire(fresh(), { ttlMs: 60_000 })
  const held = await lockstep.locks.acquire(name)
  let granted: Hold | undefined
  const waits = lockstep.locks.acquire(name).then(
    (hold) => {
      granted = hold
    },
    expected, // it waited for a database that is away
  )
  const led = lockstep.leaders.lead(
    name,
    { signal: stop.signal, ttlMs: 1_000, backoff: { firstMs: 50, mostMs: 100 }, onError: expected },
    async (term, signal) => {
      tokens.push(term.token)
      if (!signal.aborted) await once(signal, 'abort')
    },
  )
  led.catch(() => {}) // when a test has failed it ends with the close
  const observed: bigint[] = []
  const observing = (async () => {
    for await (const { leader } of lockstep.leaders.observe(name, { signal: stop.signal }))
      if (leader) observed.push(leader.token)
  })().catch(() => {})
  tasks.define(queue, async (i: number) => void done.jobs.push(i), { retryLimit: 0 })
  tasks.define(
    `${queue}.trx`,
    async (i: number, { trx }) => {
      await sql`select 1`.execute(trx)
      done.transactions.push(i)
    },
    { transactional: true, retryLimit: 0 },
  )
  const worker = tasks.work()
  const options = { prefix: `${group}/`, partitions: 1, ttlMs: 1_000 }
  const consumer = events.consume(group, options, ({ data }) => void done.applied.push(data as number))
  const subscribing = (async () => {
    for await (const { data } of events.subscribe({ prefix: `${group}/`, signal: stop.signal }))
      done.seen.push(data as number)
  })().catch(() => {})
  const send = async (i: number) => {
    await tasks.send(queue, i)
    await tasks.send(`${queue}.trx`, i)
    await events.append(`${group}/a`, { type: 't', data: i })
  }
  const all = (i: number) => until(`all have ${i}`, () => Object.values(done).every((each) => each.includes(i)))
  await send(1)
  await all(1)
  await until('it is committed', async () => (await events.lag(group)).behind === 0)
  for (const each of [queue, `${queue}.trx`]) {
    await until('it is completed', async () => (await tasks.counts(each)).active === 0)
  }
  await until('it leads', () => tokens.length > 0 && observed.length > 0)
  const close = async () => {
    stop.abort(new Error('enough'))
    await led
    await Promise.all([worker.stop(), consumer.stop(), observing, subscribing])
    await lockstep.close()
  }
  return {
    ours,
    lease,
    close,
    async goesOn() {
      await until('the next are sent', () =>
        send(2).then(
          () => true,
          (error) => void expected(error),
        ),
      )
      await all(2)
      for (const each of Object.values(done)) expect(each.filter((i) => i === 1)).toEqual([1]) // nothing twice
      // The connection is lost, and so is the hold that was on it; the lease outlives it.
      await until('it is lost', () => held.signal.aborted)
      expect(lease.isTrusted()).toBe(true)
      await until('it fences', () => lease.transaction(async () => true).catch(expected))
      await until('it leads', async () => (await lockstep.leaders.get(name))?.leader?.token === tokens.at(-1))
      await until('that is observed', () => observed.at(-1) === tokens.at(-1))
      expect(tokens).toEqual(tokens.toSorted((a, b) => Number(a - b)))
      await waits
      if (granted) expect(granted.token).toBeGreaterThan(held.token)
      await granted?.release().catch(expected)
      let next: Hold | undefined // each connection of that time may cost one call an error
      await until('it is granted', async () => {
        next = (await lockstep.locks.acquire(name).catch(expected)) ?? undefined
        return next
      })
      expect(next?.token).toBeGreaterThan(granted?.token ?? held.token)
      const released = (hold?: Hold) =>
        until('it is released', () => hold?.release().then(() => true, expected) ?? true)
      await Promise.all([released(next), released(lease)])
    },
    [Symbol.asyncDispose]: () => lockstep.close(),
  }
}
