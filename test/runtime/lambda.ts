/**
 * A Lambda function in its shape: Hono's handler for API Gateway, and a Lockstep that is kept from one invocation to the
 * next. Events come as lines of JSON on stdin, answers go as lines to stdout; nothing else runs between two of them.
 *
 *     node lambda.ts <connection string> [NTP servers, by commas]
 */
import { createInterface } from 'node:readline'
import { handle } from 'hono/aws-lambda'
import { createApp } from '../../functions/app.ts'
import { createLockstep } from '../../lib/index.ts'
import { ntp } from '../../lib/ntp.ts'

const [connectionString = '', servers] = process.argv.slice(2)
const time = servers ? { ntp: ntp({ servers: servers.split(',') }) } : {}
const lockstep = createLockstep({ connectionString, directConnectionString: null, max: 1, time })
const handler = handle(createApp(lockstep))

for await (const line of createInterface({ input: process.stdin })) {
  const answer = await handler(JSON.parse(line))
  console.log(JSON.stringify(answer))
}
await lockstep.close()
