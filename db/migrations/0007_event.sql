-- Events: streams, and the groups that read them. The essay is in lib/event/events.ts.
--
-- Rules of this file:
-- · A transaction that appends to a stream has the stream's gate, an advisory lock, until it commits: so positions have no gaps
--   and follow the order of commits. `seq`, the order of everything, is drawn while the gate is held: within a stream it rises
--   with the position. A gate costs a twentieth of a row lock, and can be tried.
-- · Before a transaction draws its first seq it publishes the last seq that was drawn before, in a shared advisory lock that
--   ends with the transaction. So the locks show the lowest seq that may still commit (event_horizon).
-- · Events are always found by seq, or by stream and position, and the name of a stream is looked up for each (lateral … limit
--   1): a plan that begins with the streams would sort all of their events.
-- · Nothing that many callers share waits: a stream whose gate is taken is skipped, and asked for again by a call of its own.
-- · The settings of the planner are those of 0001_lease.sql, for the same reason: tables that grow from nothing in a burst.

create sequence lockstep.event_sequence minvalue 0 start 0;
select nextval('lockstep.event_sequence');  -- so that last_value is always the last one that was drawn

create table lockstep.stream (
  id       bigint generated always as identity primary key,
  name     text collate "C" not null unique,
  bucket   smallint not null,           -- of its name: which partition of a group it belongs to
  position bigint not null default 0,   -- of the last event; 0: none yet
  first    bigint not null default 1    -- of the first event that is still there
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

create table lockstep.event (
  seq      bigint primary key,          -- the order of everything; called cursor outside
  stream   bigint not null,
  position bigint not null,
  at       timestamptz not null,
  bytes    integer not null,            -- of its data, about: as stored they may be compressed
  bucket   smallint not null,
  type     text not null,
  data     jsonb not null,
  meta     jsonb,
  key      text collate "C",            -- its id, if the caller gave one
  unique (stream, position)
) with (autovacuum_vacuum_insert_scale_factor = 0.05);
create unique index event_key on lockstep.event (stream, key) where key is not null;

-- The bucket of a stream: 0–32767, evenly. A group with n partitions has the stream in partition bucket mod n.
create function lockstep.bucket(name text) returns smallint
language sql immutable strict parallel safe
return (hashtextextended(name collate "C", 5497548331942713703) & 32767)::smallint;


-- ── The horizon ─────────────────────────────────────────────────────────────────────────────────────────────────

-- The open transactions that have appended: their process, and the last seq that was drawn before theirs. The key of an advisory
-- lock has 32 bits for it; the upper bits are those of the sequence now, which is at most 2³² ahead.
create function lockstep.appending() returns table (pid integer, after bigint)
language plpgsql as $$
declare
  pids integer[];
  lows bigint[];
  now bigint;
begin
  select array_agg(k.pid), array_agg((k.objid::bigint + 2147483648) & 4294967295) into pids, lows
    from pg_locks k
   where k.locktype = 'advisory' and k.classid = 1702258030 and k.objsubid = 2
     and k.database = (select d.oid from pg_database d where d.datname = current_database());
  select s.last_value into now from lockstep.event_sequence s;  -- after the locks: none of them is ahead of it
  return query select l.pid, now - ((now - l.low) & 4294967295) from unnest(pids, lows) l(pid, low);
end $$;

-- Every event up to `horizon` has committed or never will. The next statement sees all of them, because a transaction's rows
-- become visible before its locks are gone. waits: something that was appended may still commit. last: the last seq that was
-- drawn.
--
-- The horizon is at most the last event that is there: a seq that was drawn after that one may be drawn again after a crash,
-- because a sequence is on disk only as far as a commit has taken it along.
create function lockstep.event_horizon(out horizon bigint, out last bigint, out waits boolean)
language plpgsql as $$
declare
  open_after bigint;
  top bigint;
begin
  perform lockstep.check_isolation();
  if pg_is_in_recovery() then
    raise exception 'lockstep: a standby does not know which events may still commit' using errcode = '25006';
  end if;
  select s.last_value into last from lockstep.event_sequence s;  -- before the locks: who draws later is ahead of it
  select min(a.after) into open_after from lockstep.appending() a;
  select max(e.seq) into top from lockstep.event e;
  horizon := least(open_after, last, coalesce(top, 0));
  waits := coalesce(open_after < last, false);
end $$;


-- ── Appending ───────────────────────────────────────────────────────────────────────────────────────────────────

-- Each listener has this lock, shared, for as long as its connection listens.
create function lockstep.events_key() returns bigint
language sql immutable parallel safe
return lockstep.key(E'event\tlisteners');

-- Whether anybody listens. If another backend asks at the same time the answer may be true though nobody does.
create function lockstep.events_heard() returns boolean
language sql as $$
  -- one expression: a cancel between two statements would leave the lock behind
  select case when pg_try_advisory_lock(lockstep.events_key()) then not pg_advisory_unlock(lockstep.events_key()) else true end;
$$;

-- Notifies that there are new events in these streams. A payload has at most 8,000 bytes: with too many streams none is named.
create function lockstep.tell_events(streams text[]) returns void
language plpgsql as $$
declare
  news text := (select json_agg(json_build_array(n, lockstep.bucket(n)))::text from unnest(streams) n);
begin
  perform pg_notify('lockstep_event', case when octet_length(news) > 7900 then '[]' else news end);
end $$;

-- The gate of a stream: only the transaction that has it appends to the stream, makes it, or removes from it.
create function lockstep.gate(stream text) returns bigint
language sql immutable strict parallel safe
return lockstep.key(E'stream\t' || stream);

-- The first step of every append: checks the sequences, and publishes.
create function lockstep.begin_append() returns void
language plpgsql as $$
declare
  top bigint;
  drawn bigint;
  begun boolean;
begin
  -- A database that was restored, or replicated, without its sequences would give numbers a second time. Once in a session: whoever
  -- restores is not connected while it is done.
  if coalesce(current_setting('lockstep.aligned', true), '') = '' then
    select max(e.seq) into top from lockstep.event e;
    select s.last_value, s.is_called into drawn, begun from lockstep.event_sequence s;
    if top > drawn or not begun then
      raise exception 'lockstep: the sequences of this database are behind its rows'
        using errcode = 'LS006', hint = 'After a restore run the migrations: they set it right.';
    end if;
    perform set_config('lockstep.aligned', 'on', false);
  end if;
  -- Publish, once in a transaction. A savepoint that is rolled back takes both back, and the events with them.
  if coalesce(current_setting('lockstep.appending', true), '') = '' then
    perform pg_advisory_xact_lock_shared(1702258030, ((s.last_value & 4294967295) - 2147483648)::integer)
       from lockstep.event_sequence s;
    perform set_config('lockstep.appending', 'on', true);
  end if;
end $$;

-- Appends many events at once to streams that exist, at any position: the common case, in two queries. Streams are sorted, in
-- the same order for all callers, so that no two calls deadlock. Event j is the nths[j]th of streams[which[j]], of which there
-- are totals. befores: the last position of each stream before; null: nothing was appended, because somebody else has its gate
-- or it does not exist. heard: somebody listens and was not notified; with `tells` the transaction itself notifies.
create function lockstep.append_any(
  streams text[], totals integer[], which integer[], nths integer[], types text[], datas jsonb, metas jsonb, tells boolean,
  out befores bigint[], out heard boolean
) language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
  places bigint[];
  ids bigint[];
  buckets smallint[];
  now timestamptz;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform lockstep.check_isolation();
  end if;
  perform lockstep.begin_append();
  with gated as materialized (
    select a.k, a.name, a.total from unnest(streams, totals) with ordinality a(name, total, k)
     where pg_try_advisory_xact_lock(lockstep.gate(a.name))
  ), moved as (
    update lockstep.stream s set position = s.position + g.total from gated g where s.name = g.name collate "C"
    returning g.k, s.id, s.bucket, s.position - g.total as before
  )
  select array_agg(m.k order by m.k), array_agg(m.id order by m.k), array_agg(m.bucket order by m.k), array_agg(m.before order by m.k)
    into places, ids, buckets, befores from moved m;
  if coalesce(cardinality(places), 0) < cardinality(streams) then  -- with holes, for those that were left out
    select array_agg(ids[b.i] order by a.k), array_agg(buckets[b.i] order by a.k), array_agg(befores[b.i] order by a.k)
      into ids, buckets, befores
      from generate_series(1, cardinality(streams)) a(k), lateral (select array_position(places, a.k::bigint) as i) b;
  end if;
  now := clock_timestamp();
  insert into lockstep.event (seq, stream, position, at, bytes, bucket, type, data, meta)
  select nextval('lockstep.event_sequence'), ids[v.w], befores[v.w] + v.nth, now, pg_column_size(v.data), buckets[v.w], v.type, v.data, nullif(v.meta, 'null')
    from rows from (unnest(which), unnest(nths), unnest(types), jsonb_array_elements(datas), jsonb_array_elements(metas))
      as v(w, nth, type, data, meta)
   where ids[v.w] is not null;
  heard := found and lockstep.events_heard();
  if heard and tells then
    perform lockstep.tell_events(array(select streams[a.k] from unnest(befores) with ordinality a(before, k) where a.before is not null));
    heard := false;
  end if;
end $$;

-- Appends of any kind, many at once. Ask k is for streams[which[k]] and expects it at expecteds[k] (null: anywhere; −1: not
-- empty). Asks for one stream follow one another. Event j is the nths[j]th of ask asked[j]; keys is null if no event has an id.
-- By ask:
--   appended  from firsts to lasts
--   repeated  events with these ids are there, from firsts to lasts
--   reused    some of the ids belong to other events
--   conflict  the stream is at lasts
--   busy      somebody else has its gate
-- waits: for how many milliseconds to wait for the gate of a stream; 0: as the transaction is set; null: it is busy at once.
-- heard: somebody listens and was not notified; with `tells` the transaction itself notifies.
create function lockstep.append(
  streams text[], which integer[], expecteds bigint[], counts integer[],
  asked integer[], nths integer[], types text[], datas jsonb, metas jsonb, keys text[], waits integer, tells boolean,
  out outcomes text[], out firsts bigint[], out lasts bigint[], out heard boolean
) language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
  gated boolean[];
  ids bigint[];
  positions bigint[];
  buckets smallint[];
  now timestamptz;
  low bigint;
  high bigint;
  found_keys text[];
  start integer := 0;
  w integer;
begin
  if current_setting('transaction_isolation') <> 'read committed' and waits is distinct from 0 then
    perform lockstep.check_isolation();
  end if;
  perform lockstep.begin_append();
  if waits is null then
    gated := array(select pg_try_advisory_xact_lock(lockstep.gate(a.name)) from unnest(streams) with ordinality a(name, k) order by a.k);
  else
    if waits > 0 then
      perform set_config('lock_timeout', waits || 'ms', true);
    end if;
    perform pg_advisory_xact_lock(lockstep.gate(a.name)) from unnest(streams) a(name);
    gated := array_fill(true, array[cardinality(streams)]);
  end if;
  -- From here on each query sees what was committed before the gates were gained.
  for again in 1 .. 2 loop
    select array_agg(s.id order by a.k), array_agg(coalesce(s.position, 0) order by a.k), array_agg(s.bucket order by a.k)
      into ids, positions, buckets
      from unnest(streams) with ordinality a(name, k)
      left join lateral (select x.id, x.position, x.bucket from lockstep.stream x
                          where x.name = a.name collate "C" and gated[a.k] limit 1) s on true;
    exit when again = 2 or array_position(ids, null) is null;
    insert into lockstep.stream (name, bucket)
    select a.name, lockstep.bucket(a.name) from unnest(streams) with ordinality a(name, k)
     where gated[a.k] and ids[a.k] is null
       and exists (select from unnest(which, expecteds) b(w, expected) where b.w = a.k and coalesce(b.expected, 0) = 0)
    on conflict (name) do nothing;
    exit when not found;
  end loop;

  for k in 1 .. cardinality(which) loop
    w := which[k];
    outcomes[k] := null;
    firsts[k] := null;
    lasts[k] := positions[w];
    if not gated[w] then
      outcomes[k] := 'busy';
    elsif ids[w] is null then
      outcomes[k] := 'conflict';
    elsif keys[start + 1] is not null then
      select min(e.position), max(e.position), array_agg(e.key order by e.position) into low, high, found_keys
        from unnest(keys[start + 1 : start + counts[k]]) wanted(key)
        join lockstep.event e on e.stream = ids[w] and e.key = wanted.key collate "C";
      if found_keys is not null then
        outcomes[k] := case when found_keys = keys[start + 1 : start + counts[k]] and high - low = counts[k] - 1
                            then 'repeated' else 'reused' end;
        firsts[k] := low;
        lasts[k] := high;
      end if;
    end if;
    if outcomes[k] is null and (expecteds[k] is null or expecteds[k] = positions[w] or expecteds[k] = -1 and positions[w] > 0) then
      outcomes[k] := 'appended';
      firsts[k] := positions[w] + 1;
      positions[w] := positions[w] + counts[k];
      lasts[k] := positions[w];
    end if;
    outcomes[k] := coalesce(outcomes[k], 'conflict');
    start := start + counts[k];
  end loop;
  heard := false;
  if not 'appended' = any (outcomes) then
    return;
  end if;

  -- first: in a REPEATABLE READ transaction, which does not see what came between, it fails to serialize
  update lockstep.stream s set position = p.position
    from (select ids[which[a.k]] as id, max(a.last) as position
            from unnest(lasts, outcomes) with ordinality a(last, outcome, k) where a.outcome = 'appended'
           group by 1) p
   where s.id = p.id;
  now := clock_timestamp();
  insert into lockstep.event (seq, stream, position, at, bytes, bucket, type, data, meta, key)
  select nextval('lockstep.event_sequence'), ids[which[v.ask]], firsts[v.ask] + v.nth - 1, now, pg_column_size(v.data), buckets[which[v.ask]],
         v.type, v.data, nullif(v.meta, 'null'), v.key
    from rows from (unnest(asked), unnest(nths), unnest(types), jsonb_array_elements(datas), jsonb_array_elements(metas), unnest(keys))
      as v(ask, nth, type, data, meta, key)
   where outcomes[v.ask] = 'appended';

  heard := lockstep.events_heard();
  if heard and tells then
    perform lockstep.tell_events(array(
      select distinct streams[which[a.k]] from unnest(outcomes) with ordinality a(outcome, k) where a.outcome = 'appended'));
    heard := false;
  end if;
end $$;


-- ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

-- An event as a reader gets it: one JSON array, so that a page is one text. Positions are strings: JSON's numbers end at 2⁵³.
create function lockstep.shown(stream text, "position" bigint, seq bigint, type text, data jsonb, meta jsonb, key text, at timestamptz,
                               attempt integer) returns json
language sql stable parallel safe
return json_build_array(stream, "position"::text, seq::text, type, data, meta, key, floor(extract(epoch from at) * 1000), attempt);

-- A page has at most 4 MiB of data, but always one event.
create function lockstep.page_bytes() returns bigint language sql immutable parallel safe return 4194304;

-- A page of a stream from a position on.
create function lockstep.read_stream(stream text, start bigint, most integer, backwards boolean,
                                     out events json, out last bigint, out first bigint, out stands bigint)
language plpgsql
set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  s lockstep.stream;
  total bigint;
begin
  select * into s from lockstep.stream x where x.name = read_stream.stream collate "C";
  stands := coalesce(s.position, 0);
  first := coalesce(s.first, 1);
  if backwards then
    select min(p.position), sum(p.bytes) into last, total from (
      select x.position, x.bytes from lockstep.event x where x.stream = s.id and x.position <= start
       order by x.position desc limit most) p;
    if total > lockstep.page_bytes() then
      select min(p.position) into last from (
        select x.position, row_number() over w as n, sum(x.bytes) over w as bytes
          from lockstep.event x where x.stream = s.id and x.position <= start and x.position >= last
        window w as (order by x.position desc rows unbounded preceding)) p
       where p.n = 1 or p.bytes <= lockstep.page_bytes();
    end if;
    select json_agg(lockstep.shown(s.name, x.position, x.seq, x.type, x.data, x.meta, x.key, x.at, null)) into events from (
      select * from lockstep.event y where y.stream = s.id and y.position <= start and y.position >= last order by y.position desc) x;
  else
    select max(p.position), sum(p.bytes) into last, total from (
      select x.position, x.bytes from lockstep.event x where x.stream = s.id and x.position >= start
       order by x.position limit most) p;
    if total > lockstep.page_bytes() then
      select max(p.position) into last from (
        select x.position, row_number() over w as n, sum(x.bytes) over w as bytes
          from lockstep.event x where x.stream = s.id and x.position >= start and x.position <= last
        window w as (order by x.position rows unbounded preceding)) p
       where p.n = 1 or p.bytes <= lockstep.page_bytes();
    end if;
    select json_agg(lockstep.shown(s.name, x.position, x.seq, x.type, x.data, x.meta, x.key, x.at, null)) into events from (
      select * from lockstep.event y where y.stream = s.id and y.position >= start and y.position <= last order by y.position) x;
  end if;
end $$;

-- A page of all streams under a prefix, after a seq. next: the seq that the page reaches to. waits: something that was appended
-- may still commit. One call looks at 50,000 events at most.
create function lockstep.read_all(prefix text, after bigint, most integer,
                                  out events json, out next bigint, out more boolean, out waits boolean)
language plpgsql
set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  horizon bigint;
  upto bigint;
  last bigint;
  seen bigint;
  total bigint;
begin
  select h.horizon, h.waits into horizon, waits from lockstep.event_horizon() h;
  upto := case when after > horizon then after else least(horizon, after + 50000) end;
  if prefix = '' then
    select max(p.seq), count(*), sum(p.bytes) into last, seen, total from (
      select x.seq, x.bytes from lockstep.event x where x.seq > after and x.seq <= upto order by x.seq limit most) p;
  else
    select max(p.seq), count(*), sum(p.bytes) into last, seen, total from (
      select x.seq, x.bytes from lockstep.event x cross join lateral (select z.name from lockstep.stream z where z.id = x.stream limit 1) s
       where x.seq > after and x.seq <= upto and starts_with(s.name, prefix) order by x.seq limit most) p;
  end if;
  if total > lockstep.page_bytes() then
    select max(p.seq) into last from (
      select x.seq, row_number() over w as n, sum(x.bytes) over w as bytes
        from lockstep.event x cross join lateral (select z.name from lockstep.stream z where z.id = x.stream limit 1) s
       where x.seq > after and x.seq <= last and starts_with(s.name, prefix)
      window w as (order by x.seq rows unbounded preceding)) p
     where p.n = 1 or p.bytes <= lockstep.page_bytes();
  end if;
  next := case when seen = most or total > lockstep.page_bytes() then last else greatest(upto, after) end;
  more := next < horizon;
  if seen > 0 then
    select json_agg(lockstep.shown(x.name, x.position, x.seq, x.type, x.data, x.meta, x.key, x.at, null)) into events from (
      select y.*, s.name from lockstep.event y cross join lateral (select z.name from lockstep.stream z where z.id = y.stream limit 1) s
       where y.seq > after and y.seq <= last and starts_with(s.name, prefix) order by y.seq) x;
  end if;
end $$;


-- ── Groups ──────────────────────────────────────────────────────────────────────────────────────────────────────

create table lockstep.consumer_group (
  name           text collate "C" primary key,
  prefix         text not null,
  partitions     integer not null,
  retry_limit    integer not null,
  retry_delay_ms integer not null
);

-- Everything up to seq was applied, except in streams that stand still. turn: one more with every change, so that an older
-- batch cannot be committed any more. committed: what the last change committed, so that the same commit may be repeated.
create table lockstep.checkpoint (
  group_name text collate "C" not null,
  partition  integer not null,
  seq        bigint not null,
  turn       bigint not null default 0,
  committed  bigint,
  primary key (group_name, partition)
) with (fillfactor = 50);

-- A stream that stands still in a group, since the event at `position` failed. The checkpoint passes it by. When the event has
-- succeeded, the stream catches up with the checkpoint and goes on with the others.
create table lockstep.stuck (
  group_name text collate "C" not null,
  stream     bigint not null,
  partition  integer not null,
  position   bigint not null,
  attempts   integer not null,
  due_at     timestamptz not null,      -- 'infinity': parked
  reason     jsonb,
  at         timestamptz not null,
  primary key (group_name, stream)
);
create index stuck_due on lockstep.stuck (group_name, partition, due_at);

-- The name of a partition's lease. No lock has a control character in its name.
create function lockstep.partition(group_name text, partition integer) returns text
language sql immutable strict parallel safe
return E'group\t' || group_name || E'\t' || partition;

-- Makes a group that reads after a seq (null: from now on). For a group that exists it changes how it retries (null: as it was).
create function lockstep.declare_group(group_name text, prefix text, partitions integer, after bigint, retry_limit integer, retry_delay_ms integer)
returns table (made boolean, has_prefix text, has_partitions integer)
language plpgsql as $$
#variable_conflict use_column
begin
  insert into lockstep.consumer_group as g (name, prefix, partitions, retry_limit, retry_delay_ms)
  values (declare_group.group_name, coalesce(declare_group.prefix, ''), coalesce(declare_group.partitions, 8),
          coalesce(declare_group.retry_limit, 5), coalesce(declare_group.retry_delay_ms, 1000))
  on conflict (name) do nothing
  returning g.prefix, g.partitions into has_prefix, has_partitions;
  made := found;
  if made then
    insert into lockstep.checkpoint (group_name, partition, seq)
    select declare_group.group_name, p, coalesce(declare_group.after, h.horizon)
      from lockstep.event_horizon() h, generate_series(0, has_partitions - 1) p;
  else
    select g.prefix, g.partitions into has_prefix, has_partitions from lockstep.consumer_group g where g.name = declare_group.group_name;
    if declare_group.prefix is distinct from has_prefix and declare_group.prefix is not null
       or declare_group.partitions is distinct from has_partitions and declare_group.partitions is not null then
      return next;
      return;
    end if;
    update lockstep.consumer_group g
       set retry_limit = coalesce(declare_group.retry_limit, g.retry_limit),
           retry_delay_ms = coalesce(declare_group.retry_delay_ms, g.retry_delay_ms)
     where g.name = declare_group.group_name
       and (g.retry_limit, g.retry_delay_ms) is distinct from
           (coalesce(declare_group.retry_limit, g.retry_limit), coalesce(declare_group.retry_delay_ms, g.retry_delay_ms));
  end if;
  return next;
end $$;

create function lockstep.delete_group(group_name text) returns boolean
language plpgsql as $$
begin
  -- in the order in which who commits locks them; who waits for them finds them gone
  delete from lockstep.lease l
   where l.name > E'group\t' || delete_group.group_name || E'\t' and l.name < E'group\t' || delete_group.group_name || E'\n';
  delete from lockstep.checkpoint c where c.group_name = delete_group.group_name;
  delete from lockstep.stuck s where s.group_name = delete_group.group_name;
  delete from lockstep.consumer_group g where g.name = delete_group.group_name;
  return found;
end $$;

-- Lets a stream that stood still go on with the others, if nothing of it is left before the checkpoint. The caller has the
-- checkpoint locked, and takes the next turn, because an older batch has passed this stream by.
create function lockstep.unstick(group_name text, partition integer, stream bigint) returns void
language sql as $$
  delete from lockstep.stuck k using lockstep.checkpoint c
   where k.group_name = unstick.group_name and k.stream = unstick.stream
     and c.group_name = unstick.group_name and c.partition = unstick.partition
     and not exists (select from lockstep.event e
                      where e.stream = unstick.stream and e.position >= k.position and e.seq <= c.seq);
$$;

create function lockstep.next_turn(group_name text, partition integer, seq bigint, committed bigint) returns void
language sql as $$
  update lockstep.checkpoint c set seq = greatest(c.seq, next_turn.seq), turn = c.turn + 1, committed = next_turn.committed
   where c.group_name = next_turn.group_name and c.partition = next_turn.partition;
$$;

-- Locks a partition's checkpoint for the holder of the partition. Raises LS001 if the caller does not hold it.
create function lockstep.hold_checkpoint(group_name text, partition integer, token bigint) returns lockstep.checkpoint
language plpgsql as $$
declare
  c lockstep.checkpoint;
begin
  perform lockstep.assert_held(lockstep.partition(group_name, partition), token);
  select * into c from lockstep.checkpoint x
   where x.group_name = hold_checkpoint.group_name and x.partition = hold_checkpoint.partition for no key update;
  if not found then
    raise exception 'lockstep: there is no partition % of a group %', partition, quote_literal(group_name) using errcode = 'LS001';
  end if;
  return c;
end $$;

create function lockstep.refuse_turn(group_name text, partition integer) returns void
language plpgsql as $$
begin
  raise exception 'lockstep: partition % of % has gone on since this was given', partition, quote_literal(group_name)
    using errcode = 'LS005', hint = 'It was committed, an event of it failed, or a stream that had failed caught up: poll again.';
end $$;

-- What is next in a partition: events of a stream whose retry is due, or of all others. held: whether the caller holds the
-- partition; if not, nothing is returned. next, turn: what to commit. more: there may be more at once. waits: something that
-- was appended may still commit. wait_ms: until a retry is due. It waits for nobody: many partitions are read in one statement.
create function lockstep.read_partition(group_name text, partition integer, token bigint, most integer,
                                        out held boolean, out events json, out next bigint, out turn bigint, out more boolean,
                                        out waits boolean, out wait_ms double precision)
language plpgsql
set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  g lockstep.consumer_group;
  c lockstep.checkpoint;
  k lockstep.stuck;
  horizon bigint;
  upto bigint;
  last bigint;
  seen bigint;
  total bigint;
begin
  more := false;
  select h.horizon, h.waits into horizon, waits from lockstep.event_horizon() h;
  held := exists (select from lockstep.lease l
                   where l.name = lockstep.partition(read_partition.group_name, read_partition.partition)
                     and l.token = read_partition.token and l.holder is not null and l.expires_at > clock_timestamp());
  select * into g from lockstep.consumer_group x where x.name = read_partition.group_name;
  select * into c from lockstep.checkpoint x
   where x.group_name = read_partition.group_name and x.partition = read_partition.partition;
  held := held and c.seq is not null and g.name is not null;
  if not held then
    return;
  end if;
  turn := c.turn;

  select * into k from lockstep.stuck x
   where x.group_name = read_partition.group_name and x.partition = read_partition.partition and x.due_at <= clock_timestamp()
   order by x.due_at limit 1;
  if found then
    select max(p.seq) into next from (
      select x.seq, row_number() over w as n, sum(x.bytes) over w as bytes
        from (select y.seq, y.position, y.bytes from lockstep.event y
               where y.stream = k.stream and y.position >= k.position and y.seq <= c.seq order by y.position limit most) x
      window w as (order by x.position rows unbounded preceding)) p
     where p.n = 1 or p.bytes <= lockstep.page_bytes();
    select json_agg(lockstep.shown(x.name, x.position, x.seq, x.type, x.data, x.meta, x.key, x.at,
                                   case when x.position = x.least then k.attempts + 1 else 1 end)) into events from (
      select y.*, s.name, min(y.position) over () as least from lockstep.event y cross join lateral (select z.name from lockstep.stream z where z.id = y.stream limit 1) s
       where y.stream = k.stream and y.position >= k.position and y.seq <= next order by y.position) x;
    more := true;
    if events is null then  -- what it stood before was removed
      perform from lockstep.checkpoint x
        where x.group_name = read_partition.group_name and x.partition = read_partition.partition and x.turn = c.turn
          for no key update skip locked;
      if found then
        perform lockstep.unstick(group_name, partition, k.stream);
        perform lockstep.next_turn(group_name, partition, c.seq, null);
      end if;
    end if;
    return;
  end if;

  upto := least(horizon, c.seq + 50000);
  select max(p.seq), count(*), sum(p.bytes) into last, seen, total from (
    select x.seq, x.bytes from lockstep.event x cross join lateral (select z.name from lockstep.stream z where z.id = x.stream limit 1) s
     where x.seq > c.seq and x.seq <= upto and x.bucket % g.partitions = read_partition.partition and starts_with(s.name, g.prefix)
       and not exists (select from lockstep.stuck y where y.group_name = g.name and y.stream = x.stream)
     order by x.seq limit most) p;
  if total > lockstep.page_bytes() then
    select max(p.seq) into last from (
      select x.seq, row_number() over w as n, sum(x.bytes) over w as bytes
        from lockstep.event x cross join lateral (select z.name from lockstep.stream z where z.id = x.stream limit 1) s
       where x.seq > c.seq and x.seq <= last and x.bucket % g.partitions = read_partition.partition and starts_with(s.name, g.prefix)
         and not exists (select from lockstep.stuck y where y.group_name = g.name and y.stream = x.stream)
      window w as (order by x.seq rows unbounded preceding)) p
     where p.n = 1 or p.bytes <= lockstep.page_bytes();
  end if;
  if seen > 0 then
    select json_agg(lockstep.shown(x.name, x.position, x.seq, x.type, x.data, x.meta, x.key, x.at, 1)) into events from (
      select y.*, s.name from lockstep.event y cross join lateral (select z.name from lockstep.stream z where z.id = y.stream limit 1) s
       where y.seq > c.seq and y.seq <= last and y.bucket % g.partitions = read_partition.partition and starts_with(s.name, g.prefix)
         and not exists (select from lockstep.stuck z where z.group_name = g.name and z.stream = y.stream)
       order by y.seq) x;
  end if;
  next := case when seen = most or total > lockstep.page_bytes() then last else greatest(upto, c.seq) end;
  more := next < horizon;
  select extract(epoch from min(x.due_at) - clock_timestamp()) * 1000 into wait_ms from lockstep.stuck x
   where x.group_name = read_partition.group_name and x.partition = read_partition.partition and x.due_at < 'infinity';
  -- a stretch without events: so that nobody looks through it twice
  if seen = 0 and next > c.seq + 1000 then
    perform from lockstep.checkpoint x
      where x.group_name = read_partition.group_name and x.partition = read_partition.partition and x.turn = c.turn
        for no key update skip locked;
    if found then
      perform lockstep.next_turn(group_name, partition, next, null);
    end if;
  end if;
end $$;

-- Commits a batch: everything up to `next` was applied. It happens in the caller's transaction if the caller holds the
-- partition and nothing has changed since, or not at all. `again`: it may also have been committed before; not for a
-- transaction with effects of its own, which would then happen twice. Raises LS001, LS005.
create function lockstep.commit_events(group_name text, partition integer, token bigint, next bigint, turn bigint,
                                       again boolean default false) returns void
language plpgsql as $$
declare
  c lockstep.checkpoint := lockstep.hold_checkpoint(group_name, partition, token);
  e lockstep.event;
begin
  if c.turn = turn + 1 and c.committed = next and again then
    return;
  end if;
  if c.turn <> turn then
    perform lockstep.refuse_turn(group_name, partition);
  end if;
  if next <= c.seq then  -- of a stream that stands still
    select * into e from lockstep.event x where x.seq = next;
    update lockstep.stuck k set position = e.position + 1, attempts = 0, due_at = clock_timestamp(), reason = null
     where k.group_name = commit_events.group_name and k.stream = e.stream and k.position <= e.position;
    if not found then
      perform lockstep.refuse_turn(group_name, partition);
    end if;
    perform lockstep.unstick(group_name, partition, e.stream);
  end if;
  perform lockstep.next_turn(group_name, partition, next, next);
end $$;

-- An event of the batch up to `next` failed, and all events before it were applied. Its stream stands still until it is due
-- again, or for good ('infinity'). Raises LS001, LS005, and LS007 if the event was not in the batch.
create function lockstep.fail_event(group_name text, partition integer, token bigint, next bigint, turn bigint, failed bigint, why jsonb,
                                    out attempts integer, out due_at timestamptz)
language plpgsql as $$
#variable_conflict use_column
declare
  c lockstep.checkpoint := lockstep.hold_checkpoint(group_name, partition, token);
  g lockstep.consumer_group;
  e lockstep.event;
  k lockstep.stuck;
begin
  if c.turn <> turn then
    perform lockstep.refuse_turn(group_name, partition);
  end if;
  select * into g from lockstep.consumer_group x where x.name = fail_event.group_name;
  select x.* into e from lockstep.event x where x.seq = failed and x.bucket % g.partitions = fail_event.partition;
  select x.* into k from lockstep.stuck x where x.group_name = fail_event.group_name and x.stream = e.stream;
  if e.seq is null or e.seq > next
     or next > c.seq and (e.seq <= c.seq or k.stream is not null)
     or next <= c.seq and coalesce(k.position > e.position, true) then
    raise exception 'lockstep: event % was not given with this', failed using errcode = 'LS007';
  end if;
  attempts := case when k.position = e.position then k.attempts else 0 end + 1;
  due_at := case when attempts > g.retry_limit then 'infinity'
                 else clock_timestamp() + least(g.retry_delay_ms * power(2, least(attempts - 1, 30)), greatest(60000, g.retry_delay_ms)) * interval '1 ms' end;
  insert into lockstep.stuck (group_name, stream, partition, position, attempts, due_at, reason, at)
  values (fail_event.group_name, e.stream, fail_event.partition, e.position, attempts, due_at, why, clock_timestamp())
  on conflict (group_name, stream) do update
    set position = excluded.position, attempts = excluded.attempts, due_at = excluded.due_at, reason = excluded.reason, at = excluded.at;
  perform lockstep.next_turn(group_name, partition, failed, null);
end $$;

-- Lets parked streams go on, one (null: all), from the event that failed or with `skip` from the one after it.
create function lockstep.redeliver(group_name text, stream text, skip boolean) returns integer
language plpgsql as $$
declare
  done integer := 0;
  k lockstep.stuck;
begin
  for k in
    select x.* from lockstep.stuck x join lockstep.stream s on s.id = x.stream
     where x.group_name = redeliver.group_name and x.due_at = 'infinity' and (redeliver.stream is null or s.name = redeliver.stream)
     order by x.partition, x.stream
  loop
    if skip then
      perform from lockstep.checkpoint c where c.group_name = k.group_name and c.partition = k.partition for no key update;
    end if;
    update lockstep.stuck x
       set position = x.position + case when skip then 1 else 0 end, attempts = 0, due_at = clock_timestamp()
     where x.group_name = k.group_name and x.stream = k.stream and x.position = k.position and x.due_at = 'infinity';
    if found then
      done := done + 1;
      if skip then
        perform lockstep.unstick(k.group_name, k.partition, k.stream);
        perform lockstep.next_turn(k.group_name, k.partition, 0, null);
      end if;
    end if;
  end loop;
  return done;
end $$;


-- ── Keeping ─────────────────────────────────────────────────────────────────────────────────────────────────────

-- How long events of the streams under a prefix are kept; the longest prefix counts.
create table lockstep.retention (
  prefix     text collate "C" primary key,
  max_age_ms bigint,
  max_count  bigint
);

-- Removes at most `most` events of a stream before a position, except those that a group has yet to read. waiting_for: groups
-- that have yet to read some of those. more: call again.
create function lockstep.truncate_stream(stream text, before bigint, force boolean, most integer, waits boolean,
                                         out removed bigint, out first bigint, out waiting_for text[], out more boolean)
language plpgsql
set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  s lockstep.stream;
  upto bigint;
begin
  removed := 0;
  waiting_for := '{}';
  more := false;
  if waits then
    perform pg_advisory_xact_lock(lockstep.gate(stream));
  elsif not pg_try_advisory_xact_lock(lockstep.gate(stream)) then
    return;
  end if;
  select * into s from lockstep.stream x where x.name = truncate_stream.stream collate "C";
  first := coalesce(s.first, 1);
  if s.id is null then
    return;
  end if;
  before := least(before, s.position + 1);
  upto := least(before, s.first + most);
  if upto <= s.first then
    return;
  end if;
  if not force then
    select coalesce(array_agg(g.name order by g.name), '{}'), greatest(s.first, least(upto, min(g.unread)))
      into waiting_for, upto
      from (
        select x.name, least(k.position, (
                 select e.position from lockstep.event e
                  where e.stream = s.id and e.position >= s.first and e.position < upto and e.seq > c.seq
                  order by e.position limit 1)) as unread
          from lockstep.consumer_group x
          join lockstep.checkpoint c on c.group_name = x.name and c.partition = s.bucket % x.partitions
          left join lockstep.stuck k on k.group_name = x.name and k.stream = s.id
         where starts_with(s.name, x.prefix)
      ) g
     where g.unread < upto;
  end if;
  delete from lockstep.event e where e.stream = s.id and e.position < upto;
  get diagnostics removed = row_count;
  update lockstep.stream x set first = upto where x.id = s.id and x.first < upto;
  first := upto;
  more := upto < before and waiting_for = '{}';
end $$;

-- Applies the retention rules to 200 streams after a name, or fewer if much is removed. last: the name to go on after; null:
-- there are no more. Streams that somebody appends to are left for the next time.
create function lockstep.sweep_events(after text, out removed bigint, out last text)
language plpgsql
set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  s record;
  before bigint;
  first bigint;
  gone record;
begin
  removed := 0;
  for s in
    select x.id, x.name, x.first, x.position, r.max_age_ms, r.max_count
      from (select * from lockstep.stream y where y.name > after order by y.name limit 200) x
      left join lateral (select * from lockstep.retention z where starts_with(x.name, z.prefix)
                          order by length(z.prefix) desc limit 1) r on true
     order by x.name
  loop
    first := s.first;
    loop
      before := s.position - s.max_count + 1;
      if s.max_age_ms is not null then
        before := greatest(before, (
          select max(e.position) + 1 from (
            select y.position, y.at from lockstep.event y where y.stream = s.id and y.position >= first
             order by y.position limit 10000) e
           where e.at < clock_timestamp() - s.max_age_ms * interval '1 ms'));
      end if;
      exit when before is null or before <= first;
      select * into gone from lockstep.truncate_stream(s.name, before, false, 10000, false);
      removed := removed + gone.removed;
      exit when gone.removed = 0;
      if removed >= 50000 then
        last := coalesce(last, after);  -- and this one once more
        return;
      end if;
      first := gone.first;
    end loop;
    last := s.name;
  end loop;
end $$;


-- ── After a restore ─────────────────────────────────────────────────────────────────────────────────────────────

-- Whether a sequence is behind the rows that were numbered from it, as when tables were restored or replicated without their
-- sequences. Then tokens would be granted, and positions used, a second time.
create function lockstep.misaligned() returns boolean
language sql security definer set search_path = pg_catalog, pg_temp as $$
  select coalesce(bool_or(x), false) from (values
    ((select not s.is_called from lockstep.event_sequence s)),
    ((select max(e.seq) from lockstep.event e) > (select s.last_value from lockstep.event_sequence s)),
    ((select max(c.seq) from lockstep.checkpoint c) > (select s.last_value from lockstep.event_sequence s)),
    ((select max(t.id) from lockstep.stream t) > (select s.last_value from lockstep.stream_id_seq s)),
    ((select max(l.token) from lockstep.lease l) >= (select s.last_value from lockstep.token s) + 4096)) a(x)
$$;

-- Sets the sequences right. For a role that may; `lockstep migrate` calls it.
create function lockstep.realign() returns void
language plpgsql as $$
begin
  lock table lockstep.lease, lockstep.event, lockstep.checkpoint in share row exclusive mode;
  perform setval('lockstep.event_sequence', greatest((select s.last_value from lockstep.event_sequence s),
                                                     (select max(e.seq) from lockstep.event e),
                                                     (select max(c.seq) from lockstep.checkpoint c)));
  perform setval('lockstep.stream_id_seq', greatest((select s.last_value from lockstep.stream_id_seq s),
                                                    (select max(t.id) from lockstep.stream t)));
  perform setval('lockstep.token', greatest((select s.last_value from lockstep.token s),
                                            (select max(l.token) + 4096 from lockstep.lease l)));
end $$;
