-- No name in our functions is looked up where a caller of theirs may have put something: whatever is called without its schema is
-- found in pg_catalog. And what 0008_close.sql has closed is opened again, which the last of these migrations has to do.
--
-- A search path is pinned in one of three ways:
-- * with the function (set search_path), which costs inlining, and 6 us at each call on PostgreSQL 18, 11 on 14: of the 200 of a try
--   and a release over loopback 3 and 5 %;
-- * for good, when the function is made: bodies of standard SQL (`return`, `begin atomic`), which are inlined where others were;
-- * by hand, in the functions that every acquisition calls: each name and operator in them says pg_catalog.
-- test/database/search-path.test.ts shows that there is no fourth.

select lockstep.reopen();

-- What is inlined ------------------------------------------------------------------------------------------------

create or replace function lockstep.waits(candidate lockstep.candidate) returns boolean
language sql
return candidate.expires_at > clock_timestamp()
   and (candidate.witness is null or not pg_try_advisory_xact_lock_shared(candidate.witness));

-- One expression: a cancel between two statements would leave the lock behind.
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

-- The last migration that the oldest code which this schema serves needs: older code refuses it (`ready()`), newer code and that of
-- a rolling deploy does not. A migration that old code cannot live with says so here.
create function lockstep.oldest_code() returns text
language sql immutable parallel safe
return '0007_event';

-- current: the last migration. shown: whether an advisory lock is seen in pg_locks by the transaction that has it, which everything
-- here stands on; null: it was not asked for.
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
    perform pg_advisory_xact_lock_shared(1819239275, 1702454628);  -- 'lock', 'eyed' in ASCII: no K, and nobody waits for it
    shown := exists (
      select from pg_locks l
       where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.granted
         and l.classid = 1819239275 and l.objid = 1702454628 and l.objsubid = 2);
  end if;
end $$;


-- All others --------------------------------------------------------------------------------------------------

-- Left out: those of standard SQL, those that say pg_catalog at each operator, and pg-boss's job_now, which calls pg_catalog.now()
-- and nothing else, once for each row that it is compared with.
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
