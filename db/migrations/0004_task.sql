-- Tasks: what pg-boss (0003_boss.sql) lacks. The essay is in lib/task/tasks.ts.
--
-- An attempt of a job is (queue, id, attempt). attempt is the retry_count of the job when it was fetched; pg-boss adds one
-- at every fetch of a job that was started before. Every statement that ends an attempt or keeps it alive matches all
-- three, and the state active: so a stale attempt can neither end its successor nor keep it alive. There is one way to fetch
-- a job without adding one, pg-boss's `restore`, which forgets that the job was started. It is not used here:
-- hand_back_jobs does the same and keeps count.
--
-- Each call has one queue, as a parameter: the job table is partitioned by queue, and only so is one partition touched.

-- ── Attempts ────────────────────────────────────────────────────────────────────────────────────────────────────

-- Ends attempts, [{ id, attempt, output }, …], each with an output. Returns the ids of those that this call has ended.
-- One JSON text instead of three arrays: a client then need not write each text once more as an element.
create function lockstep.complete_jobs(queue text, ended json) returns uuid[]
language plpgsql as $$
declare
  done uuid[];
begin
  with ended as (
    update lockstep_boss.job j
       set state = 'completed', completed_on = lockstep_boss.job_now(), output = a.output
      from json_to_recordset(ended) a(id uuid, attempt integer, output jsonb)
     where j.name = complete_jobs.queue and j.id = a.id and j.state = 'active' and j.retry_count = a.attempt
    returning j.id
  )
  select coalesce(array_agg(e.id), '{}') into done from ended e;
  return done;
end $$;

-- Gives jobs back, ready at once, because the worker ends and not the job. That costs none of the job's retries (as in
-- pg-boss's own retry(), it allows one more), and the next attempt has another number. Notifies waiting workers on
-- pg-boss's channel.
create function lockstep.hand_back_jobs(queue text, ids uuid[], attempts integer[]) returns uuid[]
language plpgsql as $$
declare
  done uuid[];
begin
  with back as (
    update lockstep_boss.job j
       set state = 'retry', retry_limit = j.retry_limit + 1, start_after = lockstep_boss.job_now(), heartbeat_on = null
      from unnest(ids, attempts) a(id, attempt)
     where j.name = hand_back_jobs.queue and j.id = a.id and j.state = 'active' and j.retry_count = a.attempt
    returning j.id
  )
  select coalesce(array_agg(b.id), '{}') into done from back b;
  if done <> '{}' then
    perform pg_notify('pgboss_' || left(encode(sha224('lockstep_boss'::bytea), 'hex'), 24), queue);
  end if;
  return done;
end $$;

-- The heartbeat of attempts. Returns the ids of those that are still attempts.
create function lockstep.beat_jobs(queue text, ids uuid[], attempts integer[]) returns uuid[]
language plpgsql as $$
declare
  alive uuid[];
begin
  with beaten as (
    update lockstep_boss.job j
       set heartbeat_on = lockstep_boss.job_now()
      from unnest(ids, attempts) a(id, attempt)
     where j.name = beat_jobs.queue and j.id = a.id and j.state = 'active' and j.retry_count = a.attempt
    returning j.id
  )
  select coalesce(array_agg(b.id), '{}') into alive from beaten b;
  return alive;
end $$;

-- What an attempt reports of itself, and who makes it. One row a job, for its latest attempt that has reported something.
create table lockstep.attempt (
  queue     text collate "C" not null,
  id        uuid not null,
  attempt   integer not null,
  holder    text,
  fraction  double precision,
  note      text,
  at        timestamptz not null,
  leased    boolean not null default false, -- the job's heartbeat is a lease's
  heartbeat integer,                        -- what it was before
  primary key (queue, id)
) with (fillfactor = 70);
create index attempt_at on lockstep.attempt (at);

-- Gives attempts a lease, by pg-boss's heartbeat, whose upkeep ends attempts that miss it. Returns until when; nothing for
-- an attempt that is over.
create function lockstep.lease_jobs(queue text, ids uuid[], attempts integer[], lease_ms integer, holder text)
returns table (id uuid, expires_at timestamptz)
language plpgsql as $$
#variable_conflict use_column
begin
  return query
  with named as (
    insert into lockstep.attempt as x (queue, id, attempt, holder, at, leased, heartbeat)
    select j.name, j.id, j.retry_count, lease_jobs.holder, clock_timestamp(), true, j.heartbeat_seconds
      from unnest(ids, attempts) a(id, attempt)
      join lockstep_boss.job j
        on j.name = lease_jobs.queue and j.id = a.id and j.state = 'active' and j.retry_count = a.attempt
    on conflict (queue, id) do update
       set attempt = excluded.attempt, at = excluded.at, leased = true,
           heartbeat = case when x.leased then x.heartbeat else excluded.heartbeat end,
           holder = coalesce(excluded.holder, case when x.attempt = excluded.attempt then x.holder end),
           fraction = case when x.attempt = excluded.attempt then x.fraction end,
           note = case when x.attempt = excluded.attempt then x.note end
  ), leased as (
    update lockstep_boss.job j
       set heartbeat_on = lockstep_boss.job_now(), heartbeat_seconds = ceil(lease_ms / 1000.0)
      from unnest(ids, attempts) a(id, attempt)
     where j.name = lease_jobs.queue and j.id = a.id and j.state = 'active' and j.retry_count = a.attempt
    returning j.id, j.heartbeat_on + j.heartbeat_seconds * interval '1 s' as expires_at
  )
  select l.id, l.expires_at from leased l;
end $$;

-- For jobs that were claimed before and now run in a worker without leases: gives them back their own heartbeat.
create function lockstep.unlease_jobs(queue text, ids uuid[]) returns table (id uuid, heartbeat integer)
language plpgsql as $$
#variable_conflict use_column
begin
  return query
  with was as (
    update lockstep.attempt x set leased = false
     where x.queue = unlease_jobs.queue and x.id = any (ids) and x.leased
    returning x.id, x.heartbeat
  ), own as (
    update lockstep_boss.job j set heartbeat_on = lockstep_boss.job_now(), heartbeat_seconds = w.heartbeat
      from was w
     where j.name = unlease_jobs.queue and j.id = w.id and j.state = 'active'
  )
  select w.id, w.heartbeat from was w;
end $$;

create function lockstep.progress_job(queue text, id uuid, attempt integer, fraction double precision, note text)
returns boolean
language plpgsql as $$
#variable_conflict use_column
begin
  insert into lockstep.attempt as x (queue, id, attempt, fraction, note, at)
  select j.name, j.id, j.retry_count, progress_job.fraction, progress_job.note, clock_timestamp()
    from lockstep_boss.job j
   where j.name = progress_job.queue and j.id = progress_job.id and j.state = 'active'
     and j.retry_count = progress_job.attempt
  on conflict (queue, id) do update
     set attempt = excluded.attempt, fraction = excluded.fraction, note = excluded.note, at = excluded.at,
         holder = case when x.attempt = excluded.attempt then x.holder end;
  return found;
end $$;

-- ── Workers ─────────────────────────────────────────────────────────────────────────────────────────────────────

-- The workers of a queue, for broadcasts: each also has a queue of its own, named by its id.
create table lockstep.worker (
  id       uuid primary key,
  queue    text collate "C" not null,
  seen_at  timestamptz not null
);
create index worker_queue on lockstep.worker (queue);

-- ── Looking ─────────────────────────────────────────────────────────────────────────────────────────────────────

-- Milliseconds until the next job of each queue may be fetched. 0: now; null: no job is waiting.
create function lockstep.ready_jobs(queues text[]) returns table (queue text, in_ms double precision)
language plpgsql stable as $$
declare
  each text;
  due timestamptz;
begin
  foreach each in array queues loop
    due := least(
      (select min(j.start_after) from lockstep_boss.job j where j.name = each and j.state = 'created' and not j.blocked),
      (select min(j.start_after) from lockstep_boss.job j where j.name = each and j.state = 'retry' and not j.blocked));
    queue := each;
    in_ms := case when due is not null
                  then greatest(extract(epoch from due - clock_timestamp()), 0) * 1000 end;
    return next;
  end loop;
end $$;

-- What a tick has to do.
--   late     queues with attempts that took too long, or whose heartbeat is missing
--   flows    jobs of flows are over, and others wait for them
--   upkeep   for ten minutes nobody has deleted jobs that are old enough
--   dead     workers that have not been seen for a minute
create function lockstep.due_jobs(out late text[], out flows boolean, out upkeep boolean, out dead uuid[])
language plpgsql stable as $$
begin
  select array_agg(q.name) filter (where exists (
           select from lockstep_boss.job j
            where j.name = q.name and j.state = 'active'
              and (j.started_on + j.expire_seconds * interval '1 s' < clock_timestamp()
                   or j.heartbeat_on + j.heartbeat_seconds * interval '1 s' < clock_timestamp()))),
         bool_or(exists (
           select from lockstep_boss.job j where j.name = q.name and j.blocking and j.state = 'completed')),
         bool_or((q.maintain_on is null or q.maintain_on < clock_timestamp() - interval '10 minutes')
                 and not starts_with(q.name, 'lockstep.worker/')) -- those are deleted as a whole
    into late, flows, upkeep
    from lockstep_boss.queue q;
  select array_agg(w.id) into dead from lockstep.worker w where w.seen_at < clock_timestamp() - interval '1 minute';
end $$;

-- Deletes reports of attempts that are a month old, at most 10,000.
create function lockstep.sweep_attempts() returns bigint
language plpgsql as $$
declare
  swept bigint;
begin
  delete from lockstep.attempt a
   where a.ctid in (select x.ctid from lockstep.attempt x where x.at < clock_timestamp() - interval '30 days'
                     order by x.at limit 10000);
  get diagnostics swept = row_count;
  return swept;
end $$;
