-- Transactions of callers: an effect happens in the transaction that is meant, and a job whose handler has ended its
-- transaction is not tried again.

-- Returns true if it runs in the transaction with this id, and raises LS008 otherwise. Outside a transaction block each
-- statement is a transaction of its own, so it never has the id that an earlier statement returned.
--
-- It is part of the statement with the effect, which then has no effect if this raises. lib/database/caller-transaction.ts says
-- why the clocks of the transaction and of the statement cannot decide this. Only statements of the package call it. A caller
-- in psql or in a trigger uses assert_held without it, rightly.
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

-- Takes the remaining retries from an attempt, so that its failure is final: its effects may have been committed, and must not
-- happen twice. Returns whether it is still an attempt.
create function lockstep.exhaust_job(queue text, id uuid, attempt integer) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
  update lockstep_boss.job j set retry_limit = j.retry_count
   where j.name = exhaust_job.queue and j.id = exhaust_job.id and j.state = 'active' and j.retry_count = exhaust_job.attempt;
  return found;
end $$;
