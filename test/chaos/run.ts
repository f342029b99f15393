/**
 * `npm run chaos -- [--minutes N | --seconds 60] [--seed N] [--workers N] [--jobs N] [--kind KIND] [--door http]`, KIND: connection,
 * lease, transaction, mixed, crowd, election, election-connection, jobs, events or events-http, which is events with
 * `--door http`. `--locks N`: for the kind crowd, the entries of the server's lock table, at least 1,000.
 *
 * The long chaos test: 64 processes on one counter, under each kind of hold and under all mixed; then 3 processes with many
 * connection holds, on a server with a small lock table; then 3 that lead in turn, by their leases and by their connections;
 * then 3 that work jobs; then 8 that append events and 6 that consume them, in the library and over HTTP (which needs
 * python3). Each kind takes a minute, or all together `--minutes`. Prints one line of JSON for each kind, and one with the
 * sums; the exit code is 1 if there was a violation.
 */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { parseArgs } from 'node:util'
import { leftInProcess, leftOnServer, ofProcess } from '../support/resources.ts'
import { runCounter } from './counter.ts'
import { runCrowd } from './crowd.ts'
import { runElection } from './election.ts'
import { runEvents } from './events.ts'
import { runJobs } from './jobs.ts'
import { type ChaosServer, chaosServer } from './server.ts'

const COUNTERS = ['connection', 'lease', 'transaction', 'mixed'] as const
const KINDS = [...COUNTERS, 'crowd', 'election', 'election-connection', 'jobs', 'events', 'events-http'] as const
type Kind = (typeof KINDS)[number]
const WRITERS = 8 // of events; the workers consume them
const JOBS_A_SECOND = 160
/** How many bytes the history of a run takes that is checked at its end, and code that is compiled for it. */
const KEEPS = 256 * 2 ** 20

const { values } = parseArgs({
  options: {
    workers: { type: 'string' },
    minutes: { type: 'string' },
    seconds: { type: 'string', default: '60' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
    kind: { type: 'string' },
    jobs: { type: 'string' },
    door: { type: 'string' },
    locks: { type: 'string', default: '1000' },
  },
})
const wanted = values.kind === 'events' && values.door === 'http' ? 'events-http' : values.kind
const kinds = KINDS.filter((kind) => wanted === undefined || kind === wanted)
if (kinds.length === 0) throw new Error(`--kind is one of ${KINDS.join(', ')}`)
const seconds = values.minutes ? (Number(values.minutes) * 60) / kinds.length : Number(values.seconds)

/** The counts that are summed. Each increment is a hold; each row of a leader is a fenced write. */
const COUNTED = ['increments', 'holds', 'terms', 'rows', 'jobs', 'slots', 'events', 'linear']

const sum = { seconds: 0, violations: 0, counts: {} as Record<string, number>, faults: {} as Record<string, number> }
const recovered: number[] = []
for (const kind of kinds) {
  const plan = { kind, workers: Number(values.workers ?? usual(kind)), seconds, seed: Number(values.seed) }
  console.error(`${kind}: ${plan.workers} processes, ${seconds} s, seed ${plan.seed} …`)
  const { violations, evidence, recoveredMs, ...counts } = await run(plan)
  console.log(JSON.stringify({ ...plan, ...counts, recoveredMs: parts(recoveredMs), violations: violations.length }))
  sum.seconds += seconds
  sum.violations += violations.length
  recovered.push(...recoveredMs)
  add(sum.faults, counts.faults)
  add(sum.counts, Object.fromEntries(Object.entries(counts).filter(([name]) => COUNTED.includes(name))))
  for (const violation of violations.slice(0, 20)) console.error(`  ${violation}`)
  if (violations.length > 0) {
    process.exitCode = 1
    console.error(`  the whole report: ${writeReport(plan, violations, { ...counts, ...evidence })}`)
  }
}
console.log(JSON.stringify({ all: kinds.length, seed: Number(values.seed), ...sum, recoveredMs: parts(recovered) }))
// A socket that was reset by a fault can keep Node from exiting: its clean-up never ends.
process.exit()

async function run(plan: { kind: Kind; workers: number; seconds: number; seed: number }) {
  const { kind, ...rest } = plan
  const processes = rest.workers + (kind.startsWith('events') ? 2 * (rest.workers + WRITERS) : 0)
  if (kind === 'crowd') {
    await using small = await chaosServer(100, Number(values.locks) / 100)
    return await clean(small, () => runCrowd({ server: small, ...rest }))
  }
  await using server = await chaosServer(processes * 8 + 100)
  return await clean(server, () => runOn(server, kind, rest))
}

async function runOn(
  server: ChaosServer,
  kind: Exclude<Kind, 'crowd'>,
  rest: { workers: number; seconds: number; seed: number },
) {
  if (kind === 'election') return await runElection({ server, failover: 'lease', ...rest })
  if (kind === 'election-connection') return await runElection({ server, failover: 'connection', ...rest })
  if (kind === 'jobs') {
    return await runJobs({ server, jobs: Number(values.jobs ?? Math.round(rest.seconds * JOBS_A_SECOND)), ...rest })
  }
  if (kind === 'events' || kind === 'events-http') {
    const { workers: consumers, ...when } = rest
    const door = kind === 'events' ? 'library' : 'http'
    return await runEvents({ server, door, writers: WRITERS, consumers, streams: 200, ...when })
  }
  return await runCounter({ server, kind, ...rest })
}

/** A run after which nothing is left, on its server or in this process: what is left is a violation. */
async function clean<T extends { violations: string[] }>(server: ChaosServer, work: () => Promise<T>): Promise<T> {
  const before = await ofProcess()
  const report = await work()
  const left = [...(await leftOnServer(server.url)), ...(await leftInProcess(before, KEEPS))]
  return { ...report, violations: [...report.violations, ...left.map((each) => `left behind: ${each}`)] }
}

function usual(kind: Kind): number {
  if (kind.startsWith('events')) return 6
  return COUNTERS.includes(kind as 'mixed') ? 64 : 3
}

function add(to: Record<string, number>, some: Record<string, unknown>): void {
  for (const [name, count] of Object.entries(some)) to[name] = (to[name] ?? 0) + Number(count)
}

function parts(all: number[]): Record<string, number> {
  const sorted = all.toSorted((a, b) => a - b)
  const at = (part: number) => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? 0
  return { of: sorted.length, p50: at(0.5), p99: at(0.99), most: at(1) }
}

/** Writes a file with the violations, the command that repeats the run, and the events in their order. */
function writeReport(plan: object, violations: string[], evidence: object): string {
  const again = Object.entries(plan).map(([name, value]) => `--${name} ${value}`)
  const look =
    'Begin with the first violation: later ones may follow from it. `history` is in the order of the commits, `struck` in the order of time.'
  const folder = path.resolve(import.meta.dirname, '../../dist/chaos')
  fs.mkdirSync(folder, { recursive: true })
  const file = path.join(folder, `${new Date().toISOString().replaceAll(':', '-')}.json`)
  const text = { again: `npm run chaos -- ${again.join(' ')}`, look, violations, ...evidence }
  fs.writeFileSync(file, JSON.stringify(text, shown, 1))
  return file
}

function shown(_: string, value: unknown): unknown {
  if (typeof value === 'bigint') return String(value)
  return value instanceof Set || value instanceof Map ? [...value] : value
}
