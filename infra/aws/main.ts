/** The handlers of Lambda, with all rooms. To process jobs, define their queues in place of `createTasks`. */
import { lambda } from '../../functions/adapters/lambda.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { ntp } from '../../lib/time/ntp/index.ts'

// Off by default: in a VPC without a way out there are no responses.
const { LOCKSTEP_NTP_SERVERS: list = 'off', LOCKSTEP_TRUSTED_NTP_SERVER: trusted } = process.env
const servers = list === 'off' ? undefined : list.split(',').map((server) => server.trim())
const time = servers || trusted ? { ntp: ntp({ servers, trusted: trusted || undefined }) } : {} // refuses both together

export const { handler, stream, scheduled } = lambda({ tasks: createTasks, events: createEvents, ...time })
