/**
 * A process with contenders for one name, for a bench that has several such processes.
 *
 * All of them start at the same instant of the monotonic clock, which the processes of a machine share, and run for a fixed
 * time: acquire, record the time, let one microtask pass, record the time, release. There is no pause between two critical
 * sections, so all contenders wait all the time. When the time is up, each finishes the section it waits for; this drains the queue.
 *
 * The sections are so short that a fault would rarely make them overlap. The tokens show more: they must rise in the order
 * in which the sections were entered, over all processes.
 */

import { fork } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { createLockstep } from '../../lib/index.ts'
import type { Sample } from './harness.ts'
import { connectRedis, redlockOn, type Servers } from './servers.ts'

export type System = 'lockstep' | 'redlock' | 'redlock20'

interface Order {
  system: System
  name: string
  startAt: bigint
  seconds: number
}

type Acquire = (name: string) => Promise<{ token?: bigint; release(): Promise<unknown> }>

/** The contender, the times of entering and leaving (nanoseconds since the start), and the token (0: there is none). */
type Section = [contender: number, enter: number, leave: number, token: number]

// ── The parent ────────────────────────────────────────────────────────────────────────────────────────────────────

export interface Contest extends Sample {
  /** Changes of holder per second: two sections in a row of the same contender are no change. */
  rate: number
  /** The changes of holder from one process to another, per second. */
  betweenProcesses: number
  sectionsPerSecond: number
  /** The sections of the contender with the fewest, and with the most. */
  least: number
  most: number
  /** The number of contenders without any section. */
  starved: number
  /** The number of sections that were entered before another was left, or with a lower token than an earlier one. */
  overlaps: number
}

/** Starts processes of contenders; the returned function lets them contend. */
export async function contenders(servers: Servers, processes: number, each: number) {
  const children = Array.from({ length: processes }, (_, k) =>
    fork(
      fileURLToPath(import.meta.url),
      [servers.databaseUrl, String(servers.redisPort ?? ''), String(k * each), String(each)],
      {
        serialization: 'advanced', // passes bigints and typed arrays unchanged
      },
    ),
  )
  const ended = children.map((child) =>
    once(child, 'exit').then(([code]) => Promise.reject(new Error(`A process of contenders ended with ${code}`))),
  )
  for (const each of ended) each.catch(() => {}) // at the end they may exit
  const answers = () =>
    Promise.race([Promise.all(children.map(async (child) => (await once(child, 'message'))[0])), ...ended]) as Promise<
      Float64Array[]
    >
  await answers() // they have started
  return {
    async contend(system: System, seconds: number): Promise<Contest> {
      const all = answers()
      const order: Order = { system, name: 'bench-contended', startAt: process.hrtime.bigint() + 50_000_000n, seconds }
      for (const child of children) child.send(order)
      return judge((await all).flatMap(sectionsOf), processes * each, each, seconds)
    },
    [Symbol.dispose]: () => {
      for (const child of children) child.disconnect() // then it ends
    },
  }
}

function sectionsOf(log: Float64Array): Section[] {
  return Array.from({ length: log.length / 4 }, (_, i) => [...log.subarray(4 * i, 4 * i + 4)] as unknown as Section)
}

function judge(sections: Section[], contenders: number, each: number, seconds: number): Contest {
  sections.sort((a, b) => a[1] - b[1])
  const counts = new Array<number>(contenders).fill(0)
  let [changes, between, overlaps, counted, left, last, lastToken] = [0, 0, 0, 0, 0, -1, 0]
  for (const [contender, enter, leave, token] of sections) {
    if (enter < left || (token > 0 && token <= lastToken)) overlaps += 1
    left = Math.max(left, leave)
    lastToken = token
    if (enter < seconds * 1e9) {
      counted += 1
      counts[contender] = (counts[contender] ?? 0) + 1
      if (last >= 0 && contender !== last) changes += 1
      if (last >= 0 && Math.floor(contender / each) !== Math.floor(last / each)) between += 1
    }
    last = contender
  }
  return {
    rate: changes / seconds,
    betweenProcesses: between / seconds,
    sectionsPerSecond: counted / seconds,
    least: Math.min(...counts),
    most: Math.max(...counts),
    starved: counts.filter((count) => count === 0).length,
    overlaps,
  }
}

// ── The child ─────────────────────────────────────────────────────────────────────────────────────────────────────

async function contend(acquire: Acquire, order: Order, first: number, each: number): Promise<Float64Array> {
  const log: number[] = []
  const now = () => Number(process.hrtime.bigint() - order.startAt)
  await delay(-now() / 1e6)
  await Promise.all(
    Array.from({ length: each }, async (_, k) => {
      while (now() < order.seconds * 1e9) {
        const held = await acquire(order.name).catch((error) => {
          if (error?.name === 'ExecutionError') return undefined // redlock has used up its retries: try again
          throw error
        })
        if (!held) continue
        const enter = now()
        await undefined
        log.push(first + k, enter, now(), Number(held.token ?? 0))
        await held.release()
      }
    }),
  )
  return Float64Array.from(log)
}

function main([databaseUrl = '', redisPort = '', first, each]: string[]): void {
  const lockstep = createLockstep({ connectionString: databaseUrl, applicationName: 'bench-contender' })
  const acquires: Partial<Record<System, Acquire>> = { lockstep: (name) => lockstep.locks.acquire(name) }
  if (redisPort !== '') {
    const redis = connectRedis(Number(redisPort))
    const [byDefault, hasty] = [redlockOn(redis), redlockOn(redis, { retryDelay: 20 })]
    acquires.redlock = (name) => byDefault.acquire([name], 15_000)
    acquires.redlock20 = (name) => hasty.acquire([name], 15_000)
  }
  process.on('message', async (order: Order) => {
    const acquire = acquires[order.system]
    if (!acquire) throw new Error(`There is no ${order.system} here`)
    process.send?.(await contend(acquire, order, Number(first), Number(each)))
  })
  process.on('disconnect', () => process.exit())
  process.send?.('up')
}

if (import.meta.filename === process.argv[1]) main(process.argv.slice(2))
