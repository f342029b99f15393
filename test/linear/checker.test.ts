/** The checker itself: on histories whose answer is known, and beside a search through all orders. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { check, type Model, prefix, type Timed } from './checker.ts'

interface Op extends Timed {
  do: 'write' | 'read'
  value?: number
}

/** A register of one number, 0 at first. A read without an answer tells nothing. */
const register: Model<number, Op> = {
  initial: 0,
  key: String,
  reads: ({ do: verb }) => verb === 'read',
  alike: ({ do: verb, value }) => `${verb} ${value}`,
  step: (state, { do: verb, value, output }) =>
    verb === 'write' ? [value ?? 0] : output === undefined || output === state ? [state] : [],
}
const write = (value: number, from: number, to: number): Op => ({ do: 'write', value, from, to, output: null })
const read = (output: number, from: number, to: number): Op => ({ do: 'read', from, to, output })
const verdict = (...history: Op[]) => check(register, history).is

describe('a history', () => {
  test('that is in order, and one whose overlapping operations can be put in order, are linearizable', () => {
    expect(verdict()).toBe('linearizable')
    expect(verdict(write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7))).toBe('linearizable')
    // each read overlaps the write: the first sees it, although it began earlier and the second ended later
    expect(verdict(write(1, 0, 10), read(0, 1, 3), read(1, 4, 6))).toBe('linearizable')
    expect(verdict(write(1, 0, 5), write(2, 1, 4), read(2, 6, 7), read(2, 8, 9))).toBe('linearizable')
  })

  test('with a stale read, with a value that comes back, or with a value from nowhere is not', () => {
    expect(verdict(write(1, 0, 1), read(0, 2, 3))).toBe('not linearizable')
    expect(verdict(write(1, 0, 10), read(1, 1, 3), read(0, 4, 6))).toBe('not linearizable')
    expect(verdict(write(1, 0, 5), write(2, 0, 5), read(2, 6, 7), read(1, 8, 9))).toBe('not linearizable')
    expect(verdict(read(7, 0, 1))).toBe('not linearizable')
  })

  test('may have operations without an answer, which have their effect later, or never, but not before they were invoked', () => {
    expect(verdict(write(1, 0, Infinity), read(0, 1, 2), read(1, 3, 4))).toBe('linearizable')
    expect(verdict(write(1, 0, Infinity), read(0, 1, 2), read(0, 3, 4))).toBe('linearizable')
    expect(verdict(write(1, 0, Infinity), read(1, 1, 2), read(0, 3, 4))).toBe('not linearizable')
    expect(verdict(read(1, 1, 2), write(1, 3, Infinity))).toBe('not linearizable')
    // of two that are alike each may have its effect once
    const twice = [write(1, 0, Infinity), write(1, 0, Infinity)]
    expect(verdict(...twice, read(1, 1, 2), write(2, 3, 4), read(1, 5, 6))).toBe('linearizable')
    expect(verdict(...twice, read(1, 1, 2), write(2, 3, 4), read(1, 5, 6), write(2, 7, 8), read(1, 9, 10))).toBe(
      'not linearizable',
    )
  })

  test('is judged as by a search through all orders, whatever it is', () => {
    const time = fc.tuple(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 0, max: 5 }))
    const op = fc
      .record({ verb: fc.constantFrom('write', 'read'), value: fc.integer({ min: 0, max: 2 }), time, open: fc.nat(5) })
      .map(({ verb, value, time: [from, lasts], open }): Op => {
        const to = open === 0 ? Infinity : from + lasts
        if (verb === 'write') return { ...write(value, from, to), output: open === 0 ? undefined : null }
        return open === 0 ? { do: 'read', from, to } : read(value, from, to)
      })
    const found = { linearizable: 0, 'not linearizable': 0, undecided: 0 }
    fc.assert(
      fc.property(fc.array(op, { maxLength: 6 }), (history) => {
        const { is } = check(register, history)
        found[is]++
        expect(is).toBe(byAllOrders(history) ? 'linearizable' : 'not linearizable')
      }),
      { numRuns: 3_000, seed: 22 },
    )
    expect(found.linearizable).toBeGreaterThan(300)
    expect(found['not linearizable']).toBeGreaterThan(300)
  })

  function byAllOrders(left: Op[], state = register.initial): boolean {
    if (left.every(({ to }) => to === Infinity)) return true
    const latest = Math.min(...left.map(({ to }) => to))
    return left.some((op, i) => {
      if (op.from > latest) return false
      const window = { earliest: 0, latest }
      return register.step(state, op, window).some((next) => byAllOrders(left.toSpliced(i, 1), next))
    })
  }

  test('of fifty thousand operations of fifty processes is judged in about as many steps', () => {
    const history = Array.from({ length: 50_000 }, (_, i) => {
      const of = Math.floor(i / 2)
      return i % 2 === 0 ? write(of, i - 40, i + 40) : read(of, i - 20, i + 60)
    })
    const open = Array.from({ length: 2_000 }, (_, i) => write(-i, 25 * i, Infinity))
    expect(check(register, [...history, ...open], 120_000).is).toBe('linearizable')
  })

  test('that needs too many steps is undecided, and not called right', () => {
    const writes = Array.from({ length: 24 }, (_, i) => write(i + 1, 0, 10))
    expect(check(register, [...writes, read(99, 11, 12)], 1_000).is).toBe('undecided')
  })
})

test('a culprit is the shortest prefix that is not linearizable, with what cannot be next', () => {
  const before = Array.from({ length: 100 }, (_, i) => write(i, 10 * i, 10 * i + 5))
  const wrong = read(7, 2_000, 2_005)
  const after = Array.from({ length: 100 }, (_, i) => write(i, 3_000 + 10 * i, 3_000 + 10 * i + 5))
  const found = check(register, [...after, wrong, ...before])
  if (found.is !== 'not linearizable') throw new Error(found.is)
  expect(found.culprit).toMatchObject({ operations: 101, state: 99, impossible: [wrong] })
  expect(found.culprit.placed.at(-1)).toEqual(before.at(-1))
})

test('a prefix has what was invoked by then, and knows no later answer', () => {
  const [early, late, never] = [write(1, 0, 1), write(2, 1, 9), write(3, 5, 6)]
  expect(prefix([early, late, never], 4)).toEqual([early, { ...late, to: Infinity, output: undefined }])
})

test('an object that may change by itself has all its next states tried, within the time that is left', () => {
  // a light that goes out by itself 10 ms after it was lit
  interface Light extends Timed {
    do: 'light' | 'look'
  }
  const light: Model<number, Light> = {
    initial: -Infinity,
    key: String,
    step: (until, { do: verb, output }, { earliest, latest }) => {
      if (verb === 'light') return [earliest + 10]
      return output === 'dark' ? (latest >= until ? [-Infinity] : []) : until > -Infinity ? [until] : []
    },
  }
  const lit: Light = { do: 'light', from: 0, to: 1, output: null }
  const look = (output: string, at: number): Light => ({ do: 'look', from: at, to: at + 1, output })
  expect(check(light, [lit, look('light', 3), look('light', 12), look('dark', 14)]).is).toBe('linearizable')
  expect(check(light, [lit, look('dark', 5)]).is).toBe('not linearizable')
  expect(check(light, [lit, look('dark', 14), look('light', 16)]).is).toBe('not linearizable')
})
