/** The Worker that is deployed, but it soon finds out that a client has gone: workerd tells at the second write. */
import { worker } from '../../../functions/adapters/cloudflare.ts'
import { createEvents } from '../../../lib/event/index.ts'
import { createTasks } from '../../../lib/task/index.ts'

export default worker({ tasks: createTasks, events: createEvents, keepAliveMs: 200 })
