-- Locks and terms: the advisory lock K(name) is the queue and the gate; the row is what a transaction can be
-- fenced against. The whole protocol is in lib/lease/leases.ts. Each verb is one function, so it takes one round trip
-- and can be called from psql or any language.
--
-- Rules of this file:
-- · clock_timestamp(), never now(): now() is when the transaction began, and a caching proxy may serve it stale.
-- · After K was gained, the row is looked at in a new statement: each statement of a plpgsql function has a fresh
--   snapshot; the snapshot of the statement that gained K is older than K.
-- · A function that frees a row locks it FOR UPDATE first. That waits for fenced transactions, which hold it FOR KEY
--   SHARE; renewals take it FOR NO KEY UPDATE, which does not. So a free row has no fenced transaction, and a grant is a
--   plain update. token needs no index for this, so grants, renewals and releases are HOT updates: no index grows.
-- · Rows are always found by the index on the name, whatever the statistics say: this table grows from nothing to
--   20,000 rows in a burst, and the plan for the empty table then took 1.3 s for what takes 2 ms. Hence the settings on
--   the functions, and names looked up one by one (lateral … limit 1).
-- · Nothing that many callers share ever waits: SKIP LOCKED, try, or a separate call.

create schema if not exists lockstep;

-- One sequence of fencing tokens for everything. Each call takes a block of 4096: 64 for each of up to 64 grants. From
-- its 64 the contenders of one process pass a connection hold on among themselves without another call. At 100,000
-- blocks a second they last for 700 years.
create sequence lockstep.token increment by 4096;

create table lockstep.lease (
  name       text collate "C" primary key,
  holder     text,                 -- null: free, and no fenced transaction can be in flight
  token      bigint not null,
  granted_at timestamptz not null,
  expires_at timestamptz not null, -- 'infinity': a connection hold, registered so that it can be fenced
  ttl_ms     integer,
  meta       jsonb
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- K(name), 64 bits. A collision only makes two names exclude each other.
create function lockstep.key(name text) returns bigint
language sql immutable strict parallel safe
return hashtextextended(name collate "C", 5497548331942713701);

-- Raises LS003 unless the transaction is READ COMMITTED. Under REPEATABLE READ the look at the row after K was gained
-- would show the past, and a second holder would be granted the name.
create function lockstep.check_isolation() returns void
language plpgsql as $$
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'lockstep: needs a READ COMMITTED transaction, this one is %', upper(current_setting('transaction_isolation'))
      using errcode = 'LS003', hint = 'alter role … set default_transaction_isolation to ''read committed''';
  end if;
end $$;

-- The NOTIFY channel of a name. The session at the front of the queue for the name listens on it.
create function lockstep.channel(name text) returns text
language sql immutable strict parallel safe
return 'lockstep_' || lockstep.key(name);

create function lockstep.listen(name text) returns text
language plpgsql as $$
begin
  execute format('listen %I', lockstep.channel(name));
  return lockstep.channel(name);
end $$;


-- ── Leases ──────────────────────────────────────────────────────────────────────────────────────────────────────

-- Grants leases without waiting, for at most 64 names at once (each name at most once). i is a name's position, from 1.
--   granted        those granted: token base + 64 × (i − 1), at granted_at, for their ttl
--   kept…          those that this holder had already: the same token, renewed
--   refused        the others; refused_for: the milliseconds that they are held at most, if that is known
-- The common case, rows that are free, takes two queries: a look that gains K where that is of use, and the update.
create function lockstep.grant_leases(
  names text[], holders text[], ttls integer[], metas jsonb[],
  out base bigint, out granted_at timestamptz, out granted bigint[],
  out kept bigint[], out kept_tokens bigint[], out kept_granted_at timestamptz[], out kept_expires_at timestamptz[],
  out refused bigint[], out refused_for double precision[]
) language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
  gated bigint[];    -- K gained
  absent boolean;    -- some of them have no row
  stale text[];      -- rows of some of them that ran out, or whose connection is dead (else it had K)
  mine bigint[];     -- live and of the same holder
  places tid[];      -- of the rows
  updated integer;
  added bigint[];
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform lockstep.check_isolation();
  end if;
  select array_agg(a.i) filter (where case
           when l.holder is null or l.expires_at <= clock_timestamp() or l.expires_at = 'infinity'
           then pg_try_advisory_xact_lock(lockstep.key(a.name)) end),
         bool_or(l.name is null),
         array_agg(l.name) filter (where l.holder is not null and (l.expires_at <= clock_timestamp() or l.expires_at = 'infinity')),
         array_agg(a.i) filter (where l.holder = a.holder),
         array_agg(l.at)
    into gated, absent, stale, mine, places
    from unnest(names, holders) with ordinality a(name, holder, i)
    left join lateral (select x.*, x.ctid as at from lockstep.lease x where x.name = a.name collate "C" limit 1) l
      on true;

  -- From here on each query sees what was committed before K was gained.
  if gated is not null then
    if stale is not null then
      -- free them, unless a transaction fenced by the last holder is still open
      perform lockstep.take(names[i]) from unnest(gated) i where names[i] = any (stale);
      places := array(select (select x.ctid from lockstep.lease x where x.name = n collate "C") from unnest(names) n);
    end if;
    base := nextval('lockstep.token');
    granted_at := clock_timestamp();
    -- By place, not by name again. A row that moved since we looked was not free for us all the time: refused.
    update lockstep.lease l
       set holder = a.holder, token = base + 64 * (a.i - 1), granted_at = grant_leases.granted_at,
           expires_at = grant_leases.granted_at + a.ttl_ms * interval '1 ms', ttl_ms = a.ttl_ms, meta = a.meta
      from unnest(names, holders, ttls, metas, places) with ordinality a(name, holder, ttl_ms, meta, at, i)
     where a.i = any (gated) and l.ctid = a.at and l.name = a.name collate "C" and l.holder is null;
    get diagnostics updated = row_count;
    if updated = cardinality(gated) then
      granted := gated;
    elsif updated > 0 then
      granted := array(
        select a.i from unnest(names) with ordinality a(name, i)
          join lockstep.lease l on l.name = a.name collate "C"
         where a.i = any (gated) and l.token = base + 64 * (a.i - 1));
    end if;
    if absent and updated < cardinality(gated) then
      with inserted as (
        insert into lockstep.lease as l (name, holder, token, granted_at, expires_at, ttl_ms, meta)
        select a.name, a.holder, base + 64 * (a.i - 1), grant_leases.granted_at,
               grant_leases.granted_at + a.ttl_ms * interval '1 ms', a.ttl_ms, a.meta
          from unnest(names, holders, ttls, metas) with ordinality a(name, holder, ttl_ms, meta, i)
         where a.i = any (gated) and not exists (select from lockstep.lease x where x.name = a.name collate "C")
        on conflict (name) do nothing
        returning (l.token - base) / 64 + 1 as i
      )
      select array_agg(n.i) into added from inserted n;
      granted := granted || added;
    end if;
  end if;

  if mine is not null then
    with asked as (
      select a.i, a.ttl_ms, l.name
        from unnest(names, holders, ttls) with ordinality a(name, holder, ttl_ms, i)
        join lockstep.lease l on l.name = a.name collate "C"
       where a.i = any (mine) and l.holder = a.holder and l.expires_at > clock_timestamp() and l.expires_at < 'infinity'
         and not a.i = any (coalesce(granted, '{}'))
         for no key update of l skip locked
    ), renewed as (
      update lockstep.lease l
         set expires_at = greatest(l.expires_at, clock_timestamp() + a.ttl_ms * interval '1 ms'), ttl_ms = a.ttl_ms
        from asked a where l.name = a.name
      returning a.i, l.token, l.granted_at, l.expires_at
    )
    select array_agg(r.i), array_agg(r.token), array_agg(r.granted_at), array_agg(r.expires_at)
      into kept, kept_tokens, kept_granted_at, kept_expires_at from renewed r;
  end if;

  if coalesce(cardinality(granted), 0) + coalesce(cardinality(kept), 0) < cardinality(names) then
    select array_agg(a.i),
           array_agg(case when l.expires_at > clock_timestamp() and l.expires_at < 'infinity'
                          then extract(epoch from l.expires_at - clock_timestamp())::double precision * 1000 end)
      into refused, refused_for
      from unnest(names) with ordinality a(name, i)
      left join lockstep.lease l on l.name = a.name collate "C" and l.holder is not null
     where not a.i = any (coalesce(granted || kept, granted, kept, '{}'));
  end if;
end $$;

-- Renews many leases at once. outcome: 'renewed', 'lost', or 'busy' (somebody has the row locked; it is still ours: try
-- again).
create function lockstep.renew_leases(names text[], tokens bigint[], ttls integer[])
returns table (i integer, outcome text, holder text, granted_at timestamptz, expires_at timestamptz)
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
  done bigint[];
begin
  with asked as (
    select a.i, a.ttl_ms, l.name
      from unnest(names, tokens, ttls) with ordinality a(name, token, ttl_ms, i)
      join lockstep.lease l on l.name = a.name collate "C" and l.token = a.token
     where l.holder is not null and l.expires_at > clock_timestamp() and l.expires_at < 'infinity'
       for no key update of l skip locked
  ), renewed as (
    update lockstep.lease l
       set expires_at = clock_timestamp() + coalesce(a.ttl_ms, l.ttl_ms) * interval '1 ms',
           ttl_ms = coalesce(a.ttl_ms, l.ttl_ms)
      from asked a where l.name = a.name
    returning a.i
  )
  select array_agg(r.i) into done from renewed r;
  return query
    select a.i::integer,
           case when a.i = any (done) then 'renewed'
                when l.holder is not null and l.expires_at > clock_timestamp() then 'busy'
                else 'lost' end,
           l.holder, l.granted_at, l.expires_at
      from unnest(names, tokens) with ordinality a(name, token, i)
      left join lockstep.lease l on l.name = a.name collate "C" and l.token = a.token
     order by a.i;
end $$;

-- Revokes many leases at once. The answers are lists of positions: revoked; late (it had expired; it was freed all the
-- same); busy (a transaction that is fenced by it, or that releases it, is still open: try again). All others had been lost.
-- May commit asynchronously, because a lost release is late, never wrong. Notifies if somebody else has K, since that one
-- waits at the front of the queue.
create function lockstep.revoke_leases(names text[], tokens bigint[],
                                       out revoked bigint[], out late bigint[], out busy bigint[])
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
  wanted text[];
begin
  perform set_config('synchronous_commit', 'off', true);
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

-- Releases a lease inside the caller's transaction: the fence and the release commit with it. Raises LS001 if not held.
create function lockstep.release_held(name text, token bigint) returns void
language plpgsql as $$
begin
  perform lockstep.assert_held(name, token);
  perform from lockstep.lease l where l.name = release_held.name for update;
  update lockstep.lease l set holder = null, expires_at = clock_timestamp(), meta = null
   where l.name = release_held.name;
  -- fenced tables are checked at COMMIT, after this: what freed the row held it until then
  perform set_config('lockstep.fence_checked', current_setting('lockstep.fence'), true);
  perform pg_notify(lockstep.channel(name), '');
end $$;

-- Takes a name from its holder, whatever the token: a lease loses its row; a connection or transaction hold loses its
-- connection (and with it all else that this connection had). True if somebody had it.
create function lockstep.force(name text) returns boolean
language plpgsql as $$
declare
  had boolean;
begin
  update lockstep.lease l
     set holder = null, expires_at = clock_timestamp(), meta = null
    from (select x.name, x.expires_at > clock_timestamp() and x.expires_at < 'infinity' as leased from lockstep.lease x
           where x.name = force.name and x.holder is not null for update) f
   where l.name = f.name
  returning f.leased into had;
  if had then
    perform pg_notify(lockstep.channel(name), '');
    return true;
  end if;
  -- the one who waits at the front of the queue for a lease has K too, but then there was a lease
  return coalesce((select bool_or(pg_terminate_backend(k.gate_pid)) from lockstep.look(name) k where k.gate_pid is not null), false);
end $$;

-- Deletes rows that have not been used for a while, so that names made for one occasion do not pile up. Tokens come
-- from the sequence, so a deleted name still gets larger tokens later.
create function lockstep.sweep(idle interval default '1 day', most integer default 1000) returns integer
language plpgsql as $$
declare
  gone integer;
begin
  with idle_rows as materialized (
    select l.name from lockstep.lease l
     where l.expires_at < clock_timestamp() - idle
        or l.expires_at = 'infinity' and l.granted_at < clock_timestamp() - idle  -- its connection died, if K is free
     limit most
  ), gated as materialized (
    select r.name from idle_rows r where pg_try_advisory_xact_lock(lockstep.key(r.name))
  ), locked as materialized (
    select l.name from lockstep.lease l join gated g on l.name = g.name
     where l.expires_at < clock_timestamp() - idle
        or l.expires_at = 'infinity' and l.granted_at < clock_timestamp() - idle
       for update of l skip locked
  )
  delete from lockstep.lease l using locked where l.name = locked.name;
  get diagnostics gone = row_count;
  return gone;
end $$;


-- ── Holds of a connection and of a transaction (K is theirs; the row is free) ─────────────────────────────────────

-- For a caller that has K: the token of a new hold, or null and the milliseconds after which to look again.
create function lockstep.take(name text, out token bigint, out wait_ms double precision)
language plpgsql as $$
declare
  found_row record;
begin
  select l.holder, l.expires_at into found_row from lockstep.lease l where l.name = take.name;
  if not found or found_row.holder is null then
    token := nextval('lockstep.token');
    return;
  end if;
  if found_row.expires_at > clock_timestamp() and found_row.expires_at < 'infinity' then
    wait_ms := 1 + extract(epoch from found_row.expires_at - clock_timestamp()) * 1000;
    return;
  end if;
  -- expired, or registered by a connection that is dead (else it had K)
  perform from lockstep.lease l
    where l.name = take.name
      and (l.expires_at <= clock_timestamp() or l.expires_at = 'infinity')
      for update skip locked;
  if not found then
    wait_ms := 20;  -- a transaction fenced by it is still open
    return;
  end if;
  update lockstep.lease l set holder = null, expires_at = clock_timestamp(), meta = null where l.name = take.name;
  token := nextval('lockstep.token');
end $$;

-- Raises LS004 if another backend answers than the expected one: session locks belong to a backend, and behind a pooler
-- two clients may share it.
create function lockstep.check_backend(pid integer) returns void
language plpgsql as $$
begin
  if pg_backend_pid() <> pid then
    raise exception 'lockstep: backend % answers instead of %', pg_backend_pid(), pid
      using errcode = 'LS004', hint = 'A pooler shares this connection: session locks cannot be used through it.';
  end if;
end $$;

-- Tries to acquire a connection hold; returns its token, or null. Its time is measured in microseconds, and a plpgsql
-- expression costs a tenth of a query: so there is one query only, the look at the row.
create function lockstep.try(name text, pid integer) returns bigint
language plpgsql as $$
declare
  holder text;
  token bigint;
  ignored boolean;
begin
  if pg_backend_pid() <> pid or current_setting('transaction_isolation') <> 'read committed' then
    perform lockstep.check_backend(pid), lockstep.check_isolation();
  end if;
  if not pg_try_advisory_lock(lockstep.key(name)) then
    return null;
  end if;
  select l.holder into holder from lockstep.lease l where l.name = try.name;
  if holder is null then
    return nextval('lockstep.token');
  end if;
  token := (lockstep.take(name)).token;
  if token is null then
    ignored := pg_advisory_unlock(lockstep.key(name));
  end if;
  return token;
end $$;

-- One turn of a direct connection: first releases, then tries, at most 64 names each. A granted name has the token
-- base + 64 × (its position − 1), except those in `taken`, whose tokens are in `tokens`. On an error the caller gives up
-- all of try_names: session locks outlive the failed statement.
create function lockstep.turn(release_names text[], try_names text[], pid integer,
                              out base bigint, out refused integer[], out taken integer[], out tokens bigint[])
language plpgsql as $$
declare
  gated boolean[];
  busy text[];
  token bigint;
  ignored boolean;
begin
  if pg_backend_pid() <> pid or current_setting('transaction_isolation') <> 'read committed' then
    perform lockstep.check_backend(pid), lockstep.check_isolation();
  end if;
  if release_names <> '{}' then
    perform pg_advisory_unlock(lockstep.key(n)) from unnest(release_names) n;
  end if;
  if try_names = '{}' then
    return;
  end if;
  gated := array(select pg_try_advisory_lock(lockstep.key(n)) from unnest(try_names) n);
  refused := array_positions(gated, false);
  if cardinality(refused) < cardinality(try_names) then
    base := nextval('lockstep.token');
    select array_agg(l.name) into busy from lockstep.lease l where l.name = any (try_names) and l.holder is not null;
    for n in 1 .. case when busy is null then 0 else cardinality(try_names) end loop
      continue when not gated[n] or not try_names[n] = any (busy);
      token := (lockstep.take(try_names[n])).token;
      if token is null then
        ignored := pg_advisory_unlock(lockstep.key(try_names[n]));
        refused := refused || n;
      else
        taken := taken || n;
        tokens := tokens || token;
      end if;
    end loop;
  end if;
end $$;

-- Waits in the queue of one name, on a connection that is kept for waiting, behind everybody who waits already. With
-- `again` this connection has K already, and gives it up first. Then has K, and answers like take.
create function lockstep.queue(name text, again boolean, out token bigint, out wait_ms double precision)
language plpgsql as $$
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform lockstep.check_isolation();
  end if;
  if again then
    perform pg_advisory_unlock(lockstep.key(name));
  end if;
  perform pg_advisory_lock(lockstep.key(name));
  select t.token, t.wait_ms into token, wait_ms from lockstep.take(name) t;
end $$;

-- Writes the row of a connection hold, so that transactions can be fenced by it. Only the connection that has K may call it.
create function lockstep.register(name text, holder text, token bigint, meta jsonb, pid integer) returns void
language sql as $$
  select lockstep.check_backend(pid);
  insert into lockstep.lease as l (name, holder, token, granted_at, expires_at, ttl_ms, meta)
  values (name, holder, token, clock_timestamp(), 'infinity', null, meta)
  on conflict (name) do update
    set holder = excluded.holder, token = excluded.token, granted_at = excluded.granted_at,
        expires_at = excluded.expires_at, ttl_ms = null, meta = excluded.meta;
$$;

-- A hold for the rest of this transaction. wait_for: for how many milliseconds to wait in the queue at most (0: for ever;
-- null: not at all). gated: the transaction has K. If token is null then, a lease still lives: call take again in wait_ms.
-- Until there is a token, the server ends the transaction when it is idle for 15 s, so that a frozen waiter cannot keep K
-- from the others; idle_timeout is the setting of before.
create function lockstep.enter(name text, wait_for integer,
                               out gated boolean, out token bigint, out wait_ms double precision, out pid integer,
                               out idle_timeout text)
language plpgsql as $$
declare
  timeout text := current_setting('lock_timeout');
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform lockstep.check_isolation();
  end if;
  pid := pg_backend_pid();
  if wait_for is null then
    gated := pg_try_advisory_xact_lock(lockstep.key(name));
  else
    perform set_config('lock_timeout', wait_for || 'ms', true);
    perform pg_advisory_xact_lock(lockstep.key(name));
    perform set_config('lock_timeout', timeout, true);
    gated := true;
  end if;
  if gated then
    select t.token, t.wait_ms into token, wait_ms from lockstep.take(name) t;
    perform set_config('lockstep.fence', name || ':transaction', true);
    if token is null then
      idle_timeout := current_setting('idle_in_transaction_session_timeout');
      perform set_config('idle_in_transaction_session_timeout', '15s', true);
    end if;
  end if;
end $$;


-- ── Fences ──────────────────────────────────────────────────────────────────────────────────────────────────────

-- Raises LS001 unless (name, token) is held now; the name stays held until the caller's transaction ends.
create function lockstep.assert_held(name text, token bigint) returns void
language plpgsql as $$
begin
  perform from lockstep.lease l
    where l.name = assert_held.name and l.token = assert_held.token
      and l.holder is not null and l.expires_at > clock_timestamp()
      for key share;
  if not found then
    raise exception 'lockstep: % is not held under token %', quote_literal(name), token
      using errcode = 'LS001', hint = 'It was released, has expired, or has passed to another holder.';
  end if;
  perform set_config('lockstep.fence', name || ':' || token, true);
end $$;

create function lockstep.check_fence() returns trigger
language plpgsql as $$
declare
  fence text := current_setting('lockstep.fence', true);
  part text[] := regexp_match(fence, '^(.*):(transaction|\d{1,19})$');
begin
  if fence is null or fence = '' then
    raise exception 'lockstep: a write to % without a fence', tg_relid::regclass
      using errcode = 'LS002', hint = 'set local lockstep.fence = ''name:token'' of a live hold, or write inside transaction().';
  end if;
  if fence = current_setting('lockstep.fence_checked', true) then
    return null;
  end if;
  if part is null then
    raise exception 'lockstep: the fence % is not of the form name:token', quote_literal(fence) using errcode = 'LS002';
  end if;
  if part[2] = 'transaction' then
    perform from pg_locks k
      where k.locktype = 'advisory' and k.pid = pg_backend_pid() and k.granted and k.objsubid = 1
        and k.classid = (lockstep.key(part[1]) >> 32 & 4294967295)::oid
        and k.objid = (lockstep.key(part[1]) & 4294967295)::oid;
    if not found then
      raise exception 'lockstep: this transaction does not hold %', quote_literal(part[1]) using errcode = 'LS001';
    end if;
  else
    perform lockstep.assert_held(part[1], part[2]::bigint);
  end if;
  -- held, and kept until this transaction ends: the next row need not ask again
  perform set_config('lockstep.fence_checked', fence, true);
  return null;
end $$;

-- From now on a write to this table commits only if its transaction names a live hold.
create function lockstep.fence_table(fenced regclass) returns void
language plpgsql as $$
begin
  execute format('create constraint trigger lockstep_fence after insert or update or delete on %s '
                 'deferrable initially deferred for each row execute function lockstep.check_fence()', fenced);
  execute format('create trigger lockstep_fence_truncate before truncate on %s '
                 'for each statement execute function lockstep.check_fence()', fenced);
end $$;

create function lockstep.unfence_table(fenced regclass) returns void
language plpgsql as $$
begin
  execute format('drop trigger if exists lockstep_fence on %s', fenced);
  execute format('drop trigger if exists lockstep_fence_truncate on %s', fenced);
end $$;


-- ── Looking ─────────────────────────────────────────────────────────────────────────────────────────────────────

-- Who holds a name and which backends wait for it, as of now. For display; never decide by it.
create function lockstep.look(name text)
returns table (holder text, token bigint, granted_at timestamptz, expires_at timestamptz, ttl_ms integer, meta jsonb,
               gate_pid integer, gate_application text, waiting_pids integer[])
language sql as $$
  with k as (
    select l.pid, l.granted from pg_locks l
     where l.locktype = 'advisory' and l.objsubid = 1
       and l.database = (select oid from pg_database where datname = current_database())
       and l.classid = (lockstep.key(look.name) >> 32 & 4294967295)::oid
       and l.objid = (lockstep.key(look.name) & 4294967295)::oid
  )
  select l.holder, l.token, l.granted_at, l.expires_at, l.ttl_ms, l.meta,
         g.pid, a.application_name,
         coalesce((select array_agg(k.pid) from k where not k.granted), '{}')
    from (select) one
    left join lockstep.lease l on l.name = look.name collate "C"
     and l.holder is not null and l.expires_at > clock_timestamp()
    left join k g on g.granted
    left join pg_stat_activity a on a.pid = g.pid
$$;
