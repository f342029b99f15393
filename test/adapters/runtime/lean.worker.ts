/** A Worker without tasks: no pg-boss in it. */
import { worker } from '../../../functions/adapters/cloudflare.ts'
import { createEvents } from '../../../lib/event/index.ts'

export default worker({ events: createEvents })
