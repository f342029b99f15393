/** What Cloudflare loads: all rooms. A Worker without tasks leaves `tasks` out, and weighs half as much. */
import { worker } from '../../functions/adapters/cloudflare.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createTasks } from '../../lib/task/index.ts'

export default worker({ tasks: createTasks, events: createEvents })
