-- commit
-- K cannot be chosen: it is cut from SHA-256 now. hashtextextended with a seed that everybody knows can be inverted in a fraction of
-- a second, so a key of the HTTP functions that is bound to names under `ci/` could take the K of `prod/deploy`, or of the gate of a
-- stream, and keep everybody else from it.
--
-- Committed while all is closed (0008_close.sql), and before anything is opened again: a backend that sees one of the functions
-- that are opened has then heard of this one too, so none takes the K of before by a function that it still remembers.
--
-- This file may be applied twice: a migration that is taken back leaves it.

-- The bytes of a text in a database whose encoding is UTF8. As convert_to(t, 'UTF8'), which is not declared IMMUTABLE, so that K
-- could not be inlined.
create or replace function lockstep.utf8(t text) returns bytea
language sql immutable strict parallel safe
return decode(replace(t, '\', '\\'), 'escape');

-- The first 64 bits, as a signed number, of SHA-256 over the domain, a zero byte and the name, both in UTF-8. No text has a zero
-- byte, so no two pairs are the same bytes. Each use has a domain of its own.
create or replace function lockstep.key_of(domain text, name text) returns bigint
language sql immutable strict parallel safe
return ('x' || encode(substring(sha256(lockstep.utf8(domain) || '\x00'::bytea || lockstep.utf8(name)) from 1 for 8), 'hex'))::bit(64)::bigint;

-- K(name), of locks and of whatever else has a row in lockstep.lease.
create or replace function lockstep.key(name text) returns bigint
language sql immutable strict parallel safe
return lockstep.key_of('lock', name);

-- Of a stream.
create or replace function lockstep.gate(stream text) returns bigint
language sql immutable strict parallel safe
return lockstep.key_of('stream', stream);

-- As it was, so that listeners and appenders of all versions agree. It was made by the hash of before; no name has it by this one.
create or replace function lockstep.events_key() returns bigint
language sql immutable parallel safe
return 2937540238534951516;

-- lockstep.bucket, the partition of a stream, stays as it is: each group's checkpoints are by it, and no lock is.

-- As in 0001_lease.sql, with K made once and not for each lock of the server.
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
