/**
 * The three kinds of process that Lockstep runs in, each asked for `GET /v1/time` and the like: one that lives on (Node),
 * one that is frozen between requests (a Lambda), and a Worker.
 *
 * What is real: the Worker runs in workerd, Cloudflare's own runtime, with wrangler's bundle. The Lambda is Node running the
 * handler that AWS would call, and is frozen by SIGSTOP; AWS's micro-VM, whose monotonic clock may stand still meanwhile, is
 * not here (that is in estimate.test.ts, with clocks that do). In the real Worker the clock stands still while it computes;
 * in workerd on this machine it does not.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { createTestHarness } from 'wrangler'

export interface Process extends AsyncDisposable {
  request(
    url: string,
    init?: { method?: string; body?: object },
  ): Promise<{ status: number; headers: Headers; json: Json }>
}
// biome-ignore lint/suspicious/noExplicitAny: JSON
type Json = any

export interface Lambda extends Process {
  /** Nothing of it runs. */
  freeze(): void
  thaw(): void
}

const HERE = import.meta.dirname

/** A Worker in workerd, on a database. */
export async function startWorker(connectionString: string): Promise<Process> {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-worker-'))
  const config = {
    name: 'lockstep-test',
    main: path.join(HERE, 'worker.ts'),
    compatibility_date: '2026-10-01',
    compatibility_flags: ['nodejs_compat'],
    vars: { DATABASE_URL: connectionString },
  }
  const configPath = path.join(dir, 'wrangler.json')
  fs.writeFileSync(configPath, JSON.stringify(config))
  process.env.WRANGLER_SEND_METRICS = 'false'
  const harness = createTestHarness({ workers: [{ configPath }] })
  await harness.listen()
  return {
    async request(url, { method = 'GET', body } = {}) {
      const sent = body && { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }
      const { status, headers, json } = await read(await harness.fetch(url, { method, ...sent }))
      return { status, headers, json }
    },
    async [Symbol.asyncDispose]() {
      await harness.close()
      fs.rmSync(dir, { recursive: true, force: true })
    },
  }
}

async function read(response: { status: number; headers: Iterable<[string, string]>; text(): Promise<string> }) {
  return {
    status: response.status,
    headers: new Headers([...response.headers]),
    json: JSON.parse(await response.text()),
  }
}

/** A Lambda's sandbox, on a database; with NTP servers, it can measure. */
export function startLambda(connectionString: string, servers: string[] = []): Lambda {
  const args = [path.join(HERE, 'lambda.ts'), connectionString, ...(servers.length > 0 ? [servers.join(',')] : [])]
  const child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  const closed = once(child, 'close')
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  return {
    async request(url, { method = 'GET', body } = {}) {
      const [rawPath, rawQueryString = ''] = url.split('?')
      const event = {
        ...{ version: '2.0', rawPath, rawQueryString, isBase64Encoded: false },
        headers: { 'content-type': 'application/json', host: 'lambda.example' },
        ...(body && { body: JSON.stringify(body) }),
        requestContext: { domainName: 'lambda.example', http: { method, path: rawPath, sourceIp: '127.0.0.1' } },
      }
      child.stdin.write(`${JSON.stringify(event)}\n`)
      const line = await lines.next()
      if (line.done) throw new Error('The function ended')
      const { statusCode, headers, body: text } = JSON.parse(line.value)
      return { status: statusCode, headers: new Headers(headers), json: JSON.parse(text) }
    },
    freeze: () => void child.kill('SIGSTOP'),
    thaw: () => void child.kill('SIGCONT'),
    async [Symbol.asyncDispose]() {
      child.kill('SIGCONT')
      child.stdin.end()
      await closed
    },
  }
}
