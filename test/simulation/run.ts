/**
 * `npm run simulate [-- --minutes M] [--seed S] [--seeds N] [--processes P]`: worlds from the seeds S, S + 1, …, on all cores, until the time is over
 * or N are done. It prints how far it is, and each promise that was broken: its seed, made as small as it could be, and the command that
 * runs it again to the same step. Its exit code is 1 then.
 *
 * `--only S` runs one world and prints its last statements; `--without`, `--callers-without` and `--life` make it smaller.
 */
import { fork } from 'node:child_process'
import * as os from 'node:os'
import { parseArgs } from 'node:util'
import { KINDS, type Kind } from './faults.ts'
import { command, shrink } from './shrink.ts'
import { type Outcome, simulate } from './simulate.ts'

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '1' },
    seed: { type: 'string', default: '1' },
    seeds: { type: 'string' },
    processes: { type: 'string', default: String(os.availableParallelism()) },
    only: { type: 'string' },
    without: { type: 'string', default: '' },
    'callers-without': { type: 'string', default: '' },
    life: { type: 'string' },
  },
})

const numbers = { ...values, most: values.seeds ?? '1000000000' }
for (const [option, min] of [
  ['minutes', 0],
  ['seed', 1],
  ['most', 1],
  ['processes', 1],
] as const) {
  const value = Number(numbers[option])
  if (!(value >= min) || (option !== 'minutes' && !Number.isInteger(value))) {
    console.error(
      `--${option === 'most' ? 'seeds' : option}: ${option === 'minutes' ? 'a number ≥ 0' : 'an integer ≥ 1'}, got ${numbers[option]}`,
    )
    process.exit(2)
  }
}

if (values.only !== undefined) await one(Number(values.only))
else if (process.send) await worker()
else await all()

/** Runs one world, and prints what was done in it. */
async function one(seed: number): Promise<void> {
  const kinds = values.without.split(',').filter((kind): kind is Kind => KINDS.includes(kind as Kind))
  const callers = values['callers-without'].split(',').filter(Boolean).map(Number)
  const said: string[] = []
  const without = { kinds, callers, ...(values.life !== undefined && { lifeMs: Number(values.life) }) }
  const { violation, steps } = await simulate(seed, without, (line) => said.push(line))
  console.log(said.slice(-20_000).join('\n'))
  console.log(violation === undefined ? `Every promise was kept, in ${steps} steps.` : `${violation}, at step ${steps}`)
  process.exit(violation === undefined ? 0 : 1)
}

/** Runs the seeds that it is sent, and answers with each outcome. */
async function worker(): Promise<void> {
  process.on('disconnect', () => process.exit())
  process.on('message', async (seed: number) => process.send?.(await simulate(seed)))
}

async function all(): Promise<void> {
  const since = performance.now()
  const untilMs = Number(values.minutes) * 60_000
  const first = Number(values.seed)
  const last = first + Number(numbers.most)
  let next = first
  let [done, steps, grants] = [0, 0, 0]
  const broken: Outcome[] = []
  const said = () =>
    `${done} worlds, ${steps} steps, ${grants} grants, ${broken.length} broken promises, ${Math.round((performance.now() - since) / 1_000)} s`
  const progress = setInterval(() => console.log(said()), 10_000)
  await Promise.all(
    Array.from({ length: Number(values.processes) }, () => {
      const child = fork(import.meta.filename, process.argv.slice(2))
      const { promise, resolve } = Promise.withResolvers<void>()
      const more = () => {
        const over =
          next >= last || broken.length >= 5 || (values.seeds === undefined && performance.now() - since > untilMs)
        if (over) child.disconnect()
        else child.send(next++)
      }
      child.on('message', (outcome: Outcome) => {
        done++
        steps += outcome.steps
        grants += outcome.grants
        if (outcome.violation !== undefined) broken.push(outcome)
        more()
      })
      child.on('exit', (code) => {
        if (code !== 0)
          broken.push({
            seed: next - 1,
            steps: 0,
            grants: 0,
            endedAt: 0,
            callers: [],
            violation: `its process ended with ${code}`,
          })
        resolve()
      })
      more()
      return promise
    }),
  )
  clearInterval(progress)
  for (const each of broken) {
    const { without, outcome } = await shrink(each)
    console.error(`seed ${each.seed}: ${outcome.violation}\n  ${command(each.seed, without)}`)
  }
  console.log(`seeds ${first} to ${next - 1}: ${said()}`)
  process.exit(broken.length > 0 ? 1 : 0)
}
