/**
 * The counter under faults: many processes, one lock, one number; a nemesis (nemesis.ts) strikes them, their networks, their
 * backends and their clocks. Then the history in the database is checked: no increment lost, none doubled, none acknowledged that is not there, and tokens that never
 * go down at the resource.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { type Fault, Nemesis, type Struck, type Victim } from './nemesis.ts'

export type Kind = 'connection' | 'lease' | 'transaction' | 'mixed'
export interface Plan {
  url: string
  kind: Kind
  /** Processes alive at a time. */
  workers: number
  seconds: number
  /** Of the nemesis: who is hit, when, and how. */
  seed: number
}
export interface Outcome {
  increments: number
  acknowledged: number
  /** How often each struck. */
  faults: Partial<Record<Fault, number>>
  /** How often a holder was told that it had lost, or that the database was out of reach. */
  told: number
  /** What must not be; empty is good. */
  violations: string[]
  /** For who has to find out why. */
  evidence: { struck: Struck[]; history: unknown[] }
}

const WORKER = fileURLToPath(new URL('worker.ts', import.meta.url))

export async function runCounter({ url, kind, workers, seconds, seed }: Plan): Promise<Outcome> {
  const client = new pg.Client(url)
  await client.connect()
  await client.query('drop table if exists counter, history')
  await client.query('create table counter (n bigint)')
  await client.query('create table history (n bigint, token bigint, worker text, how text, at bigserial)')
  await client.query('insert into counter values (0)')
  await client.query(`select lockstep.fence_table('counter'), lockstep.fence_table('history')`)

  await using nemesis = await Nemesis.between(url, client, seed)
  const evidence = { struck: nemesis.struck, history: [] as unknown[] }
  const outcome: Outcome = { increments: 0, acknowledged: 0, faults: {}, told: 0, violations: [], evidence }
  const acknowledged = new Set<number>()
  const alive = new Map<Victim, Promise<unknown>>()
  let spawned = 0
  let last: Victim | undefined // who held last: the nemesis prefers it

  function start(): Promise<unknown> {
    const number = spawned++
    const lot = nemesis.lot(number)
    const child = spawn(process.execPath, [WORKER, lot.url, kind, String(number)], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, ...lot.env },
    })
    const victim = { child, name: `worker ${number}` }
    const gone = once(child, 'exit')
    alive.set(victim, gone)
    const ready = Promise.withResolvers<void>()
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      const [what, detail] = line.split(' ', 2)
      if (what === 'ready') ready.resolve()
      else if (what === 'done') {
        acknowledged.add(Number(detail))
        last = victim
      } else if (what === 'told') outcome.told++
      else outcome.violations.push(`worker ${number}: ${line}`)
    })
    return Promise.race([ready.promise, gone])
  }

  await Promise.all(Array.from({ length: workers }, start))
  for (const end = performance.now() + seconds * 1000; performance.now() < end && outcome.violations.length === 0; ) {
    const killed = await nemesis.strike([...alive.keys()], last && alive.has(last) ? last : undefined)
    if (!killed) continue
    alive.delete(killed)
    void start()
  }
  await nemesis.quiet()
  for (const { child } of alive.keys()) child.kill('SIGKILL')
  await Promise.all(alive.values())
  await quiet(client)

  const { rows } = await client.query('select n::int, token, worker, how from history order by at')
  const counter = Number((await client.query('select n from counter')).rows[0].n)
  outcome.increments = counter
  outcome.acknowledged = acknowledged.size
  evidence.history = rows
  for (const { fault } of nemesis.struck) outcome.faults[fault] = (outcome.faults[fault] ?? 0) + 1
  if (rows.length !== counter)
    outcome.violations.push(`${rows.length} increments were made, the counter says ${counter}`)
  const there = new Set(rows.map((row) => row.n))
  for (const n of acknowledged)
    if (!there.has(n)) outcome.violations.push(`increment ${n} was acknowledged and is lost`)
  let token = 0n
  rows.forEach((row, i) => {
    if (row.n !== i + 1) outcome.violations.push(`the ${i + 1}th increment says ${row.n}`)
    if (BigInt(row.token) < token)
      outcome.violations.push(`the token went down from ${token} to ${row.token} at ${row.n}`)
    token = BigInt(row.token)
  })
  await client.end()
  return outcome
}

// The backends of killed workers end by themselves; what they were committing is then committed or not.
async function quiet(client: pg.Client): Promise<void> {
  for (;;) {
    const { rows } = await client.query(`select from pg_stat_activity where application_name like 'worker %'`)
    if (rows.length === 0) return
    await sleep(50)
  }
}
