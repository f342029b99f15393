/**
 * Every verb of every room, while one of its statements fails, in every way in which one can (support/faulty-wire.ts). The verb succeeds, or
 * rejects with a code of docs/errors.md. Without the fault the same call then succeeds by and by; what it was to do is done, once; and
 * when the Lockstep is closed, nothing of it is left on the server.
 *
 * What holds and jobs must keep beyond that, when many calls share their statements, is in locks.suite.ts and rooms.suite.ts.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { FAULTS, type Fault, type Wire, wire } from '../support/faulty-wire.ts'
import { leftInProcess, leftOnServer, ofProcess, type ProcessResources } from '../support/resources.ts'
import { CODES } from './codes.ts'
import { settles } from './settles.ts'
import { EVENTS } from './verbs/events.ts'
import { LEADERS, LOCKS, LOCKSTEP, TIME } from './verbs/holds.ts'
import { TASKS } from './verbs/tasks.ts'
import type { Rooms, Verb } from './verbs/verb.ts'

/** By the name that the package gives the room, and the verb. */
export const VERBS: Record<string, Record<string, Verb>> = {
  ...{ Lockstep: LOCKSTEP, Locks: LOCKS, Leaders: LEADERS, Time: TIME, Tasks: TASKS, Events: EVENTS },
}

/** The SQLSTATEs of a server that fails, and not the statement. */
const STATES = ['53200', '57014', '40001', 'XX000', '53100', '40P01', '55P03', '08006']
/** The most statements of a verb that are made to fail, one after the other; those after them are of loops. */
const MOST = 10
const AT_ONCE = 6

const rooms = (lockstep: Lockstep): Rooms => ({
  lockstep,
  tasks: createTasks(lockstep, { onError: () => {} }),
  events: createEvents(lockstep, { onError: () => {} }),
})

/** Registers the tests: `npm test` has one statement of each verb fail in one way, the long ones each statement in each way. */
export function faultsOfVerbs(which: 'short' | 'all'): void {
  let db: FreshDatabase
  let b: Rooms
  let before: ProcessResources
  beforeAll(async () => {
    before = await ofProcess()
    db = await freshDatabase()
    b = rooms(createLockstep({ connectionString: db.url }))
  })
  afterAll(async () => {
    await b?.lockstep.close()
    await db?.close()
    expect(await leftInProcess(before)).toEqual([])
  })

  const every = Object.entries(VERBS).flatMap(([room, table]) =>
    Object.entries(table).map(([name, verb]) => [`${room}.${name}`, verb] as const),
  )
  const group = which === 'all' ? describe : describe.concurrent
  group.each(every)('%s', (label, verb) => {
    const turn = every.findIndex(([each]) => each === label)
    const faults = which === 'all' ? FAULTS : [FAULTS[turn % FAULTS.length] as Fault]
    test.each(faults)('whichever of its statements meets: %s', { timeout: 300_000 }, async (fault) => {
      const { length } = await run(verb, label)
      const all = Array.from({ length: Math.min(length, MOST) }, (_, i) => ({
        nth: i + 1,
        fault,
        sqlState: STATES[(i + turn) % STATES.length] as string,
      }))
      const cases = which === 'all' ? all : [all[turn % all.length] ?? all[0]].filter((each) => each !== undefined)
      const failures: string[] = []
      while (cases.length > 0) {
        await Promise.all(
          cases.splice(0, AT_ONCE).map(async (each) => {
            try {
              await run(verb, label, each)
            } catch (error) {
              const { message, stack } = error as Error
              failures.push(
                `${JSON.stringify(each)}: ${message} ${/(?:verbs|holds|tasks|events)[\w.]*\.ts:\d+/.exec(stack ?? '')}`,
              )
            }
          }),
        )
      }
      expect(failures).toEqual([])
    })
  })

  let runs = 0

  /** Calls a verb with one fault, or none. @returns how many statements it had. */
  async function run(verb: Verb, label: string, fault?: { nth: number; fault: Fault; sqlState: string }) {
    const name = `verbs-${runs++}`
    await using line: Wire = await wire(db.url)
    const own = rooms(createLockstep({ connectionString: line.url, applicationName: name }))
    const others: Lockstep[] = []
    const also = <L extends Lockstep>(lockstep: L) => {
      others.push(lockstep)
      return lockstep
    }
    // Another process of the same run, with its own queues and workers.
    const peer = rooms(also(createLockstep({ connectionString: db.url, applicationName: `${name} peer` })))
    try {
      const call = await verb({ a: own, b: peer, url: line.url, also, name, pool: db.pool })
      line.arm(fault)
      const outcome = await settles('the verb', answerOf(call.act))
      const { length } = line.statements
      line.arm()
      if (!fault) expect(outcome.error, label).toBeUndefined()
      if (outcome.error === undefined) call.is?.(outcome.answer)
      else expect(CODES, String(outcome.error)).toContain((outcome.error as { code?: unknown }).code)
      if (fault) await settles('it succeeds by and by', succeeds(call.again ?? call.act, call.is, call.or ?? []))
      await settles('what must be true', call.afterwards?.() ?? Promise.resolve())
      return { length }
    } finally {
      await settles('close', Promise.all([own.lockstep.close(), ...others.map((each) => each.close())]))
      expect(await leftOnServer(db.url, `${name}%`)).toEqual([])
    }
  }
}

export async function answerOf(act: () => Promise<unknown>): Promise<{ answer?: unknown; error?: unknown }> {
  try {
    return { answer: await act() }
  } catch (error) {
    return { error: error ?? new Error('It rejected with nothing') }
  }
}

/** Each connection of the time of the fault may cost one more call an error. */
export async function succeeds(
  act: () => Promise<unknown>,
  is: (answer: unknown) => void = () => {},
  or: readonly string[],
) {
  for (let attempts = 1; ; attempts++) {
    const { answer, error } = await answerOf(act)
    if (error === undefined) return is(answer)
    const { code } = error as { code?: string }
    if (or.includes(code ?? '')) return
    if (attempts === 5 || code !== 'UNAVAILABLE') throw error
  }
}
