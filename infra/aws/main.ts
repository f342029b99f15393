/** What Lambda loads: all rooms. A function of yours that has jobs to do defines its queues where `createTasks` stands. */
import { lambda } from '../../functions/adapters/lambda.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { ntp } from '../../lib/time/ntp/index.ts'

// None by default: in a VPC without a way out, nobody answers.
const { LOCKSTEP_NTP_SERVERS: servers = 'off' } = process.env
const time = servers === 'off' ? {} : { ntp: ntp({ servers: servers.split(',').map((server) => server.trim()) }) }

export const { handler, stream, scheduled } = lambda({ tasks: createTasks, events: createEvents, ...time })
