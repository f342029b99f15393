-- Statements whose cost must not grow with what is stored, whatever the planner knows of it.
--
-- The statistics of a table say nothing of a queue that was filled since: Postgres then expects one row of it, and reads all rows of
-- the queue once for each job that it looks for. Nothing here leaves that choice to statistics.

-- -- Jobs ----------------------------------------------------------------------------------------------------------
--
-- A job is found by (name, id), which is unique, and then changed by its place in the table (ctid). The search asks for the first
-- id from its own on, in order, and may not sort: so only the index that has the order can serve, whatever the statistics say. By
-- equality other indexes could, and would read every job of the queue, or every one that runs. The prices of pages make the place
-- the cheapest way to a row. A job that was changed between the search and the update (a heartbeat) is searched again.
-- The state is compared as text: an index of jobs by state would serve, and read all that run.

-- The attempts among these that run: where they are. `but`: ids that are left out.
create function lockstep.running_jobs(queue text, ids uuid[], attempts integer[], but uuid[])
returns table (name text, id uuid, n integer, heartbeat integer, part oid, place tid)
language plpgsql rows 1
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
  return query
  select x.name, x.id, a.n::integer, x.heartbeat_seconds, x.part, x.place
    from unnest(ids, attempts) with ordinality a(id, attempt, n)
   cross join lateral (
     select j.name, j.id, j.state, j.retry_count, j.heartbeat_seconds, j.tableoid as part, j.ctid as place
       from lockstep_boss.job j where j.name = running_jobs.queue and j.id >= a.id order by j.name, j.id limit 1) x
   where x.id = a.id and x.state = 'active' and x.retry_count = a.attempt and a.id <> all (but);
end $$;

-- As in 0004_task.sql.
create or replace function lockstep.complete_jobs(queue text, ended json) returns uuid[]
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set random_page_cost = 0 set plan_cache_mode = force_generic_plan as $$
declare
  ids uuid[];
  attempts integer[];
  outputs jsonb[];
  done uuid[] := '{}';
  batch uuid[];
  running bigint;
begin
  select array_agg(a.id), array_agg(a.attempt), array_agg(a.output) into ids, attempts, outputs
    from json_to_recordset(ended) a(id uuid, attempt integer, output jsonb);
  loop
    with f as materialized (
      select * from lockstep.running_jobs(queue, ids, attempts, done)
    ), ended as (
      update lockstep_boss.job j
         set state = 'completed', completed_on = lockstep_boss.job_now(), output = outputs[f.n]
        from f
       where j.name = f.name and j.tableoid = f.part and j.ctid = f.place
         and j.state::text = 'active' and j.retry_count = attempts[f.n]
      returning j.id
    )
    select (select count(*) from f), coalesce(array_agg(e.id), '{}') into running, batch from ended e;
    done := done || batch;
    exit when cardinality(batch) = running;
  end loop;
  return done;
end $$;

-- As in 0004_task.sql.
create or replace function lockstep.lease_jobs(queue text, ids uuid[], attempts integer[], lease_ms integer, holder text)
returns table (id uuid, expires_at timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set random_page_cost = 0 set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  done uuid[] := '{}';
  batch uuid[];
  running bigint;
begin
  loop
    with f as materialized (
      select * from lockstep.running_jobs(queue, ids, attempts, done)
    ), leased as (
      update lockstep_boss.job j
         set heartbeat_on = lockstep_boss.job_now(), heartbeat_seconds = ceil(lease_ms / 1000.0)
        from f
       where j.name = f.name and j.tableoid = f.part and j.ctid = f.place
         and j.state::text = 'active' and j.retry_count = attempts[f.n]
      returning j.id, j.retry_count, f.heartbeat
    ), named as (
      insert into lockstep.attempt as x (queue, id, attempt, holder, at, leased, heartbeat)
      select lease_jobs.queue, l.id, l.retry_count, lease_jobs.holder, clock_timestamp(), true, l.heartbeat from leased l
      on conflict (queue, id) do update
         set attempt = excluded.attempt, at = excluded.at, leased = true,
             heartbeat = case when x.leased then x.heartbeat else excluded.heartbeat end,
             holder = coalesce(excluded.holder, case when x.attempt = excluded.attempt then x.holder end),
             fraction = case when x.attempt = excluded.attempt then x.fraction end,
             note = case when x.attempt = excluded.attempt then x.note end
    )
    select (select count(*) from f), coalesce(array_agg(l.id), '{}') into running, batch from leased l;
    done := done || batch;
    exit when cardinality(batch) = running;
  end loop;
  return query select d.id, lockstep_boss.job_now() + ceil(lease_ms / 1000.0) * interval '1 s' from unnest(done) d(id);
end $$;

-- As in 0004_task.sql.
create or replace function lockstep.hand_back_jobs(queue text, ids uuid[], attempts integer[]) returns uuid[]
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set random_page_cost = 0 set plan_cache_mode = force_generic_plan as $$
declare
  done uuid[] := '{}';
  batch uuid[];
  running bigint;
begin
  loop
    with f as materialized (
      select * from lockstep.running_jobs(queue, ids, attempts, done)
    ), back as (
      update lockstep_boss.job j
         set state = 'retry', retry_limit = j.retry_limit + 1, start_after = lockstep_boss.job_now(), heartbeat_on = null
        from f
       where j.name = f.name and j.tableoid = f.part and j.ctid = f.place
         and j.state::text = 'active' and j.retry_count = attempts[f.n]
      returning j.id
    )
    select (select count(*) from f), coalesce(array_agg(b.id), '{}') into running, batch from back b;
    done := done || batch;
    exit when cardinality(batch) = running;
  end loop;
  if done <> '{}' then
    perform pg_notify('pgboss_' || left(encode(sha224('lockstep_boss'::bytea), 'hex'), 24), queue);
  end if;
  return done;
end $$;

-- As in 0004_task.sql. By the order of the index that has no other jobs: without statistics Postgres reads the whole queue.
create or replace function lockstep.ready_jobs(queues text[]) returns table (queue text, in_ms double precision)
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off set plan_cache_mode = force_generic_plan as $$
declare
  each text;
  due timestamptz;
begin
  foreach each in array queues loop
    due := least(
      (select j.start_after from lockstep_boss.job j
        where j.name = each and j.state = 'created' and not j.blocked order by j.name, j.state, j.blocked, j.start_after limit 1),
      (select j.start_after from lockstep_boss.job j
        where j.name = each and j.state = 'retry' and not j.blocked order by j.name, j.state, j.blocked, j.start_after limit 1));
    queue := each;
    in_ms := case when due is not null
                  then greatest(extract(epoch from due - clock_timestamp()), 0) * 1000 end;
    return next;
  end loop;
end $$;

-- Runs pg-boss's fetch, whose text lib/task/pgboss/fetch.ts has changed so that a job that was chosen is found again by its place
-- in the table (ctid), which only that row has. `per_group`: its parameter, if it has one. It runs with the rights of the caller,
-- who can send it as well himself. Without sorts there is one way to find the first jobs: the index in the order in which they are
-- fetched. With them Postgres reads and sorts all that wait, where it expects one.
create function lockstep.fetch_jobs(statement text, per_group integer)
returns table (id uuid, name text, data jsonb, "retryCount" integer, "expireInSeconds" integer, "heartbeatSeconds" integer,
               "groupId" text, "groupTier" text)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $$
begin
  return query execute statement using per_group;
end $$;

-- Claims jobs: fetches what fits into `room` bytes (fetch_within), and gives each a lease, in one statement. All leases of a claim
-- end at once. jobs is null if too much was asked for: then nothing is claimed, and `fits` would be.
create function lockstep.claim_jobs(statement text, room bigint, queue text, lease_ms integer, holder text,
                                    out jobs json, out fits integer, out expires_at timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
  select f.jobs, f.fits into jobs, fits from lockstep.fetch_within(statement, room) f;
  if jobs is null or fits = 0 then
    return;
  end if;
  select min(l.expires_at) into expires_at
    from (select array_agg((j ->> 0)::uuid) as ids, array_agg((j ->> 1)::integer) as attempts from json_array_elements(jobs) j) a,
         lockstep.lease_jobs(queue, a.ids, a.attempts, lease_ms, holder) l;
end $$;


-- -- Upkeep --------------------------------------------------------------------------------------------------------

-- Notes that upkeep was done for the queues for which it is due and has nothing to do: they have no jobs, no jobs of flows wait for
-- theirs, and their counts are zero. pg-boss takes several statements for each queue, 2 ms in all: with 10,000 queues 20 s. What
-- others are changing is left to pg-boss. Returns how many these were.
create function lockstep.rest_queues() returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  rested bigint;
begin
  with due as materialized (
    select q.name from lockstep_boss.queue q
     where (q.maintain_on is null or q.maintain_on < clock_timestamp() - interval '10 minutes')
       and q.queued_count = 0 and q.active_count = 0 and q.total_count = 0 and coalesce(q.retained_count, 0) = 0
       and (select true from lockstep_boss.job j where j.name = q.name order by j.name, j.id limit 1) is null
       and not exists (select from lockstep_boss.job_dependency d where d.parent_name = q.name)
       and not exists (select from lockstep_boss.job_dependency d where d.child_name = q.name)
       for no key update skip locked
  )
  update lockstep_boss.queue q set maintain_on = clock_timestamp() from due where q.name = due.name;
  get diagnostics rested = row_count;
  return rested;
end $$;
