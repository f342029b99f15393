/**
 * The counter under faults: many processes, one lock, one number. Then the history in the database is checked: no increment is
 * lost or doubled, every acknowledged increment exists, and the tokens never go down at the resource. And what every process
 * asked and was answered is judged as one history: it must be linearizable (linear/lock-model.ts).
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { History, judge, lockModel, withSeen } from '../linear/index.ts'
import { ask } from '../support/query-once.ts'
import { Nemesis, type Victim } from './nemesis.ts'
import type { ChaosServer } from './server.ts'

export interface CounterPlan {
  server: ChaosServer
  kind: 'connection' | 'lease' | 'transaction' | 'mixed'
  /** Processes alive at a time. */
  workers: number
  /** How long there are faults. */
  seconds: number
  /** The seed of the nemesis: which process it hits, when, and how. */
  seed: number
}

/** The name of the lock. */
const COUNTER = 'the counter'
const WORKER = fileURLToPath(new URL('worker.ts', import.meta.url))

export async function runCounter({ server, kind, workers, seconds, seed }: CounterPlan) {
  const { url } = server
  await ask(url, 'drop table if exists counter, history')
  await ask(url, 'create table counter as select 0::bigint as n')
  await ask(url, 'create table history (n bigint, token bigint, worker text, how text, at bigserial)')
  await ask(url, `select lockstep.fence_table('counter'), lockstep.fence_table('history')`)

  const violations: string[] = []
  const acknowledged = new Set<number>()
  const asked = new History()
  const alive = new Map<Victim, Promise<unknown>>()
  let [spawned, errors] = [0, 0]
  let last: Victim | undefined
  await using nemesis = await Nemesis.of({
    ...{ server, seed, seconds, networks: 3 },
    restMs: (chance) => 50 + chance * 250,
    awayMs: (chance) => 1_200 + chance * 1_000, // past the ttl of 1,000
    victims: () => [...alive.keys()],
    favourite: () => last,
    serverDown: () => asked.open('nemesis', COUNTER, { do: 'crash' }),
    killed(victim) {
      alive.delete(victim)
      void start()
    },
  })

  function start(): Promise<unknown> {
    const number = spawned++
    const child = spawn(process.execPath, [WORKER, nemesis.network(number), kind, String(number), COUNTER], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, ...nemesis.clock(number) },
    })
    const victim = { child, name: `worker ${number}` }
    const gone = once(child, 'exit')
    alive.set(victim, gone)
    const ready = Promise.withResolvers<void>()
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      if (asked.take(victim.name, line)) return
      const [what, detail] = line.split(' ', 2)
      if (what === 'ready') ready.resolve()
      else if (what === 'done') {
        acknowledged.add(Number(detail))
        last = victim
        nemesis.progress()
      } else if (what === 'error') errors++
      else violations.push(`worker ${number}: ${line}`)
    })
    return Promise.race([ready.promise, gone])
  }

  await Promise.all(Array.from({ length: workers }, start))
  await nemesis.rage(() => violations.length > 0)
  for (const { child } of alive.keys()) child.kill('SIGKILL')
  await Promise.all(alive.values())
  // Then each commit of a killed process is either complete or rolled back.
  const theirs = `select from pg_stat_activity where application_name like 'worker %'`
  while ((await ask(url, theirs)).length > 0) await sleep(50)

  const history = await ask(url, 'select n::int, token, worker, how from history order by at')
  const increments = Number((await ask(url, 'select n from counter'))[0]?.n)
  if (history.length !== increments) {
    violations.push(`${history.length} increments were made, the counter shows ${increments}`)
  }
  const stored = new Set(history.map((row) => row.n))
  for (const n of acknowledged) if (!stored.has(n)) violations.push(`increment ${n} was acknowledged and is lost`)
  let token = 0n
  history.forEach((row, i) => {
    if (row.n !== i + 1) violations.push(`the ${i + 1}th increment has the number ${row.n}`)
    if (BigInt(row.token) < token) violations.push(`the token went down from ${token} to ${row.token} at ${row.n}`)
    token = BigInt(row.token)
  })
  asked.open('the end', COUNTER, { do: 'read' })({ n: increments })
  const judged = judge(asked.byObject(), () => lockModel, withSeen)
  violations.push(...judged.violations)
  return {
    ...{ increments, acknowledged: acknowledged.size },
    /** Verbs whose history was judged, and is linearizable. */
    linear: judged.operations,
    /** How often a holder got an error: its lease was lost, or the database was unreachable. */
    errors,
    ...nemesis.summary(),
    /** The violations; must be empty. */
    violations,
    /** The data for finding the cause of a violation. */
    evidence: { struck: nemesis.struck, history, asked: asked.byObject() },
  }
}
