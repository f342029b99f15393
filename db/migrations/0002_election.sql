-- Elections: a term is a lease on an election's name. Elections add to a lease: candidates that wait in the order of
-- priority and arrival, notifications of changes for observers, a leader that can be asked to step down, and a term that
-- may end with its leader's connection. The whole protocol is in lib/leader/election.ts.
--
-- Rules of this file, in addition to those of 0001_lease.sql:
-- · A statement that grants or ends a term has its row FOR UPDATE and has looked at it again since. K is not needed,
--   because no connection or transaction holds a term.
-- · Functions that are called from outside have the planner's settings of 0001_lease.sql, for the same reason.
-- · A new token is drawn while the row is locked: so the tokens of an election rise in the order of its grants.
-- · An expired lease alone does not permit a successor. The database's clock may have been set forward, and then the
--   leader still trusts its term. Either the successor says that its own clock agrees (`over`), or the lease has been seen
--   expired for another ttl: one step of the clock, before or after it was first seen, cannot shorten both.

-- The row of an election. No lock has a control character in its name.
create function lockstep.election(name text) returns text
language sql immutable strict parallel safe
return E'leader\t' || name;

alter table lockstep.lease
  add column revision bigint,                         -- rises with every change that observers are told
  add column witness  bigint,                         -- an advisory lock of the leader's connection: free, the term is over
  add column deposed  boolean not null default false, -- asked to step down: not renewed any more
  add column over_at  timestamptz;                    -- when the lease was first found expired

-- The candidates that wait. Unlogged: after a crash of the server every candidate that lives enters itself again, at its
-- old place.
create unlogged table lockstep.candidate (
  name       text collate "C" not null,
  holder     text collate "C" not null,
  priority   integer not null,
  place      bigint not null,      -- who came first has the smaller one
  since      timestamptz not null,
  meta       jsonb,
  witness    bigint,               -- an advisory lock of the candidate's connection: free, and it is gone
  expires_at timestamptz not null, -- 'infinity' with a witness; without one it has to ask again in time
  primary key (name, holder)
) with (fillfactor = 70);

create function lockstep.waits(candidate lockstep.candidate) returns boolean
language sql as $$
  select candidate.expires_at > clock_timestamp()
     and (candidate.witness is null or not pg_try_advisory_xact_lock_shared(candidate.witness))
$$;

-- Notifies everybody of the present state of an election. `next` is the first candidate in the queue: of all candidates
-- that receive this, only that one has to ask. A payload has at most 8,000 bytes; a receiver looks up what did not fit.
create function lockstep.tell(election text) returns void
language plpgsql as $$
declare
  news jsonb;
  place text := substr(election, 1 + length(lockstep.election('')));
begin
  select jsonb_build_object('name', place, 'revision', l.revision::text, 'deposed', l.deposed,
           'leader', case when l.holder is not null then jsonb_build_object(
             'holder', l.holder, 'token', l.token::text, 'grantedAt', l.granted_at, 'expiresAt', l.expires_at,
             'ttlMs', l.ttl_ms, 'meta', l.meta) end,
           'next', (select c.holder from lockstep.candidate c where c.name = tell.election and lockstep.waits(c)
                     order by c.priority desc, c.place limit 1))
    into news from lockstep.lease l where l.name = tell.election;
  if octet_length(news::text) > 7900 then
    news := jsonb_build_object('name', place);
  end if;
  perform pg_notify('lockstep_leader', news::text);
end $$;

-- Ends a term, whose row the caller has locked.
create function lockstep.vacate(election text) returns void
language sql as $$
  update lockstep.lease l
     set holder = null, expires_at = clock_timestamp(), meta = null, witness = null, deposed = false, over_at = null,
         revision = nextval('lockstep.token')
   where l.name = vacate.election;
  select lockstep.tell(vacate.election);
$$;

-- Campaigns, many at once: an array of { name, holder, ttl_ms, meta, priority, place, waits, witness, failover, over }.
--   name      the name of the row: lockstep.election('…')
--   place     from an earlier answer; left out: behind all candidates that wait
--   waits     whether to wait in the queue when refused
--   witness   an advisory lock that the candidate's connection has; failover: the term too shall end with it
--   over      the token of an expired term, if the caller knows by its own clock that it is over
-- Answers, by position i from 1:
--   granted   the new term
--   kept      this holder leads already: the same term, renewed
--   waiting   ask again when you are notified as `next`, or after wait_ms, or when leader_witness is free. first: no
--             candidate is before you. over: the token of an expired term, ttl_ms its length; if your clock says that it
--             is over, ask again with it
create function lockstep.campaign(asks jsonb)
returns table (i bigint, outcome text, token bigint, granted_at timestamptz, expires_at timestamptz, place bigint,
               first boolean, wait_ms double precision, leader_witness bigint, over bigint, ttl_ms integer,
               now timestamptz)
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  grace constant interval := '1 s';  -- for how long those before have the first right to a free election
  base bigint := nextval('lockstep.token');
  a record;
  l lockstep.lease;
  expired boolean;
begin
  perform lockstep.check_isolation();

  -- All into the line first, so that each sees the others; in one order, so that no two statements wait crosswise.
  insert into lockstep.candidate as c (name, holder, priority, place, since, meta, witness, expires_at)
  select r.name, r.holder, r.priority, coalesce(r.place, base + e.i), clock_timestamp(), r.meta, r.witness,
         case when r.witness is null then clock_timestamp() + interval '15 s' else 'infinity' end
    from jsonb_array_elements(asks) with ordinality e(ask, i)
   cross join jsonb_to_record(e.ask) r(name text, holder text, priority integer, place bigint, meta jsonb, waits boolean, witness bigint)
   where r.waits
   order by r.name collate "C", r.holder collate "C"
  on conflict (name, holder) do update
    set priority = excluded.priority, place = least(c.place, excluded.place), meta = excluded.meta,
        witness = excluded.witness, expires_at = excluded.expires_at
    where (c.priority, c.meta, c.witness) is distinct from (excluded.priority, excluded.meta, excluded.witness)
       or excluded.expires_at < 'infinity' or c.place > excluded.place;

  for a in
    select e.i, r.name, r.holder, r.ttl_ms, r.meta, r.priority, r.waits, r.over,
           case when r.failover then r.witness end as witness,
           case when r.waits then coalesce(r.place, base + e.i) else 9223372036854775807 end as place
      from jsonb_array_elements(asks) with ordinality e(ask, i)
     cross join jsonb_to_record(e.ask) r(name text, holder text, ttl_ms integer, meta jsonb, priority integer, place bigint,
                                         waits boolean, witness bigint, failover boolean, over bigint)
     order by r.name collate "C", r.priority desc, place
  loop
    select * into l from lockstep.lease x where x.name = a.name;
    if not found then
      insert into lockstep.lease as x (name, token, granted_at, expires_at, revision)
      values (a.name, base, clock_timestamp(), clock_timestamp() - grace, base) on conflict (name) do nothing;
      select * into l from lockstep.lease x where x.name = a.name;
    end if;

    -- a leader whose connection is dead, and who said that this shall end its term
    if l.holder is not null and l.witness is not null and pg_try_advisory_xact_lock_shared(l.witness) then
      perform from lockstep.lease x where x.name = a.name and x.token = l.token and x.holder is not null for update skip locked;
      if found then
        perform lockstep.vacate(a.name);
        select * into l from lockstep.lease x where x.name = a.name;
      end if;
    end if;

    i := a.i;
    place := a.place;
    over := null;
    ttl_ms := l.ttl_ms;
    leader_witness := l.witness;
    token := null;

    if l.holder = a.holder and l.expires_at > clock_timestamp() and not l.deposed then
      perform from lockstep.lease x
        where x.name = a.name and x.token = l.token and x.holder is not null and x.expires_at > clock_timestamp() and not x.deposed
          for no key update skip locked;
      if found then
        update lockstep.lease x
           set expires_at = greatest(x.expires_at, clock_timestamp() + a.ttl_ms * interval '1 ms'), ttl_ms = a.ttl_ms, witness = a.witness
         where x.name = a.name
        returning 'kept', x.token, x.granted_at, x.expires_at into outcome, token, granted_at, expires_at;
        delete from lockstep.candidate c where c.name = a.name and c.holder = a.holder;
        now := clock_timestamp();
        return next;
        continue;
      end if;
    end if;

    outcome := 'waiting';
    first := not exists (
      select from lockstep.candidate c
       where c.name = a.name and c.holder <> a.holder
         and (c.priority > a.priority or c.priority = a.priority and c.place < a.place)
         and lockstep.waits(c));
    expired := l.holder is not null and l.expires_at <= clock_timestamp();

    if expired and l.over_at is null then
      update lockstep.lease x set over_at = clock_timestamp()
        from (select from lockstep.lease y where y.name = a.name and y.token = l.token for no key update skip locked) f
       where x.name = a.name;
    end if;
    if expired and a.over is distinct from l.token
       and (l.over_at is null or clock_timestamp() < l.over_at + l.ttl_ms * interval '1 ms') then
      over := l.token;
      wait_ms := 1 + extract(epoch from coalesce(l.over_at, clock_timestamp()) + l.ttl_ms * interval '1 ms' - clock_timestamp()) * 1000;
    elsif l.holder is not null and not expired then
      wait_ms := 1 + extract(epoch from l.expires_at - clock_timestamp() + case when first then interval '0' else grace end) * 1000;
    elsif not first and l.expires_at between clock_timestamp() - grace and clock_timestamp() then
      wait_ms := 1 + extract(epoch from l.expires_at + grace - clock_timestamp()) * 1000;
    else
      perform from lockstep.lease x
        where x.name = a.name and x.token = l.token and (x.holder is null or x.expires_at <= clock_timestamp())
          for update skip locked;
      if found then
        update lockstep.lease x
           set holder = a.holder, token = nextval('lockstep.token'), granted_at = clock_timestamp(),
               expires_at = clock_timestamp() + a.ttl_ms * interval '1 ms', ttl_ms = a.ttl_ms, meta = a.meta,
               witness = a.witness, deposed = false, over_at = null, revision = nextval('lockstep.token')
         where x.name = a.name
        returning 'granted', x.token, x.granted_at, x.expires_at into outcome, token, granted_at, expires_at;
        delete from lockstep.candidate c where c.name = a.name and c.holder = a.holder;
        perform lockstep.tell(a.name);
      else
        wait_ms := 100;  -- a transaction fenced by the last leader is still open, or somebody was quicker
      end if;
    end if;
    now := clock_timestamp();
    return next;
  end loop;
end $$;

-- Leaves the queue, and notifies if another candidate is the first now.
create function lockstep.withdraw(name text, holder text) returns void
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
begin
  delete from lockstep.candidate c where c.name = withdraw.name and c.holder = withdraw.holder;
  if found then
    perform lockstep.tell(l.name) from lockstep.lease l where l.name = withdraw.name;
  end if;
end $$;

-- Ends many terms at once. The answers are lists of positions: revoked; late (it had expired; it was ended all the same);
-- busy (a transaction that is fenced by it, or that resigns it, is still open: try again). All others had been lost. May
-- commit asynchronously: a lost resignation is late, never wrong.
create function lockstep.resign(names text[], tokens bigint[], out revoked bigint[], out late bigint[], out busy bigint[])
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
  a record;
  live boolean;
begin
  perform set_config('synchronous_commit', 'off', true);
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

-- Resigns inside the caller's transaction: the fence and the resignation commit with it. Raises LS001 if not held.
create function lockstep.resign_held(name text, token bigint) returns void
language plpgsql as $$
begin
  perform lockstep.assert_held(name, token);
  perform from lockstep.lease l where l.name = resign_held.name for update;
  perform lockstep.vacate(name);
  -- as in release_held
  perform set_config('lockstep.fence_checked', current_setting('lockstep.fence'), true);
end $$;

-- Changes the meta that observers see of a term: 'proclaimed', 'lost', or 'busy' (try again).
create function lockstep.proclaim(name text, token bigint, meta jsonb) returns text
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
begin
  perform from lockstep.lease l
    where l.name = proclaim.name and l.token = proclaim.token and l.holder is not null and not l.deposed
      and l.expires_at > clock_timestamp()
      for no key update skip locked;
  if found then
    update lockstep.lease l set meta = proclaim.meta, revision = nextval('lockstep.token') where l.name = proclaim.name;
    perform lockstep.tell(name);
    return 'proclaimed';
  end if;
  return case when exists (
    select from lockstep.lease l
     where l.name = proclaim.name and l.token = proclaim.token and l.holder is not null and not l.deposed
       and l.expires_at > clock_timestamp()) then 'busy' else 'lost' end;
end $$;

-- Asks the leader to step down: 'asked', 'none' (there is no leader), or 'busy' (try again). From now on its term is not
-- renewed and no fence of it holds. The term ends when the leader has stopped, at the latest when its lease runs out. So
-- the leader's signal still aborts before there is a successor.
create function lockstep.step_down(name text) returns text
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
begin
  perform from lockstep.lease l
    where l.name = step_down.name and l.holder is not null and l.expires_at > clock_timestamp()
      for no key update skip locked;
  if found then
    update lockstep.lease l set deposed = true
     where l.name = step_down.name and not l.deposed;
    if found then
      perform lockstep.tell(name);
    end if;
    return 'asked';
  end if;
  return case when exists (
    select from lockstep.lease l
     where l.name = step_down.name and l.holder is not null and l.expires_at > clock_timestamp()) then 'busy' else 'none' end;
end $$;

-- The leaders of many elections, by position; lives_ms: how long the term lasts unless it is renewed.
create function lockstep.leaders(names text[])
returns table (i bigint, holder text, token bigint, granted_at timestamptz, expires_at timestamptz, ttl_ms integer,
               meta jsonb, revision bigint, lives_ms double precision)
language sql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
  select a.i, l.holder, l.token, l.granted_at, l.expires_at, l.ttl_ms, l.meta, coalesce(r.revision, 0),
         extract(epoch from l.expires_at - clock_timestamp())::double precision * 1000
    from unnest(names) with ordinality a(name, i)
    left join lateral (select * from lockstep.lease x where x.name = a.name collate "C" limit 1) r on true
    left join lateral (select r.* where r.holder is not null and r.expires_at > clock_timestamp()
                          and (r.witness is null or not pg_try_advisory_xact_lock_shared(r.witness)) limit 1) l on true
   order by a.i
$$;

-- The candidates that wait, in the order of their turns.
create function lockstep.candidates(name text)
returns table (holder text, priority integer, since timestamptz, meta jsonb)
language sql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
  select c.holder, c.priority, c.since, c.meta from lockstep.candidate c
   where c.name = candidates.name collate "C" and lockstep.waits(c)
   order by c.priority desc, c.place
$$;

-- For programs without the package: raises LS001 unless the term is held now. The term stays held until the transaction
-- ends, and the transaction may write to fenced tables.
create function lockstep.assert_leader(name text, token bigint) returns void
language sql as $$
  select lockstep.assert_held(lockstep.election(name), token)
$$;


-- ── Changes to functions of leases ──────────────────────────────────────────────────────────────────────────────

-- As in 0001_lease.sql; a term whose leader was asked to step down is not renewed: outcome 'deposed'.
create or replace function lockstep.renew_leases(names text[], tokens bigint[], ttls integer[])
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
     where l.holder is not null and l.expires_at > clock_timestamp() and l.expires_at < 'infinity' and not l.deposed
       for no key update of l skip locked
  ), renewed as (
    update lockstep.lease l
       set expires_at = clock_timestamp() + coalesce(a.ttl_ms, l.ttl_ms) * interval '1 ms',
           ttl_ms = coalesce(a.ttl_ms, l.ttl_ms), over_at = null
      from asked a where l.name = a.name
    returning a.i
  )
  select array_agg(r.i) into done from renewed r;
  return query
    select a.i::integer,
           case when a.i = any (done) then 'renewed'
                when l.holder is not null and l.deposed then 'deposed'
                when l.holder is not null and l.expires_at > clock_timestamp() then 'busy'
                else 'lost' end,
           l.holder, l.granted_at, l.expires_at
      from unnest(names, tokens) with ordinality a(name, token, i)
      left join lockstep.lease l on l.name = a.name collate "C" and l.token = a.token
     order by a.i;
end $$;

-- As in 0001_lease.sql; and raises LS001 for a term whose leader was asked to step down.
create or replace function lockstep.assert_held(name text, token bigint) returns void
language plpgsql as $$
begin
  perform from lockstep.lease l
    where l.name = assert_held.name and l.token = assert_held.token
      and l.holder is not null and l.expires_at > clock_timestamp() and not l.deposed
      for key share;
  if not found then
    raise exception 'lockstep: % is not held under token %', quote_literal(name), token
      using errcode = 'LS001', hint = 'It was released, has expired, or has passed to another holder.';
  end if;
  perform set_config('lockstep.fence', name || ':' || token, true);
end $$;

-- As in 0001_lease.sql; and deletes candidates that are gone.
create or replace function lockstep.sweep(idle interval default '1 day', most integer default 1000) returns integer
language plpgsql as $$
declare
  gone integer;
begin
  delete from lockstep.candidate c where c.ctid = any (array(
    select x.ctid from lockstep.candidate x where not lockstep.waits(x) limit most for update skip locked));
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
