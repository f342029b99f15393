/**
 * Careless neighbours: the service's own program, or its operator, does what it should not. It ends the transaction that it was given, keeps
 * all connections, ends those of others, takes all that a role may have, or takes a name by force while somebody works under it.
 */
import { sql } from 'kysely'
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

test('an operator that ends all connections, and a role that may have no more for a while: of many callers one opens the next session', () =>
  process_(async (a, application) => {
    const held = await a.locks.acquire(fresh())
    await db.pool.query(`alter role ${db.role} connection limit 0`)
    await db.pool.query('select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = $1', [
      application,
    ])
    await until('it is told', () => held.signal.aborted)
    await expect(a.locks.tryAcquire(fresh())).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    const waits = Array.from({ length: 50 }, () => a.locks.acquire(fresh()))
    await db.pool.query(`alter role ${db.role} connection limit -1`)
    const all = await Promise.all(waits)
    expect((await backends(application)).length).toBeLessThanOrEqual(3) // one of holds, and those of statements
    expect(all.every((each) => each.isTrusted())).toBe(true)
    await Promise.all(all.map((each) => each.release()))
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
    let forced = false
    const forcing = a.locks.forceRevoke(name).then((answer) => {
      forced = true
      return answer
    })
    await a.locks.get(name) // the force has asked, and was told to ask again
    await a.locks.get(name)
    expect([forced, held.isTrusted()]).toEqual([false, true])
    go.resolve()
    await writing
    expect(await forcing).toBe(true)
    await until('it is told', () => held.signal.aborted)
    await using next = await a.locks.acquire(name)
    expect(next.token).toBeGreaterThan(held.token)
    expect(next.isTrusted()).toBe(true)
  }))
