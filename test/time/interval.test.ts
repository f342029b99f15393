/** The interval arithmetic: the promises of the vote and of an offset, in many thousands of seeded cases. */
import { describe, expect, test } from 'vitest'
import { agree, bracket, type Interval, middle, Offset, ppm, width } from '../../lib/time/interval.ts'
import { seeded } from '../chaos/random.ts'

const has = ({ lo, hi }: Interval, x: number) => lo <= x && x <= hi

/** The popular form of Marzullo's algorithm: the region where most intervals overlap. A test shows that it is wrong. */
function bestOverlap(intervals: Interval[]): Interval {
  const edges = intervals.flatMap(({ lo, hi }) => [
    { at: lo, step: 1 },
    { at: hi, step: -1 },
  ])
  edges.sort((a, b) => a.at - b.at || b.step - a.step)
  let [depth, most, lo, hi] = [0, 0, Number.NaN, Number.NaN]
  for (const [i, { at, step }] of edges.entries()) {
    depth += step
    if (step > 0 && depth > most) [most, lo, hi] = [depth, at, edges[i + 1]?.at ?? at]
  }
  return { lo, hi }
}

describe('the vote', () => {
  /** n servers, at most f of them wrong; the truth is 0. */
  function cases(seed: number, count: number, each: (intervals: Interval[], f: number, wrong: number[]) => void): void {
    const next = seeded(seed)
    for (let i = 0; i < count; i++) {
      const n = 3 + Math.floor(next() * 7)
      const f = Math.floor((n - 1) / 2)
      const wrong = Math.floor(next() * (f + 1))
      const together = next() * 20 - 10 // wrong servers may agree
      const intervals = Array.from({ length: n }, (_, k) => {
        const w = next() * 10
        if (k >= wrong) return { lo: -next() * w, hi: next() * w }
        const at = next() < 0.5 ? together : next() * 40 - 20
        return { lo: at - w / 2, hi: at + w / 2 }
      })
      each(intervals, f, [...Array(wrong).keys()])
    }
  }

  test('contains the truth in each of 200,000 cases with at most f wrong servers', () => {
    cases(11, 200_000, (intervals, f) => {
      const result = agree(intervals, intervals.length - f)
      if (!result || !has(result, 0)) throw new Error(`Missed: ${JSON.stringify({ intervals, f, result })}`)
    })
  })

  test('the region where most overlap misses the truth in some of the same cases', () => {
    let missed = 0
    cases(11, 20_000, (intervals) => {
      if (!has(bestOverlap(intervals), 0)) missed += 1
    })
    expect(missed).toBeGreaterThan(500)
  })

  test('names the intervals outside the result, and none that contains the truth', () => {
    cases(12, 20_000, (intervals, f, wrong) => {
      const result = agree(intervals, intervals.length - f)
      for (const [i, each] of intervals.entries()) {
        const outside = !result?.with[i]
        if (outside && !wrong.includes(i)) throw new Error(`Named, but right: ${JSON.stringify({ intervals, i })}`)
        expect(outside).toBe(!result || each.hi < result.lo || each.lo > result.hi)
      }
    })
  })

  test('touching intervals agree; without enough of them there is no result', () => {
    expect(
      agree(
        [
          { lo: 0, hi: 1 },
          { lo: 1, hi: 2 },
          { lo: 5, hi: 6 },
        ],
        2,
      ),
    ).toEqual({
      ...{ lo: 1, hi: 1 },
      with: [true, true, false],
    })
    expect(
      agree(
        [
          { lo: 0, hi: 1 },
          { lo: 2, hi: 3 },
          { lo: 5, hi: 6 },
        ],
        2,
      ),
    ).toBeNull()
    expect(agree([{ lo: 0, hi: 1 }], 2)).toBeNull()
    expect(agree([], 1)).toBeNull()
  })

  test('is the hull where two majorities are possible', () => {
    const intervals = [
      { lo: 0, hi: 4 },
      { lo: 3, hi: 9 },
      { lo: 8, hi: 12 },
    ]
    expect(agree(intervals, 2)).toMatchObject({ lo: 3, hi: 9 })
  })
})

describe('an offset', () => {
  /** Reads another clock, `rate` ppm faster, through delays in both directions. Calls `each` after each sample. */
  function watch(
    seed: number,
    rate: number,
    samples: number,
    each: (offset: Offset, at: number, truth: number) => void,
  ) {
    const next = seeded(seed)
    const offset = new Offset(ppm(100))
    const other = (m: number) => 1.7e15 + m * (1 + rate * 1e-6)
    let m = 0
    for (let i = 0; i < samples; i++) {
      m += next() * 20e6
      const [there, back] = [-Math.log(1 - next()) * 3_000, -Math.log(1 - next()) * 3_000]
      const read = Math.floor(other(m + there))
      const after = m + there + back
      const jump = offset.add(bracket(m, after, read, read + 1, ppm(100)), after)
      if (jump !== null) throw new Error(`False alarm at sample ${i} of seed ${seed}: ${jump}`)
      each(offset, after, other(after) - after)
      const later = after + next() * 60e6
      each(offset, later, other(later) - later)
    }
  }

  test.each([-99, -40, 0, 17, 99])(
    'to a clock that is %i ppm off always contains the truth, without a false alarm',
    (rate) => {
      for (let seed = 1; seed <= 20; seed++) {
        watch(seed, rate, 500, (offset, at, truth) => {
          if (!has(offset.at(at), truth)) throw new Error(`Missed: seed ${seed}`)
          if (!has(offset.at(at), offset.best(at))) throw new Error(`An estimate outside: seed ${seed}`)
        })
      }
    },
  )

  test('to a clock that is 3,000 ppm off, with 100 assumed, misses the truth or reports a jump', () => {
    let missed = 0
    let found = 0
    for (let seed = 1; seed <= 20; seed++) {
      try {
        watch(seed, 3_000, 500, (offset, at, truth) => {
          if (!has(offset.at(at), truth)) missed += 1
        })
      } catch {
        found += 1
      }
    }
    expect(missed).toBeGreaterThan(0)
    expect(found).toBe(20)
  })

  test('narrows to its fastest sample, and takes its best estimate from that', () => {
    const offset = new Offset(0)
    offset.add({ lo: -500, hi: 100 }, 0)
    offset.add({ lo: -10, hi: 10 }, 1)
    offset.add({ lo: -5, hi: 900 }, 2)
    expect(offset.at(3)).toEqual({ lo: -5, hi: 10 })
    expect(offset.best(3)).toBe(0)
    expect(width(offset.at(3))).toBe(15)
  })

  test('that jumps reports by how much, and drops the earlier samples', () => {
    const offset = new Offset(ppm(100))
    expect(offset.known).toBe(false)
    expect(offset.add({ lo: 0, hi: 10 }, 0)).toBeNull()
    expect(offset.add({ lo: 2_000_000, hi: 2_000_010 }, 1_000)).toBeCloseTo(2_000_000, 0)
    expect(middle(offset.at(1_000))).toBe(2_000_005)
    expect(offset.best(1_000)).toBe(2_000_005)
    offset.forget()
    expect(offset.known).toBe(false)
    expect(offset.at(5)).toEqual({ lo: -Infinity, hi: Infinity })
  })
})
