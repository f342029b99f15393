/**
 * Scripts of statements, drawn from a seed, as lib/ sends them: in no order that lib/ would keep, so that the twins are compared where they
 * refuse, too. A script is made while it runs on the simulated server, because what may come next depends on who waits.
 *
 * Two sessions that wait for each other would be a deadlock, which PostgreSQL finds after a second: so while a session waits, only one
 * that has nothing may begin to wait.
 */
import { keyOf } from '../../../lib/database/lock-key.ts'
import { pick, type Random } from '../faults.ts'
import type { Value } from './compared.ts'
import type { Step } from './side.ts'
import type { TwinSide } from './twin-side.ts'

const ENTER = `select *, case when token is not null then pg_catalog.pg_current_xact_id()::text end as xid from lockstep.enter`
const GRANT = 'select * from lockstep.grant_leases($1::text[], $2::text[], $3::integer[], $4::text[]::jsonb[])'
export const RENEW = 'select * from lockstep.renew_leases($1::text[], $2::bigint[], $3::integer[])'
const REVOKE = `select revoked, busy, set_config('synchronous_commit', 'off', true) from lockstep.revoke_leases($1::text[], $2::bigint[])`
/** As lib/database/caller-transaction.ts guards a statement. */
export const HELD = (verb: string) => `
  select q.row from (select lockstep.check_transaction($1::xid8) as open offset 0) c
   cross join lateral (select pg_catalog.to_jsonb(s)::pg_catalog.text as row from (select lockstep.${verb}($2, $3)) s where c.open offset 0) q`
export const HOUR_MS = 3_600_000

export type Made = [text: string, values: Value[]]

/** The next step of a script. */
export function nextStep(random: Random, twin: TwinSide): Step {
  const { names, sessions, server, backends } = twin
  const able = sessions.flatMap(({ pending }, i) => (pending ? [] : [i]))
  const waiting = sessions.flatMap(({ pending }, i) => (pending ? [i] : []))
  const odd = random()
  if (odd < 0.06) return { expire: pick(random, names) }
  if (odd < 0.08) return { terminate: Math.floor(random() * sessions.length) }
  if (able.length === 0 || (waiting.length > 0 && odd < 0.2)) return { cancel: pick(random, waiting) }
  const session = pick(random, able)
  if (odd < 0.22) return { end: session }

  const name = () => pick(random, names)
  const some = () => names.filter(() => random() < 0.6)
  const token = (of?: string): Value => {
    const now = of === undefined ? undefined : server.leases.get(of)?.token
    const at = now !== undefined && random() < 0.7 ? twin.known.tokens.indexOf(now) : -1
    return { token: at >= 0 ? at : Math.floor(random() * twin.known.tokens.length) }
  }
  const pid: Value = { pid: random() < 0.97 ? session : (session + 1) % sessions.length }
  const backend = backends[session] as NonNullable<(typeof backends)[number]>
  const mayWait = waiting.length === 0 || (server.locks.keysOf(backend).length === 0 && !backend.trx?.locked.size)

  const inside: (() => Made)[] = [
    () => ['commit', []],
    () => ['rollback', []],
    ...[1, 2, 3].map(() => (): Made => [`${ENTER}($1, null)`, [name()]]),
  ]
  for (const verb of ['assert_held', 'release_held']) {
    const held = (): Made => {
      const of = name()
      return [HELD(verb), [{ xid: session }, of, token(of)]]
    }
    if (mayWait) inside.push(held, held)
  }
  if (mayWait) inside.push(() => [`${ENTER}($1, $2::integer)`, [name(), 0]])

  const tryKey = (): Made => {
    const of = name()
    return ['select lockstep.try_key($1, $2, $3)', [of, keyOf(of), pid]]
  }
  const turn = (): Made => {
    const wanted = some()
    const keys = wanted.map(keyOf)
    return ['select * from lockstep.turn_keys($1, $2, $3, $4)', [some().map(keyOf), wanted, keys, pid]]
  }
  const grant = (): Made => {
    const wanted = some()
    const metas = wanted.map(() => (random() < 0.3 ? '{"a":1}' : null))
    return [GRANT, [wanted, wanted.map(() => pick(random, ['x', 'y'])), wanted.map(() => HOUR_MS), metas]]
  }
  const register = (): Made => {
    const of = name()
    const meta = random() < 0.3 ? '"m"' : null
    return ['select lockstep.register($1, $2, $3, $4, $5)', [of, pick(random, ['x', 'y']), token(of), meta, pid]]
  }
  const batch = (text: string, ttls?: boolean) => (): Made => {
    const wanted = some()
    const times = wanted.map(() => (random() < 0.5 ? HOUR_MS : null))
    return [text, [wanted, wanted.map((of) => token(of)), ...(ttls ? [times] : [])]]
  }
  const outside: (() => Made)[] = [
    ...[() => ['begin', []] as Made, tryKey, tryKey, turn, turn, grant, grant, grant, register, register],
    ...[batch(RENEW, true), batch(REVOKE)],
    () => ['select * from lockstep.take($1)', [name()]],
    () => ['select pg_advisory_unlock($1)', [keyOf(name())]],
    () => ['select lockstep.keep_only($1, $2, $3)', [some(), some().map(keyOf), pid]],
    () => ['select lockstep.listen($1)', [name()]],
    () => ['select * from lockstep.look($1)', [name()]],
    () => ['select lockstep.force_revoke($1) as outcome', [name()]],
  ]
  if (mayWait) outside.push(() => ['select * from lockstep.queue($1, $2)', [name(), random() < 0.3]])
  const { status } = sessions[session] as (typeof sessions)[number]
  if (status === 'T' && twin.transactionOf(session) === undefined) {
    return { session, text: 'select pg_catalog.pg_current_xact_id()::text as xid', values: [] }
  }
  if (status === 'E' && random() < 0.5) return { session, text: 'rollback', values: [] }
  const [text, values] = pick(random, status === 'I' ? outside : inside)()
  return { session, text, values }
}
