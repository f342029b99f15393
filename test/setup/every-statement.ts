/**
 * Calls every verb of the library, a room at a time, as the role of a connection string: for tests of the rights of a role
 * (role-rights.test.ts). The verbs themselves are tested elsewhere; here it only matters that each of their statements runs.
 *
 * So each room makes the situations that its rarer statements need: a lease that expired, a worker that died, a batch that failed.
 * Situations that need time or an accident are written into the tables by their owner.
 */
import { sql } from 'kysely'
import type pg from 'pg'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { migrate, schemaState } from '../../lib/setup/migrate.ts'
import { createTasks, type TransactionalContext } from '../../lib/task/index.ts'
import { bossOf } from '../../lib/task/pgboss/boss-of.ts'
import { until } from '../support/until.ts'
import { Truth } from '../time/fake-true-time.ts'

/** The role's Lockstep and connection string, and the owner's pool and connection string. */
export interface Tourist {
  lockstep: Lockstep
  url: string
  owner: pg.Pool
  ownerUrl: string
  /** Called with errors after which a loop tries again or goes on. */
  onError: (error: unknown) => void
}

export const ROOMS: Record<string, (tourist: Tourist) => Promise<void>> = {
  locks,
  fences,
  leaders,
  tasks,
  upkeep,
  time,
  events,
  groups,
  keeping,
}

const LEASE = { ttlMs: 5_000 }

/** A promise that is awaited later: if the calls stop before, its rejection is ignored. */
function later<T>(coming: Promise<T>): Promise<T> {
  coming.catch(() => {})
  return coming
}

async function locks({ lockstep, url, owner }: Tourist): Promise<void> {
  const { locks, kysely } = lockstep
  await lockstep.ready()
  await schemaState(kysely)
  await migrate(url)
  for (const options of [{}, LEASE]) {
    await (await locks.acquire('a', options)).release()
    const held = await locks.acquire('a', options)
    const next = later(locks.acquire('a', options))
    await until('somebody waits', async () => (await locks.query('a')).waiting > 0)
    await held.release()
    await (await next).release()
    const fenced = await locks.acquire('a', options)
    await fenced.transaction(async () => {})
    await kysely.transaction().execute((trx) => fenced.release({ trx }))
  }
  for (const held of await Promise.all(['a', 'b', 'c', 'd'].map((name) => locks.acquire(name)))) await held.release()
  await locks.transaction('a', async () => {})
  const shown = await locks.acquire('a')
  await locks.list()
  await shown.release()
  const left = async () => (await owner.query('select from lockstep.hold')).rows.length
  await until('what it has entered is gone', async () => (await left()) === 0)
  const lease = await locks.acquire('a', LEASE)
  const waiting = [later(locks.acquire('a')), later(locks.transaction('a', async () => {}))] as const
  await until('both wait', async () => (await locks.query('a')).waiting > 0)
  await lease.release()
  await (await waiting[0]).release()
  await waiting[1]
  const { token } = await locks.grant('a', { holder: 'h', ...LEASE })
  await locks.renew('a', token, LEASE)
  await locks.list()
  await locks.revoke('a', token)
  await locks.grant('a', LEASE)
  await locks.forceRevoke('a')
  const lost = await locks.acquire('a')
  await locks.forceRevoke('a')
  await until('it is lost', () => lost.signal.aborted)
  await locks.grant('b', LEASE)
  await owner.query(`update lockstep.lease set expires_at = clock_timestamp() - interval '2 days'`)
  await locks.sweep()
}

async function fences({ lockstep, owner }: Tourist): Promise<void> {
  const { locks, kysely } = lockstep
  const { rows } = await owner.query(`select current_user as owner, to_regclass('fenced') is null as absent`)
  if (rows[0].absent) {
    const role = (await sql<{ role: string }>`select current_user as role`.execute(kysely)).rows[0]?.role
    await owner.query(`create table fenced (n int); select lockstep.fence_table('fenced');
                       create table bound (n int); select lockstep.fence_table('bound', by => $$ 'row/' || n $$);
                       grant select, insert, update, delete on fenced, bound to "${role}"`)
  }
  for (const options of [{}, LEASE]) {
    const held = await locks.acquire('fenced', options)
    await held.transaction((trx) => trx.insertInto('fenced').values({ n: 1 }).execute())
    await kysely.transaction().execute(async (trx) => {
      await held.assertHeld(trx)
      await trx.updateTable('fenced').set({ n: 2 }).execute()
    })
    if (options === LEASE) {
      await kysely.transaction().execute(async (trx) => {
        await sql`select set_config('lockstep.fence', ${`fenced:${held.token}`}, true)`.execute(trx)
        await trx.deleteFrom('fenced').execute()
      })
    }
    await held.release()
  }
  await locks.transaction('fenced', (trx) => trx.insertInto('fenced').values({ n: 1 }).execute())
  await locks.transaction('row/1', (trx) => trx.insertInto('bound').values({ n: 1 }).execute())
}

async function leaders({ lockstep, owner }: Tourist): Promise<void> {
  const { leaders, kysely } = lockstep
  const term = await leaders.campaign('a', { failover: 'connection' })
  const next = later(leaders.campaign('a'))
  const stop = new AbortController()
  const left = leaders.campaign('a', { signal: stop.signal }).catch(() => {})
  await until('two wait', async () => (await leaders.members('a')).waiting.length === 2)
  stop.abort()
  await left
  await term.proclaim('here')
  await term.transaction((trx) => sql`select lockstep.assert_leader('a', ${term.token})`.execute(trx))
  await leaders.observe('a').next()
  await leaders.state('a')
  await leaders.list()
  await term.resign()
  const second = await next
  await leaders.stepDown('a')
  await second[Symbol.asyncDispose]()
  const third = await leaders.campaign('b')
  await kysely.transaction().execute((trx) => third.resign({ trx }))
  const { token } = await leaders.grant('c', LEASE)
  await leaders.renew('c', token, { ...LEASE, meta: 'there' })
  await leaders.revoke('c', token)
  await owner.query(
    `insert into lockstep.candidate values ('x', 'x', 0, 0, now(), null, null, now() - interval '1 minute')`,
  )
  await lockstep.locks.sweep()
}

async function tasks({ lockstep, onError }: Tourist): Promise<void> {
  const tasks = createTasks(lockstep, { onError })
  tasks.define('plain', (data: unknown) => data, { deadLetter: 'dead' })
  tasks.define('failing', () => Promise.reject(new Error('as it shall')), { deadLetter: 'dead', retryLimit: 0 })
  tasks.define('transactional', async (_: null, { progress }) => progress(1), { transactional: true })
  const ends = async (_: null, { trx }: TransactionalContext) => {
    await sql`set local standard_conforming_strings = off`.execute(trx)
    await sql.raw(`select 'a\\''; commit -- '`).execute(trx) // where a backslash is not an escape the string goes on
  }
  tasks.define('ending', ends, { transactional: true })
  await tasks.declare('other')
  await tasks.declare('other', { retryLimit: 7 })
  const worker = tasks.work()
  await tasks.run('plain', 1)
  await tasks.run('plain', 1, { pool: 2 })
  await tasks.run('transactional', null)
  await tasks.outcome('failing', 1)
  await tasks.outcome('ending', null)
  await until('it hears broadcasts', async () => (await tasks.broadcast('plain', 2)).length === 1)
  await worker.stop()
  await lockstep.kysely.transaction().execute((trx) => tasks.send('other', 3, { trx }))
  await tasks.sendAll('other', [{ data: 4, priority: 1 }, { data: 5 }])
  for (const data of [1, 2])
    await tasks.send('plain', data, { singletonSeconds: 3_600, replace: true, startAfterMs: 60_000 })
  const [job, second, third] = await tasks.claim('other', { holder: 'me', limit: 3 })
  const of = (it: typeof job) => [it?.id as string, it?.token as bigint] as const
  await tasks.extend('other', ...of(job))
  await tasks.progress('other', ...of(job), 0.5, 'half')
  await tasks.complete('other', ...of(job), 'done')
  await tasks.fail('other', ...of(second), new Error('as it shall'))
  await tasks.handBack('other', [{ id: third?.id as string, token: third?.token as bigint }])
  await sql`select lockstep.beat_jobs('other', '{}', '{}')`.execute(lockstep.kysely) // workers of 0.6 do, every few seconds
  tasks.define('other', () => {})
  await tasks.drain()
  const id = (await tasks.send('other', 6, { startAfterMs: 60_000 })) as string
  await tasks.get('other', id)
  await tasks.cancel('other', id)
  await tasks.counts('other')
  await tasks.queues()
  await tasks.schedule('always', '* * * * * *', { queue: 'other' })
  await tasks.schedule('always', '* * * * * *', { queue: 'other', data: 1 })
  await tasks.scheduled('always')
  await tasks.schedules()
  await until('a slot was sent', async () => (await tasks.tick()).slots > 0)
  await sql`select from lockstep.due_schedules(null, '{}'), lockstep.due_jobs()`.execute(lockstep.kysely) // ticks of 0.6 do
  await tasks.unschedule('always')
  for (const data of [1, 2]) await bossOf(tasks).schedule('other', '* * * * * *', { data })
  await until('a slot of pg-boss was sent', async () => (await tasks.tick()).slots > 0)
  await bossOf(tasks).getSchedules()
  await bossOf(tasks).unschedule('other')
  await tasks.close()
}

/** The rarer situations that a tick handles. */
async function upkeep({ lockstep, owner, ownerUrl, onError }: Tourist): Promise<void> {
  const tasks = createTasks(lockstep, { onError })
  await tasks.declare('late', { retryLimit: 0, expireInMs: 1_000 })
  const late = (await tasks.send('late', 1)) as string
  await tasks.claim('late')
  await tasks.declare('old', { deleteAfterSeconds: 60 })
  const old = (await tasks.send('old', 1)) as string
  const [job] = await tasks.claim('old', { holder: 'me' })
  await tasks.complete('old', old, job?.token as bigint)
  await owner.query(`insert into lockstep.worker values (gen_random_uuid(), 'late', now() - interval '1 hour')`)
  await using theirs = createLockstep({ connectionString: ownerUrl })
  const boss = bossOf(createTasks(theirs))
  const { rows } = await owner.query(`select 'lockstep.worker/' || id as name from lockstep.worker`)
  for (const { name } of rows) await boss.createQueue(name)
  await tasks.declare('flow')
  await boss.flow([
    { ref: 'first', name: 'flow', data: { n: 1 } },
    { ref: 'then', name: 'flow', data: { n: 2 }, dependsOn: ['first'] },
  ])
  const [first] = await tasks.claim('flow')
  await tasks.complete('flow', first?.id as string, first?.token as bigint)

  await owner.query(`update lockstep_boss.job set started_on = now() - interval '1 hour' where id = $1`, [late])
  await owner.query(`update lockstep_boss.job set completed_on = now() - interval '2 days' where id = $1`, [old])
  await owner.query(`update lockstep.attempt set at = now() - interval '31 days'`)
  await owner.query('update lockstep_boss.queue set maintain_on = null')
  await owner.query('update lockstep_boss.version set flow_on = null')
  await tasks.tick()
  const states = await Promise.all([tasks.get('late', late), tasks.get('old', old), tasks.claim('flow')])
  if (states[0]?.state !== 'failed' || states[1] !== null || states[2].length !== 1)
    throw new Error('No upkeep was done')
  await tasks.close()
}

async function time({ lockstep, url }: Tourist): Promise<void> {
  await using measuring = createLockstep({ connectionString: url, time: { ntp: new Truth().ntp() } })
  await measuring.time.synchronize()
  await lockstep.time.ready()
  await lockstep.time.tick()
  await sql`select * from lockstep.now_interval(), lockstep.now(), lockstep.tick()`.execute(lockstep.kysely)
}

async function events({ lockstep, onError }: Tourist): Promise<void> {
  const events = createEvents(lockstep, { onError })
  const heard = later(events.subscribe({ stream: 's', from: 1n }).next())
  await events.append('s', [{ type: 'x' }, { type: 'x' }])
  await heard
  const following = later(events.subscribe({ prefix: 't' }).next())
  await until('it is told', async () => {
    await lockstep.kysely.transaction().execute((trx) => events.append('t', { type: 'x' }, { trx }))
    return Promise.race([following.then(() => true), events.stream('none').then(() => false)])
  })
  await events.append('s', { type: 'x', id: crypto.randomUUID() })
  await events.append('s', { type: 'x' }, { expected: 0n }).catch(() => {})
  await events.read('s')
  await events.read('s', { backwards: true })
  await events.readAll({ prefix: 's' })
  await events.streams()
  await events.declareGroup('all', { from: 1n })
  await lockstep.kysely.transaction().execute(async (trx) => {
    await events.append('u', { type: 'x' }, { trx })
    await events.lag('all')
    await events.streamLag('s')
  })
  await events.deleteGroup('all')
  await events.close()
}

async function groups({ lockstep, onError }: Tourist): Promise<void> {
  const events = createEvents(lockstep, { onError })
  await events.append('g1', { type: 'x' })
  await events.append('g2', { type: 'x' })
  await events.declareGroup('g', { prefix: 'g', partitions: 1, from: 1n, retryLimit: 0 })
  const consumer = events.consume('g', { retryLimit: 0 }, ({ stream }) => {
    if (stream === 'g2') throw new Error('as it shall')
  })
  await until('it is parked', async () => (await events.parked('g')).length > 0)
  await consumer.stop()
  await events.declareGroup('g', { retryLimit: 1 })
  await events.groups()
  await events.redeliver('g')
  const poll = async () => {
    for (;;) {
      const [batch] = await events.poll('g', { holder: 'h', waitMs: 5_000 })
      if (batch && batch.events.length > 0) return batch
    }
  }
  const again = await poll()
  await events.fail('g', { ...again, event: again.events[0]?.cursor as bigint })
  await events.redeliver('g', { skip: true })
  await events.append('g2', { type: 'x' })
  const last = await poll()
  await events.commit('g', last)
  await events.commit('g', { ...last, next: `${last.next}` })
  await events.append('g1', { type: 'x' })
  const stale = await poll()
  await events.fail('g', { ...stale, event: stale.events[0]?.cursor as bigint })
  await events.commit('g', stale).catch(() => {})
  await events.leave('g', 'h')
  await events.deleteGroup('g')
  await events.close()
}

async function keeping({ lockstep, onError }: Tourist): Promise<void> {
  const events = createEvents(lockstep, { onError })
  await events.append('k', [{ type: 'x' }, { type: 'x' }, { type: 'x' }])
  for await (const line of events.archive({ stream: 'k' })) if (line === '') throw new Error('An empty line')
  await events.retain('k', { maxCount: 2 })
  await events.retain('k', { maxCount: 1 })
  await events.retention()
  await events.sweep()
  await events.truncate('k', 10n)
  await events.retain('k', null)
  await events.close()
}
