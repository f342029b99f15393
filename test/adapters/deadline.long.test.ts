/**
 * Within the time that is left: on Lambda each wait of a request ends before the invocation's deadline, so that its client gets an
 * answer of ours. Lambda kills an environment at the deadline, and its client gets a 502 or 504.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { freshDatabase, type PooledDatabase, pgbouncerAvailable } from '../support/database.ts'
import { lambdaEnv, lambdaFolder, urlEvent } from './runtime/runtimes.ts'
import { type Sandbox, startSandbox } from './runtime/sandbox.ts'

// Of this an invocation keeps two seconds to end in; the waits are ten times as long.
const DEADLINE_MS = 4_000
const WAIT_MS = 20_000

let db: PooledDatabase
let lockstep: Lockstep
beforeAll(async () => {
  db = await freshDatabase({ pooled: true })
  lockstep = createLockstep({ connectionString: db.url })
  const [tasks, events] = [createTasks(lockstep), createEvents(lockstep)]
  await tasks.declare('q')
  await tasks.declare('worked')
  await events.declareGroup('g', { partitions: 1 })
  await lockstep.locks.grant('held', { holder: 'other', ttlMs: 600_000 })
  await lockstep.leaders.grant('held', { holder: 'other', ttlMs: 600_000 })
})
afterAll(async () => {
  await lockstep?.close()
  await db?.close()
})

const post = (at: string, body: object) =>
  [at, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) }] as const
const WAITS: [status: number, ...Parameters<typeof urlEvent>][] = [
  [423, ...post('/v1/locks/held', { holder: 'me', waitMs: WAIT_MS })],
  [423, ...post('/v1/leaders/held', { holder: 'me', waitMs: WAIT_MS })],
  [200, ...post('/v1/tasks/q/claim', { waitMs: WAIT_MS })],
  [504, ...post('/v1/tasks/worked', { data: 1, waitMs: WAIT_MS })],
  [200, `/v1/streams/none?waitMs=${WAIT_MS}`],
  [200, `/v1/events?prefix=none&waitMs=${WAIT_MS}`],
  [200, ...post('/v1/groups/g/poll', { holder: 'me', waitMs: WAIT_MS })],
  [200, ...post('/v1/tick', { budgetMs: 900_000 })],
]

describe.each([
  ['the buffered handler', 'index.handler', false],
  ['the streaming handler', 'index.stream', false],
  ['the buffered handler, through PgBouncer', 'index.handler', true],
] as const)('%s', (_name, handler, pooled) => {
  let sandbox: Sandbox
  beforeAll(async () => {
    if (pooled && !pgbouncerAvailable()) return
    sandbox = await startSandbox(await lambdaFolder(), handler, lambdaEnv(pooled ? db.pooledUrl : db.url))
    await sandbox.invoke(urlEvent('/readyz'))
  })
  afterAll(() => sandbox?.[Symbol.asyncDispose]())

  test.skipIf(pooled && !pgbouncerAvailable()).each(WAITS)(
    'a wait ends in time, with a %i: %s',
    async (status, ...asked) => {
      const killing = sleep(DEADLINE_MS).then(() => 'killed by Lambda')
      const answering = sandbox.invoke(urlEvent(...asked), { timeoutMs: DEADLINE_MS })
      const answer = await Promise.race([answering, killing])
      await answering // one invocation at a time
      if (typeof answer === 'string') throw new Error(answer)
      expect(answer.error).toBeUndefined()
      const text = String(answer.body).split('\0')[0] as string
      expect(JSON.parse(text).statusCode).toBe(status)
    },
  )

  test.skipIf(pooled && !pgbouncerAvailable())('an invocation that has no time left does not wait at all', async () => {
    const { body } = await sandbox.invoke(urlEvent(...post('/v1/locks/held', { holder: 'me', waitMs: WAIT_MS })), {
      timeoutMs: 1_000,
    })
    expect(JSON.parse(String(body).split('\0')[0] as string).statusCode).toBe(423)
  })
})
