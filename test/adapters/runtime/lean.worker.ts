/** A Worker without tasks, and so without pg-boss. */
import { worker } from '../../../functions/adapters/cloudflare.ts'
import { createEvents } from '../../../lib/event/index.ts'

export default worker({ events: createEvents })
