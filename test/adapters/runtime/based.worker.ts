/** A Worker below a base path. */
import { worker } from '../../../functions/adapters/cloudflare.ts'

export default worker({ basePath: '/api/coord' })
