/**
 * Processes with many connection holds, on a server with a small lock table, under faults. One of the faults: another program
 * fills the rest of that table. No name has two holders, and at the end nothing is left: no backend, no lock, no handle, no heap.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { ask } from '../support/query-once.ts'
import { Nemesis, type Victim } from './nemesis.ts'
import type { ChaosServer } from './server.ts'

export interface CrowdPlan {
  server: ChaosServer
  workers: number
  seconds: number
  seed: number
}

const WORKER = fileURLToPath(new URL('crowder.ts', import.meta.url))
const FULL_MS = 500
const ENDS_MS = 20_000
/** How many bytes the heap of a process may grow, from its fifth second on. */
const MOST_HEAP_GROWN = 40 * 2 ** 20

export async function runCrowd({ server, workers, seconds, seed }: CrowdPlan) {
  const { url } = server
  await ask(url, 'drop table if exists inside')
  await ask(url, 'create table inside (name text primary key, token bigint not null)')
  const violations: string[] = []
  const alive = new Map<Victim, Promise<unknown>>()
  let [spawned, holds, full] = [0, 0, 0]

  await using nemesis = await Nemesis.of({
    ...{ server, seed, seconds, networks: 2 },
    restMs: (chance) => 100 + chance * 500,
    awayMs: (chance) => 1_200 + chance * 1_000,
    victims: () => [...alive.keys()],
    killed(victim) {
      alive.delete(victim)
      start()
    },
    also: { fill: () => void fill(), 'fill again': () => void fill() },
  })

  async function fill(): Promise<void> {
    const client = new pg.Client({ connectionString: url, application_name: 'filler' })
    client.on('error', () => {})
    try {
      await client.connect()
      await client.query('select pg_advisory_lock(n, 0) from generate_series(1, 20000) n')
    } catch (error) {
      if ((error as { code?: string }).code === '53200') full++
      await sleep(FULL_MS)
    } finally {
      await client.end().catch(() => {})
    }
  }

  function start(): void {
    const number = spawned++
    const child = spawn(process.execPath, ['--expose-gc', WORKER, nemesis.network(number), url, String(number)], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, ...nemesis.clock(number) },
    })
    const victim = { child, name: `worker ${number}` }
    alive.set(victim, once(child, 'exit'))
    let heap: number | undefined
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      const [what, detail] = line.split(' ', 2)
      if (what === 'done') {
        holds++
        nemesis.progress()
      } else if (what === 'heap') {
        if (heap !== undefined && Number(detail) - heap > MOST_HEAP_GROWN) {
          violations.push(`${victim.name}: its heap grew from ${heap} to ${detail} bytes`)
        }
        heap = Number(detail)
      } else if (what !== 'ready' && what !== 'closed') violations.push(`${victim.name}: ${line}`)
    })
  }

  for (let i = 0; i < workers; i++) start()
  await nemesis.rage(() => violations.length > 0)
  for (const { child } of alive.keys()) child.kill('SIGTERM')
  const late = sleep(ENDS_MS, undefined, { ref: false }).then(() => {
    for (const { child, name } of alive.keys()) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      violations.push(`${name} did not end`)
      child.kill('SIGKILL')
    }
  })
  await Promise.race([Promise.all(alive.values()), late])
  await Promise.all(alive.values())
  const left = `select application_name from pg_stat_activity where application_name like 'worker %'`
  const locks = `select l.pid from pg_locks l where l.locktype = 'advisory' and l.objsubid = 1`
  // The backends of killed processes end when the server notices the closed connection.
  for (const since = performance.now(); performance.now() - since < ENDS_MS; await sleep(100)) {
    if ((await ask(url, left)).length + (await ask(url, locks)).length === 0) break
  }
  for (const { application_name: name } of await ask(url, left)) violations.push(`a backend of ${name} is left`)
  for (const { pid } of await ask(url, locks)) violations.push(`an advisory lock of backend ${pid} is left`)
  return { holds, full, ...nemesis.summary(), violations, evidence: { struck: nemesis.struck } }
}
