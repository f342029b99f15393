/** What Cloudflare loads: all rooms. A Worker without tasks leaves `tasks` out, and weighs half as much. */
import { worker } from '../../functions/cloudflare.ts'
import { createEvents } from '../../lib/event.ts'
import { createTasks } from '../../lib/task.ts'

export default worker({ tasks: createTasks, events: createEvents })
