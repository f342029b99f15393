/** A process that makes every room, and neither uses nor closes any; for close.test.ts. */
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'

const lockstep = createLockstep({ connectionString: process.argv[2] as string })
createTasks(lockstep).define('unused', () => {})
createEvents(lockstep).subscribe()
lockstep.leaders.observe('unused')
