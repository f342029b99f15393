/** Every answer can be logged: what has a 64-bit number says how JSON.stringify writes it, as a decimal string. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, LeaseLostError, type Lockstep, PositionConflictError } from '../../lib/index.ts'
import { createTasks, type HandlerContext } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'

let database: FreshDatabase
let lockstep: Lockstep
beforeAll(async () => {
  database = await freshDatabase()
  lockstep = createLockstep({ connectionString: database.url })
})
afterAll(async () => {
  await lockstep?.close()
  await database?.close()
})

/** How many of these values JSON.stringify writes as decimal strings. It must throw at none. */
function decimals(value: unknown, ...bigints: bigint[]): number {
  const text = JSON.stringify(value)
  return bigints.filter((bigint) => text.includes(`"${bigint}"`)).length
}

test('of locks', async () => {
  const { locks } = lockstep
  const grant = await locks.grant('granted', { holder: 'me' })
  const leased = await locks.acquire('leased', { ttlMs: 60_000 })
  const connected = await locks.acquire('connected')
  const given = await locks.transaction('trx', async (_, hold) => [hold, hold.token] as const)
  for (const [answer, token] of [
    [grant, grant.token],
    [await locks.renew('granted', grant.token), grant.token],
    [await locks.get('granted'), grant.token],
    [await locks.list(), leased.token],
    [leased, leased.token],
    [connected, connected.token],
    given,
  ] as const) {
    expect(decimals(answer, token)).toBe(1)
  }
  for (const name of ['connected', 'free']) expect(JSON.parse(JSON.stringify(await locks.get(name))).name).toBe(name)
  expect(JSON.parse(JSON.stringify(leased))).toEqual({
    ...{ name: 'leased', holder: leased.holder, token: String(leased.token), kind: 'lease' },
  })
  await Promise.all([leased.release(), connected.release()])
})

test('of leaders', async () => {
  const { leaders } = lockstep
  const term = await leaders.campaign('led')
  const { token } = term
  const { revision } = await leaders.get('led')
  const observed = leaders.observe('led')
  const { value: state } = await observed.next()
  await term.proclaim({ since: 'now' })
  const { value: notified } = await observed.next()
  await observed.return(undefined as never)
  for (const answer of [term, await leaders.members('led'), await leaders.leader('led'), await leaders.list()]) {
    expect(decimals(answer, token)).toBe(1)
  }
  for (const answer of [await leaders.get('led'), state, notified]) {
    expect(decimals(answer, token, answer.revision)).toBe(2)
  }
  expect(revision).toBe(state.revision)
  const { token: granted } = await leaders.grant('other').then(checked)
  expect(decimals(await leaders.renew('other', granted), granted)).toBe(1)
  await term.resign()

  function checked<T extends { token: bigint }>(answer: T): T {
    expect(decimals(answer, answer.token)).toBe(1)
    return answer
  }
})

test('of tasks', async () => {
  const tasks = createTasks(lockstep)
  await tasks.declare('q')
  await tasks.send('q', 1)
  expect(decimals(await tasks.claim('q'), 1n)).toBe(1)
  tasks.define('worked', (_: null, { job }: HandlerContext) => JSON.stringify(job))
  const worker = tasks.work('worked')
  expect(JSON.parse(await tasks.run('worked', null))).toMatchObject({ queue: 'worked', attempt: 1, token: '1' })
  await worker.stop()
})

test('of events', async () => {
  const events = createEvents(lockstep)
  const expectAll = (answer: unknown, ...bigints: bigint[]) => expect(decimals(answer, ...bigints)).toBe(bigints.length)
  const appended = await events.append('s', [{ type: 't' }, { type: 't' }, { type: 't' }])
  expectAll(appended, 1n, 3n)
  const page = await events.read('s')
  const cursor = page.events[0]?.cursor as bigint
  expectAll(page, 1n, 2n, 3n, 4n, cursor)
  expectAll(page.events[0], 1n, cursor)
  expectAll(await events.read('s', { backwards: true, limit: 1 }), 2n, 3n)
  expectAll(await events.read('s', { from: 'end' }), 4n)
  expectAll(await events.readAll(), cursor)
  expectAll(await events.readAll({ from: 'end' }))
  expectAll(await events.getStream('s'), 1n, 3n)
  expectAll(await events.streams(), 1n, 3n)
  for (const as of ['event', 'json'] as const) {
    const followed = events.subscribe({ stream: 's', as } as never)
    expectAll((await followed.next()).value, 1n)
    await followed.return(undefined as never)
  }
  await events.declareGroup('g', { partitions: 1, retryLimit: 0 })
  const [batch] = await events.poll('g', { holder: 'me' })
  if (!batch) throw new Error('nothing came')
  expectAll(batch, batch.token, cursor, 1n)
  await events.fail('g', { ...batch, event: cursor })
  expectAll(await events.parked('g'), 1n)
  const lag = await events.lag('g')
  expectAll(lag, lag.horizon.cursor, lag.horizon.last)
  expectAll(lag.partitions[0], lag.partitions[0]?.cursor as bigint)
  expectAll(await events.streamLag('s'), 3n, 0n)
  expectAll(await events.truncate('s', 2n, { force: true }), 2n)
})

test('of errors', () => {
  const lost = new LeaseLostError('a', 2n ** 60n, 'why')
  expect(JSON.parse(JSON.stringify({ lost }))).toEqual({
    lost: {
      name: 'LeaseLostError',
      code: 'LEASE_LOST',
      message: lost.message,
      leaseName: 'a',
      token: String(2n ** 60n),
    },
  })
  const conflict = new PositionConflictError('s', 1n, 2n)
  expect(JSON.parse(JSON.stringify(conflict))).toEqual({
    ...{ name: 'PositionConflictError', code: 'POSITION_CONFLICT', message: conflict.message },
    ...{ stream: 's', expected: '1', actual: '2' },
  })
})
