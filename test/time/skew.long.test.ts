/**
 * Clocks that are really wrong: a PostgreSQL server whose clock is seconds off, runs fast, and is set while it runs; processes
 * whose wall clock is set; NTP servers that are wrong, together with chronyd; a fail-over to a server with another clock. True time is
 * this machine's clock, which none of them uses.
 *
 * Skipped where libfaketime is not installed. estimate.test.ts does the same with simulated clocks.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { CompiledQuery } from 'kysely'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createLockstep, type Lockstep, type Reading } from '../../lib/index.ts'
import { ntp } from '../../lib/time/ntp/index.ts'
import { ask, lambdaEnv, startLambda, startWorker } from '../adapters/runtime/runtimes.ts'
import { installWrangler } from '../adapters/runtime/wrangler.ts'
import { type DedicatedServer, dedicatedServer, tcpProxy } from '../support/database.ts'
import { faketimeAvailable, skewedServer, under, type WrongClock, wrongClock } from '../support/faketime.ts'
import { until } from '../support/until.ts'
import { INSTALL_MS } from '../tools/packages.ts'
import { chronyd, chronydAvailable, type FakeServer, fakeServer, wallOffset } from './ntp-server.ts'

/** True time, in milliseconds. */
const truth = () => performance.now() + wallOffset() / 1_000

/** Fails unless the current reading contains true time. */
function expectTruth(read: () => Reading, what = ''): Reading {
  const before = truth()
  const reading = read()
  const after = truth()
  const { earliestMs, latestMs, timeMs, boundMs } = reading
  const details = `${what} ${before}: ${JSON.stringify({ earliestMs, latestMs, timeMs, boundMs, status: reading.status })}`
  if (earliestMs === null || latestMs === null) throw new Error(`No bounds ${details}`)
  if (earliestMs > after || latestMs < before) throw new Error(`Missed ${details}`)
  if (Math.max(timeMs - after, before - timeMs) > Number(boundMs))
    throw new Error(`Farther off than boundMs ${details}`)
  return reading
}

/** Reads every millisecond, and keeps the first exception. */
function watched(...locksteps: Lockstep[]) {
  let failure: unknown
  let reads = 0
  const last = locksteps.map(() => -Infinity)
  const timer = setInterval(() => {
    for (const [i, { time }] of locksteps.entries()) {
      try {
        const { timeMs } = expectTruth(() => time.now(), `process ${i}, read ${reads}`)
        if (timeMs < (last[i] as number)) throw new Error(`process ${i} went back from ${last[i]} to ${timeMs}`)
        last[i] = timeMs
        reads += 1
      } catch (error) {
        failure ??= error
      }
    }
  }, 1)
  return {
    stop() {
      clearInterval(timer)
      if (failure) throw failure
      return reads
    },
  }
}

describe.skipIf(!faketimeAvailable())('with clocks that are wrong', () => {
  let clock: WrongClock
  let server: DedicatedServer
  let fakes: FakeServer[]
  let honest: string[]
  beforeAll(installWrangler, INSTALL_MS)
  const real: { name: string; stop(): Promise<void> }[] = []
  const opened: Lockstep[] = []
  beforeAll(async () => {
    clock = wrongClock('+3')
    server = await skewedServer(clock)
    fakes = await Promise.all([0, 0, 0, 10_000].map((wrongMs) => fakeServer({ wrongMs })))
    honest = fakes.slice(0, 3).map(({ name }) => name)
    if (chronydAvailable()) {
      for (const host of ['127.0.0.21', '127.0.0.22', '127.0.0.23']) real.push(await chronyd({ host }))
      honest = real.map(({ name }) => name)
      await until('chronyd answers', () =>
        ntp({ servers: honest, timeoutMs: 300 })
          .measure()
          .then(({ servers }) => servers.every(({ problem }) => problem === null))
          .catch(() => false),
      )
    }
  })
  afterAll(async () => {
    await server?.close()
    clock?.[Symbol.dispose]()
    await Promise.all(real.map((each) => each.stop()))
    await Promise.all((fakes ?? []).map((each) => each[Symbol.asyncDispose]()))
  })
  afterEach(() => Promise.all(opened.splice(0).map((each) => each.close())))

  beforeEach(async () => {
    clock.set('+3')
    await sql('update lockstep.time_anchor set server = 0, claimed_until = null') // no measurement
  })

  const servers = () => [...honest, (fakes[3] as FakeServer).name]
  const open = (measures: boolean, url = server.url) => {
    const time = measures ? { ntp: ntp({ servers: servers(), timeoutMs: 500 }) } : {}
    const lockstep = createLockstep({ connectionString: url, time })
    opened.push(lockstep)
    return lockstep
  }
  const sql = async (text: string) => {
    await using lockstep = createLockstep({ connectionString: server.url })
    return (await lockstep.kysely.executeQuery<Record<string, unknown>>(CompiledQuery.raw(text))).rows
  }

  test('a database 3 s fast and one of four servers wrong by 10 s: Node, Lambda and Worker contain true time, and name it', async () => {
    const wrong = servers()[3]
    const measuring = open(true)
    await measuring.time.ready()
    const [row] = await sql('select extract(epoch from clock_timestamp())::float8 * 1000 as ms')
    expect(Number(row?.ms) - truth()).toBeGreaterThan(2_900) // it is fast

    const node = open(false)
    await node.time.ready({ maxBoundMs: 1_000 })
    for (const { time } of [measuring, node]) {
      await time.ready({ maxBoundMs: 90, waitMs: 20_000 })
      for (let i = 0; i < 1_000; i++) {
        const reading = expectTruth(() => time.now())
        expect(reading).toMatchObject({ status: 'synchronized', falsetickers: [wrong] })
        expect(reading.boundMs).toBeLessThan(100)
      }
    }
    await using lambda = await startLambda(lambdaEnv(server.url))
    await using measuringLambda = await startLambda(lambdaEnv(server.url, servers()))
    await using worker = await startWorker(server.url, 'off')
    for (const each of [lambda, measuringLambda, worker]) {
      const bounds: number[] = []
      for (let i = 0; i < 20; i++) {
        const before = truth()
        const { json } = await ask(each, '/v1/time')
        expect(Date.parse(json.earliest)).toBeLessThanOrEqual(truth())
        expect(Date.parse(json.latest)).toBeGreaterThanOrEqual(before)
        expect(json).toMatchObject({ status: 'synchronized', falsetickers: [wrong] })
        bounds.push(json.boundMs)
      }
      // At least half of them: a machine that is busy with other tests may have answered the others slowly.
      expect(bounds.sort((a, b) => a - b)[10]).toBeLessThan(100)
    }
    const [corrected] = await sql('select (extract(epoch from lockstep.now()) * 1000)::text as ms')
    expect(Math.abs(Number(corrected?.ms) - truth())).toBeLessThan(100)
  })

  test.each(['+5', '-5', '+3.04'])(
    'its clock is set to %s s: true time is always contained, and soon as exact as before',
    async (how) => {
      const [measuring, reads] = [open(true), open(false)]
      await measuring.time.ready()
      await reads.time.ready({ maxBoundMs: 1_000 })
      const watch = watched(measuring, reads)
      clock.set(how)
      // In the background, one process sees the step, measures, contradicts the row, and measures again; the other reads the row.
      await Promise.all([measuring.time.ready(), reads.time.ready()])
      await until('it is as exact as before', async () => {
        await reads.time.ready()
        const readings = [measuring.time.now(), reads.time.now()]
        return readings.every(({ status, boundMs }) => status === 'synchronized' && Number(boundMs) < 100)
      })
      expect(watch.stop()).toBeGreaterThan(100)
    },
  )

  test('its clock runs 40 ppm fast: true time is contained', async () => {
    using fast = wrongClock('-2 x1.00004')
    await using running = await skewedServer(fast)
    const [measuring, reads] = [open(true, running.url), open(false, running.url)]
    await measuring.time.ready()
    await reads.time.ready({ maxBoundMs: 1_000 })
    const watch = watched(measuring, reads)
    for (let i = 0; i < 40; i++) {
      await reads.time.ready({ maxBoundMs: 1_000 })
      await delay(25) // for the clocks to drift
    }
    expect(watch.stop()).toBeGreaterThan(500)
  })

  test('under load, over a network that often holds everything back: true time in thousands of readings', async () => {
    const busy = [0, 1].map(() => spawn(process.execPath, ['-e', 'for (;;);'], { stdio: 'ignore' }))
    const proxies = await Promise.all([tcpProxy(server.url), tcpProxy(server.url), tcpProxy(server.url)])
    let over = false
    const disturbing = (async () => {
      for (let i = 0; !over; i++) {
        const proxy = proxies[i % proxies.length]
        proxy?.hold()
        await delay(Math.random() * 40) // milliseconds
        proxy?.resume()
        await delay(Math.random() * 40)
      }
    })()
    try {
      const all = proxies.map((proxy, i) => open(i === 0, proxy.url))
      await Promise.all(all.map(({ time }) => time.ready({ maxBoundMs: 10_000, waitMs: 20_000 })))
      const watch = watched(...all)
      const until = performance.now() + 5_000
      while (performance.now() < until) await Promise.all(all.map(({ time }) => time.ready()))
      expect(watch.stop()).toBeGreaterThan(300)
    } finally {
      over = true
      await disturbing
      for (const each of busy) each.kill('SIGKILL')
      await Promise.all(proxies.map((proxy) => proxy.close()))
    }
  })

  test('a restart, and a fail-over to a server whose clock is 400 ms off', async () => {
    using other = wrongClock('+3.4')
    await using second = await skewedServer(other)
    await using proxy = await tcpProxy(server.url)
    const [measuring, reads] = [open(true, proxy.url), open(false, proxy.url)]
    await measuring.time.ready()
    await reads.time.ready({ maxBoundMs: 1_000 })
    const watch = watched(measuring, reads)
    const asked = (each: Lockstep) =>
      each.time.ready().then(
        () => true,
        () => false,
      )
    const settled = async () => {
      await until('it is known again', async () => {
        if (!(await asked(measuring)) || !(await asked(reads))) return false
        return [measuring, reads].every(({ time }) => time.now().status === 'synchronized')
      })
      expect(reads.time.now().boundMs).toBeLessThan(200)
    }
    await server.stop()
    await under(clock, server.start)
    await settled()
    proxy.target(second.url)
    proxy.cut()
    await settled()
    expect(watch.stop()).toBeGreaterThan(50)
  })

  test('a new process on another server is unsynchronized until a process has measured there', async () => {
    using right = wrongClock('+0')
    await using second = await skewedServer(right)
    const fresh = open(false, second.url)
    expect((await fresh.time.ready()).status).toBe('unsynchronized')
    await open(true, second.url).time.synchronize()
    await fresh.time.ready()
    expectTruth(() => fresh.time.now())
  })

  test.each([3_600, -3_600, 0.05])(
    'a process whose own wall clock is set by %s s always contains true time',
    async (step) => {
      await open(true).time.synchronize()
      using wall = wrongClock('+0')
      const program = path.join(import.meta.dirname, 'time-process.ts')
      const child = spawn(process.execPath, [program, server.url], {
        env: { ...process.env, ...wall.env },
        stdio: ['pipe', 'pipe', 'inherit'],
      })
      const closed = once(child, 'close')
      const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
      expect((await lines.next()).value).toBe('ready')
      const ask = async (line = '') => {
        child.stdin.write(`${line}\n`)
        return JSON.parse(String((await lines.next()).value))
      }
      // Its monotonic clock is the machine's: hrtime is the same in every process.
      const offset = wallOffset() + performance.now() * 1_000 - Number(process.hrtime.bigint() / 1_000n)
      const expectContained = ({ before, after, earliestMs, latestMs, timeMs, boundMs }: Record<string, number>) => {
        const [from, to] = [(Number(before) + offset) / 1_000 - 0.2, (Number(after) + offset) / 1_000 + 0.2]
        expect(earliestMs).toBeLessThanOrEqual(to)
        expect(latestMs).toBeGreaterThanOrEqual(from)
        expect(Math.max(Number(timeMs) - to, from - Number(timeMs))).toBeLessThanOrEqual(Number(boundMs))
      }
      for (let i = 0; i < 20; i++) expectContained(await ask())
      wall.set(`${step < 0 ? '' : '+'}${step}`)
      let last = 0
      for (let i = 0; i < 50; i++) {
        const reading = await ask(i === 10 ? 'sample' : '')
        if (i === 0) expect(Math.abs(reading.wallMs - truth() - step * 1_000)).toBeLessThan(1_000) // it was set
        expectContained(reading)
        expect(reading.timeMs).toBeGreaterThanOrEqual(last)
        last = reading.timeMs
        if (i > 10) expect(reading).toMatchObject({ status: 'synchronized' })
      }
      child.stdin.end()
      await closed
    },
  )

  test('a lease lasts for its ttlMs, whatever the corrected time: that decides no lease', async () => {
    const measuring = open(true)
    await measuring.time.ready()
    const held = await measuring.locks.acquire('kept', { ttlMs: 5_000 })
    expect(await open(false).locks.tryAcquire('kept', { ttlMs: 1_000 })).toBeNull()
    expect(held.isTrusted()).toBe(true)
    const { expiresAt } = await open(false).locks.query('kept')
    expect(Number(expiresAt) - truth()).toBeGreaterThan(5_000) // 3 s of which are the database's own
    await held.release()
  })
})

test.skipIf(faketimeAvailable())('libfaketime is not installed, so no clock can be made wrong here', () => {
  console.log('The tests with clocks that are wrong are skipped: libfaketime is not installed')
})

// Outside the group above, so that the helper is tested without libfaketime too.
test('a dedicated server keeps this machine’s clock', async () => {
  await using plain = await dedicatedServer()
  await using lockstep = createLockstep({ connectionString: plain.url, time: { source: 'database' } })
  await lockstep.time.ready()
  expectTruth(() => lockstep.time.now())
})
