-- Transactions of callers: that an effect happens in the one that is meant, and what becomes of a job whose handler has ended
-- its own.

-- Raises LS008 unless it runs in the transaction with this id; else true. Outside of a transaction block each statement is a
-- transaction of its own, so an id that an earlier statement brought is never its own.
--
-- It goes into the same statement as the effect, which then has none. lib/database/caller-transaction.ts says why the clocks of the transaction and
-- of the statement do not tell. Nothing but statements of the package calls it: from psql, or in a trigger, assert_held is
-- rightly called without it.
create function lockstep.check_transaction(xid xid8) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
  if pg_current_xact_id_if_assigned() is distinct from xid then
    raise exception 'lockstep: this is not the transaction that was meant: % has ended, or none was open', xid
      using errcode = 'LS008', hint = 'Give an open transaction: one of Kysely, or a client between BEGIN and COMMIT.';
  end if;
  return true;
end $$;

-- Leaves an attempt no retry, so that its failure is for good: its effects may be there, and must not happen twice. Whether it
-- is an attempt still.
create function lockstep.exhaust_job(queue text, id uuid, attempt integer) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
  update lockstep_boss.job j set retry_limit = j.retry_count
   where j.name = exhaust_job.queue and j.id = exhaust_job.id and j.state = 'active' and j.retry_count = exhaust_job.attempt;
  return found;
end $$;
