/**
 * A hostile tenant of the database. For every function, aggregate and operator of pg_catalog that Lockstep's functions call, it has put
 * one of the same name into `public`: with exactly the same types, and for a polymorphic one with the types that Lockstep uses. With
 * `public` before pg_catalog in the search path, an unqualified name means the tenant's. They do what the real ones do, and record who
 * called them: `heard`.
 *
 * No casts: a tenant can make none between types that it does not own.
 */
import type pg from 'pg'

/** The argument types of the functions that are imitated. */
const TYPES = [
  ...[
    'bool',
    'bytea',
    'char',
    'name',
    'int8',
    'int2',
    'int4',
    'text',
    'oid',
    'json',
    'jsonb',
    'xid8',
    'float8',
    'bpchar',
    'varchar',
  ],
  ...[
    'timestamp',
    'timestamptz',
    'interval',
    'date',
    'numeric',
    'uuid',
    'regclass',
    'regprocedure',
    'regtype',
    'bit',
    'tid',
    'xid',
  ],
]
/** The polymorphic types. */
const ELEMENTS = ['text', 'int8', 'int4', 'bool', 'uuid', 'jsonb', 'json', 'timestamptz', 'name', 'regclass', 'oid']
/** Functions whose special syntax calls pg_catalog's whatever the search path is, and functions that only C code calls. */
const NOT_CALLED = ['extract', 'overlay', 'position', 'xmlexists', 'nextval_internal']

interface Made {
  /** How many were made. */
  functions: number
  aggregates: number
  operators: number
}

/** Makes everything that SQL text could call, or everything except operators. */
export async function occupy(pool: pg.Pool, text: string, but?: 'operators'): Promise<Made> {
  await pool.query(`
    create schema hostile;
    create table hostile.calls (what text not null, context text not null);
    create function hostile.heard(what text) returns boolean
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      context text;
    begin
      get diagnostics context = pg_context;
      insert into hostile.calls values (what, context);
      return true;
    end $$;
    grant usage on schema hostile to public`)
  const words = [...new Set(text.toLowerCase().match(/[a-z_][a-z_0-9]*/g))]
  // If there is one with these types and a polymorphic one, the first is imitated.
  const all = [...(await functions(pool, words)), ...(await polymorphic(pool, words))]
  const statements = [
    ...new Map(all.reverse().map((each) => [each.slice(0, each.indexOf(' returns ')), each])).values(),
  ]
  const aggregated = aggregates(words)
  const operated = but === 'operators' ? [] : await operators(pool)
  for (const statement of [...statements, ...aggregated, ...operated]) await pool.query(statement)
  return { functions: statements.length, aggregates: aggregated.length, operators: operated.length }
}

/** Imitates functions with concrete types. */
async function functions(pool: pg.Pool, words: string[]): Promise<string[]> {
  const { rows } = await pool.query(
    `select p.proname as name, p.proretset as set, format_type(p.prorettype, null) as returns,
            array(select format_type(t, null) from unnest(p.proargtypes) with ordinality a(t, n) order by n) as args,
            array_length(p.proallargtypes, 1) is not null as outs
       from pg_proc p
      where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and p.proname = any ($1) and p.provariadic = 0
        and p.proname <> all ($2)
        and not exists (select from unnest(p.proargtypes::oid[] || p.prorettype) t join pg_type y on y.oid = t where y.typtype = 'p' and y.typname <> 'void')`,
    [words, NOT_CALLED],
  )
  return rows
    .filter(({ outs }) => !outs)
    .map(({ name, args, returns, set }) =>
      wrapper(name, args, `${set ? 'setof ' : ''}${returns}`, set, returns === 'void'),
    )
}

/** Imitates polymorphic functions, with the types that Lockstep uses. */
async function polymorphic(pool: pg.Pool, words: string[]): Promise<string[]> {
  const made: string[] = []
  const add = (name: string, args: string[], returns: string, set = false) => {
    if (words.includes(name)) made.push(wrapper(name, args, `${set ? 'setof ' : ''}${returns}`, set, false))
  }
  for (const t of ELEMENTS) {
    add('unnest', [`${t}[]`], t, true)
    add('cardinality', [`${t}[]`], 'integer')
    add('array_position', [`${t}[]`, t], 'integer')
    add('array_positions', [`${t}[]`, t], 'integer[]')
    add('array_length', [`${t}[]`, 'integer'], 'integer')
    add('array_append', [`${t}[]`, t], `${t}[]`)
    add('array_cat', [`${t}[]`, `${t}[]`], `${t}[]`)
    add('array_remove', [`${t}[]`, t], `${t}[]`)
    add('array_fill', [t, 'integer[]'], `${t}[]`)
    add('array_to_string', [`${t}[]`, 'text'], 'text')
    add('array_to_json', [`${t}[]`], 'json')
    add('pg_column_size', [t], 'integer')
    add('quote_literal', [t], 'text')
    add('to_json', [t], 'json')
    add('to_jsonb', [t], 'jsonb')
    add('jsonb_build_object', ['text', t], 'jsonb')
    add('json_build_array', ['text', t], 'json')
    for (const u of ELEMENTS) {
      add('format', ['text', t, u], 'text')
      add('json_build_array', [t, u], 'json')
    }
    add('format', ['text', t], 'text')
  }
  // As lockstep.fetch_within builds it, and then lockstep.tell.
  add('json_build_array', ['uuid', 'integer', 'jsonb'], 'json')
  const object = 'text text text text text boolean text jsonb text text'.split(' ')
  add('jsonb_build_object', object, 'jsonb')
  add(
    'jsonb_build_object',
    'text text text text text timestamptz text timestamptz text integer text jsonb'.split(' '),
    'jsonb',
  )
  const { rows } = await pool.query(
    `select p.proname as name from pg_proc p where p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any ($1)
        and p.prokind = 'f' and (p.provariadic <> 0 or exists (select from unnest(p.proargtypes) t where t::regtype::text like 'any%'))`,
    [words],
  )
  // Left out: functions of ranges; functions whose columns the caller names; and those that no function of Lockstep calls.
  const covered = ['lower', 'upper', 'jsonb_to_record', 'json_to_record', 'jsonb_to_recordset', 'json_to_recordset']
  covered.push('concat', 'concat_ws', 'num_nulls', 'json_build_object', 'jsonb_build_array')
  const missing = [...new Set(rows.map(({ name }) => name as string))].filter(
    (name) =>
      !covered.includes(name) &&
      !made.some((text) => text.includes(`public."${name}"(`) || text.includes(`public.${name}(`)),
  )
  if (missing.length > 0)
    throw new Error(`Our functions call what is polymorphic, and there is no hostile one: ${missing}`)
  return made
}

function aggregates(words: string[]): string[] {
  const made: string[] = []
  /** `next` and `last`: SQL of the state s, the value v and the result. */
  const add = (name: string, arg: string | null, state: string, next: string, last?: [type: string, text: string]) => {
    if (!words.includes(name)) return
    const id = `hostile.agg_${made.length}`
    const args = arg === null ? [state] : [state, arg]
    made.push(`
      create function ${id}_next(${args.join(', ')}) returns ${state} language plpgsql set search_path = pg_catalog as
        $$ begin perform hostile.heard('${name}(${arg ?? '*'})'); return ${next}; end $$;
      ${last ? `create function ${id}_last(${state}) returns ${last[0]} language sql set search_path = pg_catalog as 'select ${last[1]}';` : ''}
      create aggregate public.${name}(${arg ?? '*'}) (sfunc = ${id}_next, stype = ${state}${last ? `, finalfunc = ${id}_last` : ''})`)
  }
  for (const t of ['int8', 'int4', 'text', 'timestamptz', 'float8', 'numeric']) {
    add('max', t, t, 'greatest($1, $2)')
    add('min', t, t, 'least($1, $2)')
  }
  for (const t of ['int8', 'int4']) add('sum', t, 'numeric', 'coalesce($1, 0) + $2')
  add('bool_or', 'bool', 'bool', '$1 or $2')
  add('bool_and', 'bool', 'bool', '$1 and $2')
  add('count', null, 'int8', 'coalesce($1, 0) + 1', ['int8', 'coalesce($1, 0)'])
  add('string_agg', 'text, text', 'text', '$1 || $3 || $2')
  for (const t of ['text', 'int8', 'int4', 'int2', 'uuid', 'bool', 'tid', 'oid', 'timestamptz', 'float8']) {
    add('array_agg', t, `${t}[]`, `array_append($1, $2)`)
  }
  for (const t of ['json', 'jsonb', 'text']) {
    add('json_agg', t, 'jsonb', `coalesce($1, '[]') || jsonb_build_array($2)`, ['json', '$1::json'])
    add('jsonb_agg', t, 'jsonb', `coalesce($1, '[]') || jsonb_build_array($2)`)
  }
  return made
}

/** Imitates all operators, on the types that Lockstep uses. */
async function operators(pool: pg.Pool): Promise<string[]> {
  const { rows } = await pool.query(
    `select o.oprname as name, o.oprleft = 0 as prefix, format_type(o.oprleft, null) as "left", format_type(o.oprright, null) as "right",
            format_type(o.oprresult, null) as result
       from pg_operator o
      where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprresult <> 0
        and (o.oprleft = 0 or o.oprleft in (select oid from pg_type where typname = any ($1) and typnamespace = 'pg_catalog'::regnamespace))
        and o.oprright in (select oid from pg_type where typname = any ($1) and typnamespace = 'pg_catalog'::regnamespace)`,
    [TYPES],
  )
  const operator = (name: string, left: string | null, right: string, result: string, n: number) => `
    create function hostile.op_${n}(${[...(left ? [left] : []), right].join(', ')}) returns ${result}
    language plpgsql set search_path = pg_catalog as $$ begin
      perform hostile.heard('${left ?? ''} ${name} ${right}'); return ${left ? `$1 operator(pg_catalog.${name}) $2` : `operator(pg_catalog.${name}) $1`};
    end $$;
    create operator public.${name} (function = hostile.op_${n}${left ? `, leftarg = ${left}` : ''}, rightarg = ${right})`
  const made = rows.map((row, n) => operator(row.name, row.prefix ? null : row.left, row.right, row.result, n))
  for (const t of ELEMENTS) {
    const array = `${t}[]`
    if (t !== 'json')
      for (const name of ['=', '<>', '@>', '<@', '&&']) made.push(operator(name, array, array, 'boolean', made.length))
    if (t === 'name') continue // else `name || 'literal'` would be ambiguous, and statements of callers would fail
    made.push(operator('||', array, array, array, made.length))
    made.push(operator('||', array, t, array, made.length))
    made.push(operator('||', t, array, array, made.length))
  }
  return made
}

function wrapper(name: string, args: string[], returns: string, set: boolean, nothing: boolean): string {
  const call = `pg_catalog."${name}"(${args.map((_, i) => `$${i + 1}`).join(', ')})`
  const answer = set ? `return query select * from ${call}` : nothing ? `perform ${call}` : `return ${call}`
  return `create function public."${name}"(${args.join(', ')}) returns ${returns} language plpgsql set search_path = pg_catalog as
    $$ begin perform hostile.heard('${name}(${args.join(', ')})'); ${answer}; end $$`
}

/** Which imitations were called from within a function of Lockstep in one of the named schemas, and from which. */
export async function called(pool: pg.Pool): Promise<string[]> {
  const { rows } = await pool.query(
    `select distinct c.what, line from hostile.calls c
      cross join lateral (select x as line from pg_catalog.regexp_split_to_table(c.context, E'\\n') with ordinality r(x, n)
                           where x operator(pg_catalog.~) '^(PL/pgSQL function lockstep(_boss)?\\.|SQL function)' order by n limit 1) l
      order by 1, 2`,
  )
  return rows.map(({ what, line }) => `${what}: ${line}`)
}
