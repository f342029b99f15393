/** The Worker, with all rooms. Without `tasks` its bundle is half as large. */
import { worker } from '../../functions/adapters/cloudflare.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createTasks } from '../../lib/task/index.ts'

export default worker({ tasks: createTasks, events: createEvents })
