/** A Worker of locks, leaders and time alone. */
import { worker } from '../../../functions/adapters/cloudflare.ts'

export default worker()
