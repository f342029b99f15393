/** A process that uses a room and never closes; for close.test.ts. It says `done`, and does nothing more. */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'

const [url, what, pooled] = process.argv.slice(2) as [string, string, string]
const lockstep = createLockstep({ connectionString: url, ...(pooled === 'true' && { directConnectionString: null }) })
const { locks, leaders } = lockstep
const tasks = createTasks(lockstep)
const events = createEvents(lockstep)
const name = `${what} ${pooled}`
const own = `${name} ${process.pid}`
const queue = own.replaceAll(' ', '-')
const echo = (data: unknown) => data
const all = async (iterable: AsyncIterable<unknown>) => {
  for await (const _ of iterable);
}

const uses: Record<string, () => unknown> = {
  ready: () => lockstep.ready(),
  acquire: async () => (await locks.acquire(name)).release(),
  lease: async () => (await locks.acquire(name, { ttlMs: 3_600_000 })).release(),
  async wait() {
    const held = await locks.acquire(name)
    const next = locks.acquire(name)
    await held.release()
    await (await next).release()
  },
  transaction: () => locks.transaction(name, (trx) => sql`select 1`.execute(trx)),
  campaign: async () => (await leaders.campaign(name)).resign(),
  'campaign by connection': async () => (await leaders.campaign(name, { failover: 'connection' })).resign(),
  async observe() {
    for await (const _ of leaders.observe(name)) break
  },
  async send() {
    await tasks.declare(queue)
    await tasks.send(queue, 1)
  },
  async run() {
    const task = tasks.define(queue, echo)
    const worker = tasks.work(task)
    await tasks.run(task, 1)
    await worker.stop()
  },
  async drain() {
    const task = tasks.define(queue, echo)
    await tasks.send(task, 1)
    await tasks.drain({ budgetMs: 2_000, queues: [queue] })
  },
  async 'append and read'() {
    await events.append(name, { type: 'x' })
    await events.read(name)
  },
  async subscribe() {
    await events.append(name, { type: 'x' })
    for await (const _ of events.subscribe({ stream: name })) break
  },
  async consume() {
    const consumer = events.consume(queue, { prefix: name }, () => {})
    await sleep(300)
    await consumer.stop()
  },
  time: () => lockstep.time.ready(),
  query: () => locks.get(name),
  kysely: () => sql`select 1`.execute(lockstep.kysely),

  holds: () => locks.acquire(own),
  'holds a lease': () => locks.acquire(own, { ttlMs: 60_000 }),
  leads: () => leaders.campaign(own),
  'leads by connection': () => leaders.campaign(own, { failover: 'connection' }),
  works() {
    tasks.define(queue, echo)
    tasks.work(queue)
  },
  async handles() {
    const began = Promise.withResolvers<void>()
    const handler = () => {
      began.resolve()
      return new Promise<void>(() => {})
    }
    const task = tasks.define(queue, handler, { concurrency: 1 })
    tasks.work(task)
    await tasks.send(task, 1)
    await began.promise
  },
  consumes: () => void events.consume(queue, { prefix: name }, () => {}),
  waits: () => void locks.acquire('held by another'),
  'waits for a lease': () => void locks.acquire('held by another', { ttlMs: 60_000 }),
  observes: () => void all(leaders.observe(name)),
  subscribes: () => void all(events.subscribe({ stream: name })),
  'subscribes to all': () => void all(events.subscribe()),
  runs() {
    void tasks.run(tasks.define(queue), 1)
  },
}
await uses[what]?.()
console.log('done')
