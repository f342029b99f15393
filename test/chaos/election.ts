/**
 * The election under faults: a few processes, each with its own network, lead in turn.
 *
 * Then the run is checked:
 * - The fenced rows, in the order in which they were written: no token comes after a larger one, so no two terms interleave,
 *   and every acknowledged row exists.
 * - The terms: a token is granted once, and the tokens of each process rise.
 * - The unfenced acts, which each leader does while it trusts its term: all acts of a term come before the first of the next.
 * - The signal of a term comes before that too. A process that stood still gets it as soon as its event loop turns again.
 * - At the end, without faults, every process leads again: no fault has a lasting effect.
 *
 * A term that ends with its connection promises neither the third nor the fourth; its overlaps are only counted.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { ask } from '../support/query-once.ts'
import { Nemesis, type Victim } from './nemesis.ts'
import type { ChaosServer } from './server.ts'

export interface ElectionPlan {
  server: ChaosServer
  failover: 'lease' | 'connection'
  /** Processes alive at a time. */
  workers: number
  /** How long there are faults. After that, the run waits until every worker has led. */
  seconds: number
  /** The seed of the nemesis: which process it hits, when, and how. */
  seed: number
}

/** One of the processes that lead in turn. It is killed and started again. */
interface Worker extends Victim {
  slot: number
  incarnation: number
  child: ChildProcess
  gone: Promise<unknown>
  /** The number of rows acknowledged to this incarnation. */
  rows: number
}

const TTL_MS = 1_500
/** How long the run waits for the workers after the last fault: far longer than they need, even on a slow machine. */
const RECOVERS_MS = 90_000
/** How many turns without a signal are allowed: the timer that sends it may be due in the same turn as another. */
const TURNS = 3

export async function runElection({ server, failover, workers: count, seconds, seed }: ElectionPlan) {
  const { url } = server
  const violations: string[] = []
  const history: History = { leads: [], acknowledged: new Map() }
  let signalsSeen = 0
  let leader: Worker | undefined

  await ask(url, 'drop table if exists led')
  await ask(url, 'create table led (n integer, token bigint, worker text, at bigserial)')
  await ask(url, `select lockstep.fence_table('led')`)
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-chaos-'))
  const log = path.join(folder, 'acts')
  fs.writeFileSync(log, '')

  const workers: Worker[] = []
  await using nemesis = await Nemesis.of({
    ...{ server, seed, seconds, networks: count },
    // Some pauses are long enough for a successor of a dead leader to do some work.
    restMs: (chance) => (chance < 0.3 ? TTL_MS * (1.5 + chance * 3) : chance * 800),
    awayMs: (chance) => TTL_MS * (1.1 + chance * 1.5),
    victims: () => workers,
    favourite: () => leader,
    killed: (victim) => void start((victim as Worker).slot, (victim as Worker).incarnation + 1),
  })

  function start(slot: number, incarnation = 0): Promise<unknown> {
    const id = `${slot}.${incarnation}`
    const program = fileURLToPath(new URL('leader.ts', import.meta.url))
    const child = spawn(process.execPath, [program, nemesis.network(slot), failover, String(TTL_MS), id, log], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, ...nemesis.clock(slot + incarnation) },
    })
    const gone = once(child, 'close') // not 'exit': its last output is read first
    const it: Worker = { ...{ slot, incarnation, child, gone, rows: 0 }, name: `leader ${id}` }
    workers[slot] = it
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
        nemesis.progress()
      } else if (what === 'signalled') signalsSeen++
      else violations.push(`worker ${id}: ${line}`)
    })
    return Promise.race([ready.promise, gone])
  }

  try {
    for (let slot = 0; slot < count; slot++) await start(slot)
    await nemesis.rage(() => violations.length > 0)

    // There are no more faults: every worker must lead.
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
  }
  // Then each commit of a killed process is either complete or rolled back.
  const theirs = `select from pg_stat_activity where application_name like 'leader %'`
  while ((await ask(url, theirs)).length > 0) await sleep(50)

  const turns = fs.readFileSync(log, 'utf8').trim().split('\n').filter(Boolean).map(parsed)
  fs.rmSync(folder, { recursive: true })
  const acts = turns.filter(({ what }) => what === 'act')
  const rows = (await ask(url, 'select n, token, worker from led order by at')).map(
    (row): Row => ({ n: Number(row.n), token: BigInt(row.token), worker: String(row.worker) }),
  )
  violations.push(...checkRows(rows, history), ...checkTerms([...history.leads, ...rows, ...acts], history))
  const overlaps = overlapping(acts)
  const signals = signalled(turns)
  if (failover === 'lease') violations.push(...overlaps, ...signals.violations)
  return {
    terms: new Set(history.leads.map(({ token }) => token)).size,
    ...{ rows: rows.length, acknowledged: history.acknowledged.size, acts: acts.length, signals: signalsSeen },
    /** Terms with an unfenced act after the first act of a later term. */
    overlaps: overlaps.length,
    /** Terms whose signal came before the first act of the next term; and after it, because their process stood still. */
    ...{ inTime: signals.inTime, late: signals.late },
    ...nemesis.summary(),
    /** The rows of each worker, of all its incarnations. */
    by: workers.map(({ slot }) => rows.filter(({ worker }) => worker.startsWith(`${slot}.`)).length),
    /** The violations; must be empty. */
    violations,
    /** The data for finding the cause of a violation. */
    evidence: { struck: nemesis.struck, history: { rows, leads: history.leads }, turns },
  }
}

// ---- The checks ---------------------------------------------------------------------------------------------

type Led = { worker: string; token: bigint }
type Row = Led & { n: number }
/** `doubt`: the term is not trusted, and its signal has not aborted yet. */
type Turn = Led & { at: bigint; what: 'act' | 'doubt' | 'signal' }
interface History {
  /** Each worker's terms, in the order in which it had them. */
  leads: Led[]
  /** The token of each row, by worker and number. */
  acknowledged: Map<string, bigint>
}

function parsed(line: string): Turn {
  const { token, at, ...rest } = JSON.parse(line)
  return { token: BigInt(token), at: BigInt(at), ...rest }
}

// A row gets its number (`at`) inside its fenced transaction. So the rows of two terms have the order of the terms.
function checkRows(rows: Row[], { acknowledged }: History): string[] {
  const violations: string[] = []
  const there = new Map(rows.map(({ worker, n, token }) => [`${worker} ${n}`, token]))
  for (const [row, token] of acknowledged) {
    const found = there.get(row)
    if (found === undefined) violations.push(`row ${row} of term ${token} was acknowledged and is lost`)
    else if (found !== token) violations.push(`row ${row} was acknowledged to term ${token} and has ${found}`)
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
    if (token <= before) violations.push(`worker ${worker} was granted term ${token} after ${before}`)
    last.set(worker, token)
  }
  return [...new Set(violations)]
}

// A leader reads the time of an act before it checks its trust: so it was trusted at that time or later. The first act of the
// next term is later than its grant. So the one must be before the other, by the clock that both read.
function overlapping(acts: Turn[]): string[] {
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

// A process that is stopped gets no signal. So the check does not compare times: it counts the turns before the signal.
function signalled(turns: Turn[]): { inTime: number; late: number; violations: string[] } {
  const terms = Map.groupBy(turns, ({ token }) => token)
  const tokens = [...terms.keys()].sort((a, b) => (a < b ? -1 : 1))
  const result = { inTime: 0, late: 0, violations: [] as string[] }
  tokens.forEach((token, i) => {
    const of = terms.get(token) ?? []
    const next = tokens
      .slice(i + 1)
      .flatMap((later) => terms.get(later) ?? [])
      .find(({ what }) => what === 'act')
    if (!next) return
    const signal = of.find(({ what }) => what === 'signal')
    const doubts = of.filter(({ what, at }) => what === 'doubt' && at > next.at).length
    if (signal && signal.at <= next.at) result.inTime++
    else if (signal) result.late++
    if (doubts > TURNS) {
      result.violations.push(
        `term ${token} took ${doubts} turns after the first act of term ${next.token}, without a signal`,
      )
    }
  })
  return result
}
