-- Schedules that are made with pg-boss's own schedule(), through bossOf(tasks) or through another pg-boss on this schema. Ticks send
-- them as they send ours: each slot once, by the rule of lib/task/schedule/slots.ts.
--
-- pg-boss keeps them in a table of its own. A trigger copies each row of that to lockstep.schedule, so there is one place to look
-- for what is due, to lock, and to list. A copy is named `pg-boss:<queue>`, or `pg-boss:<queue>:<key>`. Queues and keys have no
-- colon, so the names are different; and `schedule` of Lockstep refuses names that begin like this.
--
-- SQL cannot compute slots. So a copy begins with an instant of which only is known that the first slot is later (`found` is
-- false), and the next tick finds that slot.

alter table lockstep.schedule
  add column boss_key text,                      -- pg-boss's key; null: the schedule is ours
  add column kind text not null default 'cron',  -- cron, or rrule: a recurrence rule (RFC 5545), which pg-boss reads
  add column options jsonb,                      -- pg-boss's options of the jobs that are sent; null: the schedule is ours
  add column found boolean not null default true; -- whether next_at is a slot. If not, the next slot is the first one later

-- Copies a row of pg-boss's schedules, and removes the copy of a row that is gone. The same rule again keeps its next slot: programs
-- make their schedules whenever they start.
create function lockstep.copy_schedule() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
  copy text;
begin
  if tg_op = 'DELETE' or tg_op = 'UPDATE' and (old.name <> new.name or old.key <> new.key) then
    delete from lockstep.schedule s where s.queue = old.name and s.boss_key = old.key;
  end if;
  if tg_op = 'DELETE' then
    return null;
  end if;
  copy := 'pg-boss:' || new.name || case when new.key = '' then '' else ':' || new.key end;
  insert into lockstep.schedule as s (name, queue, boss_key, kind, cron, timezone, data, options, missed, next_at, found)
  values (copy, new.name, new.key, new.kind, new.cron, coalesce(new.timezone, 'UTC'), new.data, coalesce(new.options, '{}'),
          case when new.options ->> 'missed' = 'once' then 'once' else 'skip' end, clock_timestamp(), false)
  on conflict (name) do update
    set queue = excluded.queue, boss_key = excluded.boss_key, kind = excluded.kind, cron = excluded.cron,
        timezone = excluded.timezone, data = excluded.data, options = excluded.options, missed = excluded.missed, error = null,
        updated_at = clock_timestamp(),
        found = s.found and s.next_at is not null and s.kind = excluded.kind and s.cron = excluded.cron and s.timezone = excluded.timezone,
        next_at = case when s.next_at is not null and s.kind = excluded.kind and s.cron = excluded.cron and s.timezone = excluded.timezone
                       then s.next_at else excluded.next_at end;
  perform pg_notify('lockstep_job', 'schedules');  -- workers may have to tick sooner
  return null;
end $$;

create trigger lockstep_schedule after insert or update or delete on lockstep_boss.schedule
  for each row execute function lockstep.copy_schedule();

-- What was stored before, and never sent.
update lockstep_boss.schedule set cron = cron;

-- One timekeeper. pg-boss's own, if somebody starts a pg-boss on this schema without `schedule: false`, would send each slot a
-- second time, under another id. It stamps this row before each round, so it gets an error instead, which pg-boss emits.
create function lockstep.refuse_timekeeper() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'lockstep: the schedules of this schema are sent by ticks of Lockstep, and pg-boss would send them twice'
    using errcode = '55000', hint = 'Start pg-boss with { schedule: false }.';
end $$;

create trigger lockstep_timekeeper before update of cron_on on lockstep_boss.version
  for each row execute function lockstep.refuse_timekeeper();

-- Locks schedules that are due, for a transaction that sends their slots; schedules that another transaction has locked are
-- left out. `at` is the instant that counts as now (null: the clock's); `but` are names to leave out.
--
-- The transaction may be idle for 30 s. Otherwise a frozen ticker (a laptop's lid, a Lambda between two calls) would hold its
-- rows for as long as its connection lives, and nobody else could send. It waits for a lock for 5 s: a schedule whose queue
-- somebody keeps locked must not hold up the others. And constraints are checked at once: pg-boss defers the one that the queue
-- exists, and at the commit a missing queue would take the slots of all others with it.
create function lockstep.due_slots(at timestamptz, but text[])
returns table (name text, queue text, cron text, timezone text, data jsonb, missed text, next_at timestamptz, now timestamptz,
               kind text, options jsonb, found boolean)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
  present timestamptz := coalesce(at, clock_timestamp());
begin
  perform set_config('idle_in_transaction_session_timeout', '30s', true), set_config('lock_timeout', '5s', true);
  set constraints all immediate;
  return query
    select s.name, s.queue, s.cron, s.timezone, s.data, s.missed, s.next_at, present,
           case when s.boss_key is null then 'own' else s.kind end, s.options, s.found
      from lockstep.schedule s
     where s.next_at <= present and s.name <> all (but)
     order by s.next_at, s.name
     limit 100
       for update skip locked;
end $$;

-- What processes of 0.6 call. They know nothing of pg-boss's schedules, and get none.
create or replace function lockstep.due_schedules(at timestamptz, but text[])
returns table (name text, queue text, cron text, timezone text, data jsonb, missed text, next_at timestamptz, now timestamptz)
language sql
set search_path = pg_catalog, pg_temp as $$
  select d.name, d.queue, d.cron, d.timezone, d.data, d.missed, d.next_at, d.now
    from lockstep.due_slots(at, but || array(select s.name from lockstep.schedule s where s.boss_key is not null)) d
$$;


-- -- What a tick has to do --------------------------------------------------------------------------------------------

-- As due_jobs, which processes of 0.6 call; and in how many milliseconds the next attempt runs out of its lease or its time, so
-- that a tick comes then: the job of a dead worker should not wait for the regular one. Null: no job is running. The orders, and no
-- sorts, leave only the indexes that have no other jobs: without statistics Postgres reads every job of each queue.
create function lockstep.due_work(out late text[], out flows boolean, out upkeep boolean, out dead uuid[], out late_in_ms double precision)
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $$
declare
  present timestamptz := clock_timestamp();
begin
  select array_agg(q.name) filter (where a.late),
         bool_or((select true from lockstep_boss.job j where j.name = q.name and j.blocking and j.state = 'completed'
                  order by j.name, j.id limit 1)),
         bool_or((q.maintain_on is null or q.maintain_on < present - interval '10 minutes')
                 and not starts_with(q.name, 'lockstep.worker/')), -- those are deleted as a whole
         extract(epoch from min(a.next) - present) * 1000
    into late, flows, upkeep, late_in_ms
    from lockstep_boss.queue q,
         lateral (
           select bool_or(x.ends < present) as late, min(x.ends) filter (where x.ends >= present) as next
             from (select least(j.started_on + j.expire_seconds * interval '1 s', j.heartbeat_on + j.heartbeat_seconds * interval '1 s') as ends
                     from lockstep_boss.job j where j.name = q.name and j.state = 'active'
                    order by j.name, j.state, j.blocked, j.start_after) x
         ) a;
  select array_agg(w.id) into dead from lockstep.worker w where w.seen_at < present - interval '1 minute';
end $$;
