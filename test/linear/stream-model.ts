/**
 * A stream: appends put events at its end, all of one or none, at positions without gaps; a read returns what is there, up to the
 * end. So an append that is acknowledged is in every read that begins later, and a position that was read never changes.
 */
import type { Model } from './checker.ts'
import type { Output, Recorded } from './record.ts'

/** The log is a list from its end: all states share what they have in common. */
export interface StreamState {
  /** A number for this log, and no other. */
  id: number
  last: number
  end: Append | undefined
}
interface Append {
  tag: string
  first: number
  last: number
  before: Append | undefined
}

type Expected = 'any' | 'none' | 'exists' | number
type Answer = Exclude<Output, 'none'> & {
  first?: number
  last?: number
  /** The position, of an append that was refused by it. */
  actual?: number
  /** Of a read: position, append, and place in the append. */
  events?: [position: number, tag: string, i: number][]
}

/** A model for one stream. Appends: `tag`, `count`, `expected`. Reads: `from`, `limit`. */
export function streamModel(): Model<StreamState, Recorded> {
  const logs = new Map<string, number>()
  const idOf = (before: number, tag: string) => {
    const key = `${before} ${tag}`
    const known = logs.get(key)
    if (known !== undefined) return known
    logs.set(key, logs.size + 1)
    return logs.size
  }
  return {
    initial: { id: 0, last: 0, end: undefined },
    key: ({ id }) => String(id),
    reads: ({ input, output }) => input.do === 'read' || (output as Answer | undefined)?.actual !== undefined,
    step(state, { input, output }) {
      const answer = output as Answer | undefined
      if (input.do === 'read') return !answer || isRead(state, input, answer.events ?? []) ? [state] : []
      if (input.do !== 'append') throw new Error(`The model has no ${input.do}`)
      const expected = (input.expected ?? 'any') as Expected
      if (answer?.actual !== undefined) {
        return answer.actual === state.last && !isExpected(expected, state.last) ? [state] : []
      }
      const tag = input.tag as string
      const [first, last] = [state.last + 1, state.last + (input.count as number)]
      if (!isExpected(expected, state.last) || (answer && (answer.first !== first || answer.last !== last))) return []
      return [{ id: idOf(state.id, tag), last, end: { tag, first, last, before: state.end } }]
    },
  }
}

function isExpected(expected: Expected, last: number): boolean {
  if (expected === 'any') return true
  if (expected === 'exists') return last > 0
  return last === (expected === 'none' ? 0 : expected)
}

function isRead(
  state: StreamState,
  { from, limit }: { [what: string]: unknown },
  events: NonNullable<Answer['events']>,
) {
  const first = from as number
  const there = Math.max(Math.min(state.last - first + 1, limit as number), 0)
  if (events.length !== there) return false
  let append = state.end
  for (const [position, tag, i] of events.toReversed()) {
    while (append && append.first > position) append = append.before
    if (append?.tag !== tag || append.first + i !== position) return false
  }
  return events.every(([position], i) => position === first + i)
}
