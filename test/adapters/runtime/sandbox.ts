/**
 * An execution environment of Lambda: the runtime API (2018-06-01) that AWS offers to one, and a process that asks it for
 * invocations. The process runs the bundle that is deployed, under the Node of this project. Freezing is SIGSTOP: AWS's
 * micro-VM, whose monotonic clock may stand still meanwhile, is not here (time/estimate.test.ts has clocks that do).
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import * as http from 'node:http'
import type { AddressInfo } from 'node:net'
import * as path from 'node:path'

export interface Invoked {
  /** What the handler returned or wrote. */
  body: Buffer
  /** What it threw. */
  error?: { errorType: string; errorMessage: string }
}

export interface Sandbox extends AsyncDisposable {
  readonly pid: number
  /** One at a time, as Lambda does it. Rejects when the process ends meanwhile. */
  invoke(event: unknown, options?: { timeoutMs?: number; part?: (bytes: Buffer) => void }): Promise<Invoked>
  /** Nothing of it runs. */
  freeze(): void
  thaw(): void
  /** All that it printed. */
  log(): string
}

interface Invocation {
  id: string
  event: unknown
  timeoutMs: number
  part: ((bytes: Buffer) => void) | undefined
  done: PromiseWithResolvers<Invoked>
}

/**
 * Starts one, and waits until it asks for its first invocation.
 * @param folder  of the bundle.
 * @throws what its module threw while it loaded.
 */
export async function startSandbox(folder: string, handler: string, env: Record<string, string>): Promise<Sandbox> {
  const started = Promise.withResolvers<void>()
  const queue: Invocation[] = []
  const running = new Map<string, Invocation>()
  let asking: http.ServerResponse | undefined
  let log = ''

  const give = () => {
    const invocation = asking && queue.shift()
    if (!asking || !invocation) return
    running.set(invocation.id, invocation)
    asking.writeHead(200, {
      'Content-Type': 'application/json',
      'Lambda-Runtime-Aws-Request-Id': invocation.id,
      'Lambda-Runtime-Deadline-Ms': String(Date.now() + invocation.timeoutMs),
    })
    asking.end(JSON.stringify(invocation.event))
    asking = undefined
  }
  const server = http.createServer(async (request, response) => {
    const [, where = '', id = '', what] =
      /^\/2018-06-01\/runtime\/(init|invocation)\/([^/]+)(?:\/(\w+))?$/.exec(request.url ?? '') ?? []
    if (id === 'next') {
      asking = response
      started.resolve()
      return give()
    }
    const invocation = running.get(id)
    const parts: Buffer[] = []
    for await (const bytes of request) {
      parts.push(bytes)
      invocation?.part?.(bytes)
    }
    const body = Buffer.concat(parts)
    if (where === 'init') started.reject(new Error(JSON.parse(String(body)).errorMessage))
    else if (what === 'error') invocation?.done.resolve({ body, error: JSON.parse(String(body)) })
    else invocation?.done.resolve({ body })
    running.delete(id)
    response.writeHead(202).end()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')

  const child: ChildProcess = spawn(process.execPath, [path.join(import.meta.dirname, 'bootstrap.mjs')], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      PATH: process.env.PATH,
      AWS_LAMBDA_RUNTIME_API: `127.0.0.1:${(server.address() as AddressInfo).port}`,
      AWS_REGION: 'eu-central-1',
      LAMBDA_TASK_ROOT: folder,
      _HANDLER: handler,
      ...env,
    },
  })
  for (const out of [child.stdout, child.stderr]) out?.on('data', (bytes) => (log += bytes))
  const exited = once(child, 'exit').then(([code]) => {
    const error = new Error(`The sandbox ended with ${code}: ${log}`)
    started.reject(error)
    for (const { done } of [...running.values(), ...queue]) done.reject(error)
  })
  const end = async () => {
    child.kill('SIGCONT')
    child.kill('SIGKILL') // as AWS ends one
    await exited
    server.closeAllConnections()
    server.close()
  }
  await started.promise.catch(async (error) => {
    await end()
    throw error
  })
  return {
    pid: child.pid as number,
    invoke(event, { timeoutMs = 30_000, part } = {}) {
      const done = Promise.withResolvers<Invoked>()
      queue.push({ id: randomUUID(), event, timeoutMs, part, done })
      give()
      return done.promise
    },
    freeze: () => void child.kill('SIGSTOP'),
    thaw: () => void child.kill('SIGCONT'),
    log: () => log,
    [Symbol.asyncDispose]: end,
  }
}
