/** The Worker that is deployed, with a short keep-alive: workerd reports that a client has gone at the second write. */
import { worker } from '../../../functions/adapters/cloudflare.ts'
import { createEvents } from '../../../lib/event/index.ts'
import { createTasks } from '../../../lib/task/index.ts'

export default worker({ tasks: createTasks, events: createEvents, keepAliveMs: 200 })
