/**
 * What must be true of a name, whatever the order was, for interleave.ts: after every grant, and at the end.
 *
 * A hold is *live* in the database's eyes: a lease whose row is there and has not expired; a connection that has K, and its row
 * if it was registered; a transaction that has K. The clock of a case counts its steps, so that "before" means: had been
 * answered before the other was asked for.
 */
import type { Backend, Case, Party } from './verbs.ts'

export interface Ended {
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

async function holders({ control, parties, it }: Ended): Promise<string[]> {
  const row = await control.ask(LOOK, [it.name])
  const live = parties.flatMap(({ holder, holds }) =>
    holds
      .filter(({ kind, token, pid, registered }) => {
        const its = row.holder !== null && BigInt(row.token) === token
        if (kind === 'lease') return its && row.leased
        return row.gates.includes(pid) && (!registered || its)
      })
      .map(({ kind, token }) => `${holder} by ${kind} ${token}`),
  )
  if (row.leased && row.holder === 'another') live.push('another')
  return live.length > 1 ? [`two holders: ${live.join(', ')}`] : []
}

async function atTheEnd({ control, parties, it }: Ended): Promise<string[]> {
  const found: string[] = []
  const pids = parties.flatMap(({ session, pool }) => [session.pid, pool.pid])
  const { left } = await control.ask(
    `select array_agg(locktype || ' ' || mode) as left from pg_locks where pid = any ($1)`,
    [pids],
  )
  if (left) found.push(`locks left behind: ${left}`)

  const grants = [...it.grants].sort((a, b) => a.ended - b.ended)
  for (const [i, later] of grants.entries()) {
    for (const earlier of grants.slice(0, i)) {
      if (earlier.ended < later.begun && earlier.token >= later.token) {
        found.push(`token ${later.token} was granted after ${earlier.token}`)
      }
    }
  }
  for (const { token, committing } of it.effects) {
    const own = grants.find((grant) => grant.token === token)
    const between = grants.find((grant) => grant !== own && grant.ended > (own?.ended ?? 0) && grant.ended < committing)
    if (between) found.push(`a write under ${token} was committed after ${between.token} had been granted`)
  }

  // Everybody has given up what he had, so the name can be had.
  await control.ask(
    `select lockstep.revoke_leases(array[$1], array(select token from lockstep.lease where name = $1 and holder = 'another'))`,
    [it.name],
  )
  const granting = `select granted, base from lockstep.grant_leases(array[$1], '{last}', '{60000}', '{null}')`
  let last = await control.ask(granting, [it.name])
  // a backend that was told to end takes a moment
  for (let i = 0; !last.granted && i < 100; i++) {
    await new Promise((resolve) => setTimeout(resolve, 5))
    last = await control.ask(granting, [it.name])
  }
  if (!last.granted) found.push('nobody can have it any more')
  else if (grants.some(({ token }) => token >= BigInt(last.base)))
    found.push(`the last token, ${last.base}, is no larger`)
  return found
}

export const violations = { holders, atTheEnd }
