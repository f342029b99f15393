/** Many worlds, one after another. */
import { type Outcome, simulate } from './simulate.ts'

/** Runs so many worlds from a seed on. @returns those that broke a promise. */
export async function brokenIn(first: number, count: number): Promise<Outcome[]> {
  const broken: Outcome[] = []
  for (let seed = first; seed < first + count; seed++) {
    const outcome = await simulate(seed)
    if (outcome.violation !== undefined) broken.push(outcome)
  }
  return broken
}
