/** A process that holds a name by its connection and says what becomes of it, or waits for it; for tests that stop it. */
import { createLockstep } from '../../lib/index.ts'

const [connectionString = '', name = '', how = 'hold'] = process.argv.slice(2)
const lockstep = createLockstep({ connectionString })
if (how === 'wait') {
  await lockstep.locks.transaction(name, async () => {})
  process.exit()
}
const held = await lockstep.locks.acquire(name)
held.signal.addEventListener('abort', () => {
  console.log(`lost ${held.signal.reason.code}`)
  process.exit()
})
let last = Date.now()
setInterval(() => {
  // Stood still: what is believed now, before any other timer or answer had its turn?
  if (Date.now() - last > 5_000) console.log(`trusted ${held.isTrusted()}`)
  last = Date.now()
}, 50)
console.log('held')
