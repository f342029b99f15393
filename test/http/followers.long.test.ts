/**
 * Followers that do not read: what they cost a server with little memory, and what other clients notice. The figures are
 * in SECURITY.md; here they have wide margins.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import * as net from 'node:net'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { ByteBudget } from '../../lib/event/stream/byte-budget.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

const MB = 1_000_000
let db: FreshDatabase
let lockstep: Lockstep
let events: Events
beforeAll(async () => {
  db = await freshDatabase()
  lockstep = createLockstep({ connectionString: db.url })
  events = createEvents(lockstep)
})
afterAll(async () => {
  await lockstep?.close()
  await db?.close()
})

const children: ChildProcess[] = []
const sockets = new Set<net.Socket>()
afterEach(() => {
  for (const socket of sockets) socket.destroy()
  sockets.clear()
  for (const child of children.splice(0)) child.kill('SIGKILL')
})

interface Usage {
  heapUsed: number
  external: number
}

/** A server in a process of its own, with a heap of 160 MB. */
async function doorman(...args: string[]) {
  const flags = ['--max-old-space-size=160', '--expose-gc']
  const file = path.join(import.meta.dirname, 'server-process.ts')
  const child = spawn(process.execPath, [...flags, file, db.url, ...args], { stdio: ['pipe', 'pipe', 'inherit'] })
  children.push(child)
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const line = async () => (await lines.next()).value as string
  const url = new URL(await line())
  return {
    url,
    async usage(): Promise<Usage> {
      child.stdin.write('memory\n')
      return JSON.parse(await line())
    },
    async close() {
      child.stdin.write('close\n')
      expect(await once(child, 'exit')).toEqual([0, null])
    },
  }
}
const memory = ({ heapUsed, external }: Usage): number => heapUsed + external

/** A client that asks, reads what there is at once, and then no more. */
async function deaf(url: URL, at: string, accept = 'text/event-stream', times = 1): Promise<net.Socket> {
  const socket = net.connect({ port: Number(url.port), host: url.hostname })
  sockets.add(socket)
  socket.on('error', () => {})
  socket.write(`GET ${at} HTTP/1.1\r\nHost: localhost\r\nAccept: ${accept}\r\n\r\n`.repeat(times))
  await once(socket, 'readable')
  return socket
}

/** The data of the next so many events. */
async function* reading(response: Response): AsyncGenerator<{ id: string; data: string }> {
  let text = ''
  for await (const chunk of (response.body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream())) {
    text += chunk
    const blocks = text.split('\n\n')
    text = blocks.pop() as string
    for (const block of blocks) {
      const [, id, data] = /^event: event\nid: (\d+)\ndata: (.*)$/.exec(block) ?? []
      if (id && data) yield { id, data: JSON.parse(data).data }
      else expect(block).toMatch(/^(retry: \d+|: alive)$/)
    }
  }
}

let count = 0
/** Events of 1 MB, of characters that take one byte or three, and what each of them begins with. */
async function large(n: number): Promise<{ stream: string; sent: string[] }> {
  const stream = `large ${++count}`
  const sent = Array.from({ length: n }, (_, i) => `${i}: ${i % 2 ? '☃' : 'x'}`)
  for (const each of sent)
    await events.append(stream, { type: 'large', data: each.padEnd(lengthOf(each), each.at(-1)) })
  return { stream, sent }
}
const lengthOf = (data: string): number => (data.includes('☃') ? MB / 3 : MB) | 0

test.each([64, 256])(
  '%i that do not read leave a heap of 160 MB to those that do',
  async (n) => {
    const { stream, sent } = await large(10)
    await using _ = { [Symbol.asyncDispose]: () => events.truncate(stream, 1_000n).then(() => {}) }
    const server = await doorman()
    const paths = [`/v1/streams/${encodeURIComponent(stream)}`, `/v1/events?prefix=${encodeURIComponent(stream)}`]
    const before = await server.usage()
    for (let i = 0; i < n; i += 32) {
      await Promise.all(Array.from({ length: 32 }, (_, k) => deaf(server.url, paths[k % 2] as string)))
    }
    const readers = paths.map(async (at) => {
      const found: string[] = []
      let last = ''
      // comes again in the middle, as EventSource does
      for (const upto of [4, sent.length]) {
        const headers = { accept: 'text/event-stream', ...(last && { 'last-event-id': last }) }
        for await (const { id, data } of reading(await fetch(new URL(at, server.url), { headers }))) {
          last = id
          expect(data.length).toBe(lengthOf(data))
          found.push(data.slice(0, sent[found.length]?.length))
          if (found.length === upto) break
        }
      }
      return found
    })
    for (const found of await Promise.all(readers)) expect(found).toEqual(sent)
    // 32 MiB for all, at most two bytes a character; a piece, and sockets and streams, for each
    expect(memory(await server.usage()) - memory(before)).toBeLessThan(80 * MB + n * 0.3 * MB)
    for (const socket of sockets) socket.destroy()
    await until('the memory is back', async () => memory(await server.usage()) - memory(before) < 20 * MB)
    await server.close()
  },
  240_000,
)

test('a client that takes nothing of its answer is cut off, one that waits is not', async () => {
  const { stream } = await large(12)
  await using _ = { [Symbol.asyncDispose]: () => events.truncate(stream, 1_000n).then(() => {}) }
  const server = await doorman('1000')
  const at = `/v1/streams/${encodeURIComponent(stream)}`
  const waits = fetch(new URL(`/v1/streams/nothing?waitMs=5000`, server.url))
  const quiet = await deaf(server.url, '/v1/streams/nothing')
  const stuck = await deaf(server.url, at)
  const page = await deaf(server.url, `${at}?limit=1000`, 'application/json', 8)
  // It hears of the reset when it sends something, which keeps it from nothing else.
  const ended = (socket: net.Socket) => until('it is cut off', () => socket.errored ?? !socket.write('\r\n'))
  await Promise.all([ended(stuck), ended(page)])
  expect((await waits).status).toBe(200)
  expect(quiet.closed).toBe(false)
  await server.close()
}, 60_000)

test('a follower in code that does not read holds no page that others need, and reads it again', async () => {
  const { stream, sent } = await large(6)
  const small = `small ${count}`
  await events.append(
    small,
    Array.from({ length: 3_000 }, (_, i) => ({ type: String(i), data: 'x'.repeat(500) })),
  )
  await using reader = createLockstep({ connectionString: db.url })
  const read = createEvents(reader)
  // 160 that rest within a page of 256 KiB want more than there is
  const resting = Array.from({ length: 160 }, () => read.subscribe({ stream: small }))
  for (const each of resting) expect((await each.next()).value).toMatchObject({ type: '0' })
  const big = read.subscribe({ stream })
  for (const each of sent) expect(String((await big.next()).value?.data).startsWith(each)).toBe(true)
  for (const each of resting) {
    for (let i = 1; i < 1_200; i++) if ((await each.next()).value?.type !== String(i)) throw new Error(`not ${i}`)
  }
  await events.truncate(stream, 1_000n)
}, 60_000)

test('a poll has 5 MB of all its partitions together, and each of them has its turn', async () => {
  const folder = `polled ${++count}/`
  const streams = Array.from({ length: 24 }, (_, i) => folder + i)
  for (const stream of streams) await events.append(stream, { type: stream, data: 'x'.repeat(MB) })
  await events.declareGroup(folder, { prefix: folder, partitions: 16 })
  const seen: string[] = []
  for (let polls = 1; seen.length < streams.length; polls++) {
    const batches = await events.poll(folder, { holder: 'me' })
    const given = batches.flatMap((batch) => batch.events)
    expect(given.length).toBeGreaterThan(0)
    expect(given.reduce((sum, { data }) => sum + String(data).length, 0)).toBeLessThanOrEqual(5_000_000)
    // What is not committed is given again, and keeps no other partition from its turn.
    if (polls % 2) continue
    await Promise.all(batches.map((batch) => events.commit(folder, batch)))
    seen.push(...given.map(({ type }) => type))
  }
  expect(seen.sort()).toEqual(streams.sort())
  await Promise.all(streams.map((stream) => events.truncate(stream, 1_000n)))
}, 60_000)

test('partitions that wait for their turn keep nothing in memory meanwhile, and apply all of it', async () => {
  const folder = `consumed ${++count}/`
  const streams = Array.from({ length: 12 }, (_, i) => folder + i)
  const applied: string[] = []
  const consumer = events.consume(folder, { prefix: folder, partitions: 16, concurrency: 1 }, async ({ type }) => {
    applied.push(type)
    await new Promise((resolve) => setTimeout(resolve, 5))
  })
  for (const stream of streams) {
    await events.append(
      stream,
      [1, 2, 3].map((n) => ({ type: `${stream} ${n}`, data: 'x'.repeat(MB / 2) })),
    )
  }
  await until('all is applied', () => applied.length >= 36)
  await consumer.stop()
  expect(applied.length).toBe(36)
  for (const stream of streams) {
    expect(applied.filter((type) => type.startsWith(`${stream} `))).toEqual([1, 2, 3].map((n) => `${stream} ${n}`))
    await events.truncate(stream, 1_000n)
  }
}, 60_000)

test('observers that do not look keep little together, and end with the latest', async () => {
  const observing = Array.from({ length: 100 }, () => lockstep.leaders.observe('observed'))
  for (const each of observing) await each.next()
  const first = observing.map((each) => each.next())
  const term = await lockstep.leaders.campaign('observed', { meta: 0 })
  for (let n = 1; n <= 60; n++) await term.proclaim(n)
  await Promise.all(first)
  await until('the last is told', async () => (await lockstep.leaders.leader('observed'))?.meta === 60)
  let kept = 0
  for (const each of observing) {
    let last = 0n
    for (;;) {
      const { value } = await each.next()
      expect(value.revision > last).toBe(true)
      last = value.revision
      kept++
      if (value.leader?.meta === 60) break
    }
    await each.return(undefined as never)
  }
  expect(kept).toBeLessThan(3_000) // of 6,000
  await term.resign()
}, 60_000)

test('an event whose text is larger than all the memory there is comes by itself', async () => {
  const stream = 'expands'
  // jsonb writes such a number out: 6 characters, 309 digits
  const data = JSON.parse(`[${Array.from({ length: 110_000 }, () => '1e308').join()}]`)
  await events.append(stream, [
    { type: '1', data: 1 },
    { type: '2', data },
    { type: '3', data: 3 },
  ])
  const seen: string[] = []
  for await (const { type, data: read } of events.subscribe({ stream })) {
    seen.push(type)
    if (type === '2') expect((read as number[]).length).toBe(110_000)
    if (seen.length === 3) break
  }
  expect(seen).toEqual(['1', '2', '3'])
  let bytes = 0
  for await (const piece of events.subscribe({ stream, as: 'json' })) {
    expect(piece.bytes.length).toBeLessThanOrEqual(3 * 65_536)
    bytes += piece.bytes.length
    if (piece.place === 3n && piece.last) break
  }
  expect(bytes).toBeGreaterThan(34 * MB)
}, 60_000)

test('a budget is given in order, taken from those that rest, and all given back', async () => {
  const budget = new ByteBudget(100)
  const { signal } = new AbortController()
  const [a, b] = [
    await budget.reserve(60, signal),
    await budget.reserve(1_000_000_000, AbortSignal.timeout(20)).catch(() => null),
  ]
  expect([budget.used, b]).toEqual([60, null]) // a waiter that leaves takes nothing
  const order: string[] = []
  const large = budget.reserve(90, signal).then((it) => [order.push('large'), it] as const)
  const tiny = budget.reserve(10, signal).then((it) => [order.push('tiny'), it] as const) // not before it
  let evicted = false
  a.idle(() => {
    evicted = true
  })
  const [[, one], [, two]] = await Promise.all([large, tiny])
  expect([evicted, order, budget.used]).toEqual([true, ['large', 'tiny'], 100])
  a.release() // again
  one.shrink(20)
  expect(budget.used).toBe(30)
  for (const each of [one, two]) each.release()
  expect(budget.used).toBe(0)
})
