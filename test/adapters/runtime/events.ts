/**
 * Events of Lambda, as AWS documents them for each of its senders, and what a handler makes of them in this process; and the same
 * requests as bytes, for the Node server.
 */
import { once } from 'node:events'
import * as net from 'node:net'
import { PassThrough } from 'node:stream'
import type { Lambda } from '../../../functions/adapters/lambda.ts'
import { type Asked, urlEvent } from './runtimes.ts'

/** An answer, as much of it as can be compared. `code` is that of a problem. */
export interface Seen {
  status: number
  type: string | undefined
  code: string | undefined
  body: string
}

function seen(status: number, type: string | undefined, body: string): Seen {
  const code = type === 'application/problem+json' && body !== '' ? JSON.parse(body).code : undefined
  return { status, type, code, body }
}

/** What AWS's runtime puts there, for `lambda()` to find. */
export const AWSLAMBDA = {
  streamifyResponse: (handler: unknown) => handler,
  HttpResponseStream: {
    from(stream: PassThrough & { head?: unknown }, head: unknown) {
      stream.head = head
      return stream
    },
  },
}

const CONTEXT = { getRemainingTimeInMillis: () => 20_000 } as never

/** The result of the handler that answers in one piece. */
export async function whole({ handler }: Lambda, event: unknown): Promise<Seen> {
  // biome-ignore lint/suspicious/noExplicitAny: a result
  const { statusCode, headers, multiValueHeaders, body }: any = await handler(event as never, CONTEXT)
  const type = multiValueHeaders ? multiValueHeaders['content-type']?.[0] : headers['content-type']
  return seen(statusCode, type, body)
}

/** What the handler that streams has written. */
export async function streamed({ stream }: Lambda, event: unknown): Promise<Seen> {
  const to = new PassThrough() as PassThrough & { head?: { statusCode: number; headers: Record<string, string> } }
  const text = to.setEncoding('utf8').toArray()
  await stream?.(event as never, to, CONTEXT)
  if (!to.writableEnded || !to.head) throw new Error('It has not ended its answer')
  return seen(to.head.statusCode, to.head.headers['content-type'], (await text).join(''))
}

/** What a server answers to a request, written as it is. */
export async function overSocket(url: string, head: string, body = ''): Promise<Seen> {
  const { hostname, port } = new URL(url)
  const socket = net.connect(Number(port), hostname).on('error', () => {})
  let text = ''
  socket.setEncoding('utf8').on('data', (chunk) => (text += chunk))
  const length = body === '' ? '' : `Content-Length: ${Buffer.byteLength(body)}\r\n`
  const [line, ...headers] = head.split('\n')
  socket.write([`${line} HTTP/1.1`, ...headers, 'Host: localhost', 'Connection: close'].join('\r\n'))
  socket.write(`\r\n${length}\r\n${body}`)
  await once(socket, 'close')
  const [its = '', rest = ''] = text.split('\r\n\r\n')
  const type = /^content-type: (.*)$/im.exec(its)?.[1]
  return seen(Number(its.split(' ')[1]), type, /^transfer-encoding/im.test(its) ? '' : rest)
}

const queryOf = (at: string) => new URLSearchParams(at.split('?')[1] ?? '')
const lists = (entries: Iterable<[string, string]>) =>
  Object.fromEntries([...Map.groupBy(entries, ([name]) => name)].map(([name, all]) => [name, all.map(([, it]) => it)]))

/** The event of a REST API (format 1.0), whose parameters are decoded. */
export function restEvent(at: string, asked: Asked = {}) {
  const { method = 'GET', headers = {}, body } = asked
  const query = [...queryOf(at)]
  return {
    ...{ resource: '/{proxy+}', path: at.split('?')[0], httpMethod: method },
    ...{ headers, multiValueHeaders: lists(Object.entries(headers)) },
    queryStringParameters: query.length > 0 ? Object.fromEntries(query) : null,
    multiValueQueryStringParameters: query.length > 0 ? lists(query) : null,
    requestContext: {
      resourcePath: '/{proxy+}',
      httpMethod: method,
      stage: 'prod',
      identity: { sourceIp: '203.0.113.7' },
    },
    ...{ body: body ?? null, isBase64Encoded: false },
  }
}

/** The event of a load balancer: as the client sent it, once or several times each. */
export function balancerEvent(at: string, asked: Asked = {}, multiple = false) {
  const { method = 'GET', headers = {}, body } = asked
  const [path, query = ''] = at.split('?')
  const raw = query === '' ? [] : query.split('&').map((pair) => pair.split('=') as [string, string])
  return {
    requestContext: { elb: { targetGroupArn: 'arn:aws:elasticloadbalancing:eu-central-1:1:targetgroup/t/1' } },
    ...{ httpMethod: method, path },
    ...(multiple
      ? { multiValueHeaders: lists(Object.entries(headers)), multiValueQueryStringParameters: lists(raw) }
      : { headers, queryStringParameters: Object.fromEntries(raw) }),
    ...{ body: body ?? '', isBase64Encoded: false },
  }
}

/** The event of VPC Lattice (version 2.0). */
export function latticeEvent(at: string, { method = 'GET', headers = {}, body }: Asked = {}) {
  return {
    ...{ version: '2.0', path: at, method },
    headers: lists(Object.entries(headers)),
    requestContext: { serviceArn: 'arn:aws:vpc-lattice:eu-central-1:1:service/svc-1', region: 'eu-central-1' },
    ...(body !== undefined && { body, isBase64Encoded: false }),
  }
}

/** The event of a function URL of which some fields are others. */
export function changedEvent(at: string, asked: Asked, change: object) {
  return { ...urlEvent(at, asked), ...change }
}
