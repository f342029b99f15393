/**
 * The election under faults: a few processes lead by turns; a nemesis kills and pauses them, ends their connections, cuts
 * or silences their network, and restarts or crashes the database.
 *
 * Then what they did is checked. The fenced rows, in the order in which they were written: no token after a larger one,
 * so no two terms interleave, and every acknowledged row is there. The terms: a token is handed out once, and each
 * process's rise. The unfenced acts, which each leader did for as long as it trusted its term: all acts of a term came
 * before the first of the next. A term that ends with its connection does not promise the last; its overlaps are counted
 * only. And at the end, when all is well again, everybody comes to lead: there is no fault that lasts.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { type TcpProxy, tcpProxy } from '../proxy.ts'
import { seeded } from './random.ts'

export interface ElectionPlan {
  /** A migrated database on a server that keeps what it acknowledged when it crashes: `synchronous_commit` on. */
  url: string
  /** Stops the server, or crashes it, and starts it again at the same place. */
  restart(how: 'stop' | 'crash'): Promise<void>
  failover: 'lease' | 'connection'
  /** Processes alive at a time. */
  workers: number
  /** Of faults; after them everybody is waited for. */
  seconds: number
  /** Of the nemesis: who is hit, when, and how. */
  seed: number
}
export interface ElectionOutcome {
  terms: number
  rows: number
  acknowledged: number
  acts: number
  /** How often a term's signal fired. */
  told: number
  /** Terms that acted, unfenced, after a later one had. */
  overlaps: number
  kills: number
  pauses: number
  terminations: number
  cuts: number
  blackholes: number
  stops: number
  crashes: number
  /** Rows of each worker, all its incarnations together. */
  by: number[]
  /** What must not be; empty is good. */
  violations: string[]
}

/** One of the processes that lead by turns, with a network of its own. It is killed and comes back. */
interface Worker {
  slot: number
  incarnation: number
  child: ChildProcess
  gone: Promise<unknown>
  proxy: TcpProxy
  /** Rows acknowledged to this incarnation. */
  rows: number
}

const TTL_MS = 1_500
const RESTART_EVERY_MS = 15_000
/** For how long everybody is waited for when all is well again: far more than it takes, on a slow machine too. */
const RECOVERS_MS = 90_000

export async function runElection(plan: ElectionPlan): Promise<ElectionOutcome> {
  const { url, failover, seconds } = plan
  const random = seeded(plan.seed)
  const hits = { kills: 0, pauses: 0, terminations: 0, cuts: 0, blackholes: 0, stops: 0, crashes: 0 }
  const violations: string[] = []
  const history: History = { leads: [], acknowledged: new Map() }
  let told = 0
  let leader: Worker | undefined // the nemesis prefers it

  await query(url, 'drop table if exists led')
  await query(url, 'create table led (n integer, token bigint, worker text, at bigserial)')
  await query(url, `select lockstep.fence_table('led')`)
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-chaos-'))
  const log = path.join(folder, 'acts')
  fs.writeFileSync(log, '')

  const workers: Worker[] = []
  const later: Promise<void>[] = []

  function start(worker: Pick<Worker, 'slot' | 'incarnation' | 'proxy'>): Promise<unknown> {
    const id = `${worker.slot}.${worker.incarnation}`
    const program = fileURLToPath(new URL('leader.ts', import.meta.url))
    const child = spawn(process.execPath, [program, worker.proxy.url, failover, String(TTL_MS), id, log], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const gone = once(child, 'close') // and not 'exit': what it said last is heard first
    const it: Worker = { ...worker, child, gone, rows: 0 }
    workers[worker.slot] = it
    const ready = Promise.withResolvers<void>()
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      const [what, detail = '', token = ''] = line.split(' ')
      if (what === 'ready') ready.resolve()
      else if (what === 'leads') {
        history.leads.push({ worker: id, token: BigInt(detail) })
        leader = it
      } else if (what === 'done') {
        history.acknowledged.set(`${id} ${detail}`, BigInt(token))
        it.rows++
      } else if (what === 'told') told++
      else violations.push(`worker ${id}: ${line}`)
    })
    return Promise.race([ready.promise, gone])
  }

  const away = () => TTL_MS * (1.1 + random() * 1.5)
  const after = (ms: number, what: () => void) => void later.push(sleep(ms).then(what))
  const hit = {
    kills({ slot, incarnation, proxy, child }: Worker) {
      child.kill('SIGKILL')
      void start({ slot, incarnation: incarnation + 1, proxy })
    },
    pauses({ child }: Worker) {
      child.kill('SIGSTOP')
      after(away(), () => child.kill('SIGCONT'))
    },
    async terminations({ slot, incarnation }: Worker) {
      const some = random() < 0.5 ? 'and random() < 0.5' : ''
      const text = `select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1 ${some}`
      await query(url, text, [`leader ${slot}.${incarnation}`])
    },
    cuts({ proxy }: Worker) {
      proxy.cut()
    },
    blackholes({ proxy }: Worker) {
      proxy.blackhole()
      after(away(), () => proxy.resume())
    },
  }
  const ways = Object.keys(hit) as (keyof typeof hit)[]

  try {
    for (let slot = 0; slot < plan.workers; slot++) {
      await start({ slot, incarnation: 0, proxy: await tcpProxy(url) })
    }
    const end = performance.now() + seconds * 1000
    const every = Math.min(RESTART_EVERY_MS, (seconds * 1000) / 2)
    let crash = random() < 0.5
    for (let next = performance.now() + every; performance.now() < end && violations.length === 0; ) {
      // Now and then it is quiet for long enough that the next leader of a dead one comes to its work.
      await sleep(random() < 0.3 ? TTL_MS * (1.5 + random()) : 100 + random() * 700)
      if (performance.now() >= next) {
        hits[crash ? 'crashes' : 'stops']++
        await plan.restart(crash ? 'crash' : 'stop')
        crash = !crash
        next = performance.now() + every
        continue
      }
      const victim = (random() < 0.5 && leader) || workers[Math.floor(random() * workers.length)]
      const way = ways[Math.floor(random() * ways.length)]
      if (!victim || !way || victim !== workers[victim.slot]) continue // it was killed already
      hits[way]++
      await hit[way](victim)
    }
    await Promise.all(later)

    // Nothing is broken any more: everybody has its turn.
    for (const worker of workers) worker.rows = 0
    for (const since = performance.now(); violations.length === 0; await sleep(50)) {
      const idle = workers.filter((worker) => worker.rows === 0)
      if (idle.length === 0) break
      if (performance.now() - since < RECOVERS_MS) continue
      violations.push(`worker ${idle.map((w) => w.slot)} did not lead within ${RECOVERS_MS} ms after the last fault`)
    }
  } finally {
    for (const { child } of workers) child.kill('SIGKILL')
    await Promise.all(workers.map(({ gone }) => gone))
    await Promise.all(workers.map(({ proxy }) => proxy.close()))
  }
  // What the killed were committing is then committed or not.
  while ((await query(url, `select from pg_stat_activity where application_name like 'leader %'`)).length > 0) {
    await sleep(50)
  }

  const acts = fs.readFileSync(log, 'utf8').trim().split('\n').filter(Boolean).map(parsed)
  fs.rmSync(folder, { recursive: true })
  const rows = (await query(url, 'select n, token, worker from led order by at')).map(
    (row): Row => ({ n: Number(row.n), token: BigInt(row.token), worker: String(row.worker) }),
  )
  violations.push(...checkRows(rows, history), ...checkTerms([...history.leads, ...rows, ...acts], history))
  const overlaps = overlapping(acts)
  if (failover === 'lease') violations.push(...overlaps)
  const by = workers.map(({ slot }) => rows.filter(({ worker }) => worker.startsWith(`${slot}.`)).length)
  return {
    terms: new Set(history.leads.map(({ token }) => token)).size,
    ...{ rows: rows.length, acknowledged: history.acknowledged.size, acts: acts.length, told },
    ...{ overlaps: overlaps.length, ...hits, by, violations },
  }
}

// ---- What is checked ---------------------------------------------------------------------------------------------

type Led = { worker: string; token: bigint }
type Row = Led & { n: number }
type Act = Led & { at: bigint }
interface History {
  /** Each worker's terms, in the order in which it had them. */
  leads: Led[]
  /** The token of each row, by worker and number. */
  acknowledged: Map<string, bigint>
}

function parsed(line: string): Act {
  const { token, at, worker } = JSON.parse(line)
  return { token: BigInt(token), at: BigInt(at), worker }
}

// A row's place is drawn inside its fenced transaction. So the places of two terms are ordered as the terms are.
function checkRows(rows: Row[], { acknowledged }: History): string[] {
  const violations: string[] = []
  const there = new Map(rows.map(({ worker, n, token }) => [`${worker} ${n}`, token]))
  for (const [row, token] of acknowledged) {
    const found = there.get(row)
    if (found === undefined) violations.push(`row ${row} of term ${token} was acknowledged and is lost`)
    else if (found !== token) violations.push(`row ${row} was acknowledged to term ${token} and is of ${found}`)
  }
  let last = 0n
  for (const { worker, n, token } of rows) {
    if (token < last) violations.push(`row ${worker} ${n} of term ${token} comes after one of term ${last}`)
    else last = token
  }
  return violations
}

function checkTerms(all: Led[], { leads }: History): string[] {
  const violations: string[] = []
  const owners = new Map<bigint, string>()
  for (const { worker, token } of all) {
    const owner = owners.get(token)
    if (owner === undefined) owners.set(token, worker)
    else if (owner !== worker) violations.push(`term ${token} was led by ${owner} and by ${worker}`)
  }
  const last = new Map<string, bigint>()
  for (const { worker, token } of leads) {
    const before = last.get(worker) ?? 0n
    if (token <= before) violations.push(`worker ${worker} was given term ${token} after ${before}`)
    last.set(worker, token)
  }
  return [...new Set(violations)]
}

// An act's time is read before its leader looks whether it is trusted: it is no later than a moment at which it was. The
// first act of the next term is later than its grant. So the one must be before the other, by the clock that both read.
function overlapping(acts: Act[]): string[] {
  const spans = new Map<bigint, { worker: string; first: bigint; last: bigint }>()
  for (const { token, at, worker } of acts) {
    const span = spans.get(token) ?? { worker, first: at, last: at }
    if (at < span.first) span.first = at
    if (at > span.last) span.last = at
    spans.set(token, span)
  }
  const violations: string[] = []
  let latest: { token: bigint; worker: string; last: bigint } | undefined
  for (const [token, span] of [...spans].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (latest && latest.last >= span.first) {
      const ms = Number(latest.last - span.first) / 1e6
      violations.push(
        `term ${latest.token} of worker ${latest.worker} acted ${ms} ms after the first act of term ${token} of ${span.worker}`,
      )
    }
    if (!latest || span.last > latest.last) latest = { token, ...span }
  }
  return violations
}

async function query(url: string, text: string, values: unknown[] = []) {
  const client = new pg.Client(url)
  client.on('error', () => {})
  await client.connect()
  try {
    return (await client.query(text, values)).rows
  } finally {
    await client.end()
  }
}
