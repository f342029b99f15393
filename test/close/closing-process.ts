/**
 * A process that uses one room, closes, and must then end by itself; for close.test.ts. It prints `ready`. At a line on its standard
 * input it closes, and then prints `closed` and which resources are left, and `rejected` and the errors of the verbs.
 */
import { getEventListeners, once } from 'node:events'
import { createInterface } from 'node:readline'
import { setImmediate as setImmediately } from 'node:timers/promises'
import { worker } from '../../functions/adapters/cloudflare.ts'
import { serve } from '../../functions/adapters/node.ts'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { ntp } from '../../lib/time/ntp/index.ts'
import { calls } from './every-verb.ts'

const [connectionString = '', room = '', applicationName = '', servers = ''] = process.argv.slice(2)
const name = `n ${applicationName}`
const queue = applicationName
const signal = new AbortController().signal
const lockstep = createLockstep({
  connectionString,
  applicationName,
  ...(room === 'shared' && { shared: true, directConnectionString: null }),
  ...(servers !== '' && { time: { ntp: ntp({ servers: servers.split(',') }) } }),
})
const tasks = createTasks(lockstep)
const events = createEvents(lockstep)
/** The calls that still wait when it is closed. */
const waits: Promise<unknown>[] = []
const until = async (condition: () => Promise<unknown>) => {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 5))
}

const USES: Record<string, (lockstep: Lockstep, tasks: Tasks, events: Events) => Promise<unknown>> = {
  nothing: async () => {},
  async locks({ locks }) {
    await locks.acquire(`${name} 1`)
    await locks.acquire(`${name} 2`, { ttlMs: 60_000 })
    const fenced = await locks.acquire(`${name} 3`)
    await fenced.transaction(async () => {})
    await locks.grant(`${name} 4`)
    for (const held of [`${name} 1`, `${name} 2`]) {
      waits.push(locks.acquire(held, { signal }), locks.acquire(held, { ttlMs: 1_000, waitMs: 100_000 }))
      waits.push(locks.transaction(held, async () => {}))
    }
    await until(async () => (await locks.query(`${name} 2`)).waiting === 3)
  },
  async leaders({ leaders }) {
    await leaders.campaign(`${name} 1`)
    await leaders.campaign(`${name} 2`, { failover: 'connection' })
    for (const led of [`${name} 1`, `${name} 2`]) {
      waits.push(
        leaders.campaign(led, { signal }),
        leaders.lead(led, { signal }, () => {}),
      )
      const observing = leaders.observe(led, { signal })
      await observing.next()
      waits.push(observing.next())
    }
    const leading = Promise.withResolvers<void>()
    waits.push(
      leaders.lead(`${name} 3`, async (_, ended) => {
        leading.resolve()
        if (!ended.aborted) await once(ended, 'abort')
      }),
    )
    await leading.promise
    await until(async () => (await leaders.members(`${name} 2`)).waiting.length === 2)
  },
  async send(_, tasks) {
    await tasks.declare(queue)
    await tasks.send(queue, 1)
  },
  async work(_, tasks) {
    const ran = Promise.withResolvers<void>()
    tasks.define(queue, () => ran.resolve())
    tasks.define(`${queue}.other`)
    tasks.work()
    await tasks.send(queue, 1)
    await tasks.schedule(name, '0 0 1 1 *', { queue })
    await tasks.run(queue, 2)
    await ran.promise
    await until(async () => (await tasks.broadcast(queue, 3)).length > 0)
    await tasks.tick({ budgetMs: 500 })
    await tasks.declare(`${queue}.third`)
    waits.push(tasks.run(`${queue}.other`, 1, { signal }), tasks.claim(`${queue}.third`, { waitMs: 100_000 }))
  },
  async events(_, __, events) {
    await events.append(name, [{ type: 'a' }, { type: 'b' }])
    const consumed = Promise.withResolvers<void>()
    events.consume(queue, { prefix: name, signal }, () => consumed.resolve())
    await consumed.promise
    await events.declareGroup(`${queue} polled`, { prefix: 'nothing of it' })
    waits.push(
      events.poll(`${queue} polled`, { holder: 'me', waitMs: 100_000 }),
      events.read('none', { waitMs: 100_000 }),
    )
    const following = [events.subscribe({ stream: name, signal }), events.subscribe({ prefix: name, from: 'end' })]
    await following[0]?.next()
    await following[0]?.next()
    for (const each of following) waits.push(each.next())
    await events.subscribe({ stream: name }).next() // and is idle
  },
  async time({ time }) {
    await time.ready(servers === '' ? {} : { maxBoundMs: 1_000 })
    await time.tick()
    await time.synchronize()
    if (servers !== '') waits.push(time.waitUntilAfter(Date.now() + 3_600_000, { signal }))
  },
  async kysely({ kysely }) {
    await kysely.selectFrom('lockstep.lease').select('name').execute()
  },
  async all(...rooms) {
    for (const use of ['locks', 'leaders', 'work', 'events', 'time', 'kysely']) await USES[use]?.(...rooms)
  },
  async shared({ locks, leaders }, tasks, events) {
    await locks.acquire(`${name} 1`)
    await leaders.campaign(`${name} 1`)
    waits.push(locks.acquire(`${name} 1`), leaders.campaign(`${name} 1`))
    await tasks.declare(queue)
    await events.append(name, { type: 'a' })
    waits.push(events.read('none', { waitMs: 100_000 }), events.subscribe({ stream: 'none' }).next())
    await until(async () => (await locks.query(`${name} 1`)).waiting > 0)
  },
  async cloudflare() {
    const { fetch, scheduled } = worker({ tasks: createTasks, events: createEvents })
    const env = { DATABASE_URL: connectionString, LOCKSTEP_API_KEYS: 'off' }
    const context = { waitUntil: (work: Promise<unknown>) => void all.push(work) }
    const all: Promise<unknown>[] = []
    const lock = new Request(`http://worker/v1/locks/${applicationName}`, { method: 'POST' })
    await (await fetch(lock, env, context)).text()
    const follow = new Request('http://worker/v1/events', { headers: { accept: 'text/event-stream' } })
    const reader = (await fetch(follow, env, context)).body?.getReader()
    await reader?.read()
    await reader?.cancel()
    await scheduled(undefined, env, context)
    await Promise.all(all)
  },
  /** Every verb is called before there is an answer. */
  async early() {
    const answered = [
      'tasks.define',
      'tasks.work',
      'tasks.drain',
      'events.consume',
      'time.synchronize',
      'locks.tryAcquire',
      'locks.grant',
    ]
    for (const [verb, call] of calls(lockstep, tasks, events)) if (!answered.includes(verb)) waits.push(call())
  },
}

let end = () => lockstep.close()
if (room === 'node') {
  tasks.define(queue, () => {})
  const server = await serve({ lockstep, tasks, events, port: 0 })
  const sent = { method: 'POST', headers: { 'Content-Type': 'application/json' } }
  const path = encodeURIComponent(name)
  await fetch(`${server.url}/v1/locks/${path}`, { ...sent, body: '{"ttlMs":60000}' }).then((answer) => answer.text())
  const follow = { headers: { accept: 'text/event-stream' } }
  for (const stream of [`/v1/leaders/${path}/observe`, `/v1/streams/${path}`, '/v1/events']) {
    const { body } = await fetch(server.url + stream, follow)
    await body?.getReader().read()
  }
  waits.push(
    fetch(`${server.url}/v1/locks/${path}`, { ...sent, body: '{"waitMs":20000}' }).then((answer) => {
      throw Object.assign(new Error('Lockstep was closed'), {
        code: answer.status === 503 ? 'UNAVAILABLE' : answer.status,
      })
    }),
  )
  await until(async () => (await lockstep.locks.query(name)).waiting > 0)
  end = () => server.close()
} else await USES[room]?.(lockstep, tasks, events)

for (const wait of waits) wait.catch(() => {})
console.log('ready')
const input = createInterface({ input: process.stdin })
await once(input, 'line')
input.close()
process.stdin.destroy()

const closing = end()
const said = async (call: () => unknown): Promise<string> => {
  try {
    await call()
    return 'nothing'
  } catch (error) {
    const { code, message } = error as { code?: unknown; message?: unknown }
    return code === 'UNAVAILABLE' ? String(message) : `${code}: ${message}`
  }
}
// During the close, too: the verbs reject without a statement, so before anything else happens in this process. Except while handlers
// run, which have their last second.
const during = ['node', 'work', 'all', 'shared'].includes(room)
  ? []
  : calls(lockstep, tasks, events).map(async ([verb, call]) => [verb, await said(call)])
const soon = new Promise((resolve) => setImmediate(() => setImmediate(resolve, 'it waits')))
const early = await Promise.all(
  during.map((each, i) => Promise.race([each, soon.then((late) => [calls(lockstep, tasks, events)[i]?.[0], late])])),
)
if (room === 'again') await Promise.all([lockstep.close(), tasks.close(), events.close()])
await closing
await lockstep[Symbol.asyncDispose]() // again
const ours = /^(PipeWrap|TTYWrap|FSReqCallback|Immediate)$/
const left = () => process.getActiveResourcesInfo().filter((resource) => !ours.test(resource))
// A destroyed socket is gone shortly after: a second is allowed.
for (let i = 0; i < 10 && left().some((resource) => resource.startsWith('TCP')); i++) await setImmediately()
console.log('closed', JSON.stringify(left()))
const after = await Promise.all(calls(lockstep, tasks, events).map(async ([verb, call]) => [verb, await said(call)]))
const waited = await Promise.all(waits.map(async (wait) => ['a wait', await said(() => wait)]))
for (const source of [signal, process]) {
  for (const listener of getEventListeners(source, source === signal ? 'abort' : 'exit'))
    waited.push([String(listener), 'is left'])
}
const other = (all: unknown[][]) => JSON.stringify(all.filter(([, what]) => what !== 'Lockstep was closed'))
console.log('rejected', other([...early, ...after]))
console.log('waited', other(waited))
