/**
 * The three runtimes, each with the adapter that is deployed, behind one interface: Node over a socket; Lambda by events of a
 * function URL (whole or streamed) or an HTTP API; a Worker in workerd (Cloudflare's own runtime, with wrangler's bundle of the
 * wrangler.jsonc that is deployed, and its database through a Hyperdrive binding, which locally passes on every byte).
 */
import * as fs from 'node:fs'
import * as http from 'node:http'
import * as path from 'node:path'
import { serve } from '../../../functions/adapters/node.ts'
import { bundle } from '../../../infra/aws/bundle.ts'
import { createEvents } from '../../../lib/event/index.ts'
import { createLockstep } from '../../../lib/index.ts'
import { createTasks } from '../../../lib/task/index.ts'
import { type Sandbox, startSandbox } from './sandbox.ts'
import { configured, wrangler } from './wrangler.ts'

const ROOT = path.resolve(import.meta.dirname, '../../..')

export interface Asked {
  method?: string
  headers?: Record<string, string>
  body?: string
}

export interface Runtime extends AsyncDisposable {
  fetch(path: string, asked?: Asked): Promise<Response>
  /** Reads a response that does not end, as it comes, until `enough`; then disconnects, or waits for its end (Lambda). */
  follow(path: string, asked: Asked, enough: (text: string) => boolean): Promise<Response>
}

async function followed(response: Response, enough: (text: string) => boolean): Promise<Response> {
  const reader = response.body?.getReader()
  const decoder = new TextDecoder()
  let text = ''
  while (!enough(text)) {
    const { done, value } = (await reader?.read()) ?? { done: true, value: undefined }
    if (done) break
    text += decoder.decode(value, { stream: true })
  }
  await reader?.cancel()
  return new Response(text, response)
}

/** Sends what `fetch` refuses or changes: a body with GET, TRACE, and a path as it is. */
function sent(base: string, at: string, { method = 'GET', headers = {}, body }: Asked = {}): Promise<Response> {
  const { promise, resolve, reject } = Promise.withResolvers<Response>()
  const { hostname, port } = new URL(base)
  const length = body === undefined ? {} : { 'Content-Length': Buffer.byteLength(body) }
  const options = { hostname, port, path: at, method, headers: { ...headers, ...length }, agent: false }
  const request = http.request(options, async (response) => {
    const bytes = Buffer.concat(await response.toArray())
    const those = Object.entries(response.headers).map(([name, value]) => [name, String(value)])
    resolve(
      new Response(bytes.length > 0 ? bytes : null, {
        status: response.statusCode ?? 0,
        headers: Object.fromEntries(those),
      }),
    )
  })
  request.on('error', reject).end(body)
  return promise
}

const isOdd = (at: string, { method = 'GET', body }: Asked = {}) =>
  method === 'TRACE' || (['GET', 'HEAD'].includes(method) && body !== undefined) || /\/(\.|%2e){1,2}(\/|$)/i.test(at)

/** Sends and receives JSON. */
export async function ask(runtime: Runtime, at: string, method = 'GET', body?: object) {
  const sent = body && { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } }
  const response = await runtime.fetch(at, { method, ...sent })
  const text = await response.text()
  // biome-ignore lint/suspicious/noExplicitAny: JSON
  const json: any = text === '' ? undefined : JSON.parse(text)
  return { status: response.status, headers: response.headers, json }
}

/** `keys`: the text of LOCKSTEP_API_KEYS. */
export async function startNode(connectionString: string, keys: string): Promise<Runtime> {
  const lockstep = createLockstep({ connectionString })
  const [tasks, events] = [createTasks(lockstep), createEvents(lockstep)]
  const server = await serve({ lockstep, tasks, events, port: 0, keys: keys === 'off' ? undefined : keys })
  return {
    fetch: (at, asked) => (isOdd(at, asked) ? sent(server.url, at, asked) : fetch(server.url + at, asked)),
    follow: async (at, asked, enough) => followed(await fetch(server.url + at, asked), enough),
    [Symbol.asyncDispose]: () => server.close(),
  }
}

// ---- Lambda ------------------------------------------------------------------------------------------------------

export interface Lambda extends Runtime, Omit<Sandbox, keyof AsyncDisposable> {}

// The time limit of an invocation that must end by itself soon.
const SOON_MS = 5_000

/** The environment variables of a Lambda, with a database URL instead of a secret, and without keys. */
export const lambdaEnv = (url: string, ntpServers?: string[]): Record<string, string> => ({
  DATABASE_URL: url,
  LOCKSTEP_API_KEYS: 'off',
  ...(ntpServers && { LOCKSTEP_NTP_SERVERS: ntpServers.join(',') }),
})

let folder: Promise<string> | undefined

/** The bundle of Lambda, built once for a test file; inside the project, so that the AWS client is found. */
export function lambdaFolder(entry?: string): Promise<string> {
  const make = async () => {
    fs.mkdirSync(path.join(ROOT, 'dist-lambda'), { recursive: true })
    const at = fs.mkdtempSync(path.join(ROOT, 'dist-lambda', 'test-'))
    process.once('exit', () => fs.rmSync(at, { recursive: true, force: true }))
    await bundle(at, entry)
    return at
  }
  if (entry) return make()
  folder ??= make()
  return folder
}

export async function startLambda(env: Record<string, string>, handler = 'index.stream'): Promise<Lambda> {
  const sandbox = await startSandbox(await lambdaFolder(), handler, env)
  const streams = handler.endsWith('.stream')
  async function ask(event: unknown, options?: Parameters<Sandbox['invoke']>[1]): Promise<Response> {
    const { body, error } = await sandbox.invoke(event, options)
    if (error) throw new Error(error.errorMessage)
    return streams ? streamedAnswer(body) : wholeAnswer(JSON.parse(String(body)))
  }
  return {
    ...sandbox,
    fetch: (at, asked) => ask(urlEvent(at, asked)),
    async follow(at, asked, enough) {
      let text = ''
      const part = (bytes: Buffer) => {
        text += bytes
        enough(text)
      }
      const answer = await ask(urlEvent(at, asked), { timeoutMs: SOON_MS, part })
      if (!enough(text)) throw new Error(`It ended too early: ${text}`)
      return answer
    },
  }
}

interface WholeAnswer {
  statusCode: number
  headers: Record<string, string>
  body: string
  isBase64Encoded: boolean
}

function wholeAnswer({ statusCode, headers, body, isBase64Encoded }: WholeAnswer): Response {
  const bytes = Buffer.from(body ?? '', isBase64Encoded ? 'base64' : 'utf8')
  return new Response(bytes.length > 0 ? bytes : null, { status: statusCode, headers })
}

function streamedAnswer(body: Buffer): Response {
  const end = body.indexOf('\0'.repeat(8))
  const { statusCode, headers } = JSON.parse(body.toString('utf8', 0, end))
  const bytes = new Uint8Array(body.subarray(end + 8))
  return new Response(bytes.length > 0 ? bytes : null, { status: statusCode, headers })
}

/** The event of a function URL for a request: the path as it was sent. */
export function urlEvent(at: string, { method = 'GET', headers = {}, body }: Asked = {}) {
  const [rawPath = '', rawQueryString = ''] = at.split('?')
  const length = body === undefined ? {} : { 'content-length': String(Buffer.byteLength(body)) }
  const lower = Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]))
  const domainName = 'abcdefghij.lambda-url.eu-central-1.on.aws'
  return {
    ...{ version: '2.0', routeKey: '$default', rawPath, rawQueryString },
    headers: { host: domainName, 'x-forwarded-proto': 'https', ...length, ...lower },
    requestContext: {
      ...{ domainName, stage: '$default', requestId: 'r', accountId: 'anonymous', apiId: 'abcdefghij' },
      http: { method, path: rawPath, protocol: 'HTTP/1.1', sourceIp: '203.0.113.7', userAgent: 'test' },
    },
    ...(body !== undefined && { body: Buffer.from(body).toString('base64') }),
    isBase64Encoded: body !== undefined,
  }
}

/** The event of an HTTP API (API Gateway v2) for a request: the path is decoded, and cut off at an encoded `?`. */
export function gatewayEvent(at: string, asked: Asked = {}, stage = '$default') {
  const event = urlEvent(at, asked)
  const domainName = 'abcdefghij.execute-api.eu-central-1.amazonaws.com'
  const [decoded = ''] = decodeURIComponent(event.rawPath).split('?')
  return {
    ...event,
    rawPath: stage === '$default' ? decoded : `/${stage}${decoded}`,
    headers: { ...event.headers, host: domainName },
    requestContext: { ...event.requestContext, domainName, stage },
  }
}

// ---- Cloudflare ----------------------------------------------------------------------------------------------------

export interface Worker extends Runtime {
  /** Runs the Worker's `scheduled`, and returns its outcome. */
  scheduled(): Promise<string>
  log(): string
}

export interface WorkerSettings {
  /** The Worker, in place of the one in wrangler.jsonc. */
  entry?: string
  /** Without Hyperdrive. @default false */
  direct?: boolean
}

export async function startWorker(
  connectionString: string,
  keys: string,
  { entry, direct = false }: WorkerSettings = {},
): Promise<Worker> {
  process.env.WRANGLER_SEND_METRICS = 'false'
  const database = new URL(connectionString)
  database.password ||= 'any' // Hyperdrive needs one; a server with `trust` ignores it
  const hyperdrive = direct ? [] : [{ binding: 'HYPERDRIVE', id: 'local', localConnectionString: database.href }]
  const vars = { LOCKSTEP_API_KEYS: keys, ...(direct && { DATABASE_URL: connectionString }) }
  const { createTestHarness } = await wrangler()
  const { harness, url } = await configured(
    (config) => ({ ...config, ...(entry && { main: entry }), hyperdrive, vars }),
    async (configPath) => {
      const made = createTestHarness({ workers: [{ configPath }] })
      const { url } = await made.listen()
      return { harness: made, url }
    },
  )
  const workerFetch = (at: string, asked?: Asked) => harness.fetch(at, { ...asked, redirect: 'manual' })
  return {
    fetch: (at, asked) => (isOdd(at, asked) ? sent(url.href, at, asked) : workerFetch(at, asked)),
    follow: async (at, asked, enough) => followed(await workerFetch(at, asked), enough),
    scheduled: async () =>
      (await harness.getWorker().scheduled({ cron: '* * * * *', scheduledTime: new Date() })).outcome,
    log: () =>
      harness
        .getLogs()
        .map(({ message }) => message)
        .join('\n'),
    [Symbol.asyncDispose]: () => harness.close(),
  }
}
