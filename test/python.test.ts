/** The README's worker in another language, as it stands there: it claims, keeps, completes and fails jobs over HTTP. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Server, serve } from '../functions/node.ts'
import { createLockstep } from '../lib/index.ts'
import { createTasks, type Tasks } from '../lib/task.ts'
import { type FreshDatabase, freshDatabase } from './database.ts'
import { until } from './until.ts'

function python(): boolean {
  try {
    execFileSync('python3', ['--version'])
    return true
  } catch {
    return false
  }
}

describe.skipIf(!python())('the worker of the README (skipped without python3)', () => {
  const readme = fs.readFileSync(path.join(import.meta.dirname, '..', 'README.md'), 'utf8')
  const program = /```python\n([\s\S]*?)```/.exec(readme)?.[1] ?? ''
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
    expect(program.split('\n').filter((line) => line.trim() !== '').length).toBeLessThanOrEqual(35)
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
