/** The Worker that is deployed, but it notices sooner that a client has gone: workerd reports that at the second write. */
import { worker } from '../../../functions/adapters/cloudflare.ts'
import { createEvents } from '../../../lib/event/index.ts'
import { createTasks } from '../../../lib/task/index.ts'

export default worker({ tasks: createTasks, events: createEvents, keepAliveMs: 200 })
