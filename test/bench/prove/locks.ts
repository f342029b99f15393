/**
 * The experiment with locks: a few processes hold by a peer and by Lockstep, under one nemesis (chaos/nemesis.ts): killed, paused
 * past the ttl, their networks cut, held back and swallowed, their clocks set. Each form has a row of its own (resource.ts). Then
 * double effects are counted in what the row recorded, and what the processes asked and were answered is judged by the checker of
 * `npm run chaos`: reads and writes of the row must be linearizable, which they are if its holders excluded each other.
 */
import { fileURLToPath } from 'node:url'
import { check, type Model, type Recorded } from '../../linear/index.ts'
import { Cast } from './cast.ts'
import { LOCK_FORMS, type LockSystem, TTL_MS } from './lock-forms.ts'
import { type Plan, type Result, rows } from './plan.ts'

/** One in each of four networks. */
const PROCESSES = 4

export async function proveLocks(peer: Exclude<LockSystem, 'lockstep'>, plan: Plan): Promise<Result[]> {
  const forms = [peer, 'lockstep' as const].flatMap((system) => LOCK_FORMS[system].map((how) => ({ system, how })))
  for (const { system, how } of forms) {
    await rows(plan.databaseUrl, 'insert into resource values ($1, 0, 0)', [`${system} ${how}`])
  }
  await using cast = new Cast({
    ...{ plan, processes: PROCESSES, program: fileURLToPath(new URL('holder.ts', import.meta.url)) },
    argumentsOf: (network, name) => [peer, network(1), network(0), name],
    restMs: (chance) => 200 + chance * 1_300,
    awayMs: (chance) => TTL_MS * (1.3 + chance), // past the ttl, and past the second that ZooKeeper and etcd may be late
  })
  const faults = await cast.rage()

  const all = cast.history.byObject()
  const results: Result[] = []
  for (const { system, how } of forms) {
    const form = `${system} ${how}`
    const effects = await rows(plan.databaseUrl, 'select * from effect where form = $1 order by version', [form])
    const doubles = effects.filter(({ version, based_on: based }) => Number(based) !== Number(version) - 1)
    const verdict = check(rowModel, all.get(form) ?? [])
    results.push({
      ...{ system, how, effects: effects.length, doubles: doubles.length, lost: 0 },
      evidence: doubles.flatMap(({ version }) => effects.filter((each) => Math.abs(each.version - version) < 2)),
      ...{ refused: cast.count('refused', form) + cast.count('gave-up', form), history: verdict.is },
    })
  }
  return results.map((each) => ({ ...each, faults }))
}

/** A row: a read answers its version, and a write is based on it. */
const rowModel: Model<number, Recorded> = {
  initial: 0,
  key: String,
  reads: ({ input }) => input.do === 'read',
  alike: ({ input }) => JSON.stringify(input),
  step(version, { input, output }) {
    const answer = output as { n: number } | undefined
    if (input.do === 'read') return !answer || answer.n === version ? [version] : []
    return input.based === version && (!answer || answer.n === version + 1) ? [version + 1] : []
  },
}
