/** The twins: what the simulated server answers is what PostgreSQL answers, step by step. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { seeded } from '../chaos/random.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { nextStep } from './twin/script.ts'
import { RealSide, type Side, type State, type Step, TwinSide } from './twin/side.ts'

const SCRIPTS = Number(process.env.TWIN_SCRIPTS ?? 30)
const FIRST = Number(process.env.TWIN_SEED ?? 1)
const STEPS = 30
const SESSIONS = 3
const NAMES = ['a', 'b', 'c']

let database: FreshDatabase
beforeAll(async () => {
  database = await freshDatabase({ standard: true })
})
afterAll(() => database?.close())

test('the simulated server answers each statement as PostgreSQL does, and has the same rows and locks', async () => {
  for (let seed = FIRST; seed < FIRST + SCRIPTS; seed++) await compare(seed)
}, 120_000)

async function compare(seed: number): Promise<void> {
  const t0 = performance.now()
  const random = seeded(seed)
  const twin = new TwinSide(NAMES)
  await openEnded(twin)
  const script: Step[] = []
  const simulated: State[] = []
  while (script.length < STEPS) {
    const step = nextStep(random, twin)
    script.push(step)
    simulated.push(await twin.step(step))
    await openEnded(twin)
  }
  const t1 = performance.now()
  const real = new RealSide(database, NAMES)
  try {
    await openEnded(real)
    for (const [nth, step] of script.entries()) {
      const state = await real.step(step, simulated[nth])
      const story = script.slice(0, nth + 1).map((each) => JSON.stringify(each))
      expect(simulated[nth], `seed ${seed}, step ${nth}:\n${story.join('\n')}\n`).toEqual(state)
      await openEnded(real)
    }
    expect(twin.known.order().join(), `seed ${seed}: the order of the tokens`).toBe(real.known.order().join())
    console.log('T', t1 - t0, performance.now() - t1)
  } finally {
    await real.close()
  }
}

async function openEnded(side: Side): Promise<void> {
  for (let at = 0; at < SESSIONS; at++) if (side.sessions[at]?.ended ?? true) await side.open(at)
}
