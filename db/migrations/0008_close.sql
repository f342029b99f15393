-- barrier
-- 0009_keys.sql makes K another number. While one process takes the old K of a name and another the new one, both would hold
-- it. So this file closes the database first: it refuses every grant and every append. lib/setup/migrate.ts commits it and
-- waits until nobody holds an old K and nobody can still take one (lockstep.unquiet). Then it goes on, or it undoes this file
-- (lockstep.reopen).
--
-- It is not enough to look once whether somebody holds: a process can take K between the look and the commit. A transaction
-- that began before this file was committed may still run the old functions; one that begins later cannot. So the database is
-- quiet when all older transactions have ended and no session has a lock that may be a K.
--
-- A closed function raises 57P03. Clients of 0.6 report it as UNAVAILABLE, release the K that they had taken, and try again
-- later. Whatever takes no K goes on: renewals, releases, revocations, elections, tasks, time, reading.
--
-- 0013_search_path.sql opens the database again; it is the last migration that is applied while the database is closed.

create table lockstep.closed (
  function   text primary key, -- its name with the types of its arguments
  definition text not null,    -- its original definition
  body       text not null     -- the body that it has while the database is closed
);

create function lockstep.refuse() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'lockstep: the database is being migrated' using errcode = '57P03', hint = 'Ask again in a moment.';
end $$;

do $close$
declare
  refused constant text := ' begin perform lockstep.refuse(); end ';
  f record;
begin
  for f in
    select p.oid, p.prosrc, pg_get_functiondef(p.oid) as definition, c.body
      from (values
        ('grant_leases', refused),
        ('try', refused),
        ('queue', refused),
        ('enter', refused),
        -- The caller has K and gives it up when it is refused. The function does not: after a reopening the client asks again
        -- in the belief that it still has K.
        ('take', refused),
        ('begin_append', refused),     -- what every append begins with, before it takes a gate
        ('truncate_stream', refused),
        ('sweep', ' begin return 0; end '),
        -- Releases must go on. A turn that only tries is refused like any other. A turn that also releases answers that all
        -- names are taken: after an error 0.6 releases the same names once more, and a later turn may have gained them by then.
        ('turn', $turn$
begin
  if pg_backend_pid() <> pid then
    perform lockstep.check_backend(pid);
  end if;
  perform pg_advisory_unlock(lockstep.key(n)) from unnest(release_names) n;
  if try_names <> '{}' and release_names = '{}' then
    perform lockstep.refuse();
  end if;
  refused := array(select i from generate_series(1, cardinality(try_names)) i);
end $turn$)
      ) as c(name, body)
      join pg_proc p on p.proname = c.name and p.pronamespace = 'lockstep'::regnamespace
  loop
    insert into lockstep.closed values (f.oid::regprocedure::text, f.definition, f.body);
    execute replace(f.definition, f.prosrc, f.body);
  end loop;
end $close$;

-- The transactions that are open in this database now, without the caller's. A background process of the server has no user.
create function lockstep.open_transactions() returns text[]
language sql set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(l.virtualtransaction), '{}')
    from pg_locks l join pg_stat_activity a on a.pid = l.pid
   where l.locktype = 'virtualxid' and l.granted and l.virtualxid = l.virtualtransaction and l.pid <> pg_backend_pid()
     and a.datid = (select d.oid from pg_database d where d.datname = current_database()) and a.usesysid is not null
$$;

-- Those of these transactions that are still open, and the connections with locks that may be a K. That is every advisory lock
-- on one bigint, since a lock of an application looks the same, except the witnesses of elections and the lock of listeners to
-- events.
--   keys      the locks
--   prepared  the name of a prepared transaction, which has no connection
create function lockstep.unquiet(transactions text[])
returns table (pid integer, application text, role text, since timestamptz, prepared text, open boolean, keys bigint[])
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  others bigint[] := array(
    select l.witness from lockstep.lease l where l.witness is not null
    union all select c.witness from lockstep.candidate c where c.witness is not null
    union all select lockstep.events_key());
  here oid := (select d.oid from pg_database d where d.datname = current_database());
  still integer[];
begin
  -- First the transactions, then the locks: so a lock that a transaction took before it was seen to have ended is found. A
  -- transaction that waits for a witness does nothing else.
  still := array(
    select l.pid from pg_locks l
     where l.locktype = 'virtualxid' and l.granted and l.virtualxid = l.virtualtransaction and l.virtualtransaction = any (transactions)
       and not exists (
         select from pg_locks w
          where w.pid = l.pid and not w.granted and w.locktype = 'advisory' and w.objsubid = 1 and w.database = here
            and (w.classid::bigint << 32 | w.objid::bigint) = any (others)));
  return query
    with held as (
      select l.pid, l.virtualtransaction as holder, l.classid::bigint << 32 | l.objid::bigint as key
        from pg_locks l
       where l.locktype = 'advisory' and l.objsubid = 1 and l.granted and l.database = here
    ), found as (
      select h.pid, case when h.pid is null then (
               select x.transactionid::text from pg_locks x
                where x.pid is null and x.locktype = 'transactionid' and x.virtualtransaction = h.holder limit 1) end as xid,
             false as open, h.key
        from held h where h.key <> all (others)
      union all
      select s.pid, null, true, null from unnest(still) s(pid)
    )
    select f.pid, coalesce(min(a.application_name), ''), coalesce(min(a.usename), min(p.owner))::text,
           coalesce(min(a.xact_start), min(a.backend_start), min(p.prepared)), min(p.gid), bool_or(f.open),
           coalesce(array_agg(distinct f.key) filter (where f.key is not null), '{}')
      from found f
      left join pg_stat_activity a on a.pid = f.pid
      left join pg_prepared_xacts p on p.transaction::text = f.xid
     group by f.pid, f.xid
     order by f.pid;
end $$;

-- Opens the database again: each function that is still closed gets its original definition, and nothing of this file is left.
create function lockstep.reopen() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  f record;
begin
  for f in
    select c.definition from lockstep.closed c join pg_proc p on p.oid = to_regprocedure(c.function) and p.prosrc = c.body
  loop
    execute f.definition;
  end loop;
  drop table lockstep.closed;
  drop function lockstep.open_transactions(), lockstep.unquiet(text[]), lockstep.refuse(), lockstep.reopen();
end $$;
