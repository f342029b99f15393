/** Makes a world that has failed smaller, as long as it fails: fewer kinds of faults, fewer callers, a shorter life. */
import { KINDS } from './faults.ts'
import { type Outcome, type Planted, simulate, type Without } from './simulate.ts'

/** @param outcome  of the whole world. @returns the smallest world found that breaks a promise too, and how it does. */
export async function shrink(outcome: Outcome, planted?: Planted): Promise<{ without: Without; outcome: Outcome }> {
  let best: { without: Without; outcome: Outcome } = { without: { kinds: [], callers: [] }, outcome }
  const attempt = async (without: Without): Promise<boolean> => {
    const next = await simulate(outcome.seed, without, undefined, planted)
    if (next.violation === undefined) return false
    best = { without, outcome: next }
    return true
  }
  await attempt({ ...best.without, lifeMs: Math.max(1, best.outcome.endedAt) })
  for (const kind of KINDS) await attempt({ ...best.without, kinds: [...best.without.kinds, kind] })
  for (const caller of outcome.callers) await attempt({ ...best.without, callers: [...best.without.callers, caller] })
  for (const part of [0.5, 0.75, 0.9, 0.95]) {
    const { lifeMs = best.outcome.endedAt } = best.without
    await attempt({ ...best.without, lifeMs: lifeMs * part })
  }
  return best
}

/** The command that runs a world again. */
export const command = (seed: number, { kinds, callers, lifeMs }: Without): string =>
  [
    `npm run simulate -- --only ${seed}`,
    ...(kinds.length > 0 ? [`--without '${kinds.join()}'`] : []),
    ...(callers.length > 0 ? [`--callers-without ${callers.join()}`] : []),
    ...(lifeMs === undefined ? [] : [`--life ${Math.round(lifeMs)}`]),
  ].join(' ')
