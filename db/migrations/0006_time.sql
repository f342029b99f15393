-- Time: what the true time is, as far as it is known. The essay is in lib/time/time.ts.
--
-- One row says how wrong this server's clock is: at the instant at_us of that clock, true time minus the clock lay in
-- [lo_us, hi_us], and the two drift apart by 50 millionths at most. Processes that can ask NTP servers write it, one at a
-- time; all processes read it. Instants are microseconds since 1970, as bigint, and so are differences of them: timestamptz is
-- as fine, and JavaScript reads a bigint without losing microseconds.
--
-- No decision about who holds, leads or runs reads this row: leases use clock_timestamp() (why: lib/time/time.ts).

create table lockstep.time_anchor (
  id             integer primary key check (id = 1),
  server         bigint,               -- whose clock it speaks of: pg_postmaster_start_time(); null: nothing measured yet
  epoch          integer not null default 0,  -- one more whenever the row was begun anew: another server, or a clock that was set
  revision       bigint not null default 0,   -- one more with each measurement
  at_us          bigint,
  lo_us          bigint,
  hi_us          bigint,
  guess_us       bigint,               -- the likeliest, in between
  guess_width_us bigint,               -- of the measurement that it is from
  rival_at_us    bigint,               -- a measurement that contradicts the row, until another says which of them is right
  rival_lo_us    bigint,
  rival_hi_us    bigint,
  rival_writer   text,
  falsetickers   text[] not null default '{}',  -- NTP servers that the vote found wrong
  servers        jsonb,                -- what each NTP server said, for who looks
  writer         text,
  claimed_until  timestamptz           -- somebody measures
) with (fillfactor = 50);
insert into lockstep.time_anchor (id) values (1);

create function lockstep.microseconds(t timestamptz) returns bigint language sql immutable parallel safe as
$$ select (extract(epoch from t) * 1000000)::bigint $$;

-- The identity of this clock. It is another number after a restart, a fail-over or a restore, and when a pooler leads to another
-- server: each of them may be another clock, for which the row means nothing. A standby has an identity of its own.
create function lockstep.clock_identity() returns bigint language sql stable parallel safe as
$$ select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint $$;

-- ── What processes ask ──────────────────────────────────────────────────────────────────────────────────────────

-- Returns the clock, and the row if it is about this clock. `nonce` comes back: an answer out of a cache has another one. With
-- `measures` the caller can ask NTP servers; then `claimed` says that it is the caller's turn to do so. It is if the row is
-- older than 64 s or about another clock; and with `settles`, if the row or the caller (`doubts`) is in doubt. A claim lasts 20
-- s. A claim that ends more than 30 s ahead was made by a clock that was set back since (30, because another claim may have
-- been made just after our `at`). A claim is never waited for.
create function lockstep.sample_time(nonce text, measures boolean, settles boolean, doubts boolean)
returns table (
  nonce_ text, us bigint, server bigint, revision bigint, at_us bigint, lo_us bigint, hi_us bigint,
  guess_us bigint, rival_at_us bigint, rival_lo_us bigint, rival_hi_us bigint, falsetickers text[], claimed boolean
)
language plpgsql as $$
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
           a.guess_us, a.rival_at_us, a.rival_lo_us, a.rival_hi_us, a.falsetickers, got
      from (select) one left join lockstep.time_anchor a on a.id = 1 and a.server = mine;
end $$;

-- Takes a measurement: true time minus the clock `whose` lies in [lo, hi], most likely at `guess`. Order and repetition do not
-- matter: measurements that agree are intersected. A measurement that contradicts the row is kept next to it as its rival, and
-- readers get the hull of both, until a second one says which is right: from another process, or half a second later.
--
-- `from_us`, `to_us`: what this clock shows at the sending, as the sender believes. If the clock shows more, that is time on
-- the way or a step of the clock, which cannot be told apart; so it is taken off the interval. If it is more than 20 ms, or the
-- row is in doubt, or the sender has not watched the clock since the row was written (`doubts`), then a measurement that agrees
-- replaces the row instead of being intersected with it: a row from before a small step may agree and be wrong. Beyond 2 s the
-- measurement is refused, so that a process that was frozen in between cannot write an old truth. It is also refused if the
-- clock shows less, because then the clock was set back.
create function lockstep.offer_time(
  whose bigint, from_us bigint, to_us bigint, lo bigint, hi bigint, guess bigint, doubts boolean,
  who text, wrong text[], told jsonb
) returns text
language plpgsql as $$
declare
  a lockstep.time_anchor;
  now_us bigint;
  drift bigint;   -- of the row since it was written
  given bigint;   -- the width of what is offered
  said text;
begin
  if pg_is_in_recovery() or whose <> lockstep.clock_identity() then return 'another clock'; end if;
  select * into strict a from lockstep.time_anchor t where t.id = 1 for update;
  now_us := lockstep.microseconds(clock_timestamp());
  if now_us - from_us > 2000000 or now_us < from_us - 1000 or to_us - now_us > 2000000 then
    update lockstep.time_anchor set claimed_until = null where id = 1;
    return 'late';
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
    if now_us - from_us <= 20000 and a.rival_at_us is null and not doubts then
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
           falsetickers = wrong, servers = told, writer = who
     where t.id = 1;
  end if;
  return said;
end $$;

-- ── Corrected time in SQL, inside your transaction ──────────────────────────────────────────────────────────────

-- All of them are plpgsql: as SQL functions they would be planned at each call, 230 µs instead of 42.

-- The true time, as well as it is known; this server's clock if nothing was measured. It may step when that changes.
create function lockstep.now() returns timestamptz
language plpgsql as $$
declare
  correction bigint;
begin
  select a.guess_us into correction
    from lockstep.time_anchor a where a.id = 1 and a.server = lockstep.clock_identity();
  return clock_timestamp() + coalesce(correction, 0) * interval '1 microsecond';
end $$;

-- The true time lies in [earliest, latest]; both are null if nothing was measured. An instant t is past if `t < earliest`, and
-- in the future if `t > latest`; in between it is undecided.
create function lockstep.now_interval(
  out now timestamptz, out earliest timestamptz, out latest timestamptz, out bound_ms double precision, out status text
)
language plpgsql as $$
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
  status := case when us - a.at_us > 512000000 then 'free-running' else 'synchronized' end;
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

-- ── Ticks ───────────────────────────────────────────────────────────────────────────────────────────────────────

create sequence lockstep.tick_sequence;

-- The first of `n` ticks: microseconds since 1970. Each tick is returned once. It is greater than all earlier ticks of all
-- sessions, and not before the corrected time. A tick whose transaction is rolled back is not returned again.
--
-- The lock, and the look at the sequence, are in a subtransaction that is rolled back on purpose: that frees the lock at once,
-- even in a transaction of yours, and a sequence keeps the value that it was set to. (A counter in a row does a third as many,
-- and makes everybody wait until the transaction ends.)
create function lockstep.tick(n integer default 1) returns bigint
language plpgsql as $$
declare
  first bigint;
begin
  if n is null or n not between 1 and 1000000 then
    raise 'Expected `n` to be an integer, 1–1000000, got %', n using errcode = '22023';
  end if;
  begin
    perform pg_advisory_xact_lock(1819239275, 1953063787); -- 'lock', 'tick' in ASCII
    select greatest(s.last_value + 1, lockstep.microseconds(lockstep.now())) into first from lockstep.tick_sequence s;
    perform setval('lockstep.tick_sequence', first + n - 1);
    raise sqlstate 'LS000';
  exception when sqlstate 'LS000' then
    return first;
  end;
end $$;
