-- Holds: what a statement must leave behind when it fails, or when many callers meet. The protocol is in lib/lease/leases.ts,
-- the essay on failures in lib/database/session.ts.
--
-- Rules of this file:
-- . Session locks survive a rollback, so no function can undo itself completely. Its caller repairs the locks by what pg_locks
--   shows (keep_only), or gives the connection up.
-- . A row for a connection hold is written only if this backend has K in exclusive mode and its token is not older than the
--   row's.
-- . A function changes a setting of its transaction only in a transaction of our own. Whether a caller's commit waits for the
--   disk is the caller's decision.
-- . Every name is qualified, or the search path is pinned. try_key and turn_keys, whose time is measured in microseconds, are
--   qualified by hand: a SET clause costs them more than the rest of their bodies.

-- The advisory locks of one backend in this database that may be a K: exclusive, with one key of 64 bits. It asks pg_locks
-- alone. A look at pg_database, which all databases share, needs a place in the lock table, and that may be full.
create function lockstep.keys_of(pid integer) returns setof bigint
language sql stable
set search_path = pg_catalog, pg_temp as $$
  select k.classid::bigint << 32 | k.objid::bigint from pg_locks k
   where k.locktype = 'advisory' and k.objsubid = 1 and k.granted and k.mode = 'ExclusiveLock' and k.pid = keys_of.pid
$$;

-- Releases every K of this backend except those of `names` and the keys `others`: for a caller that does not know what a failed
-- statement has left behind. Each name is locked once at most, so one unlock is enough. Returns how many were released.
create function lockstep.keep_only(names text[], others bigint[], pid integer) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
  given_up integer;
begin
  perform lockstep.check_backend(pid);
  select count(*) filter (where pg_advisory_unlock(k.key)) into given_up
    from (select x.key from lockstep.keys_of(pid) x(key)
           where x.key <> all (others) and x.key <> all (array(select lockstep.key(n) from unnest(names) n))) k;
  return given_up;
end $$;

-- Writes the row of a connection hold, so that transactions can be fenced by it; on the connection that has K. Raises LS001 if
-- it does not have K, or if somebody else was granted the name since.
create or replace function lockstep.register(name text, holder text, token bigint, meta jsonb, pid integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
  perform lockstep.check_backend(pid);
  if not exists (select from lockstep.keys_of(pid) k(key) where k.key = lockstep.key(name)) then
    raise exception 'lockstep: this connection does not hold %', quote_literal(name)
      using errcode = 'LS001', hint = 'It was released, or has passed to another holder.';
  end if;
  insert into lockstep.lease as l (name, holder, token, granted_at, expires_at, ttl_ms, meta)
  values (register.name, register.holder, register.token, clock_timestamp(), 'infinity', null, register.meta)
  on conflict on constraint lease_pkey do update
    set holder = excluded.holder, token = excluded.token, granted_at = excluded.granted_at,
        expires_at = excluded.expires_at, ttl_ms = null, meta = excluded.meta
    where l.token = excluded.token or l.holder is null and l.token < excluded.token;
  if not found then
    raise exception 'lockstep: % is not held under token %', quote_literal(name), token
      using errcode = 'LS001', hint = 'It has passed to another holder.';
  end if;
end $$;

-- Tries to acquire a connection hold; returns its token, or null. For a caller that has computed K itself
-- (lib/database/lock-key.ts): SHA-256 takes 8 us here, a twentieth of the round trip. Its time is measured in microseconds, and
-- a plpgsql expression costs a tenth of a query: so there is one query only, the look at the row.
create function lockstep.try_key(name text, key bigint, pid integer) returns bigint
language plpgsql as $$
declare
  holder pg_catalog.text;
  token pg_catalog.int8;
  ignored pg_catalog.bool;
begin
  if pg_catalog.pg_backend_pid() operator(pg_catalog.<>) pid
     or pg_catalog.current_setting('transaction_isolation') operator(pg_catalog.<>) 'read committed' then
    perform lockstep.check_backend(pid), lockstep.check_isolation();
  end if;
  if not pg_catalog.pg_try_advisory_lock(key) then
    return null;
  end if;
  select l.holder into holder from lockstep.lease l where l.name operator(pg_catalog.=) try_key.name;
  if holder is null then
    return pg_catalog.nextval('lockstep.token');
  end if;
  token := (lockstep.take(name)).token;
  if token is null then
    ignored := pg_catalog.pg_advisory_unlock(key);
  end if;
  return token;
end $$;

create or replace function lockstep.try(name text, pid integer) returns bigint
language sql
set search_path = pg_catalog, pg_temp as $$
  select lockstep.try_key(name, lockstep.key(name), pid)
$$;

-- One turn of a direct connection: first releases, then tries, at most 64 names each; the caller has computed their K. A
-- granted name has the token base + 64 x (its position - 1), except those in `taken`, whose tokens are in `tokens`. If the
-- statement fails, each of the names may have been released or gained: the caller then calls keep_only.
create function lockstep.turn_keys(release_keys bigint[], try_names text[], try_keys bigint[], pid integer,
                                   out base bigint, out refused integer[], out taken integer[], out tokens bigint[])
language plpgsql as $$
declare
  gated pg_catalog.bool[];
  busy pg_catalog.text[];
  token pg_catalog.int8;
  ignored pg_catalog.bool;
begin
  if pg_catalog.pg_backend_pid() operator(pg_catalog.<>) pid
     or pg_catalog.current_setting('transaction_isolation') operator(pg_catalog.<>) 'read committed' then
    perform lockstep.check_backend(pid), lockstep.check_isolation();
  end if;
  if pg_catalog.cardinality(release_keys) operator(pg_catalog.>) 0 then
    perform pg_catalog.pg_advisory_unlock(k) from pg_catalog.unnest(release_keys) k;
  end if;
  if pg_catalog.cardinality(try_names) operator(pg_catalog.=) 0 then
    return;
  end if;
  gated := array(select pg_catalog.pg_try_advisory_lock(k) from pg_catalog.unnest(try_keys) k);
  refused := pg_catalog.array_positions(gated, false);
  if pg_catalog.cardinality(refused) operator(pg_catalog.<) pg_catalog.cardinality(try_names) then
    base := pg_catalog.nextval('lockstep.token');
    select pg_catalog.array_agg(l.name) into busy from lockstep.lease l
     where l.name operator(pg_catalog.=) any (try_names) and l.holder is not null;
    for n in 1 .. case when busy is null then 0 else pg_catalog.cardinality(try_names) end loop
      continue when not gated[n] or not try_names[n] operator(pg_catalog.=) any (busy);
      token := (lockstep.take(try_names[n])).token;
      if token is null then
        ignored := pg_catalog.pg_advisory_unlock(try_keys[n]);
        refused := pg_catalog.array_append(refused, n);
      else
        taken := pg_catalog.array_append(taken, n);
        tokens := pg_catalog.array_append(tokens, token);
      end if;
    end loop;
  end if;
end $$;

create or replace function lockstep.turn(release_names text[], try_names text[], pid integer,
                                         out base bigint, out refused integer[], out taken integer[], out tokens bigint[])
language sql
set search_path = pg_catalog, pg_temp as $$
  select * from lockstep.turn_keys(array(select lockstep.key(n) from unnest(release_names) with ordinality x(n, i) order by i), try_names,
                                   array(select lockstep.key(n) from unnest(try_names) with ordinality x(n, i) order by i), pid)
$$;

-- As in 0001_lease.sql, except that synchronous_commit is the caller's to set.
create or replace function lockstep.revoke_leases(names text[], tokens bigint[],
                                                  out revoked bigint[], out late bigint[], out busy bigint[])
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
  wanted text[];
begin
  with locked as materialized (
    select a.i, l.at, l.live
      from unnest(names, tokens) with ordinality a(name, token, i)
     cross join lateral (
       select x.ctid as at, x.expires_at > clock_timestamp() as live from lockstep.lease x
        where x.name = a.name collate "C" and x.token = a.token and x.holder is not null
        limit 1 for update skip locked) l
  ), freed as (
    update lockstep.lease l set holder = null, expires_at = clock_timestamp(), meta = null
      from locked a where l.ctid = a.at
    returning a.i, a.live, case when not pg_try_advisory_xact_lock(lockstep.key(l.name)) then l.name end as wanted
  )
  select array_agg(f.i) filter (where f.live), array_agg(f.i) filter (where not f.live),
         array_agg(f.wanted) filter (where f.wanted is not null)
    into revoked, late, wanted from freed f;

  if wanted is not null then
    perform pg_notify(lockstep.channel(n), '') from unnest(wanted) n;
  end if;
  if coalesce(cardinality(revoked), 0) < cardinality(names) then
    select array_agg(a.i) into busy
      from unnest(names, tokens) with ordinality a(name, token, i)
      join lockstep.lease l on l.name = a.name collate "C" and l.token = a.token
     where l.holder is not null;
  end if;
end $$;

-- As in 0002_election.sql, except that synchronous_commit is the caller's to set.
create or replace function lockstep.resign(names text[], tokens bigint[], out revoked bigint[], out late bigint[], out busy bigint[])
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
  a record;
  live boolean;
begin
  for a in select n.name, n.token, n.i from unnest(names, tokens) with ordinality n(name, token, i) loop
    select x.expires_at > clock_timestamp() and not x.deposed into live from lockstep.lease x
     where x.name = a.name and x.token = a.token and x.holder is not null
       for update skip locked;
    if found then
      perform lockstep.vacate(a.name);
      if live then revoked := revoked || a.i; else late := late || a.i; end if;
    elsif exists (select from lockstep.lease x where x.name = a.name and x.token = a.token and x.holder is not null) then
      busy := busy || a.i;
    end if;
  end loop;
end $$;

-- Takes a name from its holder, whatever the token. A lease loses its row; a connection or transaction hold loses its
-- connection, with all that this connection had. It does not wait:
--   forced     somebody had the name, and has it no more
--   none       nobody had it
--   busy       a transaction that is fenced by the hold, or that releases it, is open: try again
--   forbidden  the connection belongs to another role, and the caller may not end it: it needs pg_signal_backend, or membership
--              of that role
create function lockstep.force_revoke(name text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
  leased boolean;
  ended boolean;
begin
  select x.expires_at > clock_timestamp() and x.expires_at < 'infinity' into leased from lockstep.lease x
   where x.name = force_revoke.name and x.holder is not null for update skip locked;
  if found then
    update lockstep.lease l set holder = null, expires_at = clock_timestamp(), meta = null where l.name = force_revoke.name;
  elsif exists (select from lockstep.lease x where x.name = force_revoke.name and x.holder is not null) then
    return 'busy';
  end if;
  if leased then
    perform pg_notify(lockstep.channel(name), '');
    return 'forced';
  end if;
  -- The contender at the front of the queue for a lease has K too; but then there was a lease.
  begin
    select bool_or(pg_terminate_backend(k.gate_pid)) into ended from lockstep.look(name) k where k.gate_pid is not null;
  exception when insufficient_privilege then
    return 'forbidden';
  end;
  return case when ended then 'forced' else 'none' end;
end $$;

-- As force_revoke, under its old name. Raises 55P03 if busy and 42501 if forbidden.
create or replace function lockstep.force(name text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
  outcome text := lockstep.force_revoke(name);
begin
  if outcome = 'busy' then
    raise exception 'lockstep: a transaction fenced by the holder of % is open', quote_literal(name) using errcode = '55P03';
  elsif outcome = 'forbidden' then
    raise exception 'lockstep: % is held by a connection of another role', quote_literal(name)
      using errcode = '42501', hint = 'Grant pg_signal_backend, or membership of that role.';
  end if;
  return outcome = 'forced';
end $$;

-- held: the advisory locks on this server; most: how many of them make us refuse connection holds; connections: how many the
-- server allows. A server keeps the locks of all its databases in one table of a fixed size. When that is full every program is
-- refused, even one that only connects. So half of it is left to the others.
create function lockstep.lock_room(out held bigint, out most bigint, out connections bigint)
language sql
set search_path = pg_catalog, pg_temp as $$
  select count(*),
         current_setting('max_locks_per_transaction')::bigint
           * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) / 2,
         current_setting('max_connections')::bigint
    from pg_locks k where k.locktype = 'advisory'
$$;
