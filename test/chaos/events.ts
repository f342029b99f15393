/**
 * Events under faults. Writers append to shared streams in every way that the library has, roll back, and commit seconds late.
 * Consumers of one group apply the events; some of them join and leave again. It runs in the library, and over HTTP, where the
 * consumers are the worker of docs/shell.md, and the HTTP server is killed too.
 *
 * Then the whole history is checked (history.ts): streams have no gaps; appends are stored as a whole, once, at their
 * acknowledged positions, with the rows of their transactions; each event was applied once, in the order of its stream; and
 * two readers of all events, one that follows and one that pages, saw each event once, in the order of cursors. And the appends
 * and reads of each stream, as its writers made them and were answered, are linearizable (linear/stream-model.ts).
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { type Kysely, sql } from 'kysely'
import { type ConsumeOptions, createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { freePort } from '../../lib/setup/guarded-process.ts'
import { History, judge, streamModel } from '../linear/index.ts'
import { observer } from '../support/observer.ts'
import { textsOf } from '../support/samples.ts'
import { check, type Reports, type Stored, storedEvents, storedRest } from './history.ts'
import { Nemesis, type Victim } from './nemesis.ts'
import type { ChaosServer } from './server.ts'

export interface EventsPlan {
  server: ChaosServer
  /** How consumers get their events, and how the others append and read outside transactions. */
  door: 'library' | 'http'
  writers: number
  /** Processes alive at a time. */
  consumers: number
  streams: number
  /** How long there are faults. After that, the run waits until all events are applied. */
  seconds: number
  /** The seed of the nemesis, and of the random choices of each process. */
  seed: number
}

export type Role = 'writer' | 'consumer' | 'follower' | 'pager' | 'door'
export const PREFIX = 'chaos/'
/** The prefix of streams that are written too, but that the group does not read. */
export const NOISE = 'noise/'
export const GROUP = 'chaos/group'
const TTL_MS = 2_000
// So few retries that some streams are parked; they are redelivered at the end.
const RETRIES = { prefix: PREFIX, partitions: 16, retryLimit: 3, retryDelayMs: 50 }
export const CONSUMER: ConsumeOptions = { ...RETRIES, concurrency: 4, batch: 20, ttlMs: TTL_MS, timeoutMs: 2_000 }

/** How long the run waits after the last fault: far longer than it needs, even on a slow machine. */
const RECOVERS_MS = 120_000

export async function runEvents(plan: EventsPlan) {
  const { url } = plan.server
  await using lockstep = createLockstep({ connectionString: url, max: 2, applicationName: 'chaos' })
  await using observed = observer(url)
  const events = createEvents(lockstep)
  await sql`drop table if exists committed, applied`.execute(observed)
  await sql`create table committed (tag text, stream text, first bigint)`.execute(observed)
  await sql`create table applied (n bigserial, stream text, position bigint, partition integer, token bigint,
                                  attempt integer, worker text)`.execute(observed)
  await events.declareGroup(GROUP, RETRIES)

  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-chaos-'))
  const door = plan.door === 'http' ? `http://127.0.0.1:${await freePort()}` : ''
  const file = door === '' ? '' : path.join(folder, 'applied.db')
  const processes = new Processes(plan, door, door === '' ? [] : [writeWorker(folder, door), GROUP, file])
  const { violations, reports } = processes
  const later: Promise<unknown>[] = []
  await using nemesis = await Nemesis.of({
    ...{ server: plan.server, seed: plan.seed, seconds: plan.seconds, networks: 3 },
    restMs: (chance) => 100 + chance * 900,
    awayMs: (chance) => TTL_MS * (1.2 + chance * 1.5),
    victims: () => processes.alive(),
    killed(victim) {
      void processes.end(victim as Member, 'SIGKILL')
      if (processes.ofRole('consumer').length < plan.consumers) processes.start('consumer') // otherwise it was a guest
    },
    also: {
      guest: () => void later.push(processes.guest()),
      ...(door !== '' && { door: () => void later.push(processes.reopen()) }),
    },
  })
  processes.nemesis = nemesis

  const within = async (what: string, over: Promise<unknown>) => {
    const late = sleep(RECOVERS_MS, 'late', { ref: false })
    if ((await Promise.race([over, late])) === 'late') violations.push(`${what} did not end within ${RECOVERS_MS} ms`)
  }
  let doneMs = 0
  let everything: Stored['events'] = []
  try {
    if (door !== '') await processes.start('door').ready
    const roles: Role[] = [
      ...(['follower', 'pager'] as const),
      ...Array<Role>(plan.consumers).fill('consumer'),
      ...Array<Role>(plan.writers).fill('writer'),
    ]
    await Promise.all(roles.map((role) => processes.start(role).ready))

    await nemesis.rage(() => violations.length > 0)
    await within('a guest', Promise.all(later))
    await within('a writer', Promise.all(processes.ofRole('writer').map((it) => processes.end(it, 'SIGTERM'))))

    // There are no more faults and no more appends: all events must be applied, and read.
    const since = performance.now()
    await within('a backend of a killed process', backendsEnded(observed, processes.dead))
    everything = await storedEvents(observed)
    await allApplied(events, since, violations)
    doneMs = Math.round(performance.now() - since)
    const last = everything.findLast(({ stream }) => stream.startsWith(PREFIX))?.cursor ?? 0n
    const seen = () => Object.values(reports.seen).every((of) => (of.at(-1)?.cursor ?? 0n) >= last)
    while (!seen() && performance.now() - since < RECOVERS_MS) await sleep(50)
  } finally {
    await processes.endAll()
  }

  const stored: Stored = { events: everything, ...(await storedRest(observed, file)) }
  violations.push(...check(stored, reports, PREFIX))
  const judged = judge(processes.asked.byObject(), streamModel)
  violations.push(...judged.violations)
  fs.rmSync(folder, { recursive: true })
  const appends: Record<string, number> = {}
  for (const { kind } of reports.done) appends[kind] = (appends[kind] ?? 0) + 1
  return {
    events: everything.length,
    /** Appends and reads whose histories were judged, each stream by itself, and are linearizable. */
    linear: judged.operations,
    /** Appends that were acknowledged, by kind. */
    appends,
    /** Appends that were rolled back; that were refused, because the stream had another position; and those without an answer. */
    ...{ back: reports.back.size, conflicts: reports.conflicts.size, unknown: reports.unknown.size },
    /** Events that a handler refused; streams that were parked; over HTTP, commits by a consumer that had lost the partition. */
    ...processes.counts,
    ...nemesis.summary(),
    /** Milliseconds from the end of the last writer until all events were applied. */
    doneMs,
    /** The violations; must be empty. */
    violations,
    /** The data for finding the cause of a violation. */
    evidence: { struck: nemesis.struck, history: { stored, reports }, asked: processes.asked.byObject() },
  }
}

// ---- The processes -----------------------------------------------------------------------------------------------

interface Member extends Victim {
  role: Role
  /** Resolves when the process has started, or has ended. */
  ready: Promise<void>
  gone: Promise<unknown>
  open: boolean
  /** It was asked to end, or was killed. */
  ending: boolean
}

/** All processes, and their reports. */
class Processes {
  readonly reports: Reports = {
    ...{ done: [], back: new Set(), conflicts: new Set(), unknown: new Set() },
    seen: { follower: [], pager: [] },
  }
  /** What writers asked of the streams, and were answered. */
  readonly asked = new History()
  readonly counts = { retries: 0, parked: 0, lost: 0 }
  readonly violations: string[] = []
  /** The names of the processes that were killed. */
  readonly dead: string[] = []
  readonly #plan: EventsPlan
  readonly #door: string
  readonly #worker: string[]
  readonly #alive = new Set<Member>()
  nemesis: Nemesis | undefined
  #number = 0

  /** @param worker  the consumer over HTTP: a Python program and its arguments. */
  constructor(plan: EventsPlan, door: string, worker: string[]) {
    this.#plan = plan
    this.#door = door
    this.#worker = worker
  }

  start(role: Role): Member {
    const n = this.#number++
    const elsewhere = role === 'consumer' && this.#worker.length > 0
    const env = { ...process.env, ...this.nemesis?.clock(n) }
    const child = elsewhere
      ? spawn('python3', this.#worker, { stdio: ['ignore', 'pipe', 'pipe'] })
      : spawn(process.execPath, this.#args(role, n), { stdio: ['pipe', 'pipe', 'inherit'], env })
    const { promise: ready, resolve } = Promise.withResolvers<void>()
    const it: Member = {
      ...{ name: `${role} ${n}`, role, child, ready, gone: once(child, 'close') },
      ...{ witness: role !== 'consumer', open: elsewhere, ending: false },
    }
    if (elsewhere) resolve()
    let errors = '' // Python's message about an error that ends it
    child.stderr?.on('data', (text) => {
      errors += text
    })
    void it.gone.then(() => {
      this.#alive.delete(it)
      if (!it.ending) this.violations.push(`${it.name} ended by itself ${errors}`)
      resolve()
    })
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      if (this.asked.take(it.name, line)) return
      if (line === 'ready') {
        it.open = true
        resolve()
      } else if (!(elsewhere ? this.#readWorkerLine(line) : this.#readLine(role, line))) {
        this.violations.push(`${it.name}: ${line}`)
      }
    })
    this.#alive.add(it)
    return it
  }

  /** The processes of a role that were not asked to end. */
  ofRole(role: Role): Member[] {
    return this.alive().filter((it) => it.role === role)
  }

  end(it: Member, signal: 'SIGKILL' | 'SIGTERM'): Promise<unknown> {
    it.ending = true
    if (signal === 'SIGKILL') this.dead.push(it.name)
    it.child.kill(signal)
    return it.gone
  }

  /** All processes that were not asked to end. */
  alive(): Member[] {
    return [...this.#alive].filter((it) => !it.ending)
  }

  /** Starts a consumer that joins the group, and leaves it again. */
  async guest(): Promise<void> {
    const guest = this.start('consumer')
    await guest.ready
    await sleep(1_500)
    if (!guest.ending) await this.end(guest, 'SIGTERM')
  }

  /** Kills the HTTP server and starts another one. */
  async reopen(): Promise<void> {
    const [it] = this.ofRole('door')
    if (!it?.open) return
    await this.end(it, 'SIGKILL')
    await this.start('door').ready
  }

  async endAll(): Promise<void> {
    await Promise.all([...this.#alive].map((it) => this.end(it, 'SIGKILL')))
  }

  #args(role: Role, n: number): string[] {
    const program = fileURLToPath(new URL('streamer.ts', import.meta.url))
    const { seed, streams } = this.#plan
    return [
      program,
      role,
      this.nemesis?.network(n) ?? '',
      String(n),
      String(seed * 1_000 + n),
      String(streams),
      this.#door,
    ]
  }

  // Any other line is a fault.
  #readLine(role: Role, line: string): boolean {
    const [what, ...words] = line.split(' ')
    const [a = '', b = '', c = '', first = '', last = ''] = words
    const { reports, counts } = this
    if (what === 'done') {
      reports.done.push({ kind: a, tag: b, stream: c, first: BigInt(first), last: BigInt(last) })
      this.nemesis?.progress()
    } else if (what === 'back') reports.back.add(a)
    else if (what === 'conflict') reports.conflicts.add(a)
    else if (what === 'unknown') reports.unknown.add(a)
    else if (what === 'saw') reports.seen[role as 'pager'].push({ cursor: BigInt(a), stream: b, position: BigInt(c) })
    else if (what === 'threw') counts.retries++
    else if (what === 'parked') counts.parked++
    else return false
    return true
  }

  // Expected are: the partition was lost (409), the database is unreachable (503), there is no server (no HTTP error).
  #readWorkerLine(line: string): boolean {
    if (line.startsWith('HTTP Error 409')) this.counts.lost++
    return !/^HTTP Error (?!409|503)/.test(line)
  }
}

/** The worker of docs/shell.md, for this server, with a lease as short as TTL_MS. */
function writeWorker(folder: string, door: string): string {
  let program = textsOf('docs/shell.md', 'python').find((block) => block.includes('/v1/groups/')) ?? ''
  for (const [from, to] of [
    ['http://127.0.0.1:3000', door],
    ['leaseMs=30_000', `leaseMs=${TTL_MS}`],
  ] as const) {
    if (!program.includes(from)) throw new Error(`The worker of docs/shell.md has no ${from}`)
    program = program.replace(from, to)
  }
  const file = path.join(folder, 'worker.py')
  fs.writeFileSync(file, program)
  return file
}

// ---- The end -----------------------------------------------------------------------------------------------------

// Then each commit of a killed process is either complete or rolled back.
async function backendsEnded(observed: Kysely<unknown>, names: string[]): Promise<void> {
  const theirs = sql`select from pg_stat_activity where application_name = any (${names}::text[])`
  for (;;) {
    const left = await theirs.execute(observed).catch(() => undefined)
    if (left?.rows.length === 0) return
    await sleep(50)
  }
}

async function allApplied(events: Events, since: number, violations: string[]): Promise<void> {
  for (;;) {
    await events.redeliver(GROUP).catch(() => {})
    const lag = await events.lag(GROUP).catch(() => undefined)
    const stuck = lag?.partitions.some(({ retrying, parked }) => retrying + parked > 0)
    if (lag?.behind === 0 && !stuck && lag.horizon.holdups.length === 0) return
    if (performance.now() - since > RECOVERS_MS) {
      violations.push(`not all events were applied within ${RECOVERS_MS} ms: ${JSON.stringify(lag, shown)}`)
      return
    }
    await sleep(200)
  }
}

const shown = (_: string, value: unknown) => (typeof value === 'bigint' ? String(value) : value)
