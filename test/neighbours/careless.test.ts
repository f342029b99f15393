/**
 * Careless neighbours: the service's own program, or its operator, does what it should not. It ends the transaction that it was given, keeps
 * all connections, ends those of others, takes all that a role may have, or takes a name by force while somebody works under it.
 */
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { freshDatabase, type RoleDatabase } from '../support/database.ts'
import { leftOnServer } from '../support/resources.ts'
import { until } from '../support/until.ts'

let db: RoleDatabase
beforeAll(async () => {
  db = await freshDatabase({ role: true })
  await db.pool.query(`create table written (what text); grant select, insert on written to ${db.role}`)
})
afterAll(() => db?.close())

let n = 0
const fresh = () => `careless-${n++}`
/** A process of the service; nothing of it is left when it is closed. */
async function process_<T>(work: (a: Lockstep, application: string) => Promise<T>): Promise<T> {
  const application = `careless ${n++}`
  const a = createLockstep({ connectionString: db.roleUrl, applicationName: application, max: 2 })
  try {
    return await work(a, application)
  } finally {
    await a.close()
    expect(await leftOnServer(db.url, application)).toEqual([])
  }
}
const backends = async (application: string) =>
  (await db.pool.query('select pid from pg_stat_activity where application_name = $1', [application])).rows

test('a program that ends the transaction it was given is told so, and no fence is taken outside of one', () =>
  process_(async (a) => {
    const held = await a.locks.acquire(fresh())
    for (const ends of ['commit', 'rollback']) {
      const ended = held.transaction(async (trx) => {
        await sql.raw(ends).execute(trx)
        await sql`insert into written values (${ends})`.execute(trx)
      })
      await expect(ended).rejects.toMatchObject({
        code: expect.stringMatching(/^(TRANSACTION_ENDED|INVALID_ARGUMENT)$/),
      })
    }
    const late = a.kysely.transaction().execute(async (trx) => trx)
    await expect(held.assertHeld(await late)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field: 'trx' })
    const client = new pg.Client(db.roleUrl)
    await client.connect()
    await expect(held.assertHeld(client)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field: 'trx' })
    await client.end()
    expect((await db.pool.query('select from written')).rows).toEqual([])
    expect(held.isTrusted()).toBe(true)
    await held.release()
  }))

test('a program that keeps all connections: a wait ends with its time limit or its signal, and what goes on waiting is served', () =>
  process_(async (a) => {
    const free = Promise.withResolvers<void>()
    let inside = 0
    const all = [1, 2].map(() =>
      a.kysely.transaction().execute(async (trx) => {
        await sql`select 1`.execute(trx)
        inside++
        await free.promise
      }),
    )
    await until('all are in use', () => inside === 2)
    const busy = { code: 'UNAVAILABLE' }
    const work = async () => 'done'
    await expect(a.locks.transaction(fresh(), { waitMs: 30 }, work)).rejects.toMatchObject(busy)
    const stop = new AbortController()
    const left = a.locks.transaction(fresh(), { signal: stop.signal }, work)
    setImmediate(() => stop.abort(new Error('enough')))
    await expect(left).rejects.toThrow('enough')
    const waits = a.locks.transaction(fresh(), work)
    await (await a.locks.acquire(fresh())).release() // holds have connections of their own
    free.resolve()
    await Promise.all(all)
    expect(await waits).toBe('done')
  }))

test('an operator that ends all connections: of many callers one opens the next session; and a role that may have none for a while', () =>
  process_(async (a, application) => {
    const ends = () =>
      db.pool.query('select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = $1', [
        application,
      ])
    const first = await a.locks.acquire(fresh())
    await ends()
    await until('it is told', () => first.signal.aborted)
    const all = await Promise.all(Array.from({ length: 50 }, () => a.locks.acquire(fresh())))
    expect(await backends(application)).toHaveLength(1)
    expect(all.every((each) => each.isTrusted())).toBe(true)
    await db.pool.query(`alter role ${db.role} connection limit 0`)
    await ends()
    await until('all are told', () => all.every(({ signal }) => signal.aborted))
    await expect(a.locks.tryAcquire(fresh())).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    const waits = a.locks.acquire(fresh())
    await db.pool.query(`alter role ${db.role} connection limit -1`)
    await (await waits).release()
  }))

test('an operator that takes a name by force waits for a write that is under way under it, and takes nothing from the next holder', () =>
  process_(async (a) => {
    const name = fresh()
    const held = await a.locks.acquire(name)
    const [began, go] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    const writing = held.transaction(async (trx) => {
      await sql`insert into written values ('under the hold')`.execute(trx)
      began.resolve()
      await go.promise
    })
    await began.promise
    const force = 'select lockstep.force_revoke($1) as outcome'
    expect((await db.pool.query(force, [name])).rows).toEqual([{ outcome: 'busy' }])
    expect(held.isTrusted()).toBe(true)
    const forcing = a.locks.forceRevoke(name)
    go.resolve()
    await writing
    expect(await forcing).toBe(true)
    await until('it is told', () => held.signal.aborted)
    await using next = await a.locks.acquire(name)
    expect(next.token).toBeGreaterThan(held.token)
    expect(next.isTrusted()).toBe(true)
  }))
