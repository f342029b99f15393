-- commit
-- K is cut from SHA-256, so that nobody can choose it. hashtextextended with a public seed can be inverted in a fraction of a
-- second: a key of the HTTP functions that is bound to names under `ci/` could take the K of `prod/deploy`, or the gate of a
-- stream, and keep everybody else from it.
--
-- This file is committed while the database is closed (0008_close.sql), and before it is opened again. A backend that sees one
-- of the reopened functions has then also seen this file, so no backend uses a cached function that takes an old K.
--
-- This file may be applied twice: a migration that is undone keeps it.

-- The bytes of a text, in a database whose encoding is UTF8. The same as convert_to(t, 'UTF8'); but that is not declared
-- IMMUTABLE, so K could not be inlined.
create or replace function lockstep.utf8(t text) returns bytea
language sql immutable strict parallel safe
return decode(replace(t, '\', '\\'), 'escape');

-- The first 64 bits, as a signed number, of SHA-256 over the domain, a zero byte and the name, both in UTF-8. No text contains
-- a zero byte, so no two pairs give the same bytes. Each use has a domain of its own.
create or replace function lockstep.key_of(domain text, name text) returns bigint
language sql immutable strict parallel safe
return ('x' || encode(substring(sha256(lockstep.utf8(domain) || '\x00'::bytea || lockstep.utf8(name)) from 1 for 8), 'hex'))::bit(64)::bigint;

-- K(name), for locks and for everything else that has a row in lockstep.lease.
create or replace function lockstep.key(name text) returns bigint
language sql immutable strict parallel safe
return lockstep.key_of('lock', name);

-- The advisory lock of a stream. An append has it until its transaction ends.
create or replace function lockstep.gate(stream text) returns bigint
language sql immutable strict parallel safe
return lockstep.key_of('stream', stream);

-- The advisory lock that each listener to events has, shared. The number stays, so that listeners and appenders of all versions
-- agree. It comes from the old hash; by the new one no name has it.
create or replace function lockstep.events_key() returns bigint
language sql immutable parallel safe
return 2937540238534951516;

-- lockstep.bucket, which gives a stream its partition, stays as it is: the checkpoints of groups depend on it, and no lock does.

-- As in 0001_lease.sql, but K is computed once and not for each lock of the server.
create or replace function lockstep.look(name text)
returns table (holder text, token bigint, granted_at timestamptz, expires_at timestamptz, ttl_ms integer, meta jsonb,
               gate_pid integer, gate_application text, waiting_pids integer[])
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
         coalesce((select array_agg(k.pid) from k where not k.granted), '{}')
    from (select) one
    left join lockstep.lease l on l.name = look.name collate "C"
     and l.holder is not null and l.expires_at > clock_timestamp()
    left join k g on g.granted
    left join pg_stat_activity a on a.pid = g.pid
$$;
