/**
 * The statements that lib/ sends, by their text, and what the simulated server does for each. One that is not here fails the run: so this
 * list is complete for what the worlds do.
 */
import { SQLSTATE } from '../../../lib/base/index.ts'
import { keyOf } from '../../../lib/database/lock-key.ts'
import type { Answer } from './backend.ts'
import { ELECTION_STATEMENTS } from './election-statements.ts'
import type { Session } from './functions.ts'
import * as twin from './functions.ts'
import type { Blocked } from './locks.ts'
import { PgError } from './pg-error.ts'
import {
  array,
  bool,
  CLOCKED,
  clock,
  elements,
  instant,
  nothing,
  one,
  pairs,
  positions,
  SETTINGS_IN_ORDER,
  type Twin,
  text,
  texts,
  type Values,
} from './values.ts'

const GREETING = { direct: 'bool', port: 'int4', product: 'text', values: 'text', set: 'text', since: 'text' }
const TAKEN = { token: 'int8', wait_ms: 'float8' }
const TURN = { base: 'int8', refused: 'int4[]', taken: 'int4[]', tokens: 'int8[]' }
const GRANTED = {
  ...{ base: 'int8', granted_at: 'timestamptz', granted: 'int8[]', kept: 'int8[]', kept_tokens: 'int8[]' },
  ...{ kept_granted_at: 'timestamptz[]', kept_expires_at: 'timestamptz[]', refused: 'int8[]', refused_for: 'float8[]' },
}
const RENEWED = {
  ...{ i: 'int4', outcome: 'text', holder: 'text', granted_at: 'timestamptz', expires_at: 'timestamptz' },
  ...CLOCKED,
}
const LOOK = {
  ...{
    holder: 'text',
    token: 'int8',
    granted_at: 'timestamptz',
    expires_at: 'timestamptz',
    ttl_ms: 'int4',
    meta: 'jsonb',
  },
  ...{ gate_pid: 'int4', gate_application: 'text', waiting_pids: 'int4[]' },
  ...{ hold_kind: 'text', hold_holder: 'text', hold_token: 'int8', hold_since: 'timestamptz', hold_meta: 'jsonb' },
}
const ENTERED = {
  ...{ gated: 'bool', token: 'int8', wait_ms: 'float8', pid: 'int4', idle_timeout: 'text', xid: 'text' },
}

const taken = ({ token, waitMs }: { token: bigint | null; waitMs: number | null }) =>
  one(TAKEN, { token: text(token), wait_ms: text(waitMs) })

const STATEMENTS: [RegExp, Twin][] = [
  [
    /pg_backend_pid\(\) operator\(pg_catalog\.=\) (-?\d+) as direct/,
    ({ backend }, _, [, pid]) => {
      const direct = backend.pid === Number(pid)
      const values = JSON.stringify(Object.values(SETTINGS_IN_ORDER))
      return one(GREETING, {
        direct: bool(direct),
        port: '1',
        product: 'PostgreSQL 18 (simulated)',
        values,
        set: '',
        since: '',
      })
    },
  ],
  [
    /select pg_catalog\.json_build_array\(pg_catalog\.current_setting\('search_path'\)/,
    () => one({ values: 'text' }, { values: JSON.stringify(Object.values(SETTINGS_IN_ORDER)) }),
  ],
  [
    /^set (\w+) = (.*)$/,
    ({ backend }, _, [, name, value]) => {
      if (name === 'idle_session_timeout') backend.silentMs = Number(value)
      return nothing
    },
  ],
  [/^select 1$/, () => one({ '?column?': 'int4' }, { '?column?': '1' })],
  [
    /^select held, most, connections from lockstep\.lock_room/,
    ({ server }) =>
      one(
        { held: 'int8', most: 'int8', connections: 'int8' },
        { held: String(server.locks.size), most: '3200', connections: '100' },
      ),
  ],
  [
    /^select lockstep\.try_key\(/,
    (s, [name = '', key = '', pid]) =>
      one({ try_key: 'int8' }, { try_key: text(twin.tryKey(s, name, key, Number(pid))) }),
  ],
  [
    /^select \* from lockstep\.turn_keys\(/,
    (s, [releases, names, keys, pid]) => {
      const { base, refused, taken, tokens } = twin.turnKeys(s, texts(releases), texts(names), texts(keys), Number(pid))
      return one(TURN, {
        base: text(base),
        // array_positions of no position is an empty array; array_append of none is null.
        refused: names === '{}' ? null : (array(refused.map(String)) ?? '{}'),
        taken: array(taken.map(String)),
        tokens: array(tokens.map(String)),
      })
    },
  ],
  [
    /^select pg_advisory_unlock\(\$1\)$/,
    ({ server, backend }, [key = '']) =>
      one({ pg_advisory_unlock: 'bool' }, { pg_advisory_unlock: bool(server.locks.unlock(backend, key)) }),
  ],
  [
    /^select pg_advisory_lock\(\$1\)$/,
    function* ({ server, backend }, [key = '']) {
      yield* server.locks.lock(backend, key, 'exclusive', 'session')
      return one({ pg_advisory_lock: 'text' }, { pg_advisory_lock: '' })
    },
  ],
  [
    /^select \* from lockstep\.queue\(/,
    function* (s, [name = '', again]) {
      return taken(yield* twin.queue(s, name, again === 'true' || again === 't'))
    },
  ],
  [/^select \* from lockstep\.take\(/, (s, [name = '']) => taken(twin.take(s, name))],
  [
    /^select lockstep\.register\(/,
    (s, [name = '', holder = '', token = '', meta, pid]) => {
      twin.register(s, name, holder, BigInt(token), meta ?? null, Number(pid))
      return one({ register: 'text' }, { register: '' })
    },
  ],
  [
    /^select lockstep\.keep_only\(/,
    (s, [names, others, pid]) =>
      one({ keep_only: 'int4' }, { keep_only: String(twin.keepOnly(s, texts(names), texts(others), Number(pid))) }),
  ],
  [/^select lockstep\.listen\(/, (s, [name = '']) => one({ listen: 'text' }, { listen: twin.listen(s, name) })],
  [
    /^unlisten \*/,
    ({ backend }) => {
      backend.channels.clear()
      return nothing
    },
  ],
  [
    /from lockstep\.grant_leases\(/,
    (s, [names, holders, ttls, metas]) => {
      const [all, holder, ttl, meta] = [texts(names), texts(holders), texts(ttls), texts(metas)]
      const asks = all.map((name, i) => ({
        ...{ name, holder: holder[i] as string, ttlMs: Number(ttl[i]), meta: meta[i] ?? null },
      }))
      const { base, grantedAt, granted, kept, refused } = twin.grantLeases(s, asks)
      return one(GRANTED, {
        ...{ base: text(base), granted_at: instant(grantedAt), granted: positions(granted) },
        kept: positions(kept.map(({ i }) => i)),
        kept_tokens: array(kept.map(({ row }) => String(row.token))),
        kept_granted_at: array(kept.map(({ row }) => instant(row.grantedAt))),
        kept_expires_at: array(kept.map(({ row }) => instant(row.expiresAt))),
        refused: positions(refused.map(({ i }) => i)),
        refused_for: array(refused.map(({ ms }) => text(ms))),
      })
    },
  ],
  [
    /from lockstep\.renew_leases\(/,
    (s, [names, tokens, ttls]) => {
      const ttl = elements(ttls ?? '{}')
      const asks = pairs([names ?? '', tokens ?? '']).map((ask, i) => ({
        ...ask,
        ttlMs: ttl[i] == null ? null : Number(ttl[i]),
      }))
      const rows = twin.renewLeases(s, asks).map(({ outcome, row }, i) => ({
        ...{ i: String(i + 1), outcome, holder: row?.holder ?? null },
        ...{ granted_at: instant(row?.grantedAt ?? null), expires_at: instant(row?.expiresAt ?? null) },
        ...clock(s),
      }))
      return { types: RENEWED, rows }
    },
  ],
  [
    /from lockstep\.revoke_leases\(/,
    (s, v) => {
      const { revoked, busy } = twin.revokeLeases(s, pairs(v))
      return one(
        { revoked: 'int8[]', busy: 'int8[]', set_config: 'text' },
        { revoked: positions(revoked), busy: positions(busy), set_config: 'off' },
      )
    },
  ],
  [
    /^select \*, case when token is not null.* from lockstep\.enter\(\$1, (null|\$2::integer)\)/s,
    function* (s, [name = ''], [, wait]) {
      const { gated, token, waitMs, idleTimeout } = yield* twin.enter(s, name, wait !== 'null')
      return one(ENTERED, {
        ...{ gated: bool(gated), token: text(token), wait_ms: text(waitMs), pid: String(s.backend.pid) },
        ...{ idle_timeout: idleTimeout, xid: token === null ? null : s.trx.xid },
      })
    },
  ],
  [
    /^\s*with limits as materialized/,
    () =>
      one({ statement: 'text', idle: 'text', transaction: 'text' }, { statement: '0', idle: '0', transaction: '0' }),
  ],
  [/^\s*select set_config\('statement_timeout'/, () => one({ set_config: 'text' }, { set_config: '0' })],
  [
    /^select lockstep\.check_transaction\('(\d+)'\)$/,
    (s, _, [, xid]) => {
      if (s.trx.xid !== xid) throw new PgError(SQLSTATE.noTransaction, 'lockstep: not in that transaction')
      return one({ check_transaction: 'bool' }, { check_transaction: 't' })
    },
  ],
  [/pg_current_xact_id\(\)::text as xid$/, ({ trx }) => one({ xid: 'text' }, { xid: trx.xid })],
  [
    /^select pg_catalog\.pg_current_xact_id_if_assigned\(\)::text as xid$/,
    ({ trx }) => one({ xid: 'text' }, { xid: trx.xid }),
  ],
  [/pg_xact_status\('(\d+)'\) as became$/, () => one({ became: 'text' }, { became: 'aborted' })],
  [
    /check_transaction\(\$1::xid8\).*select lockstep\.(assert_held|release_held)\(\$2, \$3\)/s,
    function* (s, [xid, name = '', token = ''], [, verb]) {
      if (s.trx.xid !== xid) throw new PgError(SQLSTATE.noTransaction, 'lockstep: not in that transaction')
      yield* verb === 'assert_held' ? twin.assertHeld(s, name, BigInt(token)) : twin.releaseHeld(s, name, BigInt(token))
      return one({ row: 'text' }, { row: `{"${verb}": ""}` })
    },
  ],
  [
    /^select simulated_effect\(\$1, \$2\)$/,
    ({ trx }, [name = '', token = '']) => {
      trx.effects.push({ name, token: BigInt(token) })
      return one({ done: 'text' }, { done: '' })
    },
  ],
  [
    /^select pg_cancel_backend\(\$1\)$/,
    ({ server }, [pid]) => one({ done: 'bool' }, { done: bool(server.cancel(Number(pid))) }),
  ],
  [
    /^select lockstep\.force_revoke\(/,
    (s, [name = '']) => one({ outcome: 'text' }, { outcome: twin.forceRevoke(s, name) }),
  ],
  [/^select lockstep\.show_holds\(/, () => one({ show_holds: 'text' }, { show_holds: '' })],
  [
    /^select \* from lockstep\.look\(/,
    ({ server, trx }, [name = '']) => {
      const row = server.leases.get(name, trx)
      const held = row && row.holder !== null && row.expiresAt > server.now ? row : undefined
      const gate = server.locks.holder(keyOf(name))
      const waiting = server.locks.waiting(keyOf(name)).map(({ pid }) => String(pid))
      return one(LOOK, {
        ...{
          holder: held?.holder ?? null,
          token: text(held?.token),
          ttl_ms: text(held?.ttlMs),
          meta: held?.meta ?? null,
        },
        ...{ granted_at: instant(held?.grantedAt ?? null), expires_at: instant(held?.expiresAt ?? null) },
        ...{
          gate_pid: text(gate?.pid),
          gate_application: gate ? 'lockstep' : null,
          waiting_pids: array(waiting) ?? '{}',
        },
      })
    },
  ],
  [
    /as free, exists \(select from lockstep\.lease where name = \$3 and token = \$4/,
    ({ server, trx }, [name = '', token = '']) => {
      const row = server.leases.get(name, trx)
      const stands = row !== undefined && row.token === BigInt(token) && row.holder !== null
      const free = stands && server.leases.tryLock(name, 'no key update', trx)
      return one({ free: 'bool', stands: 'bool' }, { free: bool(free), stands: bool(stands) })
    },
  ],
]

const ALL = [...STATEMENTS, ...ELECTION_STATEMENTS]
/** The twins of the texts that were asked: most are asked thousands of times. */
const known = new Map<string, { run: Twin; found: RegExpExecArray }>()

function twinOf(asked: string): { run: Twin; found: RegExpExecArray } {
  const text = asked.trim()
  for (const [pattern, run] of ALL) {
    const found = pattern.exec(text)
    if (found) return { run, found }
  }
  throw new Error(`The simulated server does not know this statement: ${text}`)
}

export function* statement(s: Session, asked: string, values: Values): Generator<Blocked, Answer> {
  const twin = known.get(asked) ?? twinOf(asked)
  if (known.size > 1_000) known.clear()
  known.set(asked, twin)
  const answer = twin.run(s, values as string[], twin.found)
  return 'rows' in answer ? answer : yield* answer
}
