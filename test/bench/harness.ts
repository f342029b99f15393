/**
 * The method: every measurement is a comparison of two contenders, never of one alone.
 *
 * A rate depends as much on the machine, and on the other programs on it, as on the code: here the rate of the same code
 * changed by half between two runs. So the contenders of a row take turns, in rounds; each round begins with the next
 * contender. A ratio compares two turns of the same round, which are close in time. The report gives the median of these
 * ratios, with the smallest and the largest. A change of the machine affects both parts of a ratio, and cancels out.
 *
 * The first turn of each contender, half as long but at least half a second, is not counted: it opens connections and
 * compiles code.
 *
 * A slow result never fails a run; a wrong result does.
 */

export interface Settings {
  rounds: number
  /** The duration of a turn: of each contender in each round. */
  seconds: number
}

/** One turn: the rate per second, and other figures. */
export interface Sample {
  rate: number
  [figure: string]: number
}

export interface Spread {
  median: number
  min: number
  max: number
}

/** A line of the final table. */
export interface Line {
  row: string
  beside: string
  target?: { atLeast: number } | { atMost: number }
  /** A ratio; a number, if the row has no peer; or the reason why there is none. */
  measured: Spread | string
  /** The kind of `measured`. @default 'ratio' */
  of?: 'ratio' | 'count'
  rates: string
}

/** A wrong result; a slow one is no error. */
export class WrongResult extends Error {}

/**
 * Measures the contenders in turn, and prints a line of JSON for each. The samples are in the order of the rounds. A contender
 * that is undefined has no samples.
 */
export async function byTurns<K extends string, S extends Sample>(
  row: string,
  contenders: Record<K, ((seconds: number) => Promise<S>) | undefined>,
  { rounds, seconds }: Settings,
): Promise<Record<K, S[]>> {
  const samples = Object.fromEntries(Object.keys(contenders).map((name) => [name, []])) as unknown as Record<K, S[]>
  const all = Object.entries(contenders) as [K, ((seconds: number) => Promise<S>) | undefined][]
  const turns = all.flatMap(([name, run]) => (run ? [{ name, run }] : []))
  for (const { run } of turns) await run(Math.max(seconds / 2, 0.5))
  for (let round = 0; round < rounds; round++) {
    const first = round % turns.length
    for (const { name, run } of [...turns.slice(first), ...turns.slice(0, first)]) {
      samples[name].push(await run(seconds))
    }
    const now = turns.map(({ name }) => `${name} ${figure(samples[name].at(-1)?.rate ?? Number.NaN)}/s`)
    console.error(`${row}, round ${round + 1} of ${rounds}: ${now.join(' · ')}`)
  }
  for (const { name } of turns) {
    const rate = spread(rates(samples[name]))
    console.log(JSON.stringify({ row, contender: name, rate, rounds: samples[name] }))
  }
  return samples
}

/**
 * Runs `width` loops of `cycle` concurrently. Returns the cycles per second, and for each cycle the microseconds of this process's
 * CPU time, the figure that other programs on the machine disturb least.
 */
export async function atOnce(width: number, seconds: number, cycle: (lane: number) => Promise<void>): Promise<Sample> {
  const since = performance.now()
  const until = since + seconds * 1_000
  const cpu = process.cpuUsage()
  let cycles = 0
  await Promise.all(
    Array.from({ length: width }, async (_, lane) => {
      while (performance.now() < until) {
        await cycle(lane)
        cycles += 1
      }
    }),
  )
  const { user, system } = process.cpuUsage(cpu)
  return { rate: (cycles / (performance.now() - since)) * 1_000, clientCpuMicros: (user + system) / cycles }
}

/** a ÷ b, round by round. */
export function ratio(a: Sample[], b: Sample[]): Spread {
  return spread(a.map(({ rate }, round) => rate / (b[round]?.rate ?? Number.NaN)))
}

export const rates = (samples: Sample[]) => samples.map((sample) => sample.rate)

export function spread(values: number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b)
  const at = (index: number) => sorted[index] ?? Number.NaN
  const middle = (sorted.length - 1) / 2
  return { median: (at(Math.floor(middle)) + at(Math.ceil(middle))) / 2, min: at(0), max: at(sorted.length - 1) }
}

/** The median rate, for the table. */
export const perSecond = (samples: Sample[]) => `${figure(spread(rates(samples)).median)}/s`

/** Formats a number with three significant digits. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return value > 0 ? '∞' : '–'
  return value >= 100 ? Math.round(value).toLocaleString('en') : String(Number(value.toPrecision(3)))
}

export function table(lines: Line[]): string {
  const cells = lines.map(({ row, beside, target, measured, of = 'ratio', rates }) => {
    const unit = of === 'ratio' ? ' ×' : ''
    const wanted = !target ? '–' : 'atLeast' in target ? `≥ ${target.atLeast}${unit}` : `≤ ${target.atMost}${unit}`
    if (typeof measured === 'string') return [row, beside, wanted, measured, rates, '–']
    const { median, min, max } = measured
    const met = !target || ('atLeast' in target ? median >= target.atLeast : median <= target.atMost)
    const value = `**${figure(median)}${unit}** (${figure(min)}–${figure(max)})`
    return [row, beside, wanted, value, rates, target ? (met ? 'yes' : 'no') : '–']
  })
  const head = ['row', 'beside', 'target', 'median (min–max)', 'rates', 'met']
  return [head, head.map(() => '---'), ...cells].map((row) => `| ${row.join(' | ')} |`).join('\n')
}
