/**
 * The rights of a role that runs the functions and does not own the tables. They are listed here and nowhere else.
 *
 * Each line is a GRANT statement without the word GRANT and without the role. Afterwards the role has exactly these rights:
 * other rights that it had been granted are revoked. This concerns only rights granted to the role itself; rights that it has as a
 * member of other roles, or through PUBLIC, are not changed. test/setup/role-rights.test.ts shows that no right is missing, and
 * none is superfluous.
 *
 * The functions run with the rights of their caller. With SECURITY DEFINER the role would not need rights on Lockstep's
 * tables; but pg-boss sends plain statements, which need rights in any case, and a SECURITY DEFINER function is never inlined.
 *
 * PUBLIC has EXECUTE unless an owner has revoked it. For that case the role gets EXECUTE itself. It is worth nothing without
 * rights on the tables that the function uses.
 *
 * A queue with `partition: true` has its own table, which the owner may make at any time. So there are default privileges for
 * future tables.
 */
import { type Kysely, sql } from 'kysely'
import { outOfRange, wrongType } from '../base/index.ts'
import { read } from '../database/index.ts'

const RIGHTS = `
usage on schema lockstep, lockstep_boss
select (name) on lockstep.migration
select, insert, update, delete on lockstep.lease, lockstep.candidate, lockstep.attempt, lockstep.schedule, lockstep.stuck
select, insert, update, delete on lockstep.hold
select on lockstep.secret
usage on sequence lockstep.token
select, update on lockstep.time_anchor
select, update on sequence lockstep.tick_sequence
select, insert (name, bucket), update (position, first) on lockstep.stream
select, insert, delete on lockstep.event
select, usage on sequence lockstep.event_sequence
select, insert, update (retry_limit, retry_delay_ms), delete on lockstep.consumer_group
select, insert (group_name, partition, seq), update (seq, turn, committed), delete on lockstep.checkpoint
select, insert, update (max_age_ms, max_count), delete on lockstep.retention
select, insert, update (seen_at), delete on lockstep.worker
select, insert, update, delete on lockstep_boss.queue, lockstep_boss.job_common, lockstep_boss.schedule
select, insert, update on lockstep_boss.job
select, delete on lockstep_boss.job_dependency
select (monitor_backoff_on) on lockstep_boss.version
select (id, heartbeat_seconds, started_on, heartbeat_on, stopped_on), update (id), delete on lockstep_boss.instance
execute on function lockstep.key, lockstep.key_of, lockstep.utf8, lockstep.check_isolation, lockstep.channel, lockstep.listen
execute on function lockstep.grant_leases, lockstep.renew_leases, lockstep.revoke_leases, lockstep.release_held
execute on function lockstep.try_key, lockstep.turn_keys, lockstep.keys_of, lockstep.keep_only, lockstep.lock_room, lockstep.force_revoke
execute on function lockstep.force, lockstep.sweep, lockstep.take, lockstep.check_backend, lockstep.try, lockstep.turn
execute on function lockstep.queue, lockstep.register, lockstep.enter, lockstep.assert_held, lockstep.look
execute on function lockstep.show_holds, lockstep.advisory_locks, lockstep.list_locks
execute on function lockstep.secret_channel, lockstep.election, lockstep.waits, lockstep.tell, lockstep.vacate, lockstep.campaign
execute on function lockstep.withdraw, lockstep.resign, lockstep.resign_held, lockstep.proclaim, lockstep.step_down
execute on function lockstep.leaders, lockstep.candidates, lockstep.assert_leader, lockstep.check_hold
execute on function lockstep.complete_jobs, lockstep.hand_back_jobs, lockstep.beat_jobs, lockstep.lease_jobs
execute on function lockstep.unlease_jobs, lockstep.progress_job, lockstep.ready_jobs, lockstep.due_jobs
execute on function lockstep.sweep_attempts, lockstep.due_schedules, lockstep.due_slots, lockstep.due_work
execute on function lockstep.microseconds, lockstep.clock_identity, lockstep.sample_time, lockstep.offer_time
execute on function lockstep.now, lockstep.now_interval, lockstep.tick
execute on function lockstep.bucket, lockstep.appending, lockstep.event_horizon, lockstep.events_key, lockstep.events_heard
execute on function lockstep.tell_events, lockstep.gate, lockstep.begin_append, lockstep.append_any, lockstep.append
execute on function lockstep.shown, lockstep.page_bytes, lockstep.read_stream, lockstep.read_all, lockstep.partition
execute on function lockstep.declare_group, lockstep.delete_group, lockstep.unstick, lockstep.next_turn
execute on function lockstep.hold_checkpoint, lockstep.refuse_turn, lockstep.read_partition, lockstep.commit_events
execute on function lockstep.fail_event, lockstep.redeliver, lockstep.truncate_stream, lockstep.sweep_events
execute on function lockstep.misaligned, lockstep.engine, lockstep.oldest_code
execute on function lockstep.check_transaction, lockstep.exhaust_job
execute on function lockstep.try_read_stream, lockstep.try_read_all, lockstep.read_share, lockstep.read_partitions
execute on function lockstep.fitting_events, lockstep.fetch_within, lockstep.fetch_jobs, lockstep.claim_jobs, lockstep.running_jobs, lockstep.rest_queues
execute on function lockstep_boss.job_now, lockstep_boss.create_queue, lockstep_boss.delete_queue
`
/** The rights on the table of a queue that has its own table. */
const PARTITION = 'select, insert, update, delete'

/** Each right of the list, like `INSERT on lockstep.stream (name)`. Tables of single queues are not among them. */
export const NEEDED: readonly string[] = RIGHTS.trim()
  .split('\n')
  .flatMap((line) => {
    const [, privileges = '', kind = '', objects = ''] = /^(.+) on (schema |sequence |function )?(.+)$/.exec(line) ?? []
    return objects.split(', ').flatMap((object) => atoms(privileges, kind + object))
  })

/**
 * Grants a role the rights that it needs and revokes all others, unless it has exactly these already.
 *
 * @returns every right that it has now, sorted.
 * @throws {Error} one sentence: there is no such role, the role may do everything anyway, or the current role may not grant.
 */
export async function grant<DB>(db: Kysely<DB>, role: string): Promise<string[]> {
  const { asker, owner, tables } = await roleFacts(db, role)
  const wanted = [
    ...NEEDED,
    ...tables.flatMap((table) => atoms(PARTITION, table)),
    ...atoms(PARTITION, 'tables to come in lockstep_boss'),
  ].sort()
  if (same(await rightsOf(db, role), wanted)) return wanted
  const refused = (cause?: unknown) =>
    new Error(`The role ${shown(asker)} may not grant rights on the tables of Lockstep: do it as ${shown(owner)}`, {
      cause,
    })
  try {
    await grantRights(db, role, owner, tables)
  } catch (error) {
    throw (error as { code?: unknown }).code === '42501' ? refused(error) : error
  }
  // Postgres only warns when it did not grant a right. And a right that another role granted cannot be revoked here.
  const has = await rightsOf(db, role)
  if (wanted.some((right) => !has.includes(right))) throw refused()
  const more = has.filter((right) => !wanted.includes(right))
  if (more.length > 0) throw new Error(`The role ${shown(role)} has what another role granted it: ${more.join(', ')}`)
  return wanted
}

async function grantRights<DB>(db: Kysely<DB>, role: string, owner: string, tables: string[]): Promise<void> {
  const defaults = `alter default privileges for role ${quoted(owner)} in schema lockstep_boss`
  const lines = [
    ...EVERYTHING.map((what) => `revoke all on ${what} from`),
    ...[...RIGHTS.trim().split('\n'), ...tables.map((table) => `${PARTITION} on ${table}`)].map(
      (line) => `grant ${line} to`,
    ),
    `${defaults} revoke all on tables from`,
    `${defaults} grant ${PARTITION} on tables to`,
  ]
  await sql.raw(lines.map((line) => `${line} ${quoted(role)};`).join('\n')).execute(db)
}

const quoted = (name: string) => `"${name.replaceAll('"', '""')}"`
const EVERYTHING = ['schema', 'all tables in schema', 'all sequences in schema', 'all functions in schema'].map(
  (what) => `${what} lockstep, lockstep_boss`,
)

/** @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field` grant: it cannot be a role to grant to. */
export function checkRole(role: unknown): asserts role is string {
  if (typeof role !== 'string' || role === '') throw wrongType('grant', 'the name of a role', role)
  const bytes = new TextEncoder().encode(role).length
  if (bytes > 63 || role.includes('\0')) throw outOfRange('grant', 'the name of a role, of at most 63 bytes', role)
  if (role === 'public') throw outOfRange('grant', 'a role, and not everybody', role)
  if (role.startsWith('pg_')) throw outOfRange('grant', 'a role of your own', role)
}

/** The current role, the owner of the tables, and the tables that belong to a single queue. */
async function roleFacts<DB>(db: Kysely<DB>, role: string) {
  const facts = sql<{ asker: string; owner: string; exists: boolean; superuser: boolean; owns: boolean }>`
    with ours as (select oid, nspname, nspowner from pg_namespace where nspname in ('lockstep', 'lockstep_boss')),
    owners as (
      select nspowner as owner from ours
      union select c.relowner from pg_class c join ours on ours.oid = c.relnamespace
      union select p.proowner from pg_proc p join ours on ours.oid = p.pronamespace
    )
    select current_user::text as asker, r.oid is not null as exists, coalesce(r.rolsuper, false) as superuser,
           (select pg_get_userbyid(c.relowner)::text from pg_class c where c.oid = 'lockstep_boss.job'::regclass) as owner,
           exists (select from owners o where pg_has_role(r.oid, o.owner, 'member')) as owns
      from (select) one left join pg_roles r on r.rolname::text = ${role}`
  const [row] = await read(db, facts)
  if (!row) throw new Error('The database did not answer')
  const { asker, owner, exists, superuser, owns } = row
  if (!exists) throw new Error(`There is no role ${shown(role)} to grant rights to: create it first`)
  if (superuser)
    throw new Error(`The role ${shown(role)} is a superuser and may do everything anyway: grant to another`)
  if (role === asker) throw new Error(`The role ${shown(role)} is the one that migrates: grant to another`)
  if (owns) {
    throw new Error(
      `The role ${shown(role)} may do everything with the tables of Lockstep anyway, since it owns them or is a member of ` +
        'a role that does: grant to another',
    )
  }
  const partitions = await sql<{ name: string }>`
    select format('lockstep_boss.%I', c.relname) as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'lockstep_boss.job'::regclass and c.relname <> 'job_common' order by 1`.execute(db)
  return { asker, owner, tables: partitions.rows.map(({ name }) => name) }
}

/** The rights that were granted to the role itself, sorted. */
export async function rightsOf<DB>(db: Kysely<DB>, role: string): Promise<string[]> {
  const { rows } = await sql<{ has: string }>`
    with ours as (select oid, nspname, nspacl from pg_namespace where nspname in ('lockstep', 'lockstep_boss')),
    acls as (
      select 'schema ' || nspname as what, nspacl as acl from ours
      union all
      select case c.relkind when 'S' then 'sequence ' else '' end || format('%s.%I', nspname, c.relname), c.relacl
        from ours join pg_class c on c.relnamespace = ours.oid
      union all
      select format('%s.%I (%s)', nspname, c.relname, a.attname), a.attacl
        from ours join pg_class c on c.relnamespace = ours.oid join pg_attribute a on a.attrelid = c.oid
       where not a.attisdropped
      union all
      select format('function %s.%s', nspname, p.proname), p.proacl from ours join pg_proc p on p.pronamespace = ours.oid
      union all
      select 'tables to come in lockstep_boss', d.defaclacl from ours join pg_default_acl d on d.defaclnamespace = ours.oid
       where nspname = 'lockstep_boss' and d.defaclobjtype = 'r'
         and d.defaclrole = (select c.relowner from pg_class c where c.oid = 'lockstep_boss.job'::regclass)
    )
    select x.privilege_type || ' on ' || what || case when x.is_grantable then ' with grant option' else '' end as has
      from acls cross join lateral aclexplode(acl) x
     where x.grantee = (select r.oid from pg_roles r where r.rolname::text = ${role})`.execute(db)
  return rows.map(({ has }) => has).sort()
}

function atoms(privileges: string, object: string): string[] {
  return [...privileges.matchAll(/(\w+)(?: \(([^)]*)\))?/g)].flatMap(([, privilege = '', columns]) =>
    (columns?.split(', ') ?? ['']).map(
      (column) => `${privilege.toUpperCase()} on ${object}${column === '' ? '' : ` (${column})`}`,
    ),
  )
}

const same = (some: string[], others: string[]) => some.join() === others.join()
const shown = (name: string) => JSON.stringify(name)
