-- Schedules: a cron expression that sends a job to a queue at each of its slots. The essay is in lib/task/schedule/schedules.ts.
--
-- This is a table of our own, though pg-boss has one. pg-boss's timekeeper, if anybody ever starts one on this schema, reads
-- its own table and would send every slot a second time, under other ids. And the next slot must be in the same row as
-- the job to send: then one row lock is the right to send a slot, the job and the step to the next slot commit together,
-- and a look that finds nothing is one statement on one index.

create table lockstep.schedule (
  name         text collate "C" primary key,
  queue        text collate "C" not null,  -- no reference: a queue that was deleted is told in `error`
  cron         text not null,
  timezone     text not null,
  data         jsonb,
  missed       text not null check (missed in ('skip', 'once', 'all')),
  next_at      timestamptz,                -- the first slot that was not dealt with; null: it cannot be told
  last_slot    timestamptz,                -- the last that was sent
  last_job     uuid,
  missed_slots bigint not null default 0,  -- due, and not sent
  last_missed  timestamptz,
  error        text,                       -- why the last that was due was not sent
  created_at   timestamptz not null default clock_timestamp(),
  updated_at   timestamptz not null default clock_timestamp()
);
create index schedule_due on lockstep.schedule (next_at);

-- Locks schedules that are due, for a transaction that sends their slots; schedules that another transaction has locked are
-- left out. `at` is the instant that counts as now (null: the clock's); `but` are names to leave out.
--
-- The transaction may be idle for 30 s. Otherwise a frozen ticker (a laptop's lid, a Lambda between two calls) would hold its
-- rows for as long as its connection lives, and nobody else could send. And constraints are checked at once: pg-boss
-- defers the one that the queue exists, and at the commit a missing queue would take the slots of all others with it.
create function lockstep.due_schedules(at timestamptz, but text[])
returns table (name text, queue text, cron text, timezone text, data jsonb, missed text, next_at timestamptz, now timestamptz)
language plpgsql as $$
declare
  present timestamptz := coalesce(at, clock_timestamp());
begin
  perform set_config('idle_in_transaction_session_timeout', '30s', true);
  set constraints all immediate;
  return query
    select s.name, s.queue, s.cron, s.timezone, s.data, s.missed, s.next_at, present
      from lockstep.schedule s
     where s.next_at <= present and s.name <> all (but)
     order by s.next_at, s.name
     limit 100
       for update skip locked;
end $$;
