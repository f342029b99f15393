/**
 * The two clouds, each in its runtime: `npm run bench -- clouds`.
 *
 * - Weight: the size of the upload, in kB of gzip. Lambda unpacks it at a cold start; a Worker has a limit (3 MB on the free plan).
 * - Cold: from the start to the first answer of `/readyz`, which is one statement. For Lambda without the work of AWS before that:
 *   no micro-VM is made and no archive is fetched. For the Worker without Cloudflare's network, but with the start of workerd.
 * - Warm: a lock is acquired and released, again and again, compared with Node. Node keeps its connections, and so does a Lambda;
 *   a Worker opens one for each of the two requests. Without a pooler that is a new backend each time: PostgreSQL needs about
 *   15 ms to start it, and the same time again to plan our functions. Hyperdrive keeps backends; here PgBouncer stands for it.
 *
 * All requests come from this process, so the clients share the cores with the servers.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { gzipSync } from 'node:zlib'
import { freePort } from '../../lib/setup/guarded-process.ts'
import {
  ask,
  lambdaEnv,
  lambdaFolder,
  type Runtime,
  startLambda,
  startNode,
  startWorker,
} from '../adapters/runtime/runtimes.ts'
import { dryRun } from '../adapters/runtime/wrangler.ts'
import { pgbouncer, pgbouncerAvailable } from '../support/pgbouncer.ts'
import {
  atOnce,
  byTurns,
  figure,
  type Line,
  ratio,
  type Sample,
  type Settings,
  spread,
  WrongResult,
} from './harness.ts'
import type { Row, Servers } from './servers.ts'

export const CLOUDS: Record<string, Row> = { weight, cold, warm }

const LEAN = path.resolve(import.meta.dirname, '../adapters/runtime/lean.worker.ts')
const LOCKS = path.resolve(import.meta.dirname, '../adapters/runtime/locks.worker.ts')

async function weight(): Promise<Line[]> {
  const lambda = gzipSync(fs.readFileSync(path.join(await lambdaFolder(), 'index.mjs'))).length
  const rows = [
    ['Lambda, everything', lambda, 275],
    ['a Worker, everything', (await dryRun()).bytes, 280],
    ['a Worker without tasks', (await dryRun(LEAN)).bytes, 155],
    ['a Worker of locks, leaders and time', (await dryRun(LOCKS)).bytes, 150],
  ] as const
  return rows.map(([row, bytes, most]) => {
    const kB = bytes / 1_000
    return {
      row: `${row}: kB of gzip`,
      beside: '–',
      target: { atMost: most },
      measured: { median: kB, min: kB, max: kB },
      of: 'count',
      rates: '–',
    }
  })
}

async function cold({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  await lambdaFolder()
  const starts = {
    Node: () => startNodeProcess(databaseUrl),
    Lambda: () => startLambda(lambdaEnv(databaseUrl)),
    'a Worker': () => startWorker(databaseUrl, 'off'),
  }
  const lines: Line[] = []
  for (const [name, start] of Object.entries(starts)) {
    const times: number[] = []
    for (let round = 0; round < settings.rounds; round++) {
      const since = performance.now()
      await using runtime: Runtime = await start()
      const { status } = await ask(runtime, '/readyz')
      times.push(performance.now() - since)
      if (status !== 200) throw new WrongResult(`${name} answered ${status}`)
    }
    console.error(`cold: ${name} ${times.map(figure).join(' · ')} ms`)
    lines.push({
      row: `${name}, cold: ms to the first answer`,
      beside: '–',
      measured: spread(times),
      of: 'count',
      rates: '–',
    })
  }
  return lines
}

/** Starts it as `npx lockstep` does, in its own process. */
async function startNodeProcess(url: string): Promise<Runtime> {
  const port = await freePort()
  const env = { ...process.env, DATABASE_URL: url, PORT: String(port), LOCKSTEP_NTP_SERVERS: 'off' }
  const cli = path.resolve(import.meta.dirname, '../../functions/cli/index.ts')
  const child = spawn(process.execPath, [cli, 'start'], { env, stdio: ['ignore', 'pipe', 'inherit'] })
  for await (const bytes of child.stdout) if (String(bytes).includes('listening')) break
  return {
    fetch: (at, asked) => fetch(`http://127.0.0.1:${port}${at}`, asked),
    follow: () => Promise.reject(new Error('not here')),
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL')
      await once(child, 'exit')
    },
  }
}

async function warm({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  await using node = await startNode(databaseUrl, 'off')
  await using lambda = await startLambda(lambdaEnv(databaseUrl))
  await using worker = await startWorker(databaseUrl, 'off')
  await using stack = new AsyncDisposableStack()
  const pooler = pgbouncerAvailable() ? await pgbouncer(databaseUrl, {}) : undefined
  if (pooler) stack.defer(() => pooler.stop())
  const pooled = pooler && stack.use(await startWorker(pooler.url, 'off'))
  const cycles = (runtime: Runtime, name: string) => (seconds: number) =>
    atOnce(1, seconds, async () => {
      const granted = await ask(runtime, `/v1/locks/${name}`, 'POST', {})
      if (granted.status !== 201) throw new WrongResult(`${name} answered ${granted.status}`)
      const { status } = await ask(runtime, `/v1/locks/${name}?token=${granted.json.token}`, 'DELETE')
      if (status !== 204) throw new WrongResult(`${name} answered ${status}`)
    })
  const samples = await byTurns(
    'warm',
    {
      node: cycles(node, 'node'),
      lambda: cycles(lambda, 'lambda'),
      worker: cycles(worker, 'worker'),
      pooled: pooled && cycles(pooled, 'pooled'),
    },
    settings,
  )
  const ms = (of: Sample[]) => `${figure(1e3 / spread(of.map(({ rate }) => rate)).median)} ms`
  const rows: [string, Sample[]][] = [
    ['Lambda', samples.lambda],
    ['a Worker', samples.worker],
    ['a Worker through PgBouncer', samples.pooled],
  ]
  return rows.map(([name, of]) => ({
    row: `${name}, warm: acquire + release`,
    beside: 'time of Node',
    measured: of.length > 0 ? ratio(samples.node, of) : 'not measured: PgBouncer not found (Debian: pgbouncer)',
    rates: of.length > 0 ? `${ms(of)} · Node ${ms(samples.node)}` : '–',
  }))
}
