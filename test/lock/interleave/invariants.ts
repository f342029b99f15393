/**
 * What must be true of a name, whatever the order was, for orders.ts: after every grant, and at the end.
 *
 * A hold is *live* in the database's eyes: a lease whose row is there and has not expired; a connection that has K, and its row
 * if it was registered; a transaction that has K. The clock of a case counts its steps, so that "before" means: had been
 * answered before the other was asked for.
 */
import type { Backend, Case, Hold, Party } from './scripts.ts'

export interface Seen {
  control: Backend
  parties: Party[]
  it: Case
}

const LOOK = `
  select l.holder, l.token, l.expires_at > clock_timestamp() and l.expires_at < 'infinity' as leased,
         array(select k.pid from pg_locks k
                where k.locktype = 'advisory' and k.objsubid = 1 and k.granted
                  and k.database = (select oid from pg_database where datname = current_database())
                  and k.classid = (lockstep.key($1) >> 32 & 4294967295)::oid
                  and k.objid = (lockstep.key($1) & 4294967295)::oid) as gates
    from (select) one left join lockstep.lease l on l.name = $1 and l.holder is not null`
interface Row {
  holder: string | null
  token: string
  leased: boolean
  gates: number[]
}

const live =
  (row: Row) =>
  ({ kind, token, pid, registered }: Hold) => {
    const its = row.holder !== null && BigInt(row.token) === token
    if (kind === 'lease') return its && row.leased
    return row.gates.includes(pid) && (!registered || its)
  }

/** After every grant. */
async function holders({ control, parties, it }: Seen): Promise<string[]> {
  return oneHolder(await control.ask(LOOK, [it.name]), parties)
}

/** When both scripts have ended, before anything is given up. */
async function atTheEnd({ control, parties, it }: Seen): Promise<string[]> {
  const row: Row = await control.ask(LOOK, [it.name])
  return [
    ...oneHolder(row, parties),
    ...losses(row, parties, it),
    ...leftBehind(row, parties, it),
    ...order(it),
    ...writes(it),
  ]
}

function oneHolder(row: Row, parties: Party[]): string[] {
  const all = parties.flatMap(({ holder, holds }) =>
    holds.filter(live(row)).map(({ kind, token }) => `${holder} by ${kind} ${token}`),
  )
  if (row.leased && row.holder === 'another') all.push('another')
  return all.length > 1 ? [`two holders: ${all.join(', ')}`] : []
}

/** Nobody loses what nobody had a right to. */
function losses(row: Row, parties: Party[], { robbed }: Case): string[] {
  if (robbed) return []
  return parties.flatMap(({ holder, holds }) =>
    holds
      .filter((hold) => !hold.over && !live(row)(hold))
      .map(({ kind, token }) => `${holder} lost its ${kind} ${token}, and nobody had a right to it`),
  )
}

/** What keeps others out, somebody knows that he has. */
function leftBehind(row: Row, parties: Party[], { deaths }: Case): string[] {
  const found: string[] = []
  const known = parties.flatMap(({ holds }) => holds.map(({ token }) => token))
  if (row.leased && row.holder !== 'another' && !known.includes(BigInt(row.token))) {
    found.push(`a lease under ${row.token} that nobody knows of`)
  }
  if (deaths) return found // a backend that was terminated may have K for a while yet
  for (const { holder, session, pool, gated } of parties) {
    if (row.gates.includes(pool.pid) || (row.gates.includes(session.pid) && !gated)) found.push(`${holder} still has K`)
  }
  return found
}

function order({ grants }: Case): string[] {
  return grants.flatMap((later) =>
    grants
      .filter((earlier) => earlier.ended < later.begun && earlier.token >= later.token)
      .map((earlier) => `token ${later.token} was granted after token ${earlier.token}`),
  )
}

function writes({ grants, effects }: Case): string[] {
  return effects.flatMap(({ token, committing }) => {
    const own = grants.find((grant) => grant.token === token)
    const between = grants.find((grant) => grant !== own && grant.ended > (own?.ended ?? 0) && grant.ended < committing)
    return between ? [`a write under ${token} was committed after ${between.token} had been granted`] : []
  })
}

export const violations = { holders, atTheEnd }
