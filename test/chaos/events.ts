/**
 * Events under faults: writers append in every way there is to streams that they share, and roll back, and commit seconds late;
 * consumers of one group apply what was appended, of which some come and leave again. In the library; and over HTTP, where the
 * consumers are the README's worker, and the server of HTTP is killed too.
 *
 * Then the whole history is checked (history.ts): streams have no gaps; appends are there as a whole, once, where they were
 * acknowledged, with the rows of their transactions; each event was applied once, in the order of its stream; and two
 * that read everything, one who follows and one who pages, saw each event once, in the order of cursors.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { sql } from 'kysely'
import { type ConsumeOptions, createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { freePort } from '../../lib/setup/guarded-process.ts'
import { check, eventsThere, restThere, type There, type Told } from './history.ts'
import { Nemesis, type Victim } from './nemesis.ts'
import type { ChaosServer } from './server.ts'

export interface EventsPlan {
  server: ChaosServer
  /** How consumers have their events, and how is appended and read where there is no transaction to it. */
  door: 'library' | 'http'
  writers: number
  /** Processes alive at a time. */
  consumers: number
  streams: number
  /** Of faults; after them all is waited for. */
  seconds: number
  /** Of the nemesis, and of what each process does by chance. */
  seed: number
}

export type Role = 'writer' | 'consumer' | 'follower' | 'pager' | 'door'
export const PREFIX = 'chaos/'
/** Of streams that are appended to as well, and that nobody reads. */
export const NOISE = 'noise/'
export const GROUP = 'chaos/group'
const TTL_MS = 2_000
// So few retries that some streams are parked; they are redelivered in the end.
const RETRIES = { prefix: PREFIX, partitions: 16, retryLimit: 3, retryDelayMs: 50 }
export const CONSUMER: ConsumeOptions = { ...RETRIES, concurrency: 4, batch: 20, ttlMs: TTL_MS, timeoutMs: 2_000 }

/** For how long is waited when all is well again: far more than it takes, on a slow machine too. */
const RECOVERS_MS = 120_000

export async function runEvents(plan: EventsPlan) {
  const { url } = plan.server
  await using lockstep = createLockstep({ connectionString: url, max: 2, applicationName: 'chaos' })
  const events = createEvents(lockstep)
  await sql`drop table if exists committed, applied`.execute(lockstep.kysely)
  await sql`create table committed (tag text, stream text, first bigint)`.execute(lockstep.kysely)
  await sql`create table applied (n bigserial, stream text, position bigint, partition integer, token bigint,
                                  attempt integer, worker text)`.execute(lockstep.kysely)
  await events.declareGroup(GROUP, RETRIES)

  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-chaos-'))
  const door = plan.door === 'http' ? `http://127.0.0.1:${await freePort()}` : ''
  const file = door === '' ? '' : path.join(folder, 'applied.db')
  const crew = new Crew(plan, door, door === '' ? [] : [writeWorker(folder, door), GROUP, file])
  const { violations, told } = crew
  const later: Promise<unknown>[] = []
  await using nemesis = await Nemesis.of({
    ...{ server: plan.server, seed: plan.seed, seconds: plan.seconds, networks: 3 },
    restMs: (chance) => 100 + chance * 900,
    awayMs: (chance) => TTL_MS * (1.2 + chance * 1.5),
    victims: () => crew.alive(),
    killed(victim) {
      void crew.end(victim as Member, 'SIGKILL')
      if (crew.those('consumer').length < plan.consumers) crew.start('consumer') // or it was a guest
    },
    also: {
      guest: () => void later.push(crew.guest()),
      ...(door !== '' && { door: () => void later.push(crew.reopen()) }),
    },
  })
  crew.nemesis = nemesis

  const within = async (what: string, over: Promise<unknown>) => {
    const late = sleep(RECOVERS_MS, 'late', { ref: false })
    if ((await Promise.race([over, late])) === 'late') violations.push(`${what} did not end within ${RECOVERS_MS} ms`)
  }
  let doneMs = 0
  let everything: There['events'] = []
  try {
    if (door !== '') await crew.start('door').ready
    const roles: Role[] = [
      ...(['follower', 'pager'] as const),
      ...Array<Role>(plan.consumers).fill('consumer'),
      ...Array<Role>(plan.writers).fill('writer'),
    ]
    await Promise.all(roles.map((role) => crew.start(role).ready))

    await nemesis.rage(() => violations.length > 0)
    await within('a guest', Promise.all(later))
    await within('a writer', Promise.all(crew.those('writer').map((it) => crew.end(it, 'SIGTERM'))))

    // Nothing is broken any more, and nothing is appended: all comes to be applied, and to be read.
    const since = performance.now()
    await within('a backend of the dead', quiet(lockstep, crew.dead))
    everything = await eventsThere(lockstep)
    await allApplied(events, since, violations)
    doneMs = Math.round(performance.now() - since)
    const last = everything.findLast(({ stream }) => stream.startsWith(PREFIX))?.cursor ?? 0n
    const seen = () => Object.values(told.seen).every((of) => (of.at(-1)?.cursor ?? 0n) >= last)
    while (!seen() && performance.now() - since < RECOVERS_MS) await sleep(50)
  } finally {
    await crew.endAll()
  }

  const there: There = { events: everything, ...(await restThere(lockstep, file)) }
  violations.push(...check(there, told, PREFIX))
  fs.rmSync(folder, { recursive: true })
  const appends: Record<string, number> = {}
  for (const { kind } of told.done) appends[kind] = (appends[kind] ?? 0) + 1
  return {
    events: everything.length,
    /** Appends that were acknowledged, by kind. */
    appends,
    /** Appends that were rolled back; that were refused, since the stream was elsewhere; of which it was never told. */
    ...{ back: told.back.size, conflicts: told.conflicts.size, unknown: told.unknown.size },
    /** Events that a handler refused, streams that were parked; over HTTP, commits by who had lost the partition. */
    ...crew.counts,
    ...nemesis.summary(),
    /** From the end of the last writer until all was applied. */
    doneMs,
    /** What must not be; empty is good. */
    violations,
    /** For who has to find out why. */
    evidence: { struck: nemesis.struck, history: { there, told } },
  }
}

// ---- The processes -----------------------------------------------------------------------------------------------

interface Member extends Victim {
  role: Role
  /** Resolves when it has begun, or has ended. */
  ready: Promise<void>
  gone: Promise<unknown>
  open: boolean
  /** It was told to, or killed. */
  ending: boolean
}

/** All processes, and what they say. */
class Crew {
  readonly told: Told = {
    ...{ done: [], back: new Set(), conflicts: new Set(), unknown: new Set() },
    seen: { follower: [], pager: [] },
  }
  readonly counts = { retries: 0, parked: 0, lost: 0 }
  readonly violations: string[] = []
  /** The names of those that were killed. */
  readonly dead: string[] = []
  readonly #plan: EventsPlan
  readonly #door: string
  readonly #worker: string[]
  readonly #alive = new Set<Member>()
  nemesis: Nemesis | undefined
  #number = 0

  /** @param worker  the consumer that is not ours: a program of Python, and what it is called with. */
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
    let wrong = '' // what Python says of an error that ends it
    child.stderr?.on('data', (text) => {
      wrong += text
    })
    void it.gone.then(() => {
      this.#alive.delete(it)
      if (!it.ending) this.violations.push(`${it.name} ended by itself ${wrong}`)
      resolve()
    })
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      if (line === 'ready') {
        it.open = true
        resolve()
      } else if (!(elsewhere ? this.#hearWorker(line) : this.#hear(role, line))) {
        this.violations.push(`${it.name}: ${line}`)
      }
    })
    this.#alive.add(it)
    return it
  }

  /** Those of a role that have not been told to end. */
  those(role: Role): Member[] {
    return this.alive().filter((it) => it.role === role)
  }

  end(it: Member, signal: 'SIGKILL' | 'SIGTERM'): Promise<unknown> {
    it.ending = true
    if (signal === 'SIGKILL') this.dead.push(it.name)
    it.child.kill(signal)
    return it.gone
  }

  /** All that have not been told to end. */
  alive(): Member[] {
    return [...this.#alive].filter((it) => !it.ending)
  }

  /** A consumer that comes, and leaves again. */
  async guest(): Promise<void> {
    const guest = this.start('consumer')
    await guest.ready
    await sleep(1_500)
    if (!guest.ending) await this.end(guest, 'SIGTERM')
  }

  /** The server of HTTP is killed, and another one takes its place. */
  async reopen(): Promise<void> {
    const [it] = this.those('door')
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

  // What is none of this is a fault.
  #hear(role: Role, line: string): boolean {
    const [what, ...words] = line.split(' ')
    const [a = '', b = '', c = '', first = '', last = ''] = words
    const { told, counts } = this
    if (what === 'done') {
      told.done.push({ kind: a, tag: b, stream: c, first: BigInt(first), last: BigInt(last) })
      this.nemesis?.progress()
    } else if (what === 'back') told.back.add(a)
    else if (what === 'conflict') told.conflicts.add(a)
    else if (what === 'unknown') told.unknown.add(a)
    else if (what === 'saw') told.seen[role as 'pager'].push({ cursor: BigInt(a), stream: b, position: BigInt(c) })
    else if (what === 'threw') counts.retries++
    else if (what === 'parked') counts.parked++
    else return false
    return true
  }

  // That a partition passed on, that the database is away, or that nobody is there at all.
  #hearWorker(line: string): boolean {
    if (line.startsWith('HTTP Error 409')) this.counts.lost++
    return !/^HTTP Error (?!409|503)/.test(line)
  }
}

/** The README's worker, for this door, and with a lease as short as the chaos is. */
function writeWorker(folder: string, door: string): string {
  const text = fs.readFileSync(new URL('../../README.md', import.meta.url), 'utf8')
  const blocks = [...text.matchAll(/```python\n([\s\S]*?)```/g)].map(([, block = '']) => block)
  let program = blocks.find((block) => block.includes('/v1/groups/')) ?? ''
  for (const [from, to] of [
    ['http://127.0.0.1:3000', door],
    ['leaseMs=30_000', `leaseMs=${TTL_MS}`],
  ] as const) {
    if (!program.includes(from)) throw new Error(`The README's worker has no ${from}`)
    program = program.replace(from, to)
  }
  const file = path.join(folder, 'worker.py')
  fs.writeFileSync(file, program)
  return file
}

// ---- The end -----------------------------------------------------------------------------------------------------

// What the killed were committing is then committed or not.
async function quiet(lockstep: Lockstep, names: string[]): Promise<void> {
  const theirs = sql`select from pg_stat_activity where application_name = any (${names}::text[])`
  for (;;) {
    const left = await theirs.execute(lockstep.kysely).catch(() => undefined)
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
      violations.push(`not all was applied within ${RECOVERS_MS} ms: ${JSON.stringify(lag, shown)}`)
      return
    }
    await sleep(200)
  }
}

const shown = (_: string, value: unknown) => (typeof value === 'bigint' ? String(value) : value)
