/**
 * The referee: `npm run prove -- --against redlock|etcd|zookeeper|pg-boss|bullmq|graphile [--minutes 3] [--seed N]`; without `--against`
 * one after the other, each for so long.
 *
 * A peer and Lockstep do the same work in the same processes, and the nemesis of `npm run chaos` strikes these processes: kills, pauses, cut
 * networks, clocks that are set. So each fault strikes all forms at the same moment. The table says how many effects were double, for each
 * system as it is mostly used and in the form that its documentation recommends, and what the history checker says. locks.ts and jobs.ts
 * have the experiments, lock-forms.ts and job-forms.ts the forms.
 *
 * A double effect of a peer is no failure of this program: the exit code is 1 if Lockstep breaks a promise. It promises that a row that
 * is fenced, one that sees the token in reads and writes, and a transactional handler have no double effect. 2: a server is not installed.
 */
import * as os from 'node:os'
import { parseArgs } from 'node:util'
import { startServers } from '../servers.ts'
import { proveJobs } from './jobs.ts'
import { proveLocks } from './locks.ts'
import { type Plan, type Result, rows } from './plan.ts'
import { SCHEMA } from './resource.ts'

interface Peer {
  server?: 'redis' | 'etcd' | 'zookeeper'
  prove(plan: Plan): Promise<Result[]>
}
const PEERS: Record<string, Peer> = {
  redlock: { server: 'redis', prove: (plan) => proveLocks('redlock', plan) },
  etcd: { server: 'etcd', prove: (plan) => proveLocks('etcd', plan) },
  zookeeper: { server: 'zookeeper', prove: (plan) => proveLocks('zookeeper', plan) },
  'pg-boss': { prove: (plan) => proveJobs('pg-boss', plan) },
  bullmq: { server: 'redis', prove: (plan) => proveJobs('bullmq', plan) },
  graphile: { prove: (plan) => proveJobs('graphile', plan) },
}
const PACKAGES = { redis: 'redis-server', etcd: 'etcd-server', zookeeper: 'zookeeper' }
/** The forms of Lockstep that have no double effect, by its promises. */
const PROMISED = ['token, read too', 'fenced', 'transactional']

const { values } = parseArgs({
  options: {
    against: { type: 'string', multiple: true, default: Object.keys(PEERS) },
    minutes: { type: 'string', default: '3' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
  },
})
const [seconds, seed] = [Number(values.minutes) * 60, Number(values.seed)]
const unknown = values.against.filter((peer) => !(peer in PEERS))
if (unknown.length > 0 || !(seconds > 0) || !Number.isInteger(seed)) {
  console.error(`--against: ${Object.keys(PEERS).join(', ')}. --minutes: above 0. --seed: an integer`)
  process.exit(2)
}

for (const name of values.against) {
  const { server, prove } = PEERS[name] as Peer
  await using servers = await startServers(server ? [server] : [])
  const port = server && { redis: servers.redisPort, etcd: servers.etcdPort, zookeeper: servers.zookeeperPort }[server]
  if (server && port === undefined) {
    console.error(`${name} needs a server that is not installed (Debian: apt-get install ${PACKAGES[server]})`)
    process.exitCode = 2
    continue
  }
  const { databaseUrl } = servers
  await rows(databaseUrl, SCHEMA)
  console.error(`${name}: ${seconds} s, seed ${seed} …`)
  const peerUrl = port === undefined ? databaseUrl : `tcp://127.0.0.1:${port}`
  const results = await prove({ databaseUrl, peerUrl, seconds, seed })
  for (const { faults: _, ...result } of results)
    console.log(JSON.stringify({ against: name, seed, seconds, ...result }))
  console.log(`\n${table(results)}\n`)
  const faults = Object.entries(results[0]?.faults ?? {}).map(([fault, n]) => `${n} × ${fault}`)
  console.log(
    `Seed ${seed}, ${seconds} s, ${faults.join(', ')}. ${servers.about}, Node ${process.versions.node}, ${os.cpus().length} cores.\n`,
  )
  const broken = results.filter(
    ({ system, how, doubles, lost }) => system === 'lockstep' && ((PROMISED.includes(how) && doubles > 0) || lost > 0),
  )
  for (const { how } of broken) {
    console.error(`Lockstep has broken a promise: ${how}`)
    process.exitCode = 1
  }
}
// A socket that was reset by a fault can keep Node from exiting: its clean-up never ends.
process.exit()

function table(results: Result[]): string {
  const lines = results.map(({ system, how, effects, doubles, lost, refused, history }) => [
    ...[system, how, effects, `**${doubles}**`, lost, refused, history],
  ])
  const head = ['system', 'form', 'effects', 'double', 'lost', 'refused', 'history']
  return [head, head.map(() => '---'), ...lines].map((line) => `| ${line.join(' | ')} |`).join('\n')
}
