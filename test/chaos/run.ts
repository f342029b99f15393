/**
 * `npm run chaos -- [--workers 64] [--seconds 60] [--seed N] [--kind connection|lease|transaction|mixed]`
 *
 * The long proof: 64 processes on one counter, under each kind of hold and under all mixed, a minute each. One line of
 * JSON for each; exit code 1 when anything was violated.
 */
import { parseArgs } from 'node:util'
import { migrate } from '../../lib/migrate.ts'
import { startPostgres } from '../../lib/postgres.ts'
import { type Kind, runCounter } from './counter.ts'

const { values } = parseArgs({
  options: {
    workers: { type: 'string', default: '64' },
    seconds: { type: 'string', default: '60' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
    kind: { type: 'string' },
  },
})
const server = await startPostgres({ settings: { max_connections: Number(values.workers) * 8 + 100 } })
process.once('SIGINT', () => void server.stop().then(() => process.exit(130)))
try {
  await migrate(server.url)
  const kinds = values.kind ? [values.kind as Kind] : (['connection', 'lease', 'transaction', 'mixed'] as const)
  for (const kind of kinds) {
    const plan = { kind, workers: Number(values.workers), seconds: Number(values.seconds), seed: Number(values.seed) }
    console.error(`${kind}: ${plan.workers} processes, ${plan.seconds} s, seed ${plan.seed} …`)
    const { violations, ...outcome } = await runCounter({ url: server.url, ...plan })
    console.log(JSON.stringify({ ...plan, ...outcome, violations: violations.length }))
    for (const violation of violations.slice(0, 20)) console.error(`  ${violation}`)
    if (violations.length > 0) process.exitCode = 1
  }
} finally {
  await server.stop()
}
