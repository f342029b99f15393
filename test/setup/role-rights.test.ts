/**
 * `migrate --grant`: the role can run everything (every-statement.ts, and every route of the HTTP functions, runtime/contract.ts), has
 * no right that is not listed, and none that no statement needs.
 *
 * A denial is read from the wire, not only from the caller's error: loops try again, and maintenance skips what fails. On every
 * database but one, EXECUTE is first revoked from PUBLIC, so that the role has functions by its own rights or not at all.
 *
 * TEST_LONG=1 revokes each right in turn and waits for the denial that it must cause: some minutes.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as path from 'node:path'
import { text } from 'node:stream/consumers'
import { inspect } from 'node:util'
import { Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createLockstep } from '../../lib/index.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { NEEDED, rightsOf } from '../../lib/setup/role-rights.ts'
import { createTasks } from '../../lib/task/index.ts'
import { AUTHORIZED, contract, KEYS, transcript } from '../adapters/runtime/contract.ts'
import { startNode } from '../adapters/runtime/runtimes.ts'
import { freshDatabase, pgbouncerAvailable, type RoleDatabase } from '../support/database.ts'
import { MIGRATIONS } from '../support/migrations.ts'
import { ROOMS } from './every-statement.ts'

let db: RoleDatabase
beforeAll(async () => {
  db = await hardened()
})
afterAll(() => db?.close())

describe('a role with the granted rights can', () => {
  test.each(Object.keys(ROOMS))('%s', async (room) => {
    expect(await tour(db, [room])).toEqual([])
  })

  test('every route of the HTTP functions', () => routes(db.roleUrl))

  test.skipIf(!pgbouncerAvailable())('the same through a transaction pooler (skipped without PgBouncer)', async () => {
    await using pooled = await freshDatabase({ role: true, pooled: true })
    await routes(pooled.pooledRoleUrl)
    // not the rooms of locks and tasks, which would mostly wait there
    expect(await tour({ ...pooled, roleUrl: pooled.pooledRoleUrl }, ['leaders', 'events', 'groups'])).toEqual([])
  })

  async function routes(url: string): Promise<void> {
    await using node = await startNode(url, KEYS)
    const denied = listen()
    const cases = contract(await (await node.fetch('/openapi.json', { headers: AUTHORIZED })).json())
    const answers = await transcript(node, cases)
    expect(cases.filter(({ status }, i) => answers[i]?.status !== status)).toEqual([])
    expect(denied()).toEqual([])
  }
})

describe('a role with the granted rights has', () => {
  test('what is listed, for every table, sequence and function that there is', async () => {
    const { rows } = await db.pool.query(ALL)
    const undecided = rows
      .map(({ what }) => what as string)
      .filter((what) => !WITHOUT.includes(what) && !NEEDED.some((right) => objectOf(right) === what))
    expect(undecided).toEqual([])
    const gone = [...WITHOUT, ...NEEDED.map(objectOf)].filter((what) => !rows.some((row) => row.what === what))
    expect(gone).toEqual([])
    expect(WITHOUT.filter((what) => NEEDED.some((right) => objectOf(right) === what))).toEqual([])
  })

  test('and no other right: not by itself, not through PUBLIC, and not as a member of another role', async () => {
    const { rows } = await db.pool.query(EFFECTIVE, [db.role])
    const has = rows.map(({ has }) => has as string).sort()
    expect(has).toEqual([...NEEDED].sort())
  })

  test.skipIf(!process.env.TEST_LONG)(
    'nothing that could be left out (TEST_LONG=1)',
    async () => {
      const superfluous: string[] = []
      for (const right of NEEDED) {
        const [, privilege = '', object = '', column = ''] = /^(\w+) on (.+?)( \(\w+\))?$/.exec(right) ?? []
        await using db = await hardened() // rows that one round leaves must not save the next round a statement
        await db.pool.query(`revoke ${privilege}${column} on ${object} from ${db.role}`)
        const [denied = 'nothing was denied'] = await tour(db, inOrder(right))
        console.log(`${right}: ${denied}`)
        if (!denied.endsWith(` ${object.replace(/^.*[. ]/, '')}`)) superfluous.push(`${right}: ${denied}`)
      }
      expect(superfluous).toEqual([])
    },
    3_600_000,
  )

  test('rights on the table of a queue with its own table, made by the owner before or after', async () => {
    await using db = await hardened()
    await using owner = createLockstep({ connectionString: db.url })
    await using lockstep = createLockstep({ connectionString: db.roleUrl })
    const [theirs, ours] = [createTasks(owner), createTasks(lockstep)]
    await expect(ours.declare('own', { partition: true })).rejects.toThrow('permission denied for schema lockstep_boss')
    await theirs.declare('own', { partition: true })
    const denied = listen()
    const [before] = await db.pool.query('select count(*) from lockstep_boss.queue').then(({ rows }) => rows)
    expect(before.count).toBe('1')
    ours.define('own', (data: unknown) => data, { partition: true })
    const worker = ours.work('own')
    expect(await ours.run('own', 1)).toBe(1)
    await worker.stop()
    await migrate(db.url, { grant: db.role })
    await ours.send('own', 2)
    expect((await ours.drain()).jobs).toBe(1)
    await db.pool.query('update lockstep_boss.queue set maintain_on = null')
    await ours.tick()
    expect(denied()).toEqual([])
  })
})

describe('a role with the granted rights cannot', () => {
  test.each([
    ['read who migrated when', 'select * from lockstep.migration'],
    ['claim a migration', `insert into lockstep.migration values ('9999_mine', now())`],
    ['forget one', 'delete from lockstep.migration'],
    ['change an event', `update lockstep.event set data = '{}'`],
    ['rename a stream', `update lockstep.stream set name = 'x'`],
    ['remove a stream', 'delete from lockstep.stream'],
    ['make a second anchor of time', 'insert into lockstep.time_anchor (id) values (1)'],
    ['remove the anchor of time', 'delete from lockstep.time_anchor'],
    ['change how a group is divided', 'update lockstep.consumer_group set partitions = 1'],
    ['set tokens back', `select setval('lockstep.token', 1)`],
    ['set cursors back', `select setval('lockstep.event_sequence', 1)`],
    ['set the numbers of streams back', `select setval('lockstep.stream_id_seq', 1)`],
    ['see the last token', 'select last_value from lockstep.token'],
    ['empty a table', 'truncate lockstep.lease'],
    ['empty the table of jobs', 'truncate lockstep_boss.job_common'],
    ['remove jobs past the queue that they are of', 'delete from lockstep_boss.job'],
    ['drop a table', 'drop table lockstep.event'],
    ['alter one', 'alter table lockstep.lease add column mine text'],
    [
      'put a trigger on one',
      'create trigger t before insert on lockstep.lease execute function lockstep.check_fence()',
    ],
    ['make a table', 'create table lockstep.mine ()'],
    ['make one beside the jobs', 'create table lockstep_boss.mine ()'],
    ['replace a function', `create or replace function lockstep.key(name text) returns bigint language sql return 1`],
    ['make a schema', 'create schema mine'],
    ['fence a table', `select lockstep.fence_table('guarded')`],
    ['unfence one', `select lockstep.unfence_table('guarded')`],
    ['disable a fence', 'alter table guarded disable trigger lockstep_fence'],
    ['disable all of them', 'set session_replication_role = replica'],
    ['realign', 'select lockstep.realign()'],
    ['read another schema', 'select * from elsewhere.secret'],
    ['read a table of yours', 'select * from guarded'],
    ['change the secret of a channel', 'update lockstep.secret set secret = gen_random_uuid()'],
    ['read the dead letters of another system', 'select * from lockstep_boss.warning'],
    ['end a connection of another role', `select pg_terminate_backend($1)`],
  ])('%s', async (_what, statement) => {
    const others = await open.pool.connect()
    const client = new pg.Client(open.roleUrl)
    await client.connect()
    try {
      const { rows } = await others.query('select pg_backend_pid() as pid')
      const values = statement.includes('$1') ? [rows[0].pid] : []
      await expect(client.query(statement, values)).rejects.toMatchObject({ code: '42501' })
    } finally {
      others.release()
      await client.end()
    }
  })

  /** Here PUBLIC has EXECUTE: only the rights on the tables behind a function count. */
  let open: RoleDatabase
  beforeAll(async () => {
    open = await freshDatabase({ role: true })
    await open.pool.query(`create table guarded (); select lockstep.fence_table('guarded');
                           create schema elsewhere; create table elsewhere.secret ()`)
  })
  afterAll(() => open?.close())
})

describe('granting', () => {
  const role = async (attributes = '') => {
    const name = `${db.name}_${roles.length}`
    await db.pool.query(`create role ${name} login password 'secret' ${attributes}`)
    roles.push(name)
    return name
  }
  const roles: string[] = []
  afterAll(async () => {
    for (const name of roles.reverse()) await db.pool.query(`drop owned by ${name}; drop role ${name}`)
  })
  const has = async (name: string) => rightsOf(new Kysely({ dialect: new PostgresDialect({ pool: db.pool }) }), name)
  const as = (name: string) => {
    const url = new URL(db.url)
    url.username = name
    url.password = 'secret'
    return url.href
  }

  test('again changes nothing', async () => {
    const before = await db.pool.query(`select xmin::text from pg_class where relname = 'lease'`)
    const { applied, granted } = await migrate(db.url, { grant: db.role })
    expect(applied).toEqual([])
    expect(granted).toEqual(expect.arrayContaining([...NEEDED]))
    expect((await db.pool.query(`select xmin::text from pg_class where relname = 'lease'`)).rows).toEqual(before.rows)
  })

  test('revokes rights that are not needed, also on columns and with grant option, and grants those that are missing', async () => {
    const name = await role()
    await migrate(db.url, { grant: name })
    const right = await has(name)
    await db.pool.query(`
      grant update on lockstep.event to ${name}; grant update (name) on lockstep.stream to ${name};
      grant select on lockstep.token to ${name} with grant option; grant create on schema lockstep to ${name};
      grant execute on function lockstep.realign to ${name}; grant all on lockstep_boss.warning to ${name};
      revoke select on lockstep.lease from ${name}; revoke execute on function lockstep.key from ${name}`)
    expect(await has(name)).not.toEqual(right)
    await migrate(db.url, { grant: name })
    expect(await has(name)).toEqual(right)
  })

  test('by several processes at once is the same as by one', async () => {
    const name = await role()
    const all = await Promise.all([1, 2, 3].map(() => migrate(db.url, { grant: name })))
    for (const { granted } of all) expect(granted).toEqual(all[0]?.granted)
    expect(await has(name)).toEqual(all[0]?.granted)
  })

  test('commits with the migrations, or neither does', async () => {
    await using empty = await freshDatabase({ empty: true })
    await expect(migrate(empty.url, { grant: 'nobody at all' })).rejects.toThrow('There is no role "nobody at all"')
    expect((await empty.pool.query(`select to_regnamespace('lockstep') as there`)).rows).toEqual([{ there: null }])
    const { applied, granted } = await migrate(empty.url, { grant: await role() })
    expect(applied).toEqual(MIGRATIONS)
    expect(granted).toEqual(expect.arrayContaining([...NEEDED]))
  })

  test('does not change the rights that the role has as a member of others', async () => {
    const [group, name] = [await role(), await role()]
    await db.pool.query(`grant ${group} to ${name}; grant select on lockstep.migration to ${group}`)
    await migrate(db.url, { grant: name })
    expect(await has(group)).toEqual(['SELECT on lockstep.migration'])
    const client = new pg.Client(as(name))
    await client.connect()
    expect((await client.query('select * from lockstep.migration')).rows).toHaveLength(MIGRATIONS.length)
    await client.end()
  })

  test('works for a name of any characters', async () => {
    const name = `${db.name} "; drop table x; --`
    await db.pool.query(`create role "${name.replaceAll('"', '""')}"`)
    await migrate(db.url, { grant: name })
    expect(await has(name)).toHaveLength((await has(db.role)).length)
    await db.pool.query(`drop owned by "${name.replaceAll('"', '""')}"; drop role "${name.replaceAll('"', '""')}"`)
  })

  test.each([
    ['', 'Expected `grant` to be the name of a role, got ""'],
    [7 as never, 'Expected `grant` to be the name of a role, got 7'],
    [null as never, 'Expected `grant` to be the name of a role, got null'],
    ['x'.repeat(64), 'Expected `grant` to be the name of a role, of at most 63 bytes, got "xxx'],
    ['ü'.repeat(32), 'Expected `grant` to be the name of a role, of at most 63 bytes, got "üüü'],
    ['a\0b', 'Expected `grant` to be the name of a role, of at most 63 bytes, got "a'],
    ['public', 'Expected `grant` to be a role, and not everybody, got "public"'],
    ['pg_read_all_data', 'Expected `grant` to be a role of your own, got "pg_read_all_data"'],
  ])('to %j is refused before anything is asked', async (name, why) => {
    const refused = migrate('postgres://127.0.0.1:1/nowhere', { grant: name })
    await expect(refused).rejects.toThrow(why)
    await expect(refused).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field: 'grant' })
  })

  test('to a role that does not need it is refused', async () => {
    const { rows } = await db.pool.query('select current_user as name')
    const superuser = `The role "${rows[0].name}" is a superuser and may do everything anyway: grant to another`
    await expect(migrate(db.url, { grant: rows[0].name })).rejects.toThrow(superuser)
    const [owner, member] = [await role(), await role()]
    await using theirs = await freshDatabase({ empty: true })
    await theirs.pool.query(`grant create on database ${theirs.name} to ${owner}; grant ${owner} to ${member}`)
    const url = new URL(as(owner))
    url.pathname = `/${theirs.name}`
    await migrate(url.href)
    await expect(migrate(url.href, { grant: owner })).rejects.toThrow(
      `The role "${owner}" is the one that migrates: grant to another`,
    )
    for (const name of [owner, member]) {
      await expect(migrate(theirs.url, { grant: name })).rejects.toThrow(
        `The role "${name}" may do everything with the tables of Lockstep anyway, since it owns them or is a member of`,
      )
    }
    // an owner that is not a superuser may grant, and a superuser may grant for it
    const other = await role()
    const { granted } = await migrate(url.href, { grant: other })
    expect((await migrate(theirs.url, { grant: other })).granted).toEqual(granted)
    await theirs.pool.query(`revoke select on lockstep.lease from ${other}`)
    expect((await migrate(theirs.url, { grant: other })).granted).toEqual(granted)
    await theirs.close() // before its roles
  })

  test('by a role that may not grant is refused, and the error names the role that may', async () => {
    const [asker, name] = [await role(), await role()]
    await migrate(db.url, { grant: asker })
    const { rows } = await db.pool.query('select current_user as owner')
    const why = `The role "${asker}" may not grant rights on the tables of Lockstep: do it as "${rows[0].owner}"`
    await expect(migrate(as(asker), { grant: name })).rejects.toThrow(why)
    // Postgres would only warn
    await db.pool.query(`grant all on schema lockstep, lockstep_boss to ${asker} with grant option;
                         grant create on schema lockstep to ${asker}`)
    await expect(migrate(as(asker), { grant: name })).rejects.toThrow(why)
    expect(await has(name)).toEqual([])
    await db.pool.query(`revoke all on schema lockstep, lockstep_boss from ${asker}`)
  })

  test('a right that another role than the owner granted is named, and nothing is changed', async () => {
    const [giver, name] = [await role(), await role()]
    await db.pool.query(`grant usage on schema lockstep to ${giver};
                         grant truncate on lockstep.lease to ${giver} with grant option`)
    const client = new pg.Client(as(giver))
    await client.connect()
    await client.query(`grant truncate on lockstep.lease to ${name}`)
    await client.end()
    await expect(migrate(db.url, { grant: name })).rejects.toThrow(
      `The role "${name}" has what another role granted it: TRUNCATE on lockstep.lease`,
    )
    expect(await has(name)).toEqual(['TRUNCATE on lockstep.lease'])
    await db.pool.query(`revoke all on lockstep.lease from ${giver} cascade`)
  })

  test('from the command line', async () => {
    const name = await role()
    const run = (...args: string[]) => command(args, { DATABASE_URL: db.url })
    const answers = await Promise.all([
      run('migrate', '--grant', name),
      run('migrate', '--grant', 'nobody_at_all'),
      run('migrate', '--grant', ''),
      run('migrate', '--grant'),
      run('start', '--grant', name),
    ])
    const [given, nobody, empty, missing, misplaced] = answers
    const counts = '\\d+ tables, 3 sequences and \\d+ functions'
    expect(given).toMatchObject({ code: 0, error: '' })
    expect(given?.out).toMatch(
      new RegExp(`^schema is up to date \\(\\w+\\)\ngranted to ${name}: what the functions need of ${counts}\n$`),
    )
    const why = 'There is no role "nobody_at_all" to grant rights to: create it first\n'
    expect(nobody).toEqual({ code: 1, out: '', error: why })
    expect(empty).toEqual({ code: 1, out: '', error: 'Expected `grant` to be the name of a role, got ""\n' })
    expect(missing).toMatchObject({ code: 2, out: '' })
    expect(misplaced).toEqual({ code: 2, out: '', error: '--grant goes with migrate: try --help\n' })
  })
})

// ---- Tools -------------------------------------------------------------------------------------------------------

/** Rights that are not needed: those that only the owner uses, and those for parts of pg-boss that Lockstep does not use. */
const WITHOUT = [
  ...['lockstep.migration_lock', 'sequence lockstep.stream_id_seq', 'function lockstep.realign'],
  ...['function lockstep.fence_table', 'function lockstep.unfence_table', 'function lockstep.check_fence'],
  ...['function lockstep.has_by_transaction', 'function lockstep.refuse_write', 'function lockstep.fence_name'],
  ...['function lockstep.change_fences', 'function lockstep.descendants', 'function lockstep.fence_call'],
  ...['function lockstep.fence_descendants', 'function lockstep.has_trigger', 'function lockstep.fence_expression'],
  ...[
    'function lockstep.fence_function',
    'function lockstep.is_fence_function',
    'function lockstep.drop_fence_function',
  ],
  ...['function lockstep.fence_new_tables', 'function lockstep.watch_new_tables'],
  ...['lockstep_boss.subscription', 'lockstep_boss.bam', 'lockstep_boss.warning'],
  ...['lockstep_boss.queue_stats', 'function lockstep_boss.job_table_format', 'function lockstep_boss.job_table_run'],
  'function lockstep_boss.job_table_run_async',
  ...['function lockstep.copy_schedule', 'function lockstep.refuse_timekeeper'],
]

const objectOf = (right: string) => right.replace(/^\w+ on /, '').replace(/ \(.*/, '')

// Without the tables of a single queue or day.
const OURS = `
  ours as (select oid, nspname from pg_namespace where nspname in ('lockstep', 'lockstep_boss')),
  classes as (
    select c.oid, c.relkind = 'S' as sequence,
           case c.relkind when 'S' then 'sequence ' else '' end || format('%s.%I', nspname, c.relname) as what
      from ours join pg_class c on c.relnamespace = ours.oid
     where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and (not c.relispartition or c.relname = 'job_common')
  ),
  functions as (
    select p.oid, format('function %s.%s', nspname, p.proname) as what from ours join pg_proc p on p.pronamespace = ours.oid
  )`

const ALL = `with ${OURS} select 'schema ' || nspname as what from ours
  union all select what from classes union all select what from functions`

const EFFECTIVE = `with ${OURS}, kinds as (
    select distinct k, x.privilege_type as privilege from unnest(array['r', 's', 'f', 'n']::"char"[]) k, aclexplode(acldefault(k, 10)) x
  )
  select privilege || ' on schema ' || nspname as has from ours, kinds
   where k = 'n' and has_schema_privilege($1, oid, privilege)
  union all select privilege || ' on ' || what from functions, kinds
   where k = 'f' and has_function_privilege($1, oid, privilege)
  union all select privilege || ' on ' || what from classes, kinds
   where sequence and k = 's' and has_sequence_privilege($1, oid, privilege)
  union all select privilege || ' on ' || what from classes, kinds
   where not sequence and k = 'r' and has_table_privilege($1, oid, privilege)
  union all select format('%s on %s (%s)', privilege, what, attname)
    from classes, unnest(array['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) privilege, pg_attribute a
   where not sequence and attrelid = classes.oid and attnum > 0 and not attisdropped
     and has_column_privilege($1, classes.oid, attnum, privilege) and not has_table_privilege($1, classes.oid, privilege)`

/** All rooms; first those that seem to need the right. */
function inOrder(right: string): string[] {
  const first = FOR.find(([pattern]) => pattern.test(right))?.[1] ?? []
  return [...first, ...Object.keys(ROOMS).filter((room) => !first.includes(room))]
}
const FOR: [RegExp, string[]][] = [
  [/boss\.(instance|version|job_dep)|sweep_attempts/, ['upkeep']],
  [/boss|job|attempt|worker|schedule/, ['tasks', 'upkeep']],
  [/candidate|leader|resign|proclaim|vacate|campaign|elect|step_down|tell\b/, ['leaders']],
  [/anchor|tick|time|now/, ['time']],
  [/group|check|stuck|turn|fail_event|redeliver|partition|commit_ev/, ['groups', 'events']],
  [/retention|truncate|sweep_events|DELETE on lockstep.event/, ['keeping']],
  [/event|stream|append|gate|shown|bucket|page/, ['events', 'groups']],
]

/** Runs the command from the sources. */
async function command(args: string[], env: Record<string, string>) {
  const child = spawn(process.execPath, [path.join(import.meta.dirname, '../../functions/cli/index.ts'), ...args], {
    env,
  })
  const [out, error, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')])
  return { code, out, error }
}

async function hardened(): Promise<RoleDatabase> {
  const db = await freshDatabase({ role: true })
  await db.pool.query('revoke execute on all functions in schema lockstep, lockstep_boss from public')
  return db
}

/** The first right that was denied while some rooms ran; the rest of the rooms is skipped then. */
async function tour({ roleUrl, pool, url }: RoleDatabase, rooms: string[]): Promise<string[]> {
  const denied = listen()
  for (const room of rooms) {
    const lockstep = createLockstep({ connectionString: roleUrl })
    const failures: unknown[] = []
    const onError = (error: unknown) => void failures.push(error)
    const walk = ROOMS[room]?.({ lockstep, url: roleUrl, owner: pool, ownerUrl: url, onError })
    const failed = await Promise.race([walk, denied.first]).then(
      () => undefined,
      (error) => error,
    )
    await lockstep.close()
    await walk?.catch(() => {})
    if (denied().length > 0) break
    if (failed) throw failed
    expect(failures.filter((failure) => !/as it shall/.test(inspect(failure)))).toEqual([])
  }
  return denied()
}

/** Records every right that any connection of this process is denied from now on; `first` resolves with the first. */
function listen() {
  const denied: string[] = []
  const { promise, resolve } = Promise.withResolvers<void>()
  ears = (message) => {
    denied.push(message)
    resolve()
  }
  return Object.assign(() => denied, { first: promise })
}
let ears = (_: string) => {}
const { connect } = pg.Client.prototype
beforeAll(() => {
  pg.Client.prototype.connect = function (this: pg.Client & { connection: NodeJS.EventEmitter }, ...given: never[]) {
    this.connection.on('errorMessage', ({ code, message }) => code === '42501' && ears(message))
    return (connect as (...given: never[]) => never).apply(this, given)
  } as typeof connect
})
afterAll(() => {
  pg.Client.prototype.connect = connect
})
