/**
 * `npm run chaos -- [--workers N] [--seconds 60] [--seed N] [--jobs 10000] [--kind KIND] [--door http]`, KIND: connection,
 * lease, transaction, mixed, election, election-connection, jobs, events or events-http, which is events with `--door http`.
 *
 * The long proof: 64 processes on one counter, under each kind of hold and under all mixed; then 3 that lead by turns, by
 * their leases and by their connections; then 3 that work off jobs; then 8 that append events and 6 that consume them, in
 * the library and over HTTP (that needs python3); a minute each. One line of JSON for each; exit code 1 when anything was
 * violated.
 */
import { randomBytes } from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { parseArgs } from 'node:util'
import { serverUser, temporaryFolder } from '../../lib/child.ts'
import { migrate } from '../../lib/migrate.ts'
import { type Postgres, startPostgres } from '../../lib/postgres.ts'
import { runCounter } from './counter.ts'
import { runElection } from './election.ts'
import { runEvents } from './events.ts'
import { runJobs } from './jobs.ts'

const COUNTERS = ['connection', 'lease', 'transaction', 'mixed'] as const
const KINDS = [...COUNTERS, 'election', 'election-connection', 'jobs', 'events', 'events-http'] as const
const WRITERS = 8 // of events, besides the workers, who consume them

const { values } = parseArgs({
  options: {
    workers: { type: 'string' },
    seconds: { type: 'string', default: '60' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
    kind: { type: 'string' },
    jobs: { type: 'string', default: '10000' },
    door: { type: 'string' },
  },
})
const wanted = values.kind === 'events' && values.door === 'http' ? 'events-http' : values.kind
const kinds = KINDS.filter((kind) => wanted === undefined || kind === wanted)
if (kinds.length === 0) throw new Error(`--kind is one of ${KINDS.join(', ')}`)

for (const kind of kinds) {
  const workers = Number(values.workers ?? usual(kind))
  const plan = { kind, workers, seconds: Number(values.seconds), seed: Number(values.seed) }
  console.error(`${kind}: ${plan.workers} processes, ${plan.seconds} s, seed ${plan.seed} …`)
  const { violations, ...outcome } = await run(plan)
  const { evidence, ...counts } = { evidence: {}, ...outcome }
  console.log(JSON.stringify({ ...plan, ...counts, violations: violations.length }))
  for (const violation of violations.slice(0, 20)) console.error(`  ${violation}`)
  if (violations.length > 0) {
    process.exitCode = 1
    console.error(`  all of it: ${writeDown(plan, violations, { ...counts, ...evidence })}`)
  }
}
// A socket that was reset under a fault can keep Node from ever ending by itself: it turns in its own clean-up.
process.exit()

/** A file that says what was violated, how to do it again, and what happened in what order. */
function writeDown(plan: object, violations: string[], evidence: object): string {
  const again = Object.entries(plan).map(([name, value]) => `--${name} ${value}`)
  const look =
    'First the first violation: later ones may follow from it. `history` is in the order of the commits, `struck` in that of time.'
  const folder = path.resolve(import.meta.dirname, '../../dist/chaos')
  fs.mkdirSync(folder, { recursive: true })
  const file = path.join(folder, `${new Date().toISOString().replaceAll(':', '-')}.json`)
  const text = { again: `npm run chaos -- ${again.join(' ')}`, look, violations, ...evidence }
  fs.writeFileSync(
    file,
    JSON.stringify(text, (_, value) => (typeof value === 'bigint' ? String(value) : value), 1),
  )
  return file
}

function usual(kind: (typeof KINDS)[number]): number {
  if (kind.startsWith('events')) return 6
  return COUNTERS.includes(kind as 'mixed') ? 64 : 3
}

async function run(plan: { kind: (typeof KINDS)[number]; workers: number; seconds: number; seed: number }) {
  await using server = await restartable(plan.kind.startsWith('events') ? 3 * (plan.workers + WRITERS) : plan.workers)
  const { url, restart } = server
  const { kind, ...rest } = plan
  if (kind === 'election') return await runElection({ url, restart, failover: 'lease', ...rest })
  if (kind === 'election-connection') return await runElection({ url, restart, failover: 'connection', ...rest })
  if (kind === 'jobs') return await runJobs({ url, restart, jobs: Number(values.jobs), ...rest })
  if (kind === 'events' || kind === 'events-http') {
    const { workers: consumers, ...when } = rest
    const door = kind === 'events' ? 'library' : 'http'
    return await runEvents({ url, restart, door, writers: WRITERS, consumers, streams: 200, ...when })
  }
  return await runCounter({ url, kind, ...rest })
}

// What is acknowledged must survive a crash of the server; that of the machine is not tried.
async function restartable(workers: number) {
  const dir = path.join(temporaryFolder(serverUser()), `lockstep-chaos-${randomBytes(6).toString('hex')}`)
  const settings = { max_connections: workers * 8 + 100, synchronous_commit: 'on' }
  const start = (port?: number) => startPostgres({ dir, settings, durable: false, ...(port && { port }) })
  let server: Postgres = await start()
  const { url, port } = server
  const end = async () => {
    await server.stop()
    fs.rmSync(dir, { recursive: true, force: true })
  }
  const interrupted = () => void end().then(() => process.exit(130))
  process.once('SIGINT', interrupted)
  await migrate(url)
  return {
    url,
    async restart(how: 'stop' | 'crash') {
      if (how === 'crash') process.kill(server.pid, 'SIGQUIT') // its children too, without a checkpoint
      await server.stop()
      server = await start(port)
    },
    async [Symbol.asyncDispose]() {
      process.off('SIGINT', interrupted)
      await end()
    },
  }
}
