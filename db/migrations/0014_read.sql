-- Reading within limits of memory, for followers and for groups.
--
-- The pages of 0007_event.sql have up to 4 MiB for each reader, however many readers there are. Here the reader says how many
-- bytes it has room for. The size of an event is that of its text as it is sent, not its size on disk: a number of six
-- characters may be stored in twelve bytes and shown with three hundred digits. An answer that carries many is counted as the
-- string of JSON that some carriers make of it, in which each quote and each backslash is escaped once more: Lambda refuses an
-- answer of more than 6,291,556 such bytes.


-- -- Followers ---------------------------------------------------------------------------------------------------

-- Events of a stream from a position on, of `room` bytes at most. Each is a JSON text as it is shown over HTTP, so that it can
-- be passed on without being parsed. The last row has no event: it says where to read on (next) and whether there is more. If
-- the first event has no room, no event is returned, and `bytes` of the last row is its size; of an event that is already too
-- large on disk it is an estimate, so that its text is not made for nothing.
create function lockstep.try_read_stream(stream text, start bigint, most integer, room bigint)
returns table (place bigint, event text, bytes bigint, next bigint, more boolean, waits boolean)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  s lockstep.stream;
  e record;
  upto bigint;
  seen integer := 0;
  total bigint := 0;
begin
  waits := false;
  select x.* into s from lockstep.stream x where x.name = try_read_stream.stream collate "C";
  next := greatest(start, coalesce(s.first, 1));
  -- First by the size on disk, which is cheap to find out: always one event at least.
  for e in select x.position, x.bytes from lockstep.event x where x.stream = s.id and x.position >= start order by x.position limit most
  loop
    total := total + e.bytes;
    exit when seen > 0 and total > room;
    if total > room then
      bytes := total * 5 / 4 + 8192;
      exit;
    end if;
    upto := e.position;
    seen := seen + 1;
  end loop;

  total := 0;
  for e in
    select y.position, '{"stream":' || to_json(s.name)::text || ',"position":"' || y.position || '","cursor":"' || y.seq || '","type":'
                       || to_json(y.type)::text || ',"data":' || coalesce(y.data::text, 'null') || ',"meta":' || coalesce(y.meta::text, 'null')
                       || ',"id":' || coalesce(to_json(y.key)::text, 'null')
                       || ',"at":"' || to_char(y.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') || '"}' as shown
      from lockstep.event y where y.stream = s.id and y.position >= start and y.position <= upto order by y.position
  loop
    bytes := octet_length(e.shown);
    exit when total + bytes > room;
    total := total + bytes;
    place := e.position;
    event := e.shown;
    next := e.position + 1;
    return next;
    bytes := 0;
  end loop;
  bytes := case when total = 0 then bytes end;
  place := null;
  event := null;
  more := next <= coalesce(s.position, 0);
  return next;
end $$;

-- Like try_read_stream, for all streams under a prefix, after a seq. next: the seq up to which everything was read. waits:
-- something that was appended may still commit. One call looks at 50,000 events at most.
create function lockstep.try_read_all(prefix text, after bigint, most integer, room bigint)
returns table (place bigint, event text, bytes bigint, next bigint, more boolean, waits boolean)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  horizon bigint;
  stretch bigint;
  upto bigint;
  e record;
  seen integer := 0;
  total bigint := 0;
  short boolean := false;
begin
  select h.horizon, h.waits into horizon, waits from lockstep.event_horizon() h;
  stretch := case when after > horizon then after else least(horizon, after + 50000) end;
  if prefix = '' then
    for e in select x.seq, x.bytes from lockstep.event x where x.seq > after and x.seq <= stretch order by x.seq limit most
    loop
      total := total + e.bytes;
      short := total > room;
      exit when short;
      upto := e.seq;
      seen := seen + 1;
    end loop;
  else
    for e in select x.seq, x.bytes from lockstep.event x
              cross join lateral (select z.name from lockstep.stream z where z.id = x.stream limit 1) s
              where x.seq > after and x.seq <= stretch and starts_with(s.name, prefix) order by x.seq limit most
    loop
      total := total + e.bytes;
      short := total > room;
      exit when short;
      upto := e.seq;
      seen := seen + 1;
    end loop;
  end if;
  next := after;
  if short and seen = 0 then
    bytes := total * 5 / 4 + 8192;
    next := e.seq - 1; -- the next call need not look at what came before it
    more := true;
    return next;
    return;
  end if;
  short := short or seen = most;

  total := 0;
  for e in
    select y.seq, '{"stream":' || to_json(s.name)::text || ',"position":"' || y.position || '","cursor":"' || y.seq || '","type":'
                  || to_json(y.type)::text || ',"data":' || coalesce(y.data::text, 'null') || ',"meta":' || coalesce(y.meta::text, 'null')
                  || ',"id":' || coalesce(to_json(y.key)::text, 'null')
                  || ',"at":"' || to_char(y.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') || '"}' as shown
      from lockstep.event y cross join lateral (select z.name from lockstep.stream z where z.id = y.stream limit 1) s
     where y.seq > after and y.seq <= upto and starts_with(s.name, prefix) order by y.seq
  loop
    bytes := octet_length(e.shown);
    short := short or total + bytes > room;
    exit when total + bytes > room;
    total := total + bytes;
    place := e.seq;
    event := e.shown;
    next := e.seq;
    return next;
    bytes := 0;
  end loop;
  if total = 0 and bytes > 0 then
    next := e.seq - 1;
  elsif not short then
    next := greatest(stretch, after);
  end if;
  bytes := case when total = 0 then bytes end;
  place := null;
  event := null;
  more := next < horizon;
  return next;
end $$;


-- -- Pages -------------------------------------------------------------------------------------------------------

-- The bytes that an answer has at most as it is sent, if it carries many; always one of them. lib/base/arguments.ts has the
-- same number (answerBytes).
create or replace function lockstep.page_bytes() returns bigint
language sql immutable parallel safe return 5000000;

-- How many of these events, from the first on, fit into `room` bytes as they are sent; `always`: one, whatever its size. It
-- makes the text of each event until there is no room for one, so that of many large events only a few are read.
create function lockstep.fitting_events(seqs bigint[], room bigint, always boolean) returns integer
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  place bigint;
  fits integer := 0;
  total bigint := 0;
begin
  if room <= 0 and not always then
    return 0;
  end if;
  foreach place in array coalesce(seqs, '{}') loop
    -- 150: the names of the members, and the text of `at`
    total := total + 150 + coalesce((
      select octet_length(to_json(lockstep.shown(s.name, e.position, e.seq, e.type, e.data, e.meta, e.key, e.at, 1)::text)::text)
        from lockstep.event e join lockstep.stream s on s.id = e.stream where e.seq = place), 0);
    exit when total > room and (fits > 0 or not always);
    fits := fits + 1;
  end loop;
  return fits;
end $$;

-- A page of a stream from a position on. Events are counted before they are put together if they are large on disk, or
-- afterwards if the text could be too long: of most pages neither is so.
create or replace function lockstep.read_stream(stream text, start bigint, most integer, backwards boolean,
                                                out events json, out last bigint, out first bigint, out stands bigint)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  s lockstep.stream;
  positions bigint[];
  seqs bigint[];
  fits integer;
  counted boolean;
begin
  select * into s from lockstep.stream x where x.name = read_stream.stream collate "C";
  stands := coalesce(s.position, 0);
  first := coalesce(s.first, 1);
  if backwards then
    select array_agg(p.position order by p.position desc), array_agg(p.seq order by p.position desc), sum(p.bytes) > 65536
      into positions, seqs, counted
      from (select x.position, x.seq, x.bytes from lockstep.event x where x.stream = s.id and x.position <= start
             order by x.position desc limit most) p;
  else
    select array_agg(p.position order by p.position), array_agg(p.seq order by p.position), sum(p.bytes) > 65536
      into positions, seqs, counted
      from (select x.position, x.seq, x.bytes from lockstep.event x where x.stream = s.id and x.position >= start
             order by x.position limit most) p;
  end if;
  fits := cardinality(seqs);
  loop
    if counted then
      fits := lockstep.fitting_events(seqs, lockstep.page_bytes(), true);
    end if;
    last := positions[fits];
    if backwards then
      select json_agg(lockstep.shown(s.name, x.position, x.seq, x.type, x.data, x.meta, x.key, x.at, null)) into events from (
        select * from lockstep.event y where y.stream = s.id and y.position <= start and y.position >= last order by y.position desc) x;
    else
      select json_agg(lockstep.shown(s.name, x.position, x.seq, x.type, x.data, x.meta, x.key, x.at, null)) into events from (
        select * from lockstep.event y where y.stream = s.id and y.position >= start and y.position <= last order by y.position) x;
    end if;
    exit when counted or events is null or 2 * octet_length(events::text) + 150 * fits <= lockstep.page_bytes();
    counted := true;
  end loop;
end $$;

-- A page of all streams under a prefix, after a seq. next: the seq that the page reaches to. waits: something that was appended
-- may still commit. One call looks at 50,000 events at most.
create or replace function lockstep.read_all(prefix text, after bigint, most integer,
                                             out events json, out next bigint, out more boolean, out waits boolean)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  horizon bigint;
  upto bigint;
  last bigint;
  seqs bigint[];
  seen integer;
  fits integer;
  counted boolean;
begin
  select h.horizon, h.waits into horizon, waits from lockstep.event_horizon() h;
  upto := case when after > horizon then after else least(horizon, after + 50000) end;
  if prefix = '' then
    select array_agg(p.seq order by p.seq), count(*), sum(p.bytes) > 65536 into seqs, seen, counted from (
      select x.seq, x.bytes from lockstep.event x where x.seq > after and x.seq <= upto order by x.seq limit most) p;
  else
    select array_agg(p.seq order by p.seq), count(*), sum(p.bytes) > 65536 into seqs, seen, counted from (
      select x.seq, x.bytes from lockstep.event x cross join lateral (select z.name from lockstep.stream z where z.id = x.stream limit 1) s
       where x.seq > after and x.seq <= upto and starts_with(s.name, prefix) order by x.seq limit most) p;
  end if;
  fits := seen;
  while seen > 0 loop
    if counted then
      fits := lockstep.fitting_events(seqs, lockstep.page_bytes(), true);
    end if;
    last := seqs[fits];
    select json_agg(lockstep.shown(x.name, x.position, x.seq, x.type, x.data, x.meta, x.key, x.at, null)) into events from (
      select y.*, s.name from lockstep.event y cross join lateral (select z.name from lockstep.stream z where z.id = y.stream limit 1) s
       where y.seq > after and y.seq <= last and starts_with(s.name, prefix) order by y.seq) x;
    exit when counted or events is null or 2 * octet_length(events::text) + 150 * fits <= lockstep.page_bytes();
    counted := true;
  end loop;
  next := case when seen = most or fits < seen then last else greatest(upto, after) end;
  more := next < horizon;
end $$;


-- -- Groups ------------------------------------------------------------------------------------------------------

-- What is next in a partition, within `room` bytes as it is sent; `always`: one event, whatever its size. Like read_partition
-- (0007_event.sql): the events of a stream whose retry is due, or those of all other streams.
--   held     whether the caller holds the partition; if not, nothing is returned
--   next     and turn: what to commit
--   more     there may be more at once
--   waits    something that was appended may still commit
--   wait_ms  until a retry is due
--   size     the bytes of the events as they are sent, or a little more
-- It waits for nobody.
create function lockstep.read_share(group_name text, partition integer, token bigint, most integer, room bigint, always boolean,
                                    out held boolean, out events json, out next bigint, out turn bigint, out more boolean,
                                    out waits boolean, out wait_ms double precision, out size bigint)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  g lockstep.consumer_group;
  c lockstep.checkpoint;
  k lockstep.stuck;
  horizon bigint;
  upto bigint;
  last bigint;
  seqs bigint[];
  seen integer;
  fits integer;
  counted boolean;
begin
  more := false;
  size := 0;
  select h.horizon, h.waits into horizon, waits from lockstep.event_horizon() h;
  held := exists (select from lockstep.lease l
                   where l.name = lockstep.partition(read_share.group_name, read_share.partition)
                     and l.token = read_share.token and l.holder is not null and l.expires_at > clock_timestamp());
  select * into g from lockstep.consumer_group x where x.name = read_share.group_name;
  select * into c from lockstep.checkpoint x
   where x.group_name = read_share.group_name and x.partition = read_share.partition;
  held := held and c.seq is not null and g.name is not null;
  if not held then
    return;
  end if;
  turn := c.turn;

  select * into k from lockstep.stuck x
   where x.group_name = read_share.group_name and x.partition = read_share.partition and x.due_at <= clock_timestamp()
   order by x.due_at limit 1;
  if found then
    more := true;
    select array_agg(p.seq order by p.position), count(*), sum(p.bytes) > 65536 into seqs, seen, counted from (
      select y.seq, y.position, y.bytes from lockstep.event y
       where y.stream = k.stream and y.position >= k.position and y.seq <= c.seq order by y.position limit most) p;
    fits := seen;
    while seen > 0 loop
      if counted then
        fits := lockstep.fitting_events(seqs, room, always);
      end if;
      if fits = 0 then
        events := null;
        size := 0;
        next := null;
        return; -- no room
      end if;
      next := seqs[fits];
      select json_agg(lockstep.shown(x.name, x.position, x.seq, x.type, x.data, x.meta, x.key, x.at,
                                     case when x.position = x.least then k.attempts + 1 else 1 end)) into events from (
        select y.*, s.name, min(y.position) over () as least from lockstep.event y cross join lateral (select z.name from lockstep.stream z where z.id = y.stream limit 1) s
         where y.stream = k.stream and y.position >= k.position and y.seq <= next order by y.position) x;
      exit when events is null;
      size := 2 * octet_length(events::text) + 150 * fits;
      exit when counted or size <= room;
      counted := true;
    end loop;
    if events is null then  -- the event that had failed was removed
      perform from lockstep.checkpoint x
        where x.group_name = read_share.group_name and x.partition = read_share.partition and x.turn = c.turn
          for no key update skip locked;
      if found then
        perform lockstep.unstick(group_name, partition, k.stream);
        perform lockstep.next_turn(group_name, partition, c.seq, null);
      end if;
    end if;
    return;
  end if;

  upto := least(horizon, c.seq + 50000);
  select array_agg(p.seq order by p.seq), count(*), sum(p.bytes) > 65536 into seqs, seen, counted from (
    select x.seq, x.bytes from lockstep.event x cross join lateral (select z.name from lockstep.stream z where z.id = x.stream limit 1) s
     where x.seq > c.seq and x.seq <= upto and x.bucket % g.partitions = read_share.partition and starts_with(s.name, g.prefix)
       and not exists (select from lockstep.stuck y where y.group_name = g.name and y.stream = x.stream)
     order by x.seq limit most) p;
  fits := seen;
  while seen > 0 loop
    if counted then
      fits := lockstep.fitting_events(seqs, room, always);
    end if;
    if fits = 0 then
      events := null;
      size := 0;
      more := true; -- no room
      return;
    end if;
    last := seqs[fits];
    select json_agg(lockstep.shown(x.name, x.position, x.seq, x.type, x.data, x.meta, x.key, x.at, 1)) into events from (
      select y.*, s.name from lockstep.event y cross join lateral (select z.name from lockstep.stream z where z.id = y.stream limit 1) s
       where y.seq > c.seq and y.seq <= last and y.bucket % g.partitions = read_share.partition and starts_with(s.name, g.prefix)
         and not exists (select from lockstep.stuck z where z.group_name = g.name and z.stream = y.stream)
       order by y.seq) x;
    exit when events is null;
    size := 2 * octet_length(events::text) + 150 * fits;
    exit when counted or size <= room;
    counted := true;
  end loop;
  next := case when seen = most or fits < seen then last else greatest(upto, c.seq) end;
  more := next < horizon;
  select extract(epoch from min(x.due_at) - clock_timestamp()) * 1000 into wait_ms from lockstep.stuck x
   where x.group_name = read_share.group_name and x.partition = read_share.partition and x.due_at < 'infinity';
  -- A stretch without events of the group: move the checkpoint, so that nobody looks through it again.
  if seen = 0 and next > c.seq + 1000 then
    perform from lockstep.checkpoint x
      where x.group_name = read_share.group_name and x.partition = read_share.partition and x.turn = c.turn
        for no key update skip locked;
    if found then
      perform lockstep.next_turn(group_name, partition, next, null);
    end if;
  end if;
end $$;

-- What is next in several partitions: `room` bytes for all of them together, as it is sent, but always one event. The last
-- ones may get nothing although there is more, so the caller should begin with another partition each time.
create function lockstep.read_partitions(group_name text, partitions integer[], tokens bigint[], most integer, room bigint)
returns table (held boolean, events json, next bigint, turn bigint, more boolean, waits boolean, wait_ms double precision)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
  used bigint := 0;
  size bigint;
  given boolean := false;
begin
  for i in 1 .. cardinality(partitions) loop
    -- The last quarter of an answer is not offered: the texts of 256 large events would be made only to be counted.
    select r.held, r.events, r.next, r.turn, r.more, r.waits, r.wait_ms, r.size
      into held, events, next, turn, more, waits, wait_ms, size
      from lockstep.read_share(group_name, partitions[i], tokens[i], most,
                               case when room - used > room / 4 or not given then room - used else 0 end, not given) r;
    if events is not null then
      -- exactly, where twice the text would leave room unused
      used := used + case when size < room / 100 then size else octet_length(to_json(events::text)::text) + 150 * json_array_length(events) end;
      given := true;
    end if;
    return next;
  end loop;
end $$;


-- -- Claims ------------------------------------------------------------------------------------------------------

-- Runs pg-boss's fetch, if what it fetches fits into `room` bytes as it is sent: then jobs, an array of [id, retry count,
-- data], and fits, how many these are. Else nothing is fetched, jobs is null, and so many fit: fetch these, which one job
-- always can. `statement`: the text of pg-boss's statement, with metadata and without parameters. It runs with the rights of the
-- caller, who can send it as well himself. So no job is claimed, and no attempt of it spent, that its claimer cannot be sent. The
-- settings: see fetch_jobs in 0016_growth.sql.
create function lockstep.fetch_within(statement text, room bigint, out jobs json, out fits integer)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $$
declare
  job record;
  texts json[] := '{}';
  total bigint := 0;
  short boolean := false;
begin
  fits := 0;
  for job in execute format($fetch$
    with fetched as (%s) select f.id, f."retryCount" as attempt, f.data from fetched f order by f.priority desc, f."createdOn", f.id
  $fetch$, statement) loop
    -- 250: the names of the members, id, token, attempt and end of the lease
    total := total + octet_length(to_json(coalesce(job.data::text, 'null'))::text) + 250;
    short := fits > 0 and total > room;
    exit when short;
    fits := fits + 1;
    texts := array_append(texts, json_build_array(job.id, job.attempt, job.data));
  end loop;
  if short then
    raise no_data_found;
  end if;
  jobs := array_to_json(texts);
exception when no_data_found then
  if not short then
    raise; -- another one's
  end if;
  jobs := null; -- and everything that was fetched is as it was
end $$;


-- -- Groups ------------------------------------------------------------------------------------------------------

-- Deletes a group; answers whether there was one. The row of the group goes before its checkpoints: while this transaction has
-- it, no other can make the group, so the checkpoints that follow are those of the deleted group and no others. Deleted before it
-- (0007), they could be joined by those of a group that was made meanwhile, which then had none to read, or could never be made
-- again. The leases go first: a transaction that commits a batch locks its lease and then its checkpoint, and if it waits here it
-- finds both gone.
create or replace function lockstep.delete_group(group_name text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
  delete from lockstep.lease l
   where l.name > E'group\t' || delete_group.group_name || E'\t' and l.name < E'group\t' || delete_group.group_name || E'\n';
  delete from lockstep.consumer_group g where g.name = delete_group.group_name;
  if not found then
    return false;
  end if;
  delete from lockstep.checkpoint c where c.group_name = delete_group.group_name;
  delete from lockstep.stuck s where s.group_name = delete_group.group_name;
  return true;
end $$;

-- What such a deletion has left behind.
delete from lockstep.checkpoint c where not exists (select from lockstep.consumer_group g where g.name = c.group_name);
delete from lockstep.stuck s where not exists (select from lockstep.consumer_group g where g.name = s.group_name);


-- -- Time by one trusted server ---------------------------------------------------------------------------------

-- The row may rest on the word of one NTP server, which no vote has confirmed. Then `trusted` is its name, and every reader learns it.
alter table lockstep.time_anchor add column trusted text;

-- As in 0006_time.sql. `told` is an object with `trusted`, the name of the server, if the measurement is the word of one server. Such
-- a measurement and a vote are never intersected: the later one replaces the other. Nor does it replace a vote that is not older than
-- 128 s (two measurements), unless the sender has not watched the clock since then (`doubts`): it is outvoted.
create or replace function lockstep.offer_time(
  whose bigint, from_us bigint, to_us bigint, lo bigint, hi bigint, guess bigint, doubts boolean,
  who text, wrong text[], told jsonb
) returns text
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
  a lockstep.time_anchor;
  now_us bigint;
  drift bigint;   -- of the row since it was written
  given bigint;   -- the width of what is offered
  word text := told ->> 'trusted';
  said text;
begin
  if pg_is_in_recovery() or whose <> lockstep.clock_identity() then return 'another clock'; end if;
  select * into strict a from lockstep.time_anchor t where t.id = 1 for update;
  now_us := lockstep.microseconds(clock_timestamp());
  if now_us - from_us > 2000000 or now_us < from_us - 1000 or to_us - now_us > 2000000 then
    update lockstep.time_anchor set claimed_until = null where id = 1;
    return 'late';
  end if;
  if word is not null and a.trusted is null and a.server = whose and a.rival_at_us is null and not doubts
     and abs(now_us - a.at_us) <= 128000000 then
    update lockstep.time_anchor set claimed_until = null where id = 1;
    return 'outvoted';
  end if;
  lo := lo - greatest(0, now_us - from_us) - 1;
  hi := hi + greatest(0, to_us - now_us) + 1;
  given := hi - lo;
  drift := ceil(abs(now_us - a.at_us) * 0.00005) + 1;

  if a.server is distinct from whose then
    said := 'begun';
    a.epoch := a.epoch + 1;
  elsif greatest(a.lo_us - drift, lo) <= least(a.hi_us + drift, hi) then
    said := 'agreed';
    if now_us - from_us <= 20000 and a.rival_at_us is null and not doubts and a.trusted is not distinct from word then
      -- the clock may have been set under way, after the row was written
      lo := greatest(a.lo_us - drift - greatest(0, now_us - from_us), lo);
      hi := least(a.hi_us + drift + greatest(0, to_us - now_us), hi);
      if given > a.guess_width_us + 2 * drift then -- the row's guess is from a narrower one
        guess := a.guess_us;
        given := a.guess_width_us + 2 * drift;
      end if;
    end if;
  else
    said := 'disputed';
    drift := ceil(abs(now_us - a.rival_at_us) * 0.00005) + 1;
    if a.rival_at_us is not null -- greatest and least pass over nulls
       and greatest(a.rival_lo_us - drift, lo) <= least(a.rival_hi_us + drift, hi) then
      if who <> a.rival_writer or abs(now_us - a.rival_at_us) > 500000 then
        said := 'begun'; -- with the later of the two alone: the clock may have been set again in between
        a.epoch := a.epoch + 1;
      else -- the same witness, too soon: it keeps its place, or who asks all the time would never be a second one
        now_us := a.rival_at_us;
        lo := a.rival_lo_us;
        hi := a.rival_hi_us;
      end if;
    end if;
  end if;

  if said = 'disputed' then
    update lockstep.time_anchor t
       set revision = t.revision + 1, claimed_until = null,
           rival_at_us = now_us, rival_lo_us = lo, rival_hi_us = hi, rival_writer = who
     where t.id = 1;
  else
    update lockstep.time_anchor t
       set server = whose, epoch = a.epoch, revision = t.revision + 1, claimed_until = null,
           at_us = now_us, lo_us = lo, hi_us = hi, guess_us = greatest(lo, least(hi, guess)), guess_width_us = given,
           rival_at_us = null, rival_lo_us = null, rival_hi_us = null, rival_writer = null,
           falsetickers = wrong, servers = told, writer = who, trusted = word
     where t.id = 1;
  end if;
  return said;
end $$;

-- As in 0006_time.sql, and with `trusted`. The columns of a function cannot be changed, so it is made anew, with the rights that it had.
do $$
declare
  may oid[] := array(select e.grantee from pg_proc p, aclexplode(p.proacl) e
                      where p.oid = 'lockstep.sample_time(text, boolean, boolean, boolean)'::regprocedure
                        and e.privilege_type = 'EXECUTE' and e.grantee not in (0, p.proowner));
  public_may boolean := (select p.proacl is null or exists (select from aclexplode(p.proacl) e where e.grantee = 0)
                           from pg_proc p where p.oid = 'lockstep.sample_time(text, boolean, boolean, boolean)'::regprocedure);
  grantee oid;
begin
  drop function lockstep.sample_time(text, boolean, boolean, boolean);
  create function lockstep.sample_time(nonce text, measures boolean, settles boolean, doubts boolean)
  returns table (
    nonce_ text, us bigint, server bigint, revision bigint, at_us bigint, lo_us bigint, hi_us bigint,
    guess_us bigint, rival_at_us bigint, rival_lo_us bigint, rival_hi_us bigint, falsetickers text[], claimed boolean, trusted text
  )
  language plpgsql
  set search_path = pg_catalog, pg_temp as $body$
  declare
    mine bigint := lockstep.clock_identity();
    at timestamptz := clock_timestamp();
    got boolean := false;
  begin
    if measures and not pg_is_in_recovery() then
      perform from lockstep.time_anchor a
        where a.id = 1 and (a.claimed_until is null or a.claimed_until <= at or a.claimed_until > at + interval '30 s')
          and (a.server is distinct from mine or abs(lockstep.microseconds(at) - a.at_us) > 64000000
               or (settles and (doubts or a.rival_at_us is not null)))
          for update skip locked;
      got := found;
      if got then
        update lockstep.time_anchor a set claimed_until = at + interval '20 s' where a.id = 1;
      end if;
    end if;
    return query
      select nonce, lockstep.microseconds(clock_timestamp()), mine, a.revision, a.at_us, a.lo_us, a.hi_us,
             a.guess_us, a.rival_at_us, a.rival_lo_us, a.rival_hi_us, a.falsetickers, got, a.trusted
        from (select) one left join lockstep.time_anchor a on a.id = 1 and a.server = mine;
  end $body$;
  if not public_may then
    revoke all on function lockstep.sample_time(text, boolean, boolean, boolean) from public;
  end if;
  foreach grantee in array may loop
    execute format('grant execute on function lockstep.sample_time(text, boolean, boolean, boolean) to %s', grantee::regrole);
  end loop;
end $$;

-- As in 0006_time.sql; the status is trusted while it rests on the word of one server.
create or replace function lockstep.now_interval(
  out now timestamptz, out earliest timestamptz, out latest timestamptz, out bound_ms double precision, out status text
)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
  a lockstep.time_anchor;
  at timestamptz;
  us bigint;
  drift bigint;
  lo bigint;
  hi bigint;
begin
  select * into a from lockstep.time_anchor t where t.id = 1 and t.server = lockstep.clock_identity();
  at := clock_timestamp();
  if a.id is null then
    now := at;
    status := 'unsynchronized';
    return;
  end if;
  us := lockstep.microseconds(at);
  drift := ceil(abs(us - a.at_us) * 0.00005) + 1;
  lo := a.lo_us - drift;
  hi := a.hi_us + drift;
  status := case when us - a.at_us > 512000000 then 'free-running' when a.trusted is not null then 'trusted' else 'synchronized' end;
  if a.rival_at_us is not null then
    drift := ceil(abs(us - a.rival_at_us) * 0.00005) + 1;
    lo := least(lo, a.rival_lo_us - drift);
    hi := greatest(hi, a.rival_hi_us + drift);
    status := 'disrupted';
  end if;
  -- A millisecond for disturbances of the clock that are too small to be seen.
  lo := lo - 1000;
  hi := hi + 1000;
  now := at + a.guess_us * interval '1 microsecond';
  earliest := at + lo * interval '1 microsecond';
  latest := at + hi * interval '1 microsecond';
  bound_ms := greatest(hi - a.guess_us, a.guess_us - lo) / 1000.0;
end $$;


-- -- What is held ------------------------------------------------------------------------------------------------

-- The connection and transaction holds that have lasted for a while, for those who look: never for decisions. The server's lock
-- table has their K, and from K nobody can tell the name. So each process enters its holds here by another connection, when
-- they have lasted for 250 ms, or when it lists by itself. A row counts only while its backend has its K: what a dead process
-- has left shows nothing. Unlogged: after a crash of the server no such hold lives.
create unlogged table lockstep.hold (
  pid integer not null,            -- the backend that has K
  key bigint not null,             -- K(name)
  name text collate "C" not null,
  kind text not null,              -- connection or transaction
  holder text not null,
  token bigint not null,
  since timestamptz not null,
  meta jsonb,
  primary key (pid, key)
);

-- Enters holds, and deletes those that are over: each is known by backend, K and token. held_ms: for how long it has been held.
-- clean: deletes also what dead processes have left. It waits for nobody.
create function lockstep.show_holds(names text[], kinds text[], holders text[], tokens bigint[], pids integer[], held_ms bigint[],
                                    metas jsonb[], over_keys bigint[], over_pids integer[], over_tokens bigint[], clean boolean)
returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  delete from lockstep.hold h using unnest(over_keys, over_pids, over_tokens) o(key, pid, token)
    where h.pid = o.pid and h.key = o.key and h.token = o.token;
  if clean then
    delete from lockstep.hold h where (h.pid, h.key) in (
      select x.pid, x.key from lockstep.hold x
       where not exists (select from lockstep.advisory_locks() k where k.pid = x.pid and k.key = x.key and k.granted)
         for update skip locked);
  end if;
  -- A backend has K once, so of two holds of one K the later is the one that lives.
  insert into lockstep.hold as h (pid, key, name, kind, holder, token, since, meta)
    select distinct on (n.pid, n.key) n.pid, n.key, n.name, n.kind, n.holder, n.token,
           clock_timestamp() - n.held_ms * interval '1 millisecond', n.meta
      from (select u.*, lockstep.key(u.name) as key
              from unnest(names, kinds, holders, tokens, pids, held_ms, metas)
                     u(name, kind, holder, token, pid, held_ms, meta)) n
     order by n.pid, n.key, n.token desc
    on conflict (pid, key) do update
      set kind = excluded.kind, holder = excluded.holder, token = excluded.token, since = excluded.since, meta = excluded.meta
      where h.token < excluded.token;
end $$;

-- The advisory locks of this database that have a key of 64 bits: who has them, and who waits for them. Some are the application's.
create function lockstep.advisory_locks() returns table (key bigint, pid integer, granted boolean)
language sql set search_path = pg_catalog, pg_temp as $$
  select l.classid::bigint << 32 | l.objid::bigint, l.pid, l.granted from pg_locks l
   where l.locktype = 'advisory' and l.objsubid = 1
     and l.database = (select d.oid from pg_database d where d.datname = current_database())
$$;

-- As in 0009_keys.sql, and what a connection or transaction hold has entered into lockstep.hold.
drop function lockstep.look(text);
create function lockstep.look(name text)
returns table (holder text, token bigint, granted_at timestamptz, expires_at timestamptz, ttl_ms integer, meta jsonb,
               gate_pid integer, gate_application text, waiting_pids integer[],
               hold_kind text, hold_holder text, hold_token bigint, hold_since timestamptz, hold_meta jsonb)
language sql set search_path = pg_catalog, pg_temp as $$
  with wanted as materialized (
    select lockstep.key(look.name) as key
  ), k as (
    select l.pid, l.granted from pg_locks l, wanted w
     where l.locktype = 'advisory' and l.objsubid = 1
       and l.database = (select oid from pg_database where datname = current_database())
       and l.classid = (w.key >> 32 & 4294967295)::oid
       and l.objid = (w.key & 4294967295)::oid
  )
  select l.holder, l.token, l.granted_at, l.expires_at, l.ttl_ms, l.meta,
         g.pid, a.application_name,
         coalesce((select array_agg(k.pid) from k where not k.granted), '{}'),
         h.kind, h.holder, h.token, h.since, h.meta
    from (select) one
    left join lockstep.lease l on l.name = look.name collate "C"
     and l.holder is not null and l.expires_at > clock_timestamp()
    left join k g on g.granted
    left join lockstep.hold h on h.pid = g.pid and h.key = (select w.key from wanted w)
    left join pg_stat_activity a on a.pid = g.pid
$$;

-- The same of all locks that are held, a page in the order of their names: leases, and the holds of lockstep.hold. It reads the
-- server's lock table once, and computes K for the names of the page only. The plan depends on the prefix: one of few names is
-- found by the index; beside 1,000,000 free rows all names take 0.2 s.
create function lockstep.list_locks(prefix text, after text, most integer)
returns table (name text, holder text, token bigint, granted_at timestamptz, expires_at timestamptz, ttl_ms integer, meta jsonb,
               gate_pid integer, gate_application text, waiting_pids integer[],
               hold_kind text, hold_holder text, hold_token bigint, hold_since timestamptz, hold_meta jsonb)
language plpgsql set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
  return query with k as materialized (
    select x.key, x.pid, x.granted from lockstep.advisory_locks() x
  ), leased as materialized (
    select l.* from lockstep.lease l
     where l.holder is not null and l.expires_at > clock_timestamp() and l.expires_at < 'infinity'
       and l.name > list_locks.after and l.name >= list_locks.prefix and starts_with(l.name, list_locks.prefix)
       and strpos(l.name, E'\t') = 0
     order by l.name limit most
  ), held as materialized (
    select h.* from lockstep.hold h join k on k.granted and k.pid = h.pid and k.key = h.key
     where h.name > list_locks.after and h.name >= list_locks.prefix and starts_with(h.name, list_locks.prefix)
     order by h.name limit most
  ), page as (
    select n.name, lockstep.key(n.name) as key
      from (select x.name from leased x union select x.name from held x order by 1 limit most) n
  )
  select p.name, l.holder, l.token, l.granted_at, l.expires_at, l.ttl_ms, l.meta,
         g.pid, a.application_name,
         coalesce((select array_agg(w.pid) from k w where w.key = p.key and not w.granted), '{}'),
         h.kind, h.holder, h.token, h.since, h.meta
    from page p
    left join leased l on l.name = p.name
    left join k g on g.granted and g.key = p.key
    left join held h on h.name = p.name and h.pid = g.pid
    left join pg_stat_activity a on a.pid = g.pid
   order by p.name;
end $$;


-- -- What is heard of elections ------------------------------------------------------------------------------------

-- Channels whose messages are believed. Every role that may connect to the database may LISTEN and NOTIFY on any channel whose
-- name it knows, and no role is shown the channels of others. So the name of such a channel is a secret of the roles that may
-- write leases. It never changes: a process that listens has asked for it once.
create table lockstep.secret (
  channel text collate "C" primary key,
  secret uuid not null default gen_random_uuid()
);
insert into lockstep.secret (channel) values ('leader');

-- The roles that may write leases until now go on without another grant.
do $$
declare
  writer record;
begin
  for writer in
    select distinct case when a.grantee = 0 then 'public' else a.grantee::regrole::text end as role
      from pg_class c cross join aclexplode(c.relacl) a
     where c.oid = 'lockstep.lease'::regclass and a.privilege_type = 'INSERT' and a.grantee <> c.relowner
  loop
    execute format('grant select on lockstep.secret to %s', writer.role);
  end loop;
end $$;

-- The name of such a channel.
create function lockstep.secret_channel(kind text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select 'lockstep_' || s.channel || '_' || replace(s.secret::text, '-', '') from lockstep.secret s where s.channel = secret_channel.kind
$$;

-- Notifies everybody of the present state of an election. `next` is the first candidate in the queue: of all candidates
-- that receive this, only that one has to ask. A payload has at most 8,000 bytes; a receiver looks up what did not fit.
-- Since then: on a channel with a secret name, since any role could forge a leader, or hear its token. Processes of 0.6 listen on
-- the open one: they are told nothing there, and so read.
create or replace function lockstep.tell(election text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
  perform pg_notify(lockstep.secret_channel('leader'), news::text);
  perform pg_notify('lockstep_leader', '');
end $$;
