-- Fences that can be bound to rows: the write of row 42 commits only if its writer holds order/42.
--
-- THE FENCE of a transaction is the setting lockstep.fence: a list of holds, one a line, each as `name:proof`. The proof is the
-- part after the last colon: a token, or `transaction` for a hold of lockstep.enter. (A later version may add the mode of a
-- hold: `name:4711/shared`. Today such a line is malformed and permits nothing.) assert_held and enter add their line; any
-- program may say `set local lockstep.fence = 'name:4711'`.
--
-- THE LIST PROVES NOTHING, since anybody can set it. At COMMIT one query checks each written row against the lease row:
-- - `name:token`: the lease row is live under that token. It stays locked FOR KEY SHARE until the transaction has ended.
-- - `name:transaction`: this backend has K(name) in exclusive mode, and the lease row is free. The transaction then takes K
--   once more, because a session's own K could be released between `set constraints all immediate` and COMMIT.
-- A transaction that frees a row (release_held, resign_held) writes its own id into it as freed_by. Nobody else can be granted
-- the name before that transaction ends, so its writes still pass. A transaction that holds by K leaves the same mark when it
-- is first checked, because pg_locks is slow (0.3 ms; 12 ms beside 10,000 advisory locks): without the mark an update of 10,000
-- rows took from 3 s to 2 min longer. The mark is in the lease row because only a role that may write lease rows can forge it,
-- and such a role can grant itself every hold anyway. A setting of the transaction could be forged by everybody.
--
-- RIGHTS. The checks run with the rights of their owner, so a program that writes to a fenced table needs no rights on our
-- tables: it may have got its token over HTTP. (Where a fence is bound by rows it needs USAGE on the schema and EXECUTE on
-- check_hold.) An AFTER trigger may also run as a role that never asked for a hold: the role of a foreign key's cascade.

alter table lockstep.lease
  add column freed_by xid8;  -- the transaction that frees it, or has it by K: nobody else can have it before that ends


-- ---- Holds that a transaction names -------------------------------------------------------------------------------

-- As in 0002_election.sql; and it adds the hold to the fence of the transaction, next to the holds that are there.
create or replace function lockstep.assert_held(name text, token bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  line text := name || ':' || token;
  fence text := current_setting('lockstep.fence', true);
begin
  perform from lockstep.lease l
    where l.name = assert_held.name and l.token = assert_held.token
      and l.holder is not null and l.expires_at > clock_timestamp() and not l.deposed
      for key share;
  if not found then
    raise exception 'lockstep: % is not held under token %', quote_literal(name), token
      using errcode = 'LS001', hint = 'It was released, has expired, or has passed to another holder.',
            detail = json_build_array(json_build_object('name', name, 'token', token::text));
  end if;
  if fence is null or fence = '' then
    perform set_config('lockstep.fence', line, true);
  elsif strpos(E'\n' || fence || E'\n', E'\n' || line || E'\n') = 0 then
    perform set_config('lockstep.fence', fence || E'\n' || line, true);
  end if;
end $$;

create or replace function lockstep.assert_leader(name text, token bigint) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  select lockstep.assert_held(lockstep.election(name), token)
$$;

-- As in 0001_lease.sql. Fenced tables are checked at COMMIT, after this; freed_by lets the writes of this transaction pass.
create or replace function lockstep.release_held(name text, token bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform lockstep.assert_held(name, token);
  perform from lockstep.lease l where l.name = release_held.name for update;
  update lockstep.lease l
     set holder = null, expires_at = clock_timestamp(), meta = null, freed_by = pg_current_xact_id()
   where l.name = release_held.name;
  perform pg_notify(lockstep.channel(name), '');
end $$;

-- As in 0002_election.sql; and freed_by lets the writes of this transaction to fenced tables pass, which are checked at COMMIT.
create or replace function lockstep.resign_held(name text, token bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform lockstep.assert_held(name, token);
  perform from lockstep.lease l where l.name = resign_held.name for update;
  update lockstep.lease l set freed_by = pg_current_xact_id() where l.name = resign_held.name;
  perform lockstep.vacate(name);
end $$;

-- As in 0001_lease.sql, except: the hold is added to the fence only when there is a token. While a lease lives, K alone is a
-- place in the queue. The caller calls this again (wait_for: null) after wait_ms, until it gets a token.
create or replace function lockstep.enter(name text, wait_for integer,
                                          out gated boolean, out token bigint, out wait_ms double precision, out pid integer,
                                          out idle_timeout text)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  timeout text := current_setting('lock_timeout');
  line text;
  fence text;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform lockstep.check_isolation();
  end if;
  pid := pg_backend_pid();
  if wait_for is null then
    gated := pg_try_advisory_xact_lock(lockstep.key(name));
  else
    perform set_config('lock_timeout', wait_for || 'ms', true);
    perform pg_advisory_xact_lock(lockstep.key(name));
    perform set_config('lock_timeout', timeout, true);
    gated := true;
  end if;
  if gated then
    select t.token, t.wait_ms into token, wait_ms from lockstep.take(name) t;
    if token is null then
      idle_timeout := current_setting('idle_in_transaction_session_timeout');
      perform set_config('idle_in_transaction_session_timeout', '15s', true);
    else
      line := name || ':transaction';
      fence := current_setting('lockstep.fence', true);
      if fence is null or fence = '' then
        perform set_config('lockstep.fence', line, true);
      elsif strpos(E'\n' || fence || E'\n', E'\n' || line || E'\n') = 0 then
        perform set_config('lockstep.fence', fence || E'\n' || line, true);
      end if;
    end if;
  end if;
end $$;


-- ---- The check of one row -----------------------------------------------------------------------------------------

-- Returns true if the fence of the transaction names the hold `wanted` and the transaction has it; not bound: if it has any
-- hold that the fence names. Otherwise it raises LS001 or LS002. One query a row and few expressions, because a bulk write
-- calls this 10,000 times. By the index, as in 0001_lease.sql.
create function lockstep.check_hold(written regclass, wanted text, bound boolean default true) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  fence text := E'\n' || coalesce(current_setting('lockstep.fence', true), '') || E'\n';
  candidate text;
begin
  foreach candidate in array case when bound then array[wanted || ':'] else string_to_array(fence, E'\n') end loop
    candidate := left(candidate, - strpos(reverse(candidate), ':'));
    continue when candidate = '' or candidate is null;
    perform from lockstep.lease l
      where l.name = candidate
        and case when l.holder is null then l.freed_by = pg_current_xact_id_if_assigned()
                 else l.expires_at > clock_timestamp() and not l.deposed end
        and (strpos(fence, E'\n' || l.name || ':' || l.token || E'\n') > 0
             or l.holder is null and strpos(fence, E'\n' || l.name || E':transaction\n') > 0)
        for key share;
    if found then
      return true;
    end if;
    if strpos(fence, E'\n' || candidate || E':transaction\n') > 0 and lockstep.has_by_transaction(candidate) then
      return true;
    end if;
  end loop;
  perform lockstep.refuse_write(written, wanted, bound);
  return false;
end $$;

-- Whether this transaction has K(name) in exclusive mode and no lease lives. If so, the transaction has the name until it ends,
-- and this leaves the mark freed_by. Names of elections and groups contain a control character; they are not held by K. In a
-- REPEATABLE READ transaction, a lease that its snapshot does not see makes the insert fail with 40001.
create function lockstep.has_by_transaction(wanted text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  k bigint := lockstep.key(wanted);
begin
  perform from pg_locks l
    where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.granted and l.mode = 'ExclusiveLock' and l.objsubid = 1
      and l.classid = (k >> 32 & 4294967295)::oid and l.objid = (k & 4294967295)::oid;
  if not found or wanted ~ E'[\\x01-\\x1f\\x7f-\\x9f]' or not pg_try_advisory_xact_lock(k) then
    return false;
  end if;
  insert into lockstep.lease as l (name, token, granted_at, expires_at, freed_by)
  values (wanted, 0, clock_timestamp(), clock_timestamp(), pg_current_xact_id())  -- 0: a token that nobody can have
  on conflict (name) do update set freed_by = excluded.freed_by where l.holder is null;
  return found;
end $$;

-- Raises the error that says which hold is missing. Its DETAIL is for programs: the holds that the write needed or named, as
-- [{"name": ..., "token": ...}]. token is a text: digits, or "transaction", or null if the fence does not name that hold.
create function lockstep.refuse_write(written regclass, wanted text, bound boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  fence text := coalesce(current_setting('lockstep.fence', true), '');
  proofs text[];  -- of the hold that the row needs
  named json;
  last text[];
begin
  if bound and coalesce(wanted, '') = '' then
    raise exception 'lockstep: a row of % belongs to no hold: the expression of its fence gives %', written,
        case when wanted is null then 'null' else 'an empty text' end
      using errcode = 'LS002', hint = 'fence_table was told which hold a row belongs to: let that give a name for every row.';
  end if;
  if fence = '' then
    raise exception 'lockstep: a write to % without a fence%', written, coalesce('; it needs the hold ' || quote_literal(wanted), '')
      using errcode = 'LS002', hint = 'set local lockstep.fence = ''name:token'' of a live hold, or write inside transaction().';
  end if;
  select array_agg(p[2] order by i) filter (where p[1] = wanted),
         json_agg(json_build_object('name', p[1], 'token', p[2]) order by i) filter (where not bound or p[1] = wanted),
         (array_agg(p order by i desc))[1:1]
    into proofs, named, last
    from (select regexp_match(line, E'^(.+):(transaction|\\d{1,19})$') as p, i
            from unnest(string_to_array(fence, E'\n')) with ordinality lines(line, i)) parsed
   where p is not null;
  if last is null then
    raise exception 'lockstep: the fence % is not of the form name:token', quote_literal(fence) using errcode = 'LS002';
  end if;
  raise exception 'lockstep: a write to % needs %', written,
      case when not bound then
        'a live hold, and ' || quote_literal(last[1][1])
          || case last[1][2] when 'transaction' then ' is not held by this transaction' else ' is not held under token ' || last[1][2] end
      else
        'the hold ' || quote_literal(wanted)
          || case coalesce(proofs[cardinality(proofs)], '')
               when '' then ', which its transaction does not name'
               when 'transaction' then ', which this transaction does not hold'
               else ', which is not held under token ' || proofs[cardinality(proofs)] end
      end
    using errcode = 'LS001',
          hint = case when bound and proofs is null
                   then 'Call lockstep.assert_held, or add a line name:token of that hold to the setting lockstep.fence.'
                 when coalesce(proofs[cardinality(proofs)], last[1][2]) = 'transaction'
                   then 'A transaction holds what lockstep.enter has given it a token for.'
                 else 'It was released, has expired, or has passed to another holder.' end,
          detail = coalesce(named, json_build_array(json_build_object('name', wanted, 'token', null))),
          schema = (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = written),
          table = (select c.relname from pg_class c where c.oid = written),
          constraint = 'lockstep_fence';
end $$;

-- The trigger of tables whose fence is not bound by rows. Its argument, if there is one, is the name of the hold.
create or replace function lockstep.check_fence() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  ignored boolean;
  row_fence record;
begin
  if tg_op <> 'TRUNCATE' then
    ignored := lockstep.check_hold(tg_relid, tg_argv[0], tg_nargs > 0);
    return null;
  end if;
  -- TRUNCATE follows the fence of the rows. A detached partition has none: Postgres removes its row trigger, but not this one.
  select t.tgnargs > 0 as bound, case when t.tgnargs > 0 then lockstep.fence_name(t.tgargs) end as name,
         t.tgfoid = 'lockstep.check_fence'::regproc as ours
    into row_fence from pg_trigger t where t.tgrelid = tg_relid and t.tgname = 'lockstep_fence';
  if found and not row_fence.ours then
    raise exception 'lockstep: % is fenced by its rows, so it cannot be truncated', tg_relid::regclass
      using errcode = 'LS002', hint = 'Delete the rows under their holds, or let its owner call lockstep.unfence_table first.';
  elsif found then
    ignored := lockstep.check_hold(tg_relid, row_fence.name, row_fence.bound);
  end if;
  return null;
end $$;

-- The one argument of a trigger, from the form that pg_trigger keeps it in.
create function lockstep.fence_name(args bytea) returns text
language sql immutable strict set search_path = pg_catalog, pg_temp as $$
  select convert_from(substr(args, 1, length(args) - 1), getdatabaseencoding())
$$;


-- ---- Fencing a table ----------------------------------------------------------------------------------------------

-- Fences a table: from now on a write to it, or to a partition or child of it, commits only if its transaction names a live
-- hold.
--   by    an SQL expression over the row that gives the name of the hold: by => $$ 'order/' || id $$. It is applied to the old
--         row of an update or delete and to the new row of an insert or update. It may depend on nothing but the row
--         (immutable, no subquery), or the writer could choose the name with a setting such as DateStyle. It is read with the
--         search path pg_catalog, so call functions of your own with their schema.
--   name  the name of one hold for the whole table: name => 'orders'; for an election: name => lockstep.election('billing')
-- With neither, any live hold will do. A second call changes the binding, and fences partitions and children that are not
-- fenced yet. The caller must own the table; with `by` it also needs CREATE on the table's schema, for a trigger function
-- beside it. A call by a superuser also makes an event trigger, which fences partitions and children that come later.
drop function lockstep.fence_table(regclass);
create function lockstep.fence_table(fenced regclass, by text default null, name text default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  expression text;
  fence text := 'lockstep.check_fence()';  -- the call in the row trigger
  before oid;                              -- the row trigger's function now
  child record;
  functions oid[];
begin
  if by is not null and name is not null then
    raise exception 'lockstep: a fence is bound by rows or to one name, not to both' using errcode = '22023';
  elsif name = '' then
    raise exception 'lockstep: a fence cannot be bound to the empty name' using errcode = '22023';
  elsif (select c.relkind not in ('r', 'p') from pg_class c where c.oid = fenced) then
    raise exception 'lockstep: % is not a table that can be fenced', fenced using errcode = '42809';
  end if;
  perform lockstep.change_fences(fenced, lockstep.descendants(fenced));
  select t.tgfoid into before from pg_trigger t where t.tgrelid = fenced and t.tgname = 'lockstep_fence';
  if by is not null then
    expression := lockstep.fence_expression(fenced, by);
    fence := lockstep.fence_function(fenced, expression, before) || '()';
  elsif name is not null then
    fence := format('lockstep.check_fence(%L)', name);
  end if;
  -- First drop triggers with another binding; also the trigger of a partition that was fenced by itself, where the copy would
  -- collide.
  for child in
    select t.tgrelid::regclass as relid, t.tgfoid from pg_class c
      join pg_trigger t on t.tgrelid = c.oid and t.tgname = 'lockstep_fence' and t.tgparentid = 0
     where c.oid = any (lockstep.descendants(fenced)) and (lockstep.fence_call(t) <> fence or c.oid <> fenced and c.relispartition)
  loop
    execute format('drop trigger lockstep_fence on %s', child.relid);
    functions := functions || child.tgfoid;
  end loop;
  perform lockstep.fence_descendants(fenced, fence);
  for child in
    select t.tgrelid::regclass as relid, t.tgname from pg_trigger t
     where t.tgrelid = any (lockstep.descendants(fenced)) and t.tgname in ('lockstep_fence', 'lockstep_fence_truncate') and t.tgenabled = 'D'
  loop
    execute format('alter table %s enable trigger %I', child.relid, child.tgname);
  end loop;
  perform lockstep.drop_fence_function(f) from unnest(functions) f;
  perform lockstep.watch_new_tables(fenced);
end $$;

-- Undoes fence_table, for the table and all tables below it. Also removes the trigger functions of fenced tables that were
-- dropped.
create or replace function lockstep.unfence_table(fenced regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  child record;
begin
  perform lockstep.change_fences(fenced, array[fenced]);
  for child in
    select t.tgrelid::regclass as relid, t.tgname from pg_trigger t
     where t.tgrelid = any (lockstep.descendants(fenced)) and t.tgname in ('lockstep_fence', 'lockstep_fence_truncate') and t.tgparentid = 0
  loop
    execute format('drop trigger %I on %s', child.tgname, child.relid);
  end loop;
  perform lockstep.drop_fence_function(p.oid) from pg_proc p
    where p.prorettype = 'trigger'::regtype and p.pronargs = 0 and p.proname like E'lockstep\\_fence\\_%' and pg_has_role(p.proowner, 'usage');
  if not exists (select from pg_trigger where tgname = 'lockstep_fence')
     and exists (select from pg_event_trigger e where e.evtname = 'lockstep_fence' and pg_has_role(e.evtowner, 'usage')) then
    drop event trigger lockstep_fence;
  end if;
end $$;

-- Checks that these tables may be fenced or unfenced by the caller, and locks, so that there is one call at a time: else the
-- last unfencing could drop the event trigger that the first fencing relies on. A table below a fenced table has the same fence
-- as that one, so that each row has one answer; it cannot be changed by itself.
create function lockstep.change_fences(fenced regclass, tables oid[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  part record;
begin
  if not (select pg_has_role(c.relowner, 'usage') from pg_class c where c.oid = fenced) then
    raise exception 'lockstep: only the owner of % can change its fence', fenced using errcode = '42501';
  end if;
  perform pg_advisory_xact_lock(1819239275, 1717923427);  -- 'lock', 'fenc'
  with recursive above as (
    select i.inhrelid as part, i.inhparent as whole from pg_inherits i where i.inhrelid = any (tables)
    union select a.part, i.inhparent from pg_inherits i join above a on i.inhrelid = a.whole
  )
  select a.part::regclass, a.whole::regclass into part from above a
    join pg_trigger t on t.tgrelid = a.whole and t.tgname = 'lockstep_fence'
   where a.whole <> all (tables) limit 1;
  if found then
    raise exception 'lockstep: % is part of %, which is fenced: fence or unfence that one', part.part, part.whole using errcode = '55000';
  end if;
end $$;

-- A table with all its partitions and children.
create function lockstep.descendants(fenced regclass) returns oid[]
language sql stable set search_path = pg_catalog, pg_temp as $$
  with recursive tree as (
    select fenced::oid as relid
    union select i.inhrelid from pg_inherits i join tree t on i.inhparent = t.relid
  )
  select array_agg(t.relid) from tree t
$$;

-- The call in the definition of a row trigger: its function with its argument.
create function lockstep.fence_call(t pg_trigger) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select format('%I.%I(%s)', n.nspname, p.proname, case when t.tgnargs > 0 then quote_literal(lockstep.fence_name(t.tgargs)) end)
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.oid = t.tgfoid
$$;

-- Adds the missing triggers to a table and all tables below it. Postgres copies the row trigger of a partitioned table to its
-- partitions, but not to children by inheritance, and it never copies truncate triggers.
create function lockstep.fence_descendants(fenced regclass, fence text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  child record;
begin
  for child in
    select c.oid::regclass as relid,
           (c.oid = fenced or not c.relispartition) and not lockstep.has_trigger(c.oid, 'lockstep_fence') as rows,
           not lockstep.has_trigger(c.oid, 'lockstep_fence_truncate') as truncate
      from pg_class c where c.oid = any (lockstep.descendants(fenced))
  loop
    if child.rows then
      execute format('create constraint trigger lockstep_fence after insert or update or delete on %s '
                     'deferrable initially deferred for each row execute function %s', child.relid, fence);
    end if;
    if child.truncate then
      execute format('create trigger lockstep_fence_truncate before truncate on %s '
                     'for each statement execute function lockstep.check_fence()', child.relid);
    end if;
  end loop;
end $$;

create function lockstep.has_trigger(relid regclass, name text) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (select from pg_trigger t where t.tgrelid = relid and t.tgname = has_trigger.name)
$$;


-- ---- The expression of a fence that is bound by rows --------------------------------------------------------------

-- Checks the expression of a fence and returns it as Postgres understood it, with every name qualified; so it is one expression
-- and nothing else. An index accepts exactly those expressions that depend on the row only. So an index on an empty copy of the
-- table is made, and undone.
create function lockstep.fence_expression(fenced regclass, by text) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  place text := (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = fenced);
  understood text;
begin
  if not has_schema_privilege(place, 'create') then
    raise exception 'lockstep: a fence that is bound by rows needs CREATE on the schema %, for a trigger function beside the table',
      quote_ident(place) using errcode = '42501';
  end if;
  begin
    execute format('create table %I.lockstep_fence_scratch (like %s)', place, fenced);
    execute format(E'create index lockstep_fence_scratch_index on %I.lockstep_fence_scratch (((\n%s\n)::text collate "C"))', place, by);
    understood := pg_get_indexdef(format('%I.lockstep_fence_scratch_index', place)::regclass, 1, false);
    raise exception 'undo' using errcode = 'LS000';
  exception
    when sqlstate 'LS000' then null;
    when others then
      raise exception 'lockstep: % cannot name the hold of a row of %: %', btrim(by, E' \t\n'), fenced,
          replace(sqlerrm, 'functions in index expression must be marked IMMUTABLE',
                  'it may depend on nothing but the row, so its functions must be marked IMMUTABLE')
        using errcode = sqlstate, hint = 'An SQL expression over the columns, such as ''order/'' || id. '
          'It is read with the search path pg_catalog: call functions of your own with their schema.';
  end;
  if strpos(understood, 'lockstep_fence_scratch') > 0 then
    raise exception 'lockstep: % cannot name the hold of a row of %: it takes columns, not the whole row', btrim(by, E' \t\n'), fenced
      using errcode = '22023';
  end if;
  return understood;
end $$;

-- Makes the trigger function of one table, beside it, and returns its name. A function of its own keeps its plans: executing
-- the expression as text for each row takes five times as long as all the rest of the check. `before`: the function of the
-- present fence.
create function lockstep.fence_function(fenced regclass, expression text, before oid) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  body text := format($body$
-- Made by lockstep.fence_table; lockstep.unfence_table drops it.
#variable_conflict use_column
declare
  was text;
  will text;
  ignored boolean;
begin
  if tg_op = 'UPDATE' then
    select o.name, n.name into was, will
      from (select %1$s as name from (select old.*) r) o, (select %1$s as name from (select new.*) r) n;
    if was is distinct from will then
      ignored := lockstep.check_hold(tg_relid, was);
    end if;
  elsif tg_op = 'INSERT' then
    select %1$s into will from (select new.*) r;
  else
    select %1$s into will from (select old.*) r;
  end if;
  ignored := lockstep.check_hold(tg_relid, will);
  return null;
end $body$, expression);
  place record;
  named text;
  taken oid := before;
begin
  select n.nspname, c.relname, c.relowner into place
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = fenced;
  -- The name that it has, unless a former parent of the table uses that function too. Otherwise a free name, or the name of a
  -- function whose table was dropped.
  if lockstep.is_fence_function(before)
     and not exists (select from pg_trigger t where t.tgfoid = before and t.tgrelid <> all (lockstep.descendants(fenced))) then
    select format('%I.%I', n.nspname, p.proname) into named
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.oid = before;
  end if;
  for i in 1 .. case when named is null then 1000 else 0 end loop
    named := format('%I.%I', place.nspname,
                    'lockstep_fence_' || left(place.relname, case when octet_length(place.relname) <= 40 then 40 else 10 end)
                      || case when i > 1 then '_' || i else '' end);
    taken := to_regprocedure(named || '()');
    exit when taken is null
      or lockstep.is_fence_function(taken) and not exists (select from pg_trigger t where t.tgfoid = taken)
         and exists (select from pg_proc p where p.oid = taken and pg_has_role(p.proowner, 'usage'));
  end loop;
  if exists (select from pg_proc p where p.oid = taken and p.prosrc = body) then
    return named;
  end if;
  execute format('create or replace function %s() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as %L', named, body);
  -- So that the table's owner can replace it, if a superuser has fenced the table.
  if place.relowner <> current_user::regrole and (select r.rolsuper from pg_roles r where r.oid = current_user::regrole) then
    execute format('alter function %s() owner to %s', named, place.relowner::regrole);
  end if;
  return named;
end $$;

create function lockstep.is_fence_function(f oid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (select from pg_proc p where p.oid = f and p.prosrc like E'\n-- Made by lockstep.fence_table;%')
$$;

-- Drops a function that fence_function has made, unless a trigger still calls it.
create function lockstep.drop_fence_function(f oid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if lockstep.is_fence_function(f) and not exists (select from pg_trigger t where t.tgfoid = f) then
    execute format('drop function %s', f::regprocedure);
  end if;
end $$;


-- ---- Tables that come later ---------------------------------------------------------------------------------------

-- The event trigger: at the end of a CREATE or ALTER TABLE it gives each table that is now below a fenced table the same fence.
-- It only adds what is missing, so a trigger that the owner has disabled stays disabled. For all other tables it costs one look
-- at the catalog. It runs with the rights of its owner, a superuser, so it needs no rights of the role that made the table.
create function lockstep.fence_new_tables() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  above record;
begin
  for above in
    select distinct on (t.tgrelid) t.tgrelid::regclass as relid, t as row_fence
      from pg_event_trigger_ddl_commands() c
      left join pg_inherits i on i.inhrelid = c.objid
      join pg_trigger t on t.tgrelid = any (array[c.objid, i.inhparent]) and t.tgname = 'lockstep_fence'
     where c.classid = 'pg_class'::regclass
  loop
    perform lockstep.fence_descendants(above.relid, lockstep.fence_call(above.row_fence));
  end loop;
end $$;

-- Makes the event trigger if it is missing. Only a superuser can, and only with a function that a superuser owns, because it
-- runs at the DDL of every role, superusers included. Otherwise raises a notice.
create function lockstep.watch_new_tables(fenced regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from pg_event_trigger where evtname = 'lockstep_fence') then
    return;
  end if;
  if (select bool_and(r.rolsuper) from pg_roles r
       where r.oid in (current_user::regrole, (select p.proowner from pg_proc p where p.oid = 'lockstep.fence_new_tables'::regproc))) then
    create event trigger lockstep_fence on ddl_command_end when tag in ('CREATE TABLE', 'ALTER TABLE', 'CREATE SCHEMA', 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE')
      execute function lockstep.fence_new_tables();
  else
    raise notice 'lockstep: a partition or child that % gets later is not fenced until fence_table is called again', fenced
      using hint = 'Where a superuser has migrated and calls fence_table, an event trigger sees to it.';
  end if;
exception
  when insufficient_privilege then  -- some providers do not let their superusers make event triggers
    raise notice 'lockstep: a partition or child that % gets later is not fenced until fence_table is called again', fenced;
end $$;
