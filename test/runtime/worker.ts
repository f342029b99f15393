/**
 * A Cloudflare Worker that answers for Lockstep, to be run under workerd by a test.
 *
 * A Worker has neither UDP nor a monotonic clock, and keeps no connection between two requests: a socket belongs to the
 * request that opened it, and the next one that uses it waits for ever. So each request makes a Lockstep, and closes it
 * when it has answered.
 */
import { createApp } from '../../functions/app.ts'
import { createLockstep } from '../../lib/index.ts'

/** What is bound to it: see processes.ts. */
interface Bindings {
  DATABASE_URL: string
}

/** What is needed of Cloudflare's ExecutionContext. */
interface Context {
  /** Lets the request live on after its answer. */
  waitUntil(work: Promise<unknown>): void
}

export default {
  async fetch(request: Request, { DATABASE_URL }: Bindings, context: Context): Promise<Response> {
    const lockstep = createLockstep({ connectionString: DATABASE_URL, directConnectionString: null, max: 1 })
    try {
      return await createApp(lockstep).fetch(request)
    } finally {
      context.waitUntil(lockstep.close())
    }
  },
}
