-- No caller can put anything of its own into our functions: every name that they use without a schema is looked up in
-- pg_catalog. And this file opens what 0008_close.sql has closed, which must be done by the last of these migrations.
--
-- A function gets its search path in one of three ways:
-- * as a setting of the function (set search_path). That prevents inlining and costs 6 us a call on PostgreSQL 18, 11 us on 14.
--   A try and a release over loopback take 200 us, so that is 3 and 5 % of them;
-- * when it is made: the names in bodies of standard SQL (`return`, `begin atomic`) are resolved then, for good. They can still
--   be inlined;
-- * by hand, in the functions that every acquisition calls: each name and each operator says pg_catalog.
-- test/database/search-path.test.ts shows that every function has one of them.

select lockstep.reopen();

-- Functions that are inlined --------------------------------------------------------------------------------------

create or replace function lockstep.waits(candidate lockstep.candidate) returns boolean
language sql
return candidate.expires_at > clock_timestamp()
   and (candidate.witness is null or not pg_try_advisory_xact_lock_shared(candidate.witness));

-- Whether somebody listens to events. It is one expression: if it were two statements, a cancel between them would leave the
-- lock behind.
create or replace function lockstep.events_heard() returns boolean
language sql
return case when pg_try_advisory_lock(lockstep.events_key()) then not pg_advisory_unlock(lockstep.events_key()) else true end;

create or replace function lockstep.microseconds(t timestamptz) returns bigint
language sql immutable parallel safe
return (extract(epoch from t) * 1000000)::bigint;

create or replace function lockstep.clock_identity() returns bigint
language sql stable parallel safe
return (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint;


-- Whether server, schema and code fit one another -------------------------------------------------------------

-- The last migration that code must know to use this schema. ready() of older code refuses the schema; newer code, and the code
-- of a rolling deployment, works. A migration that breaks older code changes the answer.
create function lockstep.oldest_code() returns text
language sql immutable parallel safe
return '0007_event';

-- What ready() asks. current: the last migration. shown: whether pg_locks shows an advisory lock to the transaction that has
-- it, on which everything here relies; null: it was not asked for.
create function lockstep.engine(prove boolean, out current text, out oldest text, out version integer, out encoding text,
                                out standby boolean, out read_only boolean, out shown boolean)
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  current := (select m.name from lockstep.migration m order by m.name collate "C" desc limit 1);
  oldest := lockstep.oldest_code();
  version := current_setting('server_version_num');
  encoding := current_setting('server_encoding');
  standby := pg_is_in_recovery();
  read_only := current_setting('transaction_read_only');
  if prove then
    perform pg_advisory_xact_lock_shared(1819239275, 1702454628);  -- 'lock', 'eyed' in ASCII: not a K, and nobody waits for it
    shown := exists (
      select from pg_locks l
       where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.granted
         and l.classid = 1819239275 and l.objid = 1702454628 and l.objsubid = 2);
  end if;
end $$;


-- All other functions ---------------------------------------------------------------------------------------------

-- Except: bodies of standard SQL, bodies that say pg_catalog at each operator, and job_now of pg-boss, which calls nothing but
-- pg_catalog.now(), and is called once for each row that it is compared with.
do $$
declare
  f regprocedure;
begin
  for f in
    select p.oid from pg_proc p
     where p.pronamespace in ('lockstep'::regnamespace, 'lockstep_boss'::regnamespace)
       and p.prosqlbody is null and p.prosrc !~* 'operator\s*\(\s*pg_catalog\.'
       and not (p.proname = 'job_now' and p.prosrc ~* '^\s*select pg_catalog\.now\(\);?\s*$')
       and not exists (select from unnest(p.proconfig) c where c like 'search_path=%')
  loop
    execute format('alter function %s set search_path = pg_catalog, pg_temp', f);
  end loop;
end $$;
