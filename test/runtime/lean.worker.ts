/** A Worker without tasks: no pg-boss in it. */
import { worker } from '../../functions/cloudflare.ts'
import { createEvents } from '../../lib/event.ts'

export default worker({ events: createEvents })
