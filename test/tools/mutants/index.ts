/** The bugs that are put in on purpose, by room. */
import { BASE } from './base.ts'
import { DATABASE } from './database.ts'
import { EVENT } from './event.ts'
import { FUNCTIONS } from './functions.ts'
import { LEADER } from './leader.ts'
import { LEASE } from './lease.ts'
import { LOCK } from './lock.ts'
import type { Mutant } from './mutant.ts'
import { SETUP } from './setup.ts'
import { TASK } from './task.ts'
import { TIME } from './time.ts'

export type { Mutant } from './mutant.ts'

export const ROOMS: Readonly<Record<string, readonly Mutant[]>> = {
  lock: LOCK,
  lease: LEASE,
  leader: LEADER,
  task: TASK,
  event: EVENT,
  time: TIME,
  database: DATABASE,
  functions: FUNCTIONS,
  base: BASE,
  setup: SETUP,
}
