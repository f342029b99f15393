/**
 * What a process knows of time, in a world of simulated clocks (world.ts): thousands of samples, under delay, drift, steps,
 * sleep and fail-over, and the truth is never outside. And the teeth: where an assumption is broken on purpose, it must be.
 */
import { describe, expect, test } from 'vitest'
import { type Kind, S, Simulated, World } from './world.ts'

const SEEDS = Array.from({ length: 40 }, (_, i) => 1_000 + i * 7_919)

/** Runs it in a world of each seed; the first exception fails, and tells the seed. */
const inEach = (run: (world: World) => void, seeds = SEEDS) => {
  for (const seed of seeds) run(new World(seed))
}

/** A process that has measured, one that reads, and one that is frozen between requests; all know true time. */
function three(world: World, kinds: Kind[] = []) {
  const measuring = new Simulated(world, 'measuring', { rate: world.next() * 80 - 40, ...kinds[0] })
  const reads = new Simulated(world, 'reads', { rate: world.next() * 80 - 40, ...kinds[1] })
  const frozen = new Simulated(world, 'frozen', { rate: world.next() * 80 - 40, freezes: true, ...kinds[2] })
  measuring.sample()
  measuring.measure()
  const all = [measuring, reads, frozen]
  for (const each of all) {
    each.sample()
    expect(each.check().status).toBe('synchronized')
  }
  return { measuring, reads, frozen, all }
}

/** A minute or so: everybody samples now and then, is read often, and one measures. */
function minute(world: World, { measuring, all }: { measuring: Simulated; all: Simulated[] }, what = ''): void {
  for (let i = 0; i < 12; i++) {
    for (const each of all) {
      if (world.next() < 0.5) each.sample()
      else if (world.next() < 0.3) each.estimate.hear(each.hear())
      each.check(what)
    }
    world.pass(world.next() * 10 * S)
    for (const each of all) each.check(what)
    if (i % 6 === 5) measuring.measure()
  }
}

describe('under the assumptions', () => {
  test.each([-49, 0, 49])('the truth is contained in every reading for hours, the database %i ppm off', (rate) => {
    inEach((world) => {
      world.database.rate = rate
      const some = three(world, [{ rate: -40 }, { rate: 40 }, { rate: 0 }])
      for (let i = 0; i < 60; i++) minute(world, some)
      expect(some.reads.check().boundMs).toBeLessThan(100)
    })
  })

  test('a Worker’s clock, of whole milliseconds that are late: contained within its allowance, and `earliest` always', () => {
    inEach((world) => {
      const { measuring } = three(world)
      for (let i = 0; i < 30; i++) {
        let computing = 0
        const worker = new Simulated(world, 'worker', { granularity: 1_000, lag: 50_000, freezes: true })
        worker.sample()
        worker.check()
        // It computes, and its clock stands still meanwhile.
        const { earliestMs, latestMs } = worker.estimate.now()
        computing = world.next() * 50_000
        world.pass(computing)
        expect(earliestMs).toBeLessThanOrEqual(world.t / 1_000)
        expect(latestMs).toBeGreaterThanOrEqual(world.t / 1_000)
        world.pass(S)
        if (i % 10 === 0) measuring.measure()
      }
    })
  })

  test('source database: what that clock shows is contained, steps and all', () => {
    inEach((world) => {
      const process = new Simulated(world, 'database', { source: 'database', rate: 40 })
      for (let i = 0; i < 200; i++) {
        if (i % 50 === 49) world.step(world.next() * 10 - 5)
        process.sample()
        const { earliestMs, latestMs } = process.estimate.now()
        expect(earliestMs).toBeLessThanOrEqual(world.d / 1_000 + 0.001)
        expect(latestMs).toBeGreaterThanOrEqual(world.d / 1_000)
        world.pass(world.next() * 20 * S)
      }
    })
  })

  test('without a database the bound grows by what our clock may drift, and no more', () => {
    inEach((world) => {
      const { reads } = three(world)
      const { boundMs } = reads.check()
      world.pass(100 * S)
      expect(reads.check().boundMs).toBeLessThan(Number(boundMs) + 20.1)
      expect(reads.check().boundMs).toBeGreaterThan(Number(boundMs) + 9.9)
      expect(reads.check().status).toBe('synchronized')
      world.pass(413 * S)
      expect(reads.check().status).toBe('free-running')
    })
  })

  test('nothing is promised where nothing was measured', () => {
    const world = new World(1)
    const process = new Simulated(world, 'alone')
    expect(process.check()).toMatchObject({ status: 'unsynchronized', source: 'local', boundMs: null, spreadMs: null })
    process.sample()
    expect(process.check()).toMatchObject({ status: 'unsynchronized', source: 'database', boundMs: null })
  })
})

describe('when a clock is set', () => {
  test.each([2, -5, 0.03, 3_600])(
    'the database’s, by %d s: contained all the while, and known as before after two measurements',
    (by) => {
      inEach((world) => {
        const some = three(world)
        minute(world, some)
        world.step(by)
        for (const each of some.all) {
          each.check('before it is seen')
          expect(each.sample()).toBe('contradicts')
          expect(each.check('when it is seen').status).toBe('disrupted')
        }
        some.measuring.measure()
        for (const each of some.all) each.check('after one measurement')
        world.pass(2 * S)
        for (const each of some.all) {
          each.sample()
          each.check('while two stories stand')
        }
        expect(some.measuring.measure()).not.toBe('disputed')
        for (const each of some.all) {
          each.sample()
          const reading = each.check('after the second')
          expect(reading.status).toBe('synchronized')
          expect(Number(reading.latestMs) - Number(reading.earliestMs)).toBeLessThan(100)
        }
        minute(world, some)
      })
    },
  )

  test('the database’s, again and again, a piggybacked reading being the first that sees it', () => {
    inEach((world) => {
      const some = three(world)
      for (let i = 0; i < 8; i++) {
        world.step(world.next() * 4 - 2)
        for (const each of some.all) {
          each.estimate.hear(each.hear())
          each.check('heard')
        }
        for (let k = 0; k < 3; k++) {
          world.pass(2 * S)
          some.measuring.measure()
          for (const each of some.all) {
            each.sample()
            each.check('measured')
          }
        }
        expect(some.reads.check().status).toBe('synchronized')
      }
    })
  })

  test.each([3_600, -3_600, 0.05])(
    'our own wall clock, by %d s: contained, and nothing is in doubt after a sample',
    (by) => {
      inEach((world) => {
        const some = three(world)
        for (const each of some.all) {
          each.wallOffset += by * S
          each.check('before a sample')
          expect(each.sample()).toBe('fits')
          expect(each.check('after it').status).toBe('synchronized')
        }
        minute(world, some)
      })
    },
  )

  test('both at once, where both run on one machine: two stories, until a measurement', () => {
    inEach((world) => {
      const some = three(world)
      world.step(30)
      for (const each of [some.measuring, some.reads]) {
        each.wallOffset += 30 * S
        each.sample()
        expect(each.check('set').status).toBe('disrupted')
      }
      some.measuring.measure()
      world.pass(2 * S)
      some.measuring.measure()
      some.reads.sample()
      expect(some.reads.check('measured').status).toBe('synchronized')
    })
  })

  test('a fail-over to another clock, and back: φ outlives it, and the row is begun anew', () => {
    inEach((world) => {
      const some = three(world)
      for (const [server, offset] of [
        ['second', -7],
        ['third', 0.4],
        ['first', 3.25],
      ] as const) {
        world.failOver(server, offset)
        for (const each of some.all) {
          each.estimate.hear(each.hear())
          each.check('heard')
          expect(each.estimate.wonders).toBe(true)
          each.sample()
          expect(each.check('no row yet').status).toBe('synchronized')
        }
        expect(some.measuring.measure()).toBe('begun')
        for (const each of some.all) {
          each.sample()
          expect(each.check('measured').status).toBe('synchronized')
        }
        minute(world, some)
      }
    })
  })
})

describe('when this machine slept', () => {
  test('one that is frozen between requests knows it from the next sample, and doubts nothing', () => {
    inEach((world) => {
      const some = three(world)
      for (const seconds of [0.5, 90, 3_600]) {
        some.frozen.sleep(seconds)
        expect(some.frozen.check('awake').status).toBe('disrupted') // the wall clock says so
        expect(some.frozen.sample()).toBe('slept')
        const status = seconds > 512 ? 'free-running' : 'synchronized' // for nobody has measured meanwhile
        expect(some.frozen.check('sampled').status).toBe(status)
        some.measuring.sample()
        some.measuring.measure()
        minute(world, some)
      }
    })
  })

  test('one that lives on cannot tell it from a clock that was set: two stories, until a measurement', () => {
    inEach((world) => {
      const some = three(world)
      some.reads.sleep(90)
      some.reads.check('awake')
      expect(some.reads.sample()).toBe('contradicts')
      expect(some.reads.check('sampled').status).toBe('disrupted')
      some.measuring.sample()
      some.measuring.measure()
      some.reads.sample()
      expect(some.reads.check('measured').status).toBe('synchronized')
      expect(some.reads.check().latestMs).toBeLessThan(world.t / 1_000 + 100)
    })
  })

  test('so shortly that it hides in the next round trip, which was a slow one', () => {
    inEach((world) => {
      for (const each of three(world).all) {
        each.sleep(0.03)
        each.check('awake')
        const heard = each.hear({ back: () => world.pass(40_000) })
        expect(each.estimate.hear(heard)).toBe('fits')
        each.check('heard')
        each.sample()
        each.check('sampled')
      }
    })
  })

  test('during a statement, what that statement says is not taken', () => {
    inEach((world) => {
      const { reads, frozen } = three(world)
      for (const each of [reads, frozen]) {
        const heard = each.hear({ during: () => {} })
        const slept = { ...heard, gap: heard.gap + 90 * S }
        expect(each.estimate.hear(slept)).toBe('void')
        each.check('void')
        each.sample()
        expect(each.check('sampled').status).toBe('synchronized')
      }
    })
  })

  test('the limit: a sleep that neither of its clocks shows is not seen until the next sample', () => {
    const world = new World(5)
    const { frozen } = three(world)
    frozen.sleep(90)
    frozen.wallOffset -= 90 * S // it comes back with the wall clock of then
    expect(() => frozen.check('awake')).toThrow('Missed')
    frozen.sample()
    frozen.check('sampled')
  })
})

describe('whatever happens, in whatever order', () => {
  test('the truth is contained: 40 worlds, 2,000 events each', () => {
    inEach((world) => {
      const some = three(world)
      const second = new Simulated(world, 'measures too', { rate: 35 })
      second.sample()
      const measuring = [some.measuring, second]
      const all = [...some.all, second]
      const any = <T>(of: T[]) => of[Math.floor(world.next() * of.length)] as T
      // Of one machine not both at once, unseen: that is the limit that is told above.
      const sampled = (one: Simulated) => {
        one.sample()
        return one
      }
      const setWall = (one: Simulated) => {
        one.wallOffset += (world.next() * 2 - 1) * 3_600 * S
      }
      // By enough to be seen: what hides in a round trip is allowed for up to a millisecond. And seen by everybody: who comes
      // fresh to a clock that was set since it was measured is deceived (see the teeth).
      const setDatabase = () => {
        for (const each of all) each.sample()
        world.step((world.next() < 0.5 ? -1 : 1) * (0.1 + world.next() * 5))
      }
      const heard = (one: Simulated) => one.estimate.hear(one.hear())
      const events: [number, string, () => unknown][] = [
        [30, 'time passes', () => world.pass(world.next() * 20 * S)],
        [20, 'a sample', () => any(all).sample()],
        [15, 'heard', () => heard(any(all))],
        [12, 'a measurement', () => any(measuring).measure({ bound: world.next() * 20_000 })],
        [2, 'the database’s clock is set', setDatabase],
        [1, 'another server', () => world.failOver(`server ${world.t}`, world.next() * 20 - 10)],
        [2, 'a wall clock is set', () => setWall(sampled(any(all)))],
        [2, 'a machine sleeps', () => sampled(any(all)).sleep(world.next() * 300)],
      ]
      const bag = events.flatMap((event) => Array.from({ length: event[0] }, () => event))
      for (let i = 0; i < 2_000; i++) {
        const [, what, happens] = any(bag)
        happens()
        for (const each of all) each.check(`event ${i}: ${what}`)
      }
    })
  })
})

describe('when measurements contradict each other', () => {
  test('a liar among processes: readers get the hull, until another measures', () => {
    inEach((world) => {
      const some = three(world)
      const deceived = new Simulated(world, 'deceived', { rate: 10 })
      deceived.sample()
      world.pass(65 * S)
      deceived.measure({ wrong: 0.9 * S })
      for (const each of some.all) {
        each.sample()
        expect(each.check('in dispute').status).toBe('disrupted')
      }
      const fresh = new Simulated(world, 'fresh')
      fresh.sample()
      expect(fresh.check('in dispute').status).toBe('disrupted')
      some.measuring.measure()
      for (const each of [...some.all, fresh]) {
        each.sample()
        expect(each.check('settled').status).toBe('synchronized')
      }
    })
  })

  test('without a database (source ntp) the second of two says which is right', () => {
    inEach((world) => {
      const process = new Simulated(world, 'ntp', { source: 'ntp', rate: -40 })
      for (let i = 0; i < 50; i++) {
        process.measure({ offers: false })
        world.pass(world.next() * 100 * S)
        process.check()
      }
      process.sleep(30)
      process.wallOffset -= 30 * S
      process.measure({ offers: false })
      expect(process.check('one').status).toBe('disrupted')
      process.measure({ offers: false })
      expect(process.check('two').status).toBe('synchronized')
      expect(process.check('two').latestMs).toBeLessThan(world.t / 1_000 + 100)
    })
  })
})

describe('teeth: with an assumption broken, it misses', () => {
  const missed = (run: (world: World) => void) =>
    SEEDS.filter((seed) => {
      try {
        run(new World(seed))
        return false
      } catch (error) {
        expect(String(error)).toMatch(/Missed/)
        return true
      }
    }).length

  test('a local clock that is 3,000 ppm off', () => {
    const misses = missed((world) => {
      const some = three(world)
      const fast = new Simulated(world, 'fast', { rate: 3_000 })
      fast.sample()
      for (let i = 0; i < 30; i++) {
        world.pass(10 * S)
        fast.check()
        fast.sample()
      }
      some.reads.check()
    })
    expect(misses).toBeGreaterThan(30)
  })

  test('NTP servers that are more wrong than they say', () => {
    const misses = missed((world) => {
      const process = new Simulated(world, 'deceived')
      process.sample()
      process.measure({ wrong: 0.05 * S })
      process.check()
    })
    expect(misses).toBe(SEEDS.length)
  })

  test('a database whose clock is set, for who comes fresh before anybody has measured', () => {
    const misses = missed((world) => {
      three(world)
      world.step(2)
      const fresh = new Simulated(world, 'fresh')
      fresh.sample()
      fresh.check()
    })
    expect(misses).toBe(SEEDS.length)
  })

  test('a Worker that computes for longer than is allowed for: `latest` misses, `earliest` does not', () => {
    inEach((world) => {
      three(world)
      const worker = new Simulated(world, 'worker', { granularity: 1_000, lag: 50_000, freezes: true })
      worker.sample()
      const { earliestMs, latestMs } = worker.estimate.now()
      world.pass(200_000)
      expect(earliestMs).toBeLessThanOrEqual(world.t / 1_000)
      expect(latestMs).toBeLessThan(world.t / 1_000)
    })
  })

  test('a millisecond of disturbance of the database’s clock is allowed for: pushed to and fro, it is contained', () => {
    inEach((world) => {
      const some = three(world)
      for (let i = 0; i < 200; i++) {
        world.step(i % 2 ? -0.001 : 0.001)
        some.reads.sample()
        some.reads.check()
        world.pass(0.4 * S)
        some.reads.check()
        if (i % 100 === 99) some.measuring.measure()
      }
    })
  })
})
