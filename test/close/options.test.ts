/** An option that does not exist is a mistake, and says so: in every verb, with the name that was meant. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { lambda } from '../../functions/adapters/lambda.ts'
import { serve } from '../../functions/adapters/node.ts'
import { createApp } from '../../functions/app.ts'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { migrate, schemaState } from '../../lib/setup/migrate.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { ntp } from '../../lib/time/ntp/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'

let database: FreshDatabase
let lockstep: Lockstep
let tasks: Tasks
let events: Events
beforeAll(async () => {
  database = await freshDatabase()
  lockstep = createLockstep({ connectionString: database.url })
  tasks = createTasks(lockstep)
  events = createEvents(lockstep)
})
afterAll(async () => {
  await lockstep?.close()
  await database?.close()
})

type Options = Record<string, unknown>
// biome-ignore lint/suspicious/noExplicitAny: options that the types refuse
type Any = any
const ID = '00000000-0000-4000-8000-000000000000'
const BATCH = { partition: 0, token: 1n, next: '1.1' }
const work = () => {}

/** A verb, by name; an option that it has, and the options that it needs. */
const VERBS: [string, has: string, verb: (options: Any) => unknown, needs?: Options][] = [
  ['locks.acquire', 'ttlMs', (o) => lockstep.locks.acquire('a', o)],
  ['locks.tryAcquire', 'holder', (o) => lockstep.locks.tryAcquire('a', o)],
  ['locks.using', 'waitMs', (o) => lockstep.locks.using('a', o, work)],
  ['locks.transaction', 'signal', (o) => lockstep.locks.transaction('a', o, async () => {})],
  ['locks.list', 'prefix', (o) => lockstep.locks.list(o)],
  ['locks.grant', 'meta', (o) => lockstep.locks.grant('a', o)],
  ['locks.renew', 'ttlMs', (o) => lockstep.locks.renew('a', 1n, o)],
  ['leaders.campaign', 'priority', (o) => lockstep.leaders.campaign('a', o)],
  ['leaders.tryCampaign', 'failover', (o) => lockstep.leaders.tryCampaign('a', o)],
  ['leaders.lead', 'onError', (o) => lockstep.leaders.lead('a', o, work)],
  ['leaders.lead backoff', 'firstMs', (backoff) => lockstep.leaders.lead('a', { backoff }, work)],
  ['leaders.observe', 'signal', (o) => lockstep.leaders.observe('a', o)],
  ['leaders.list', 'limit', (o) => lockstep.leaders.list(o)],
  ['leaders.grant', 'priority', (o) => lockstep.leaders.grant('a', o)],
  ['leaders.renew', 'meta', (o) => lockstep.leaders.renew('a', 1n, o)],
  ['time.ready', 'maxBoundMs', (o) => lockstep.time.ready(o)],
  ['time.waitUntilAfter', 'signal', (o) => lockstep.time.waitUntilAfter(0, o)],
  ['time.synchronize', 'signal', (o) => lockstep.time.synchronize(o)],
  ['createLockstep', 'maxWaiting', (o) => createLockstep(o), { connectionString: 'postgres://localhost/x' }],
  ['createLockstep time', 'source', (time) => createLockstep({ connectionString: 'postgres://localhost/x', time })],
  ['ntp', 'servers', (o) => ntp(o)],
  ['createTasks', 'connections', (o) => createTasks(lockstep, o)],
  ['tasks.define', 'concurrency', (o) => tasks.define('defined', o)],
  ['tasks.declare', 'retryLimit', (o) => tasks.declare('q', o)],
  ['tasks.declare backoff', 'maxMs', (backoff) => tasks.declare('q', { backoff }), { maxMs: 1 }],
  ['tasks.queues', 'after', (o) => tasks.queues(o)],
  ['tasks.send', 'singletonKey', (o) => tasks.send('q', 1, o)],
  ['tasks.send group', 'tier', (group) => tasks.send('q', 1, { group }), { id: 'a' }],
  ['tasks.sendAll', 'trx', (o) => tasks.sendAll('q', [{ data: 1 }], o)],
  ['tasks.sendAll job', 'priority', (job) => tasks.sendAll('q', [job]), { data: 1 }],
  ['tasks.run', 'waitMs', (o) => tasks.run('q', 1, o)],
  ['tasks.outcome', 'waitMs', (o) => tasks.outcome('q', 1, o)],
  ['tasks.drain', 'queues', (o) => tasks.drain(o)],
  ['tasks.tick', 'budgetMs', (o) => tasks.tick(o)],
  ['tasks.schedule', 'timezone', (o) => tasks.schedule('s', '0 0 1 1 *', o), { queue: 'q' }],
  ['tasks.schedules', 'limit', (o) => tasks.schedules(o)],
  ['tasks.claim', 'leaseMs', (o) => tasks.claim('q', o)],
  ['tasks.extend', 'leaseMs', (o) => tasks.extend('q', ID, 1n, o)],
  ['worker.stop', 'graceMs', (o) => tasks.work().stop(o)],
  ['createEvents', 'onError', (o) => createEvents(lockstep, o)],
  ['events.append', 'expected', (o) => events.append('s', { type: 't' }, o)],
  ['events.append event', 'data', (event) => events.append('s', event), { type: 't' }],
  ['events.read', 'backwards', (o) => events.read('s', o)],
  ['events.readAll', 'prefix', (o) => events.readAll(o)],
  ['events.subscribe', 'stream', (o) => events.subscribe(o)],
  ['events.streams', 'prefix', (o) => events.streams(o)],
  ['events.declareGroup', 'partitions', (o) => events.declareGroup('g', o)],
  ['events.consume', 'concurrency', (o) => events.consume('g', o, work)],
  ['consumer.stop', 'graceMs', (o) => events.consume('g', {}, work).stop(o)],
  ['events.groups', 'limit', (o) => events.groups(o)],
  ['events.parked', 'after', (o) => events.parked('g', o)],
  ['events.redeliver', 'stream', (o) => events.redeliver('g', o)],
  ['events.poll', 'leaseMs', (o) => events.poll('g', o), { holder: 'me' }],
  ['events.commit', 'trx', (o) => events.commit('g', BATCH, o)],
  ['events.commit batch', 'events', (batch) => events.commit('g', batch), BATCH],
  ['events.fail', 'reason', (batch) => events.fail('g', batch), { ...BATCH, event: 1n }],
  ['events.retain', 'maxAgeMs', (rule) => events.retain('', rule), { maxCount: 1 }],
  ['events.sweep', 'signal', (o) => events.sweep(o)],
  ['events.truncate', 'force', (o) => events.truncate('s', 1n, o)],
  ['events.archive', 'before', (o) => events.archive(o).next()],
  ['migrate', 'folder', (o) => migrate(database.url, o)],
  ['schemaState', 'folder', (o) => schemaState(lockstep.kysely, o)],
  ['startPostgres', 'durable', (o) => startPostgres(o)],
  ['createApp', 'maxStreams', (o) => createApp(lockstep, o)],
  ['serve', 'drainMs', (o) => serve(o), { lockstep: {} }],
  ['lambda', 'restMs', (o) => lambda(o)],
]

async function refusal(call: () => unknown): Promise<unknown> {
  try {
    await call()
  } catch (error) {
    return error
  }
  throw new Error('it was not refused')
}

describe('an option that there is not', () => {
  test.each(VERBS)('is refused by %s, which says that `%s` was meant', async (_verb, has, verb, needs = {}) => {
    const wrong = has.replace(/(Ms)?$/, 'x')
    const error = await refusal(() => verb({ ...needs, [wrong]: 1 }))
    expect(error).toMatchObject({
      code: 'INVALID_ARGUMENT',
      field: expect.stringMatching(new RegExp(`(^|\\.)${wrong}$`)),
      expected: `left out: there is no such option (did you mean \`${has}\`?)`,
    })
  })

  test.each([
    ['ttl', /did you mean `ttlMs`/],
    ['TTLMS', /did you mean `ttlMs`/],
    ['wait', /did you mean `waitMs`/],
    ['timeout', /there are `ttlMs`, `holder`, `meta`, `waitMs`, `signal`/],
    ['x', /there are /],
  ])('is answered with what there is: %s', async (name, hint) => {
    await expect(lockstep.locks.acquire('a', { [name]: 5_000 })).rejects.toThrow(hint)
    expect((await lockstep.locks.get('a')).held).toBe(false)
  })

  test('is refused where a verb with fewer options is called', async () => {
    const { locks, leaders } = lockstep
    await expect(locks.tryAcquire('a', { waitMs: 1 } as Any)).rejects.toMatchObject({ field: 'waitMs' })
    await expect(leaders.tryCampaign('a', { waitMs: 1 } as Any)).rejects.toMatchObject({ field: 'waitMs' })
    await expect(leaders.grant('a', { failover: 'lease' } as Any)).rejects.toMatchObject({ field: 'failover' })
    await expect(events.parked('a', { prefix: 'b' } as Any)).rejects.toMatchObject({ field: 'prefix' })
    await expect(tasks.outcome('q', 1, { pool: 2 } as Any)).rejects.toMatchObject({ field: 'pool' })
  })

  test('is refused by a hold and a term, which stay as they are', async () => {
    await using held = await lockstep.locks.acquire('held')
    await expect(held.release({ tx: 1 } as Any)).rejects.toMatchObject({ field: 'tx', code: 'INVALID_ARGUMENT' })
    expect(held.isTrusted()).toBe(true)
    await using term = await lockstep.leaders.campaign('held')
    await expect(term.resign({ tx: 1 } as Any)).rejects.toMatchObject({ field: 'tx', code: 'INVALID_ARGUMENT' })
    expect(term.isTrusted()).toBe(true)
  })

  test('does not come from a prototype that a program has added to', async () => {
    const added = Object.defineProperty(Object.prototype, 'added', { value: 1, enumerable: true, configurable: true })
    try {
      await (await lockstep.locks.acquire('b', { waitMs: 0 })).release()
    } finally {
      delete (added as Options).added
    }
  })
})

test('an option that is undefined is one that is left out', async () => {
  const { locks, leaders } = lockstep
  const options = { ttlMs: undefined, holder: undefined, meta: undefined, waitMs: undefined, signal: undefined }
  await (await locks.acquire('u', options)).release({ trx: undefined })
  await (await leaders.campaign('u', { ...options, priority: undefined, failover: undefined })).resign({
    trx: undefined,
  })
  await tasks.declare('u', { retryLimit: undefined, backoff: undefined, policy: undefined, notify: undefined })
  const id = await tasks.send('u', 1, { id: undefined, startAfter: undefined, group: { id: 'a', tier: undefined } })
  expect(
    (await tasks.claim('u', { limit: undefined, holder: undefined, signal: undefined })).map((job) => job.id),
  ).toEqual([id])
  await events.append('u', { type: 't', data: undefined, meta: undefined, id: undefined }, { expected: undefined })
  expect((await events.read('u', { from: undefined, limit: undefined, waitMs: undefined })).events).toHaveLength(1)
})
