/** Names that a URL cannot have: `.` and `..` are refused as names by every room, so that nothing is out of reach over HTTP. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'

let db: FreshDatabase
let lockstep: Lockstep
let tasks: Tasks
let events: Events
beforeAll(async () => {
  db = await freshDatabase()
  lockstep = createLockstep({ connectionString: db.url })
  tasks = createTasks(lockstep)
  events = createEvents(lockstep)
})
afterAll(async () => {
  await lockstep?.close()
  await db?.close()
})

const CALLS: [string, field: string, (name: string) => Promise<unknown>][] = [
  ['locks.acquire', 'name', (name) => lockstep.locks.acquire(name, { ttlMs: 1_000, waitMs: 0 })],
  ['locks.get', 'name', (name) => lockstep.locks.get(name)],
  ['leaders.get', 'name', (name) => lockstep.leaders.get(name)],
  ['tasks.declare', 'queue', (name) => tasks.declare(name)],
  ['tasks.send', 'queue', (name) => tasks.send(name, {})],
  ['tasks.schedule', 'name', (name) => tasks.schedule(name, '0 0 1 1 *', { queue: 'q' })],
  ['events.append', 'stream', (name) => events.append(name, { type: 't', data: {} })],
  ['events.read', 'stream', (name) => events.read(name)],
  ['events.declareGroup', 'group', (name) => events.declareGroup(name)],
]

describe.each(CALLS)('%s', (_, field, call) => {
  test.each(['.', '..'])('refuses the name %s', async (name) => {
    const refused = async () => await call(name)
    await expect(refused()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
  })

  test.each(['...', '.a', 'a/..', './a', '%2e'])('takes %s for a name', async (name) => {
    if (name.includes('%') && field === 'queue') return // a queue has no such characters
    const refusal = await Promise.resolve(call(name)).then(
      () => undefined,
      (error) => error.code,
    )
    expect(refusal).not.toBe('INVALID_ARGUMENT')
  })
})

test('a prefix and a holder may be `.`', async () => {
  expect((await lockstep.locks.list({ prefix: '.' })).map(({ name }) => name)).not.toContain('.')
  const held = await lockstep.locks.acquire('held by a dot', { holder: '.', ttlMs: 1_000 })
  await held.release()
})
