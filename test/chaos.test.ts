/** The short runs of `npm run chaos`: a few processes, a few seconds. */
import { execFileSync } from 'node:child_process'
import { expect, test } from 'vitest'
import { runCounter } from './chaos/counter.ts'
import { runElection } from './chaos/election.ts'
import { runEvents } from './chaos/events.ts'
import { runJobs } from './chaos/jobs.ts'
import { FAULTS } from './chaos/nemesis.ts'
import { dedicatedServer, freshDatabase } from './database.ts'
import { faketimeAvailable } from './faketime.ts'

test('no increment is lost, whatever befalls holders, networks, backends and clocks', {
  timeout: 120_000,
}, async () => {
  await using db = await freshDatabase()
  const { violations, increments, faults } = await runCounter({
    url: db.url,
    kind: 'mixed',
    workers: 6,
    seconds: 8,
    seed: 1,
  })
  expect(violations).toEqual([])
  expect(increments).toBeGreaterThan(0)
  for (const fault of FAULTS) {
    if (fault !== 'clock' || faketimeAvailable()) expect(faults[fault], fault).toBeGreaterThan(0)
  }
})

test.for([
  { failover: 'lease', seed: 1 },
  { failover: 'connection', seed: 2 },
] as const)(
  'leaders take turns, one after the other, through every fault: $failover',
  { timeout: 300_000 },
  async (how) => {
    await using server = await dedicatedServer({ settings: { synchronous_commit: 'on' } })
    const { violations, by, stops, crashes } = await runElection({
      url: server.url,
      async restart(how) {
        await (how === 'crash' ? server.crash() : server.stop())
        await server.start()
      },
      ...how,
      workers: 3,
      seconds: 9,
    })
    expect(violations).toEqual([])
    expect(Math.min(...by)).toBeGreaterThan(0)
    expect(stops + crashes).toBeGreaterThan(0)
  },
)

test('every job has its effect once, and every slot its job, through every fault', { timeout: 300_000 }, async () => {
  await using server = await dedicatedServer({ settings: { synchronous_commit: 'on' } })
  const { violations, jobs, slots, again, kills, stops, crashes } = await runJobs({
    url: server.url,
    async restart(how) {
      await (how === 'crash' ? server.crash() : server.stop())
      await server.start()
    },
    jobs: 600,
    workers: 3,
    seconds: 9,
    seed: 3,
  })
  expect(violations).toEqual([])
  expect(jobs).toBe(600)
  expect(slots).toBeGreaterThan(5)
  expect(again).toBeGreaterThan(0)
  expect(kills + stops + crashes).toBeGreaterThan(1)
})

function python(): boolean {
  try {
    execFileSync('python3', ['--version'])
    return true
  } catch {
    return false
  }
}

test.for([
  { door: 'library', seed: 4 },
  { door: 'http', seed: 5 },
] as const)(
  'every event is applied once, in order, through every fault: $door',
  { timeout: 300_000 },
  async (how, { skip }) => {
    skip(how.door === 'http' && !python(), 'it needs python3')
    await using server = await dedicatedServer({ settings: { synchronous_commit: 'on' } })
    const { violations, events, back, crashes } = await runEvents({
      url: server.url,
      async restart(how) {
        await (how === 'crash' ? server.crash() : server.stop())
        await server.start()
      },
      ...how,
      writers: 2,
      consumers: 3,
      streams: 40,
      seconds: 5,
    })
    expect(violations).toEqual([])
    expect(events).toBeGreaterThan(0)
    expect(back).toBeGreaterThan(0)
    expect(crashes).toBe(1)
  },
)
