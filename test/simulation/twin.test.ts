/** The twins: what the simulated server answers is what PostgreSQL answers, step by step. `TEST_LONG=1` compares many more scripts. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { seeded } from '../chaos/random.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { nextElectionStep } from './twin/election-script.ts'
import { RealSide } from './twin/real-side.ts'
import { nextStep } from './twin/script.ts'
import type { Side, State, Step } from './twin/side.ts'
import { TwinSide } from './twin/twin-side.ts'

const SCRIPTS = process.env.TEST_LONG ? 300 : 5
const FIRST = Number(process.env.TWIN_SEED ?? 1)
const STEPS = 30
const SESSIONS = 3

let database: FreshDatabase
beforeAll(async () => {
  database = await freshDatabase({ standard: true })
})
afterAll(() => database?.close())

test('the simulated server answers the statements of locks as PostgreSQL does, and has the same rows and locks', async () => {
  for (let seed = FIRST; seed < FIRST + SCRIPTS; seed++) await compare(seed, ['a', 'b', 'c'], nextStep)
}, 900_000)

test('the simulated server answers the statements of elections as PostgreSQL does, and sends the same notifications', async () => {
  for (let seed = FIRST; seed < FIRST + SCRIPTS; seed++) {
    await compare(seed, ['leader\ta', 'leader\tb'], nextElectionStep)
  }
}, 900_000)

async function compare(seed: number, names: string[], next: typeof nextStep): Promise<void> {
  const random = seeded(seed)
  const twin = new TwinSide(names)
  await openEnded(twin)
  const script: Step[] = []
  const simulated: State[] = []
  const add = async (step: Step) => {
    script.push(step)
    simulated.push(await twin.step(step))
    await openEnded(twin)
  }
  while (script.length < STEPS) await add(next(random, twin))
  // At the end every session is asked once more: by then it has been sent all notifications.
  for (let session = 0; session < SESSIONS; session++) {
    if (twin.sessions[session]?.pending) await add({ cancel: session })
    if (twin.sessions[session]?.status !== 'I') await add({ session, text: 'rollback', values: [] })
  }
  for (let session = 0; session < SESSIONS; session++) await add({ session, text: 'select 1', values: [] })

  const real = new RealSide(database, names)
  try {
    await openEnded(real)
    for (const [nth, step] of script.entries()) {
      const state = await real.step(step, simulated[nth])
      const story = script.slice(0, nth + 1).map((each) => JSON.stringify(each))
      expect(simulated[nth], `seed ${seed}, step ${nth}:\n${story.join('\n')}\n`).toEqual(state)
      await openEnded(real)
    }
    expect(twin.heard(), `seed ${seed}: the notifications`).toEqual(real.heard())
    expect(twin.known.order().join(), `seed ${seed}: the order of the tokens`).toBe(real.known.order().join())
  } finally {
    await real.close()
  }
}

async function openEnded(side: Side): Promise<void> {
  for (let at = 0; at < SESSIONS; at++) if (side.sessions[at]?.ended ?? true) await side.open(at)
}
