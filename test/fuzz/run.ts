/**
 * The long fuzz: `npm run fuzz -- [--minutes 10] [--rate 170] [--seed N]`.
 *
 * Sends the requests of http/fuzz.test.ts, 10,000 a minute, to the Node server, which runs in its own process. Every answer is
 * compared with the OpenAPI document. Every ten seconds the memory of that process is measured after a garbage collection, and
 * its backends and sockets are counted. A small leak with each refusal shows when the last third of the run is compared with
 * the second third; the first third warms up. Prints a line for each sample; the exit code is 1 if anything was wrong or has grown.
 */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as http from 'node:http'
import * as path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import * as fc from 'fast-check'
import pg from 'pg'
import { startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { leftOnServer } from '../support/resources.ts'
import { type Answered, wrong } from './answer.ts'
import type { Sample } from './door.ts'
import { type Ask, curl, type Document, Memory, requests } from './request.ts'

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '10' },
    rate: { type: 'string', default: '170' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
  },
})
const [minutes, rate, seed] = [Number(values.minutes), Number(values.rate), Number(values.seed)]
/** The maximum number of requests in flight: a slower server gets fewer requests, and `perMinute` shows it. */
const MOST = 64
const SAMPLE_MS = 10_000
const HANG_MS = 30_000
/** The pools of the server: its own, leases, holds and notifications, tasks, waiting events and appends, waits. */
const MOST_BACKENDS = 10 + 2 + 2 + 4 + 8 + 8

const dir = path.join(temporaryFolder(serverUser()), `lockstep-fuzz-${process.pid}`)
const postgres = await startPostgres({ dir, durable: false })
await migrate(postgres.url)
const pool = new pg.Pool({ connectionString: postgres.url, max: 1 })
pool.on('error', () => {})
const child = fork(fileURLToPath(new URL('door.ts', import.meta.url)), [postgres.url], { execArgv: ['--expose-gc'] })
const [url] = (await once(child, 'message')) as [string]
const agent = new http.Agent({ keepAlive: true, maxSockets: MOST })
const memory = new Memory()
const faults: string[] = []
const samples: (Sample & { backends: number })[] = []
const statuses: Record<number, number> = {}
const [{ text }] = [
  await send({
    method: 'GET',
    path: '/openapi.json',
    headers: [['Authorization', 'Bearer all.secret']],
    body: undefined,
  }),
]
const document: Document = JSON.parse(text)

console.log(JSON.stringify({ minutes, rate, seed }))
const since = performance.now()
let [sent, flying] = [0, 0]
const measuring = setInterval(() => void sample(), SAMPLE_MS)
for (let asks = batch(0); performance.now() - since < minutes * 60_000; ) {
  const due = Math.floor(((performance.now() - since) / 1_000) * rate)
  while (sent < due && flying < MOST) {
    const ask = asks.pop() as Ask
    if (asks.length === 0) asks = batch(sent)
    sent++
    flying++
    void tryRequest(ask).finally(() => flying--)
  }
  await sleep(5)
}
clearInterval(measuring)
while (flying > 0) await sleep(50)
await sample()
const open = await stillOpen()
if (open.length > 0) faults.push(`transactions are left open: ${JSON.stringify(open)}`)
faults.push(...grown())
child.disconnect()
await once(child, 'exit')
await pool.end()
faults.push(...(await leftOnServer(postgres.url)).map((each) => `left behind: ${each}`))
console.log(JSON.stringify({ sent, perMinute: Math.round(sent / minutes), statuses, faults: faults.length }))
for (const fault of faults.slice(0, 20)) console.error(fault)
await postgres.stop()
fs.rmSync(dir, { recursive: true, force: true })
process.exit(faults.length > 0 ? 1 : 0)

function batch(nth: number): Ask[] {
  return fc.sample(requests(document), { seed: seed + nth, numRuns: 500 })
}

async function tryRequest(made: Ask): Promise<void> {
  // As a client sends it: characters that a URL may not contain are encoded, and `..` is resolved.
  const { pathname, search } = new URL(`http://x${memory.recall(made.path)}`)
  const text = made.body?.toString('latin1') ?? ''
  const body = text.includes('@') ? Buffer.from(memory.recall(text), 'latin1') : made.body
  const ask = { ...made, path: pathname + search, body: ['GET', 'HEAD'].includes(made.method) ? undefined : body }
  try {
    const answer = await send(ask)
    statuses[answer.status] = (statuses[answer.status] ?? 0) + 1
    const fault = answer.status === 431 ? undefined : wrong(document, ask.method, ask.path, answer)
    if (fault) faults.push(`${fault}\n  ${curl(ask)}`)
    else if (answer.type === 'application/json' && answer.text) memory.learn(JSON.parse(answer.text))
  } catch (error) {
    faults.push(`${(error as Error).message}\n  ${curl(ask)}`)
  }
}

function send({ method, path, headers, body }: Ask): Promise<Answered> {
  return new Promise((resolve, reject) => {
    const init = { method, agent, headers: Object.fromEntries(headers), timeout: HANG_MS }
    const request = http.request(`${url}${path}`, init, (response) => {
      const type = response.headers['content-type'] ?? ''
      const status = response.statusCode ?? 0
      const chunks: Buffer[] = []
      response.on('data', (chunk) => chunks.push(chunk))
      response.on('end', () => resolve({ status, type, text: Buffer.concat(chunks).toString() }))
      response.on('error', reject)
      if (!type.startsWith('text/event-stream')) return
      response.removeAllListeners('error').on('error', () => {})
      request.destroy() // an event stream does not end
      resolve({ status, type, text: '' })
    })
    request.on('timeout', () => request.destroy(new Error(`no answer in ${HANG_MS} ms`)))
    request.on('error', reject)
    request.end(body)
  })
}

async function sample(): Promise<void> {
  child.send('sample')
  const [answer] = (await once(child, 'message')) as [Sample]
  const { rows } = await pool.query(`select count(*)::int n from pg_stat_activity where application_name = 'fuzzed'`)
  const taken = { ...answer, backends: rows[0].n as number }
  samples.push(taken)
  const rounded = Object.fromEntries(Object.entries(taken).map(([name, value]) => [name, Math.round(value * 10) / 10]))
  console.log(JSON.stringify({ s: Math.round((performance.now() - since) / 1_000), sent, ...rounded }))
}

/** Transactions that are still open after ten seconds; the background work begins and ends short ones all the time. */
async function stillOpen(): Promise<unknown[]> {
  for (let tries = 100; ; tries--) {
    const { rows } = await pool.query(
      `select pid, query, xact_start from pg_stat_activity
        where application_name = 'fuzzed' and state like 'idle in transaction%' and xact_start < now() - interval '2 seconds'`,
    )
    if (rows.length === 0 || tries === 0) return rows
    await sleep(100)
  }
}

/** The figures that have grown from the second third of the run to the last, by their medians. */
function grown(): string[] {
  const third = Math.floor(samples.length / 3)
  if (third < 2) return ['too short to find a growth: run it for at least a minute']
  const of = (part: number, name: keyof (typeof samples)[0]) => {
    const sorted = samples.slice(part * third, (part + 1) * third).map((each) => each[name])
    return sorted.sort((a, b) => a - b)[Math.floor(third / 2)] as number
  }
  const limits = { heapMiB: [1.1, 4], rssMiB: [1.1, 24], backends: [1, 4], sockets: [1.2, 16] } as const
  const names = Object.keys(limits) as (keyof typeof limits)[]
  const found = names.flatMap((name) => {
    const [before, after] = [of(1, name), of(2, name)]
    const [times, more] = limits[name]
    return after > before * times + more ? [`${name} has grown: ${before} to ${after}`] : []
  })
  const most = Math.max(...samples.map(({ backends }) => backends))
  return most > MOST_BACKENDS ? [...found, `${most} backends, and ${MOST_BACKENDS} are allowed`] : found
}
