/**
 * The exclusive migration (0008_close.sql, lib/setup/exclusive-migration.ts), while processes of 0.6 hold, wait, append and try again, and
 * when it is aborted at each of its steps. In every case nobody is granted what another version holds.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'
import { afterEach, expect } from 'vitest'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { type Blocker, type MigrateOptions, migrate } from '../../lib/setup/migrate.ts'
import { chosen } from '../support/chosen.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase, pgbouncerAvailable } from '../support/database.ts'
import { until } from '../support/until.ts'
import { contend, INSIDE } from './older-process.ts'

/** The tests that `npm test` runs: the others last longer. */
const SHORT = ['a process of 0.6 that holds', 'a transaction that was open']

/** Registers the tests that `npm test` runs, or all others. */
export function exclusiveMigrations(which: 'short' | 'others'): void {
  const test = chosen((name) => SHORT.some((words) => name.includes(words)) === (which === 'short'))

  const MIGRATIONS = path.join(import.meta.dirname, '../../db/migrations')
  const ours = fs.readdirSync(MIGRATIONS).map((file) => file.replace('.sql', ''))
  ours.sort()
  const OLD = ours.filter((name) => name < '0008')
  const NEW = ours.filter((name) => name >= '0008')
  const LATEST = ours.at(-1) as string

  // ---- It waits for holders ----------------------------------------------------------------------------------------

  test('a process of 0.6 that holds by connection is waited for; until then nothing is granted, and releases and renewals go on', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await old('acquire', 'a')
    await old('acquire', 'b')
    await old('fence', 'b') // so that its name is known
    await old('acquire', 'leased', { ttlMs: 3_000 })
    await using now = createLockstep({ connectionString: db.url })
    const events = createEvents(now)
    const { token } = await now.locks.grant('mine', { ttlMs: 3_000 })
    const migrating = started(db.url)

    const [blocker] = await migrating.waits()
    expect(blocker).toMatchObject({
      pid: await pidOf(db, 'older'),
      application: 'older',
      has: expect.arrayContaining(['"b"']),
    })
    const refused = { code: 'UNAVAILABLE' }
    for (const options of [{}, { ttlMs: 5_000 }]) {
      await expect(old('tryAcquire', 'x', options)).rejects.toMatchObject(refused)
      await expect(old('acquire', 'x', { ...options, waitMs: 5_000 })).rejects.toMatchObject(refused)
      await expect(now.locks.tryAcquire('x', options)).rejects.toMatchObject(refused)
    }
    await expect(now.locks.transaction('x', async () => {})).rejects.toMatchObject(refused)
    await expect(old('append', 's')).rejects.toMatchObject(refused)
    await expect(events.append('s', { type: 'x' })).rejects.toMatchObject(refused)
    expect(await old('ready')).toBeNull()
    await now.locks.renew('mine', token)
    await now.locks.revoke('mine', token)
    await (await now.leaders.campaign('elections go on')).resign()
    const { rows } = await db.pool.query(`select expires_at from lockstep.lease where name = 'leased'`)
    await until('its lease is renewed', async () => {
      const later = await db.pool.query(`select expires_at from lockstep.lease where name = 'leased'`)
      return later.rows[0].expires_at > rows[0].expires_at
    })
    await old('release', 'leased')
    await old('release', 'a')
    expect(migrating.over()).toBe(false)
    await old('release', 'b')
    expect(await migrating.result).toEqual({ applied: NEW, latest: LATEST })

    // Both versions now use the same K.
    expect(await old('ready')).toBeNull()
    await now.ready()
    await old('acquire', 'x')
    expect(await now.locks.tryAcquire('x')).toBeNull()
    expect((await now.locks.query('x')).held).toBe(true)
    await old('release', 'x')
    const held = await now.locks.acquire('y')
    expect(await old('tryAcquire', 'y')).toBeNull()
    expect(await old('query', 'y')).toBe(true)
    await held.release()
    await old('acquire', 'y', { waitMs: 5_000 })
    await old('append', 's')
    expect((await events.append('s', { type: 'x' })).last).toBe(2n)
  })

  test('both versions try the same names during the migration, and never two hold one', async () => {
    const db = await atOld()
    await db.pool.query(INSIDE)
    const old = await older(db.url)
    const over = new AbortController()
    await using now = createLockstep({ connectionString: db.url })
    await old('contend')
    const contending = contend(now, db.url, 'newer', over.signal)
    const holds = async () =>
      Number((await db.pool.query("select pg_stat_get_tuples_inserted('inside'::regclass) as n")).rows[0].n)
    const more = async () => {
      const before = await holds()
      await until('they hold now and then', async () => (await holds()) > before + 50)
    }
    await more()
    expect(await migrate(db.url, { waitMs: 25_000 })).toEqual({ applied: NEW, latest: LATEST })
    await more()
    over.abort()
    const [theirs, mine] = await Promise.all([old('rest'), contending])
    expect([...theirs.wrong, ...mine.wrong]).toEqual([])
    for (const { held } of [theirs, mine]) expect(held).toBeGreaterThan(20)
  })

  test('a caller in the queue gives up the lock that it gets during the migration, and asks again', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await using raw = await client(db.url)
    await raw.query(`select lockstep.try('a', pg_backend_pid())`)
    const waiting = old('acquire', 'a').catch((error) => error.code)
    await until('it stands in the queue', async () => (await waitingFor(db)) === 1)
    const migrating = started(db.url)
    await migrating.waits()
    await raw.query(`select pg_advisory_unlock(lockstep.key('a'))`) // the waiting caller gets K, in the old function
    expect(await waiting).toBe('UNAVAILABLE')
    expect(await migrating.result).toMatchObject({ applied: NEW })
    await old('acquire', 'a')
  })

  test('a transaction that was open is waited for, whatever it calls after that', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await using one = await client(db.url)
    await using two = await client(db.url)
    await using three = await client(db.url)
    for (const each of [one, two, three]) await each.query('begin')
    await two.query(
      `select lockstep.append('{s}', '{1}', '{0}', '{1}', '{1}', '{1}', '{x}', '[1]', '[null]', array[null], 0, false)`,
    )
    const migrating = started(db.url)
    const blockers = await migrating.waits()
    expect(blockers.map(({ has }) => has)).toEqual(Array(3).fill(expect.arrayContaining(['a transaction of before'])))
    await expect(one.query(`select lockstep.enter('a', null)`)).rejects.toMatchObject({ code: '57P03' })
    await expect(three.query(`select lockstep.try('a', pg_backend_pid())`)).rejects.toMatchObject({ code: '57P03' })
    await one.query('rollback')
    await three.query('rollback')
    await until('it waits for the append alone', () => migrating.last()?.length === 1)
    await two.query('commit')
    expect(await migrating.result).toMatchObject({ applied: NEW })
    expect(await old('append', 's')).toBe('2')
  })

  test('a call that began before, and takes K by the old functions, is found by the lock that it leaves', async () => {
    const db = await atOld()
    // It stops in the old function, just before it takes K.
    await db.pool.query(`create function stop() returns boolean language plpgsql as
    $$ begin perform pg_advisory_lock(1, 1), pg_advisory_unlock(1, 1); return true; end $$`)
    const { rows } = await db.pool.query(`select pg_get_functiondef('lockstep.try'::regproc) as text`)
    await db.pool.query(
      rows[0].text.replace('not pg_try_advisory_lock(', 'public.stop() and not pg_try_advisory_lock('),
    )
    await using gate = await client(db.url)
    await gate.query('select pg_advisory_lock(1, 1)')
    await using raw = await client(db.url)
    const trying = raw.query(`select lockstep.try('a', pg_backend_pid()) as token`)
    await until('it has begun', async () => (await waitingFor(db)) === 1)
    const migrating = started(db.url)
    await migrating.waits()
    await gate.query('select pg_advisory_unlock(1, 1)')
    expect((await trying).rows[0].token).not.toBeNull()
    await until('its lock is what is waited for', () => migrating.last()?.[0]?.has.join().startsWith('1 advisory lock'))
    await raw.query('select pg_advisory_unlock_all()')
    expect(await migrating.result).toMatchObject({ applied: NEW })
  })

  test('elections do not block it: neither the witness of a leader whose term ends with its connection, nor sessions that wait for it', async () => {
    const db = await atOld()
    const [leader, follower] = [await older(db.url), await older(db.url)]
    await leader('lead', 'e', { failover: 'connection' })
    await follower('follow', 'e', { failover: 'connection' })
    await until('it waits for the other connection', async () => (await waitingFor(db)) === 1)
    const hear: Blocker[][] = []
    expect(await migrate(db.url, { onWait: (blockers) => hear.push(blockers) })).toMatchObject({ applied: NEW })
    expect(hear).toEqual([])
  })

  test('a prepared transaction that holds a lock is named, and only its owner can end it', async () => {
    await using server = await dedicatedServer({ empty: true, settings: { max_prepared_transactions: 5 } })
    await migrate(server.url, { folder: folderOf(OLD) })
    await using raw = await client(server.url)
    await raw.query(`begin; select lockstep.enter('a', null); prepare transaction 'left behind'`)
    const tried = migrate(server.url, { waitMs: 2_000, terminate: true })
    await expect(tried).rejects.toThrow(
      /in the way: prepared transaction "left behind" \(role postgres, since .*\): 1 advisory lock/,
    )
    await raw.query(`rollback prepared 'left behind'`)
    expect(await migrate(server.url)).toMatchObject({ applied: NEW })
  })

  // ---- Not in time -------------------------------------------------------------------------------------------------

  test('a database that is not quiet in time is as it was before, and the error names the connections that were in the way', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await old('acquire', 'a')
    const before = await functions(db)
    const pid = await pidOf(db, 'older')
    await expect(migrate(db.url, { waitMs: 300 })).rejects.toThrow(
      new RegExp(
        `^The database did not become quiet within 300 ms, and goes on as before; in the way: pid ${pid} \\(older, role \\w+, since .*\\): ` +
          "1 advisory lock \\(a hold, the witness of a candidate, or the application's own\\); end them, or migrate with --terminate",
      ),
    )
    expect(await functions(db)).toEqual(before)
    expect(await applied(db)).toEqual(OLD)
    expect(await old('trusted', 'a')).toBe(true)
    await old('acquire', 'x')
    await old('append', 's')
    await old('release', 'x')
    await expect(migrate(db.url, { waitMs: 0 })).rejects.toThrow('within 0 ms')
    await old('release', 'a')
    expect(await migrate(db.url)).toEqual({ applied: NEW, latest: LATEST })
  })

  test('with terminate the connections in the way are ended: their processes lose those holds, and nothing else', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await old('acquire', 'a')
    await old('lead', 'a lease outlives the connection')
    await using raw = await client(db.url)
    const ended = once(raw, 'error')
    await raw.query('begin')
    expect(await migrate(db.url, { terminate: true })).toEqual({ applied: NEW, latest: LATEST })
    expect(String(await ended)).toMatch(/terminating connection/)
    await until('it knows', async () => (await old('lost')).includes('a'))
    await old('acquire', 'a')
    expect(
      Number((await db.pool.query(`select count(*) from lockstep.lease where holder is not null`)).rows[0].count),
    ).toBe(1)
  })

  test('a role that may not end the connections in the way gets an error that says so, and the database is as it was', async () => {
    const db = await freshDatabase({ empty: true })
    cleaning.push(db.close)
    const role = `${db.name}_owner`
    await db.pool.query(`create role ${role} login password 'secret'; grant create on database ${db.name} to ${role}`)
    cleaning.push(() => dropRole(role))
    cleaning.push(() => db.pool.query(`drop owned by ${role} cascade`))
    const url = Object.assign(new URL(db.url), { username: role, password: 'secret' }).href
    await migrate(url, { folder: folderOf(OLD) })
    await using raw = await client(db.url)
    await raw.query(`select lockstep.try('a', pg_backend_pid())`)
    const before = await functions(db)
    await expect(migrate(url, { terminate: true })).rejects.toThrow(
      /^The role that migrates may not end the connections that are in the way \(pid \d+ \(role \w+\): 1 advisory lock/,
    )
    expect(await functions(db)).toEqual(before)
    const migrating = started(url)
    await migrating.waits()
    await raw.query('select pg_advisory_unlock_all()')
    expect(await migrating.result).toMatchObject({ applied: NEW })
  })

  test('the role of a service sees the same: its rights from before the migration are enough after it', async () => {
    const db = await atOld()
    const role = `${db.name}_role`
    await db.pool.query(`create role ${role} login password 'secret'`)
    cleaning.push(() => dropRole(role))
    cleaning.push(() => db.pool.query(`drop owned by ${role}`))
    // @ts-expect-error: as in older-process.ts
    const { migrate: migrateOld } = await import('../fixtures/lockstep-0.6.mjs')
    await migrateOld(db.url, { folder: folderOf(OLD), grant: role })
    const old = await older(Object.assign(new URL(db.url), { username: role, password: 'secret' }).href)
    await old('acquire', 'a')
    const migrating = started(db.url)
    await migrating.waits()
    await expect(old('tryAcquire', 'x')).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await old('release', 'a')
    await migrating.result
    await old('ready')
    await old('acquire', 'a')
    await old('append', 's')
  })

  test('aborted by its signal it leaves the database as it was before', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await old('acquire', 'a')
    const before = await functions(db)
    const stop = new AbortController()
    const migrating = started(db.url, { signal: stop.signal })
    await migrating.waits()
    stop.abort(new Error('changed my mind'))
    await expect(migrating.result).rejects.toThrow('changed my mind')
    expect(await functions(db)).toEqual(before)
    expect(await applied(db)).toEqual(OLD)
    await old('acquire', 'x')
  })

  test('when the answer to its first commit is lost, it undoes what it may have done', async () => {
    const db = await atOld()
    const before = await functions(db)
    let commits = 0
    class Losing extends pg.Client {
      // biome-ignore lint/suspicious/noExplicitAny: pg's overloads
      override async query(...args: any[]): Promise<any> {
        const answer = await super.query(...(args as [string]))
        if (args[0] !== 'commit' || ++commits !== 2) return answer // the first commit is that of a read
        expect(await applied(db)).toContain('0008_close')
        this.connection?.stream.destroy()
        throw Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' })
      }
    }
    const pool = new pg.Pool({ connectionString: db.url, max: 1, Client: Losing })
    pool.on('error', () => {})
    pool.on('connect', (each) => each.on('error', () => {}))
    const kysely = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) })
    cleaning.push(() => kysely.destroy())
    await expect(migrate(kysely)).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    expect(commits).toBeGreaterThan(2)
    expect(await functions(db)).toEqual(before)
    expect(await applied(db)).toEqual(OLD)
  })

  test('the command prints what it waits for, and undoes everything at Ctrl-C', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await old('acquire', 'a')
    const before = await functions(db)
    const command = cli(db.url, 'migrate')
    await command.said(/waiting for pid \d+ \(older, role \w+, since .*\): 1 advisory lock/)
    command.child.kill('SIGINT')
    expect(await command.ended).toMatchObject({
      code: 1,
      err: expect.stringContaining('stopped; the database works as before\n'),
    })
    expect(await functions(db)).toEqual(before)
    const second = await cli(db.url, 'migrate', '--wait-ms', '100').ended
    expect(second).toMatchObject({ code: 1, err: expect.stringMatching(/in the way: pid \d+.*--terminate/) })
    const third = await cli(db.url, 'migrate', '--terminate').ended
    expect(third).toMatchObject({
      code: 0,
      out: `migrations applied: ${NEW.join(', ')}\n`,
      err: expect.stringContaining('ending pid '),
    })
    await until('it knows', async () => (await old('lost')).includes('a'))
  })

  test('a later file that fails undoes everything, and the next migration succeeds', async () => {
    const db = await atOld()
    const old = await older(db.url)
    const folder = folderOf(ours)
    fs.writeFileSync(path.join(folder, '0099_broken.sql'), 'select 1 / 0')
    await expect(migrate(db.url, { folder })).rejects.toThrow(
      'Migration 0099_broken.sql failed, and nothing was changed: division by zero',
    )
    expect(await applied(db)).toEqual(OLD)
    const another = await older(db.url)
    await another('acquire', 'a')
    expect(await old('tryAcquire', 'a')).toBeNull()
    await another('release', 'a')
    await old('acquire', 'a')
    await old('release', 'a')
    expect(await migrate(db.url)).toEqual({ applied: NEW, latest: LATEST })
  })

  // ---- Killed, and many at once ------------------------------------------------------------------------------------

  test('killed while it waits: the database stays closed, and the next migration continues', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await old('acquire', 'a')
    const command = cli(db.url, 'migrate')
    await command.said(/waiting for pid/)
    command.child.kill('SIGKILL')
    await command.ended
    await expect(old('tryAcquire', 'x')).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await using now = createLockstep({ connectionString: db.url })
    await expect(now.ready()).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await expect(migrate(db.url, { waitMs: 200 })).rejects.toThrow('did not become quiet')
    await old('acquire', 'x') // the wait ended, and it was opened again
    await old('release', 'x')

    const again = cli(db.url, 'migrate')
    await again.said(/waiting for pid/)
    again.child.kill('SIGKILL')
    await again.ended
    await old('release', 'a')
    expect(await migrate(db.url)).toEqual({ applied: NEW.slice(1), latest: LATEST, resumed: true })
    await old('acquire', 'x')
  })

  test('killed after K was replaced: the database is still closed, and the next migration continues', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await migrate(db.url, { folder: folderOf(ours.filter((name) => name < '0010')) })
    await expect(old('tryAcquire', 'x')).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await expect(old('append', 's')).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    expect(await migrate(db.url)).toEqual({
      applied: ours.filter((name) => name >= '0010'),
      latest: LATEST,
      resumed: true,
    })
    await old('acquire', 'x')
    await old('append', 's')
  })

  test('several at once: all wait, each file is applied once, and all find it done', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await old('acquire', 'a')
    const all = [1, 2, 3, 4].map(() => started(db.url))
    for (const each of all) await each.waits()
    await old('release', 'a')
    const results = await Promise.all(all.map(({ result }) => result))
    expect(results.flatMap((result) => result.applied).sort()).toEqual(NEW)
    await old('acquire', 'a')
  })

  test('one of two gives up and opens the database again: the other closes it again, and ignores what it saw before', async () => {
    const db = await atOld()
    const old = await older(db.url)
    await old('acquire', 'a')
    const patient = started(db.url)
    await patient.waits()
    await expect(migrate(db.url, { waitMs: 100 })).rejects.toThrow('did not become quiet')
    await until('it is closed again', async () => (await applied(db)).includes('0008_close'))
    expect(patient.over()).toBe(false)
    await old('release', 'a')
    expect((await patient.result).applied.slice(-1)).toEqual([LATEST])
    await old('acquire', 'a')
  })

  test.skipIf(!pgbouncerAvailable())(
    'through a transaction pooler (skipped without PgBouncer) it waits too, and leaves nothing behind',
    async () => {
      await using db = await freshDatabase({ empty: true, pooled: true, standard: true })
      await migrate(db.pooledUrl, { folder: folderOf(OLD) })
      const old = await older(db.url)
      await old('acquire', 'a')
      const migrating = started(db.pooledUrl)
      expect((await migrating.waits()).map(({ application }) => application)).toEqual(['older'])
      await old('release', 'a')
      expect(await migrating.result).toMatchObject({ applied: NEW })
      const locks = `select from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())`
      expect((await db.pool.query(locks)).rows).toEqual([])
    },
  )

  test('a database without holders, and a new one, are migrated without a wait; nothing of the wait stays', async () => {
    for (const db of [await atOld(), await freshDatabase({ empty: true })]) {
      cleaning.push(db.close)
      await migrate(db.url, { waitMs: 0 })
      const { rows } = await db.pool.query(
        `select to_regclass('lockstep.closed') as a, to_regproc('lockstep.reopen') as b, to_regproc('lockstep.refuse') as c`,
      )
      expect(rows).toEqual([{ a: null, b: null, c: null }])
    }
  })

  test('a data folder of 0.6 is migrated when its embedded server is started', async () => {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-old-'))
    fs.chmodSync(folder, 0o755)
    cleaning.push(() => fs.rmSync(folder, { recursive: true, force: true }))
    const server = await startPostgres({ dir: path.join(folder, '.lockstep') })
    await migrate(server.url, { folder: folderOf(OLD) })
    await server.stop()
    const command = cli(undefined, 'start', folder)
    await command.said(new RegExp(`migrations applied: ${NEW.join(', ')}\n[^]*listening on`))
    command.child.kill('SIGTERM')
    expect(await command.ended).toMatchObject({ code: 0 })
  })

  test.each([
    [{ waitMs: -1 }, 'waitMs'],
    [{ waitMs: '5' }, 'waitMs'],
    [{ terminate: 'yes' }, 'terminate'],
    [{ signal: 1 }, 'signal'],
    [{ onWait: 1 }, 'onWait'],
  ])('%j is refused with its field', async (options, field) => {
    const call = migrate('postgres://127.0.0.1:1/nowhere', options as MigrateOptions)
    await expect(call).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
  })

  // ---- Tools -------------------------------------------------------------------------------------------------------

  const cleaning: (() => unknown)[] = []
  afterEach(async () => {
    while (cleaning.length > 0) await cleaning.pop()?.()
  })

  /** A database with the schema of 0.6, and with the settings that 0.6 needs. */
  async function atOld(): Promise<FreshDatabase> {
    const db = await freshDatabase({ empty: true, standard: true })
    cleaning.push(db.close)
    await migrate(db.url, { folder: folderOf(OLD) })
    return db
  }

  function folderOf(names: string[]): string {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-test-'))
    cleaning.push(() => fs.rmSync(folder, { recursive: true }))
    for (const name of names) fs.copyFileSync(path.join(MIGRATIONS, `${name}.sql`), path.join(folder, `${name}.sql`))
    return folder
  }

  /** Starts a process of 0.6. @returns a function that calls a verb of older-process.ts. */
  // biome-ignore lint/suspicious/noExplicitAny: what the verb answers
  async function older(url: string): Promise<(verb: string, ...args: unknown[]) => Promise<any>> {
    const child = spawn(process.execPath, [path.join(import.meta.dirname, 'older-process.ts'), url], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, NODE_OPTIONS: '' }, // never odd: 0.6 read with the parsers of its process
    })
    const exited = once(child, 'exit')
    cleaning.push(() => {
      child.kill('SIGKILL')
      return exited
    })
    const asked = new Map<number, { resolve: (value: unknown) => void; reject: (error: unknown) => void }>()
    const lines = createInterface(child.stdout)
    await once(lines, 'line')
    lines.on('line', (line) => {
      const [id, value, error] = JSON.parse(line)
      if (error) asked.get(id)?.reject(Object.assign(new Error(error.message), error))
      else asked.get(id)?.resolve(value)
    })
    let last = 0
    return (verb, ...args) => {
      const id = ++last
      child.stdin.write(`${JSON.stringify([id, verb, ...args])}\n`)
      return new Promise((resolve, reject) => asked.set(id, { resolve, reject }))
    }
  }

  /** A migration under way. */
  function started(url: string, options: MigrateOptions = {}) {
    const heard: Blocker[][] = []
    let over = false
    const result = migrate(url, { waitMs: Infinity, ...options, onWait: (blockers) => heard.push(blockers) })
    result
      .catch(() => {})
      .finally(() => {
        over = true
      })
    return {
      result,
      over: () => over,
      last: () => heard.at(-1),
      /** The first blockers that it reports. */
      async waits(): Promise<Blocker[]> {
        await until('it waits, or has ended', () => heard.length > 0 || over)
        if (heard.length === 0) await result
        return heard[0] as Blocker[]
      },
    }
  }

  /** Starts the command, in a separate folder. */
  function cli(url: string | undefined, ...args: string[]) {
    const { DATABASE_URL: _, ...env } = process.env
    const [command = '', ...rest] = args
    const cwd = command === 'start' ? rest.pop() : undefined
    const child = spawn(
      process.execPath,
      [path.join(import.meta.dirname, '../../functions/cli/index.ts'), command, ...rest],
      {
        ...(cwd && { cwd }),
        env: { ...env, ...(url && { DATABASE_URL: url }), PORT: '0', LOCKSTEP_NTP_SERVERS: 'off' },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    )
    let all = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (all += chunk))
    const ended = Promise.all([once(child, 'exit'), text(child.stdout), text(child.stderr)]).then(
      ([[code], out, err]) => ({ code, out, err }),
    )
    let gone = false
    void ended.then(() => {
      gone = true
    })
    cleaning.push(() => {
      child.kill('SIGKILL')
      return ended
    })
    return {
      child,
      ended,
      said: (pattern: RegExp) =>
        until(`it says ${pattern}`, () => {
          if (gone && !pattern.test(all)) throw new Error(`It ended, and printed ${all}`)
          return pattern.test(all)
        }),
    }
  }

  async function client(url: string): Promise<pg.Client & AsyncDisposable> {
    const opened = new pg.Client(url)
    await opened.connect()
    opened.on('error', () => {})
    return Object.assign(opened, { [Symbol.asyncDispose]: () => opened.end().catch(() => {}) })
  }

  /** How many connections of the database wait for an advisory lock. */
  async function waitingFor({ pool }: FreshDatabase): Promise<number> {
    const { rows } =
      await pool.query(`select count(*)::int as n from pg_locks where locktype = 'advisory' and not granted
    and database = (select oid from pg_database where datname = current_database())`)
    return rows[0].n
  }

  /** The connection of an application that has an advisory lock. */
  async function pidOf({ pool }: FreshDatabase, application: string): Promise<number> {
    const { rows } = await pool.query(
      `select distinct l.pid from pg_locks l join pg_stat_activity a using (pid) where l.locktype = 'advisory' and l.objsubid = 1
        and l.database = (select oid from pg_database where datname = current_database()) and a.application_name = $1`,
      [application],
    )
    expect(rows).toHaveLength(1)
    return rows[0].pid
  }

  async function applied({ pool }: FreshDatabase): Promise<string[]> {
    return (await pool.query('select name from lockstep.migration order by name')).rows.map(({ name }) => name)
  }

  /** The definition of every function of Lockstep. */
  async function functions({ pool }: FreshDatabase): Promise<Record<string, string>> {
    const { rows } = await pool.query(
      `select p.oid::regprocedure::text as name, pg_get_functiondef(p.oid) as text from pg_proc p
      where p.pronamespace in ('lockstep'::regnamespace, 'lockstep_boss'::regnamespace)`,
    )
    return Object.fromEntries(rows.map(({ name, text }) => [name, text]))
  }

  async function dropRole(role: string): Promise<void> {
    await using db = await freshDatabase({ empty: true })
    await db.pool.query(`drop role ${role}`)
  }
}
