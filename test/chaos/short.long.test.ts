/** The short runs of `npm run chaos`: a few processes, a few seconds, each on its own server; two at a time, because they mostly wait. */
import { execFileSync } from 'node:child_process'
import { test as base, describe, expect } from 'vitest'
import { faketimeAvailable } from '../support/faketime.ts'
import { leftOnServer } from '../support/resources.ts'
import { runCounter } from './counter.ts'
import { runElection } from './election.ts'
import { runEvents } from './events.ts'
import { runJobs } from './jobs.ts'
import { type ChaosServer, chaosServer } from './server.ts'

const test = base.extend<{ server: ChaosServer }>({
  // biome-ignore lint/correctness/noEmptyPattern: vitest requires a pattern, even an empty one
  server: async ({}, use) => {
    await using server = await chaosServer(400)
    await use(server)
    expect(await leftOnServer(server.url)).toEqual([])
  },
})

const LIMIT = { timeout: 300_000 }
/** The seed decides which of the two comes first, and there may be time for only one. */
const restarts = ({ crash = 0, stop = 0 }: Record<string, number>) => crash + stop

describe('holds and jobs', () => {
  test.concurrent(
    'no increment is lost, through faults of holders, networks, backends, clocks and the server',
    LIMIT,
    async ({ server }) => {
      const { violations, increments, linear, faults } = await runCounter({
        server,
        kind: 'mixed',
        workers: 6,
        seconds: 12,
        seed: 1,
      })
      expect(violations).toEqual([])
      expect(increments).toBeGreaterThan(0)
      expect(linear).toBeGreaterThan(increments)
      const struck = ['kill', 'pause', 'cut', 'hold', 'swallow', 'terminate']
      if (faketimeAvailable()) struck.push('clock')
      expect(Object.keys(faults)).toEqual(expect.arrayContaining(struck))
      expect(restarts(faults)).toBeGreaterThan(0)
    },
  )

  test.concurrent(
    'every job has its effect once, and every slot its job, through every fault',
    LIMIT,
    async ({ server }) => {
      const { violations, jobs, slots, again, faults } = await runJobs({
        server,
        jobs: 600,
        workers: 3,
        seconds: 9,
        seed: 3,
      })
      expect(violations).toEqual([])
      expect(jobs).toBe(600)
      expect(slots).toBeGreaterThan(5)
      expect(again).toBeGreaterThan(0)
      expect(restarts(faults)).toBeGreaterThan(0)
    },
  )
})

describe('leaders', () => {
  test.concurrent.for([
    { failover: 'lease', seed: 1 },
    { failover: 'connection', seed: 2 },
  ] as const)(
    'leaders follow each other, and each is signalled before the next, through every fault: $failover',
    LIMIT,
    async (how, { server }) => {
      const { violations, by, faults } = await runElection({ server, ...how, workers: 3, seconds: 9 })
      expect(violations).toEqual([])
      expect(Math.min(...by)).toBeGreaterThan(0)
      expect(restarts(faults)).toBeGreaterThan(0)
    },
  )
})

function python(): boolean {
  try {
    execFileSync('python3', ['--version'])
    return true
  } catch {
    return false
  }
}

describe('events', () => {
  test.concurrent.for([
    { door: 'library', seed: 4 },
    { door: 'http', seed: 5 },
  ] as const)(
    'every event is applied once, in order, through every fault: $door',
    LIMIT,
    async (how, { server, skip }) => {
      skip(how.door === 'http' && !python(), 'it needs python3')
      const sizes = { writers: 2, consumers: 3, streams: 40, seconds: 5 }
      const { violations, events, linear, back, faults } = await runEvents({ server, ...how, ...sizes })
      expect(violations).toEqual([])
      expect(events).toBeGreaterThan(0)
      expect(linear).toBeGreaterThan(0)
      expect(back).toBeGreaterThan(0)
      expect(restarts(faults)).toBeGreaterThan(0)
    },
  )
})
