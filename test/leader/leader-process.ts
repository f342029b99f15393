/** A process that campaigns and leads, for tests that kill or stop it. With `observe`: one that observes. */
import { createLockstep } from '../../lib/index.ts'

const [connectionString = '', name = '', ttlMs = '', failover = 'lease'] = process.argv.slice(2)
const lockstep = createLockstep({ connectionString, applicationName: `member of ${name}` })
console.log('ready')
if (failover === 'observe') {
  const controller = new AbortController()
  const states = lockstep.leaders.observe(name, { signal: controller.signal })
  await states.next() // and no more
  controller.abort()
  await lockstep.close()
  process.exitCode = 7
} else {
  await lead()
}

async function lead() {
  const term = await lockstep.leaders.campaign(name, {
    ttlMs: Number(ttlMs),
    failover: failover as 'lease' | 'connection',
  })
  let last = Date.now()
  setInterval(() => {
    // The process was stopped: does it trust its term now, before any other timer or response was handled?
    if (Date.now() - last > 800) console.log(`trusted ${term.isTrusted()}`)
    last = Date.now()
  }, 20)
  console.log('leads')
}
