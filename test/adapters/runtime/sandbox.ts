/**
 * An execution environment of Lambda: the runtime API of AWS (2018-06-01), and a process that asks it for invocations. The
 * process runs the bundle that is deployed, with the Node of this project. Freezing is SIGSTOP. AWS's micro-VM, whose monotonic
 * clock may stop meanwhile, is not simulated (time/estimate.test.ts has clocks that stop).
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import * as http from 'node:http'
import type { AddressInfo } from 'node:net'
import * as path from 'node:path'

export interface Invoked {
  /** The result of the handler, or the bytes that it wrote. */
  body: Buffer
  /** The error that it threw. */
  error?: { errorType: string; errorMessage: string }
}

export interface Sandbox extends AsyncDisposable {
  readonly pid: number
  /** Runs one invocation at a time, as Lambda does. Rejects if the process ends meanwhile. */
  invoke(event: unknown, options?: { timeoutMs?: number; part?: (bytes: Buffer) => void }): Promise<Invoked>
  /** Stops the process until `thaw`. */
  freeze(): void
  thaw(): void
  /** Everything that it printed. */
  log(): string
}

/** The bytes of a response that AWS passes on, if it is not streamed. Of a larger one the client gets a 502. */
const MOST_BUFFERED = 6_291_556

interface Invocation {
  id: string
  event: unknown
  timeoutMs: number
  part: ((bytes: Buffer) => void) | undefined
  done: PromiseWithResolvers<Invoked>
}

/**
 * Starts an environment, and waits until it asks for its first invocation.
 * @param folder  the folder of the bundle.
 * @throws the error that its module threw while it was loaded.
 */
export async function startSandbox(folder: string, handler: string, env: Record<string, string>): Promise<Sandbox> {
  const started = Promise.withResolvers<void>()
  const queue: Invocation[] = []
  const running = new Map<string, Invocation>()
  let asking: http.ServerResponse | undefined
  let log = ''

  const deliver = () => {
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
      return deliver()
    }
    const invocation = running.get(id)
    const parts: Buffer[] = []
    for await (const bytes of request) {
      parts.push(bytes)
      invocation?.part?.(bytes)
    }
    const body = Buffer.concat(parts)
    if (where === 'init') started.reject(new Error(JSON.parse(String(body)).errorMessage))
    else if (body.length > MOST_BUFFERED && request.headers['lambda-runtime-function-response-mode'] !== 'streaming') {
      const error = { errorType: 'Function.ResponseSizeTooLarge', errorMessage: `It has ${body.length} bytes` }
      invocation?.done.resolve({ body, error })
    } else if (what === 'error') invocation?.done.resolve({ body, error: JSON.parse(String(body)) })
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
    child.kill('SIGKILL') // as AWS does
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
      deliver()
      return done.promise
    },
    freeze: () => void child.kill('SIGSTOP'),
    thaw: () => void child.kill('SIGCONT'),
    log: () => log,
    [Symbol.asyncDispose]: end,
  }
}
