/** The same as script.ts, for elections: campaigns of several candidates, terms that end in every way, connections that end. */
import { pick, type Random } from '../faults.ts'
import { SECRET_CHANNEL } from '../server/elections.ts'
import type { Value } from './compared.ts'
import { HELD, HOUR_MS, type Made, RENEW } from './script.ts'
import type { Step } from './side.ts'
import type { TwinSide } from './twin-side.ts'

const RESIGN = `select revoked, busy, set_config('synchronous_commit', 'off', true) from lockstep.resign($1::text[], $2::bigint[])`
const END = 'select pg_advisory_lock_shared($1), pg_advisory_unlock_shared($1)'

/** The witness of a session: any number will do. */
const witnessOf = (session: number) => String(7_000 + session)

/** The next step of a script about elections. */
export function nextElectionStep(random: Random, twin: TwinSide): Step {
  const { names, sessions, server, backends } = twin
  const able = sessions.flatMap(({ pending }, i) => (pending ? [] : [i]))
  const waiting = sessions.flatMap(({ pending }, i) => (pending ? [i] : []))
  const odd = random()
  if (odd < 0.08) return { expire: pick(random, names) }
  if (odd < 0.11) return { terminate: Math.floor(random() * sessions.length) }
  if (able.length === 0 || (waiting.length > 0 && odd < 0.2)) return { cancel: pick(random, waiting) }
  const session = pick(random, able)
  if (odd < 0.23) return { end: session }

  const name = () => pick(random, names)
  const holder = () => pick(random, ['x', 'y', 'z'])
  const any = (): Value => ({ token: Math.floor(random() * twin.known.tokens.length) })
  const token = (of: string): Value => {
    const at = twin.known.tokens.indexOf(server.leases.get(of)?.token ?? 0n)
    return at >= 0 && random() < 0.8 ? { token: at } : any()
  }
  const meta = () => (random() < 0.3 ? { n: Math.floor(random() * 3) } : undefined)
  const backend = backends[session] as NonNullable<(typeof backends)[number]>
  const mayWait = waiting.length === 0 || (server.locks.keysOf(backend).length === 0 && !backend.trx?.locked.size)

  const campaign = (): Made => {
    const pairs = new Map(
      Array.from({ length: 1 + Math.floor(random() * 3) }, () => [name(), holder()] as const).map((p) => [p.join(), p]),
    )
    const asks = [...pairs.values()].map(([of, by]) => ({
      ...{ name: of, holder: by, ttl_ms: HOUR_MS, meta: meta(), priority: Math.floor(random() * 3) },
      ...{ failover: random() < 0.4, waits: random() < 0.8 },
      ...(random() < 0.3 && { place: any() }),
      ...(random() < 0.6 && { witness: witnessOf(Math.floor(random() * sessions.length)) }),
      ...(random() < 0.4 && { over: token(of) }),
    }))
    return ['select * from lockstep.campaign($1::jsonb)', [{ json: asks }]]
  }
  const held = (verb: string) => (): Made => {
    const of = name()
    return [HELD(verb), [{ xid: session }, of, token(of)]]
  }
  const batch = (text: string, ttls: boolean) => (): Made => {
    const wanted = names.filter(() => random() < 0.7)
    return [text, [wanted, wanted.map(token), ...(ttls ? [wanted.map(() => null)] : [])]]
  }
  const proclaim = (): Made => {
    const of = name()
    return ['select lockstep.proclaim($1, $2, $3::jsonb) as outcome', [of, token(of), '{"p":1}']]
  }
  const outside: (() => Made)[] = [
    ...[campaign, campaign, campaign, campaign, proclaim, batch(RESIGN, false), batch(RENEW, true)],
    () => ['begin', []],
    () => ['select lockstep.withdraw($1, $2)', [name(), holder()]],
    () => ['select * from lockstep.candidates($1)', [name()]],
    () => ['select * from lockstep.leaders($1::text[])', [names]],
    () => ['select lockstep.step_down($1) as outcome', [name()]],
    () => ['listen lockstep_leader', []],
    () => [`listen ${SECRET_CHANNEL}`, []],
    () => [`select lockstep.secret_channel('leader') as channel`, []],
  ]
  if (mayWait) {
    outside.push(() => ['select pg_advisory_lock($1)', [witnessOf(session)]])
    outside.push(() => [END, [witnessOf(Math.floor(random() * sessions.length))]])
  }
  const inside: (() => Made)[] = [() => ['commit', []], () => ['rollback', []]]
  if (mayWait) inside.push(...['assert_held', 'assert_held', 'resign_held'].map(held))
  const { status } = sessions[session] as (typeof sessions)[number]
  if (status === 'T' && twin.transactionOf(session) === undefined) {
    return { session, text: 'select pg_catalog.pg_current_xact_id()::text as xid', values: [] }
  }
  const [text, values] = pick(random, status === 'I' ? outside : inside)()
  return { session, text, values }
}
