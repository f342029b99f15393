/** Judges whole histories: each object by itself, because a history is linearizable if that of each of its objects is. */
import { check, type Model, type Verdict } from './checker.ts'
import type { Recorded } from './record.ts'

export interface Judged {
  /** How many operations were judged, and of how many objects. */
  operations: number
  objects: number
  /** For each object whose history is not linearizable, or was not decided, a sentence with the operations. */
  violations: string[]
}

/** @param prepare  what is done to each history before. */
export function judge<State>(
  histories: Map<string, Recorded[]>,
  modelOf: () => Model<State, Recorded>,
  prepare: (history: Recorded[]) => Recorded[] = (history) => history,
): Judged {
  let operations = 0
  const violations: string[] = []
  for (const [object, history] of histories) {
    operations += history.length
    const verdict = check(modelOf(), prepare(history))
    if (verdict.is !== 'linearizable') violations.push(told(object, verdict))
  }
  return { operations, objects: histories.size, violations }
}

function told<State>(object: string, verdict: Exclude<Verdict<State, Recorded>, { is: 'linearizable' }>): string {
  if (verdict.is === 'undecided') return `${object}: not decided whether it is linearizable in ${verdict.steps} steps`
  const { operations, placed, state, impossible } = verdict.culprit
  return [
    `${object} is not linearizable: after ${operations} operations none of these can be next:`,
    ...impossible.map(line),
    `  in the state ${JSON.stringify(state, shallow)}, after`,
    ...placed.map(line),
  ].join('\n')
}

function line({ process, input, output, from, to }: Recorded): string {
  const answer = output === undefined ? 'no answer' : JSON.stringify(output)
  const { do: verb, ...what } = input
  return `    ${from.toFixed(3)}–${to.toFixed(3)} ${process}: ${verb} ${JSON.stringify(what)} → ${answer}`
}

const shallow = (key: string, value: unknown) =>
  key === 'before' ? undefined : value === -Infinity ? 'any time' : value
