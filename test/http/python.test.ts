/**
 * The programs of docs/shell.md in another language, unchanged: a worker that claims, extends, completes and fails jobs over
 * HTTP, and a consumer that polls a group.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Server, serve } from '../../functions/adapters/node.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { textsOf } from '../support/samples.ts'
import { until } from '../support/until.ts'

function python(): boolean {
  try {
    execFileSync('python3', ['--version'])
    return true
  } catch {
    return false
  }
}

const programs = textsOf('docs/shell.md', 'python')
const programOf = (path: string) => programs.find((program) => program.includes(path)) ?? ''
const lines = (program: string) => program.split('\n').filter((line) => line.trim() !== '').length

describe.skipIf(!python())('the worker of docs/shell.md (skipped without python3)', () => {
  const program = programOf('/v1/tasks/')
  let db: FreshDatabase
  let server: Server
  let tasks: Tasks
  let folder: string
  let worker: ChildProcess
  let said = ''
  beforeAll(async () => {
    db = await freshDatabase()
    const lockstep = createLockstep({ connectionString: db.url })
    tasks = createTasks(lockstep)
    server = await serve({ lockstep, tasks, port: 0 })
    await tasks.declare('greet', { retryLimit: 0 })
    folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-python-'))
    expect(program).toContain('http://127.0.0.1:3000')
    const file = path.join(folder, 'worker.py')
    fs.writeFileSync(file, program.replace('http://127.0.0.1:3000', server.url))
    worker = spawn('python3', [file, 'greet'], { stdio: ['ignore', 'pipe', 'inherit'] })
    worker.stdout?.on('data', (text) => {
      said += text
    })
  })
  afterAll(async () => {
    worker?.kill('SIGKILL')
    if (worker?.exitCode === null && worker.signalCode === null) await once(worker, 'exit')
    fs.rmSync(folder, { recursive: true, force: true })
    await server?.close()
    await db?.close()
  })
  const post = (body: object) =>
    fetch(`${server.url}/v1/tasks/greet`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
    })

  test('is thirty-odd lines', () => {
    expect(lines(program)).toBeLessThanOrEqual(35)
  })

  test('runs a job that is waited for', async () => {
    const answer = await post({ data: { name: 'Grace' }, waitMs: 20_000 })
    expect(answer.status).toBe(200)
    expect(await answer.json()).toMatchObject({ state: 'completed', output: { greeting: 'Hello, Grace!' } })
  })

  test('fails one that it cannot run, with its reason, and goes on', async () => {
    const answer = await post({ data: { nobody: true }, waitMs: 20_000 })
    expect(await answer.json()).toMatchObject({ state: 'failed', output: { message: "'name'" } })
    const next = await post({ data: { name: 'Ada' }, waitMs: 20_000 })
    expect(await next.json()).toMatchObject({ output: { greeting: 'Hello, Ada!' } })
  })

  test('runs what a schedule sends', async () => {
    await tasks.schedule('every second', '* * * * * *', { queue: 'greet', data: { name: 'cron' } })
    await until('a slot is greeted', () => said.includes('Hello, cron!'))
    await tasks.unschedule('every second')
  })
})

describe.skipIf(!python())('the consumer of docs/shell.md (skipped without python3)', () => {
  const program = programOf('/v1/groups/')

  test('is thirty lines, and two of them apply each event once, whatever becomes of one', async () => {
    expect(lines(program)).toBeLessThanOrEqual(30)
    await using db = await freshDatabase()
    const lockstep = createLockstep({ connectionString: db.url })
    const events = createEvents(lockstep)
    const server = await serve({ lockstep, events, port: 0 })
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-python-'))
    const file = path.join(folder, 'consumer.py')
    const applied = path.join(folder, 'applied.db')
    fs.writeFileSync(
      file,
      program.replace('http://127.0.0.1:3000', server.url).replace('leaseMs=30_000', 'leaseMs=1_000'),
    )
    const consumer = () => spawn('python3', [file, 'billing', applied], { stdio: ['ignore', 'inherit', 'inherit'] })
    const fill = () =>
      Promise.all(
        Array.from({ length: 20 }, (_, s) =>
          events.append(
            `order-${s}`,
            [1, 2, 3].map((n) => ({ type: 'x', data: n })),
          ),
        ),
      )
    await fill()
    await events.declareGroup('billing', { prefix: 'order-', partitions: 4 })
    const [first, second] = [consumer(), consumer()]
    await until('both take part', async () => {
      await events.append('order-0', { type: 'x', data: 0 })
      return new Set((await events.lag('billing')).partitions.map(({ holder }) => holder)).size === 2
    })
    first.kill('SIGKILL')
    await fill()
    await until('all is applied', async () => (await events.lag('billing')).behind === 0)
    second.kill('SIGTERM')
    await once(second, 'exit')
    const { partitions } = await events.lag('billing')
    expect(partitions.map(({ holder }) => holder)).toEqual([null, null, null, null]) // it has left
    const read = `import sqlite3, json; print(json.dumps(sqlite3.connect(${JSON.stringify(applied)}).execute("select stream, position from applied").fetchall()))`
    const rows = JSON.parse(execFileSync('python3', ['-c', read], { encoding: 'utf8' })) as [string, number][]
    let count = 0
    for (const { name, position } of await events.streams({ limit: 1_000 })) {
      const those = rows.filter(([stream]) => stream === name).map(([, position]) => position)
      expect(those).toEqual(Array.from({ length: Number(position) }, (_, i) => i + 1)) // each once, in their order
      count += those.length
    }
    expect(rows).toHaveLength(count)
    await server.close()
    fs.rmSync(folder, { recursive: true, force: true })
  })
})
