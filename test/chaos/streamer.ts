/**
 * A process of the chaos test of events, in one of five roles, until it is killed or asked to stop: a writer, a consumer, a
 * follower of all streams, a pager through them, or the door, which is the HTTP server for the others.
 *
 * Each reports to the parent on stdout, one line for each fact. The parent does the checks.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { fromDatabase, PositionConflictError, UnavailableError } from '../../lib/base/errors.ts'
import {
  type Appended,
  type AppendOptions,
  createEvents,
  type NewEvent,
  type StoredEvent,
} from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { type Input, Recorder } from '../linear/index.ts'
import { CONSUMER, GROUP, NOISE, PREFIX, type Role } from './events.ts'
import { seeded } from './random.ts'

const [role = 'writer', url = '', id = '0', seed = '1', streams = '200', door = ''] = process.argv.slice(2)
const random = seeded(Number(seed))
const lockstep = createLockstep({ connectionString: url, applicationName: `${role} ${id}` })
const events = createEvents(lockstep, { onError: failed })
const stopping = new AbortController()
const report = (...words: unknown[]) => console.log(words.join(' ').replaceAll('\n', ' '))
const recorder = new Recorder() // of appends and reads: linear/record.ts
const upTo = (n: number) => Math.floor(random() * n)

// Expected errors: the database is unreachable, or slow, or an event was parked. Any other error is a fault.
function failed(error: unknown) {
  if (error instanceof Error && / has parked /.test(error.message)) return report('parked')
  if (error instanceof Error && / waits in the database /.test(error.message)) return
  if (fromDatabase(error) instanceof UnavailableError) return
  report('fault', error instanceof Error ? (error.stack ?? error.message) : String(error))
}

// ---- A writer ----------------------------------------------------------------------------------------------------

/** Thrown to roll back. */
class Rollback extends Error {}

// For each append, exactly one line reports its result.
type Append = (stream: string, events: NewEvent[], options?: AppendOptions) => Promise<Appended>
const append: Append = door === '' ? (...args) => events.append(...args) : overHttp
const known = new Map<string, bigint>() // the last known position of each stream
let appends = 0

// A few streams get many of the events, so that writers conflict; some streams are not read by the group.
const someStream = () =>
  random() < 0.03
    ? `${NOISE}${upTo(4)}`
    : `${PREFIX}${Math.floor(Number(streams) * random() ** 3)
        .toString()
        .padStart(3, '0')}`

// Each event carries its append and its place in it, so that the checks can find every append, whole and in order.
function some(count: number, { ids = false, row = false } = {}): { tag: string; those: NewEvent[] } {
  const tag = `${id}.${appends++}`
  const those = Array.from({ length: count }, (_, i) => ({
    type: 'chaos',
    data: { tag, i, of: count, row, failsOften: random() < 0.003 },
    ...(ids && { id: `${tag}.${i}` }),
  }))
  return { tag, those }
}

const appending = (stream: string, tag: string, those: NewEvent[], { expected = 'any' }: AppendOptions = {}) =>
  recorder.open(stream, { do: 'append', tag, count: those.length, expected } satisfies Input)

async function write(kind: string, stream: string, count: number, options: AppendOptions = {}) {
  const { tag, those } = some(count)
  const answered = appending(stream, tag, those, options)
  try {
    const { first, last } = await append(stream, those, options)
    answered({ first, last })
    known.set(stream, last)
    report('done', kind, tag, stream, first, last)
  } catch (error) {
    if (error instanceof PositionConflictError) {
      answered({ actual: error.actual })
      known.set(stream, error.actual)
      return report('conflict', tag)
    }
    report('unknown', tag)
    await pauseAfter(error)
  }
}

// Appends, ignores the answer, and appends again until it knows the position.
async function writeAgain(stream: string) {
  const { tag, those } = some(1 + upTo(3), { ids: true })
  const answered = appending(stream, tag, those) // all attempts are one append
  const lost = append(stream, those).catch(() => {})
  if (random() < 0.5) await lost
  for (;;) {
    try {
      const { first, last } = await append(stream, those)
      answered({ first, last })
      await lost
      return report('done', 'again', tag, stream, first, last)
    } catch (error) {
      await pauseAfter(error)
    }
  }
}

// Appends and writes rows in one transaction: to one stream or a few, in any order.
async function writeWithin(kind: 'within' | 'late' | 'back' | 'savepoint') {
  const made: { tag: string; stream: string; first: bigint; last: bigint }[] = []
  const begun = new Map<string, ReturnType<typeof appending>>()
  let committing = false
  try {
    await lockstep.kysely.transaction().execute(async (trx) => {
      for (let left = 1 + upTo(3); left > 0; left--) {
        const stream = someStream()
        const { tag, those } = some(1 + upTo(4), { row: true })
        begun.set(tag, appending(stream, tag, those))
        if (kind === 'savepoint') {
          const undone = some(2)
          report('back', undone.tag)
          await sql`savepoint undone`.execute(trx)
          await events.append(random() < 0.5 ? stream : someStream(), undone.those, { trx })
          await sql`rollback to undone`.execute(trx)
        }
        const { first, last } = await events.append(stream, those, { trx })
        await sql`insert into committed (tag, stream, first) values (${tag}, ${stream}, ${first})`.execute(trx)
        made.push({ tag, stream, first, last })
      }
      await sleep(kind === 'late' ? 1_000 + random() * 3_000 : random() * 20)
      if (kind === 'back') throw new Rollback()
      committing = true
    })
    for (const { tag, stream, first, last } of made) {
      begun.get(tag)?.({ first, last })
      report('done', kind, tag, stream, first, last)
    }
  } catch (error) {
    for (const [tag, answered] of begun) {
      if (!committing) answered('none')
      report(committing ? 'unknown' : 'back', tag)
    }
    const { code } = error as { code?: string }
    if (!(error instanceof Rollback) && code !== '40P01') await pauseAfter(error) // a deadlock of two writers is expected
  }
}

// An unreachable database or HTTP server is expected. Any other error is a fault.
async function pauseAfter(error: unknown) {
  if (!(fromDatabase(error) instanceof UnavailableError)) failed(error)
  await sleep(100 + random() * 200)
}

async function overHttp(
  stream: string,
  those: NewEvent[],
  { expected = 'any' }: AppendOptions = {},
): Promise<Appended> {
  const answer = await asked(`/v1/streams/${encodeURIComponent(stream)}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ events: those, expected: String(expected) }),
  })
  const { first, last, actual } = await jsonOf<Record<string, string>>(answer)
  if (answer.status === 412) throw new PositionConflictError(stream, expected, BigInt(actual ?? 0))
  return { first: BigInt(first ?? 0), last: BigInt(last ?? 0), repeated: answer.status === 200 }
}

// Reads the end of a stream, as far as this process knows of it.
async function readSome(stream: string) {
  const from = (known.get(stream) ?? 0n) - BigInt(upTo(20))
  const page = { from: from > 1n ? from : 1n, limit: 1 + upTo(100) }
  try {
    await recorder.do(stream, { do: 'read', ...page }, () => read(stream, page), eventsOf)
  } catch (error) {
    await pauseAfter(error)
  }
}
const eventsOf = (found: Found[]) => ({
  events: found.map(({ position, data }) => [Number(position), data.tag, data.i]),
})

interface Found {
  position: string | bigint
  data: { tag: string; i: number }
}

async function read(stream: string, page: { from: bigint; limit: number }): Promise<Found[]> {
  if (door === '') return (await events.read(stream, page)).events as (StoredEvent & Found)[]
  const query = new URLSearchParams({ from: String(page.from), limit: String(page.limit) })
  const answer = await asked(`/v1/streams/${encodeURIComponent(stream)}?${query}`)
  return (await jsonOf<{ events: Found[] }>(answer)).events
}

async function writeLoop() {
  while (!stopping.signal.aborted) {
    await sleep(random() * 80)
    const stream = someStream()
    if (random() < 0.15) await readSome(stream)
    const at = known.get(stream)
    const dice = random()
    if (dice < 0.35) await write('single', stream, 1)
    else if (dice < 0.5) await write('batch', stream, 2 + upTo(20))
    else if (dice < 0.62) await write('expected', stream, 1 + upTo(3), { expected: at ?? 'none' })
    else if (dice < 0.65) await write('expected', stream, 1, { expected: 'exists' })
    else if (dice < 0.78) await writeAgain(stream)
    else if (dice < 0.88) await writeWithin('within')
    else if (dice < 0.93) await writeWithin('back')
    else if (dice < 0.98) await writeWithin('savepoint')
    else await writeWithin('late')
  }
}

// ---- HTTP --------------------------------------------------------------------------------------------------------

/** @throws {UnavailableError} the HTTP server, or the database behind it, is unreachable. */
async function asked(path: string, init: RequestInit = {}): Promise<Response> {
  const answer = await fetch(`${door}${path}`, init).catch((error) => {
    throw new UnavailableError('no answer', { cause: error })
  })
  if (answer.ok || answer.status === 412) return answer
  const text = await answer.text().catch(() => '')
  throw answer.status === 503 ? new UnavailableError(text) : new Error(`${path}: ${answer.status} ${text}`)
}

async function jsonOf<T>(answer: Response): Promise<T> {
  return (await answer.json().catch((error) => {
    throw new UnavailableError('an incomplete answer', { cause: error })
  })) as T
}

interface Seen {
  stream: string
  position: string | bigint
  cursor: string | bigint
}

async function* followed(): AsyncGenerator<Seen> {
  for (let last: unknown; ; ) {
    try {
      const headers = { Accept: 'text/event-stream', ...(last !== undefined && { 'Last-Event-ID': String(last) }) }
      const answer = await asked(`/v1/events?prefix=${encodeURIComponent(PREFIX)}`, { headers })
      let text = ''
      for await (const some of (answer.body as ReadableStream<Uint8Array<ArrayBuffer>>).pipeThrough(
        new TextDecoderStream(),
      )) {
        const messages = (text + some).split('\n\n')
        text = messages.pop() ?? ''
        for (const message of messages) {
          const data = /^data: (.*)$/m.exec(message)?.[1]
          if (data === undefined) continue
          const event = JSON.parse(data) as Seen
          last = event.cursor
          yield event
        }
      }
    } catch (error) {
      // fetch throws a TypeError when a stream breaks
      if (!(error instanceof UnavailableError || error instanceof TypeError)) failed(error)
    }
    await sleep(100)
  }
}

async function page(from: bigint): Promise<{ events: Seen[]; next: bigint }> {
  const query = new URLSearchParams({ prefix: PREFIX, from: String(from), limit: '50', waitMs: '500' })
  const { events, next } = await jsonOf<{ events: Seen[]; next: string }>(await asked(`/v1/events?${query}`))
  return { events, next: BigInt(next) }
}

// ---- The roles ---------------------------------------------------------------------------------------------------

const saw = ({ stream, position, cursor }: Seen) => report('saw', cursor, stream, position)

const roles: Record<Role, () => unknown> = {
  async writer() {
    report('ready')
    await Promise.all([writeLoop(), writeLoop()])
    await end()
  },

  consumer() {
    const consumer = events.consume(GROUP, CONSUMER, async (event, { trx, partition, token, attempt }) => {
      const { stream, position } = event
      await sql`insert into applied (stream, position, partition, token, attempt, worker)
                values (${stream}, ${position}, ${partition}, ${token}, ${attempt}, ${id})`.execute(trx)
      await sleep(random() * (random() < 0.01 ? 1_000 : 4))
      // Some calls fail; for some events so many that the event is sometimes parked.
      if (random() < ((event.data as { failsOften: boolean }).failsOften ? 0.7 : 0.02)) {
        report('threw')
        throw new Error('a random failure')
      }
    })
    stopping.signal.addEventListener('abort', () => void consumer.stop().then(end))
    report('ready')
  },

  async follower() {
    report('ready')
    for await (const event of door === '' ? events.subscribe({ prefix: PREFIX }) : followed()) saw(event)
  },

  async pager() {
    report('ready')
    for (let from = 1n; ; ) {
      try {
        const found =
          door === '' ? await events.readAll({ prefix: PREFIX, from, limit: 50, waitMs: 500 }) : await page(from)
        for (const event of found.events) saw(event)
        from = found.next as bigint
      } catch (error) {
        await pauseAfter(error)
      }
    }
  },

  async door() {
    // An unreachable database is no fault here: the callers report it.
    const onError = (error: unknown) => failed(error)
    const { serve } = await import('../../functions/adapters/node.ts') // imported here, so that the other roles start faster
    const server = await serve({ lockstep, events, port: Number(new URL(door).port), onError })
    stopping.signal.addEventListener('abort', () => void server.close().then(end))
    report('ready')
  },
}

async function end() {
  await lockstep.close()
  process.exit() // a socket that was reset may keep Node from exiting
}

process.once('SIGTERM', () => stopping.abort())
process.stdin.resume().once('close', () => process.exit()) // the parent has ended
await roles[role as Role]()
