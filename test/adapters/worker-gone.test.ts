/**
 * A Worker whose client goes away. Cloudflare then ends the request, unless it has registered work (`waitUntil`): so the Worker
 * registers before it waits, and what was granted to that client just then is given back.
 *
 * The local workerd does not abort a request's signal when the client goes. So the Worker's own `fetch` is called here, in Node, with
 * a request whose signal the test aborts. The runbook says what could not be shown.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { worker } from '../../functions/adapters/cloudflare.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { freshDatabase, type PooledRoleDatabase, pgbouncerAvailable } from '../support/database.ts'
import { until } from '../support/until.ts'

let db: PooledRoleDatabase
let lockstep: Lockstep
let tasks: Tasks
beforeAll(async () => {
  db = await freshDatabase({ role: true, pooled: true })
  lockstep = createLockstep({ connectionString: db.url })
  tasks = createTasks(lockstep)
})
afterAll(async () => {
  await lockstep?.close()
  await db?.close()
})

const door = worker({ tasks: (each) => createTasks(each), events: (each) => createEvents(each) })

describe.each([
  ['directly', false],
  ['through PgBouncer', true],
] as const)('%s', (how, pooled) => {
  const check = test.skipIf(pooled && !pgbouncerAvailable())

  /** Sends a request, and tells what it has registered. */
  function send(at: string, body: object) {
    const gone = new AbortController()
    const registered: Promise<unknown>[] = []
    let ended = false
    const answering = door.fetch(
      new Request(`https://worker${at}`, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify(body),
        signal: gone.signal,
      }),
      { DATABASE_URL: pooled ? db.pooledRoleUrl : db.roleUrl, LOCKSTEP_API_KEYS: 'off' },
      { waitUntil: (work) => void registered.push(work.then(() => (ended = true))) },
    )
    const early = registered.length // fetch has not waited for anything yet
    return { answering, gone, early, ended: () => ended, work: () => Promise.all(registered) }
  }

  const blocked = async () => {
    const { rows } = await db.pool.query(
      `select from pg_stat_activity where usename = $1 and wait_event_type = 'Lock' and wait_event = 'relation'`,
      [db.role],
    )
    return rows.length > 0
  }

  check('a request registers what is left to do before it waits; that ends with the answer', async () => {
    const name = `held ${how}`
    const { token } = await lockstep.locks.grant(name, { holder: 'other', ttlMs: 600_000 })
    const { answering, early, ended, work } = send(`/v1/locks/${encodeURIComponent(name)}`, { waitMs: 20_000 })
    expect(early).toBe(1)
    expect(ended()).toBe(false)
    await lockstep.locks.revoke(name, token)
    expect((await answering).status).toBe(201)
    await work()
    expect(ended()).toBe(true)
  })

  check('a client that goes while it waits is granted nothing', async () => {
    const name = `left ${how}`
    const { token } = await lockstep.locks.grant(name, { holder: 'other', ttlMs: 600_000 })
    const { answering, gone, early, work } = send(`/v1/locks/${encodeURIComponent(name)}`, { waitMs: 20_000 })
    expect(early).toBe(1)
    gone.abort()
    expect((await answering).status).toBe(499)
    await work()
    await lockstep.locks.revoke(name, token)
    expect((await lockstep.locks.query(name)).held).toBe(false)
  })

  check('a grant that crosses with the hang-up is given back, and only then the work ends', async () => {
    const name = `crossed ${how}`
    await using client = await holding('lockstep.lease')
    const { answering, gone, early, ended, work } = send(`/v1/locks/${encodeURIComponent(name)}`, { ttlMs: 600_000 })
    expect(early).toBe(1)
    await until('the grant is on its way', blocked)
    gone.abort()
    expect(ended()).toBe(false)
    await client.letGo()
    expect((await answering).status).toBe(499)
    await work()
    expect((await lockstep.locks.query(name)).held).toBe(false)
  })

  check('a claim that crosses with the hang-up is given back, at no retry', async () => {
    const queue = `crossed-${pooled ? 'pooled' : 'direct'}`
    await tasks.declare(queue, { retryLimit: 0 })
    const id = (await tasks.send(queue, 1)) as string
    await using client = await holding('lockstep.attempt')
    const { answering, gone, early, ended, work } = send(`/v1/tasks/${queue}/claim`, { leaseMs: 600_000 })
    expect(early).toBe(1)
    await until('the claim is on its way', blocked)
    gone.abort()
    expect(ended()).toBe(false)
    await client.letGo()
    expect((await answering).status).toBe(499)
    await work()
    expect(await tasks.get(queue, id)).toMatchObject({ state: 'retry' })
    expect((await tasks.claim(queue)).map((job) => job.id)).toEqual([id])
  })
})

/** Keeps everybody from writing to a table, until it is let go. */
async function holding(table: string) {
  const client = await db.pool.connect()
  await client.query(`begin; lock table ${table} in exclusive mode`)
  let held = true
  const letGo = async () => {
    if (held) await client.query('commit')
    held = false
  }
  return {
    letGo,
    async [Symbol.asyncDispose]() {
      await letGo()
      client.release()
    },
  }
}
