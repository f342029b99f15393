/**
 * Requests as bytes, for the Node server: HTTP that a normal client never writes. Wrong lengths, bodies that are sent twice or in
 * chunks that do not end, headers with line breaks, two requests that look like one.
 */
import * as fc from 'fast-check'
import { oddHeader, oddSegment, oddString } from './odd.ts'

const method = fc.constantFrom(
  'GET',
  'POST',
  'PATCH',
  'DELETE',
  'HEAD',
  'OPTIONS',
  'TRACE',
  'CONNECT',
  'get',
  'PRI',
  '',
  'GET GET',
  'M-SEARCH',
)
const target = fc.oneof(
  fc.constantFrom(
    '/healthz',
    '/v1/locks/a',
    '/v1/tasks/a',
    '/v1/time',
    '*',
    '//evil.example/',
    'http://evil.example/healthz',
    'x:y',
  ),
  fc.constantFrom(
    '',
    '/a b',
    '/v1/locks/\0',
    '/v1/locks/\u00e9',
    '/?',
    '/#x',
    '\\\\x',
    `/${'x'.repeat(20_000)}`,
    '/v1/../healthz',
  ),
  oddSegment.map((segment) => `/v1/locks/${segment}`),
)
const version = fc.constantFrom(
  ...Array(12).fill('HTTP/1.1'),
  'HTTP/1.0',
  'HTTP/2.0',
  'HTTP/9.9',
  'HTTP/1.1 ',
  '',
  'http/1.1',
)
const lines = [
  ...['Connection: close', 'Connection: close', 'Connection: keep-alive', 'Connection: upgrade\r\nUpgrade: websocket'],
  ...[
    'Content-Type: application/json',
    'Content-Length: 2',
    'Content-Length: 0',
    'Content-Length: -1',
    'Content-Length: +2',
  ],
  ...[
    'Content-Length: 2\r\nContent-Length: 3',
    'Content-Length: 99999999999999999999',
    'Content-Length : 2',
    'Content-Length: 2, 2',
  ],
  ...[
    'Transfer-Encoding: chunked',
    'Transfer-Encoding: chunked, chunked',
    'Transfer-Encoding: gzip',
    'Transfer-Encoding: xchunked',
  ],
  ...[
    'Transfer-Encoding:\tchunked\r\nContent-Length: 2',
    'Expect: 100-continue',
    'Expect: nonsense',
    'Accept: text/event-stream',
  ],
  ...[
    'Host: evil.example',
    'Host: a\r\nHost: b',
    'Host:',
    'Host: [',
    'X: a\r\n b',
    'X: a\nX-Injected: 1',
    'X: a\0b',
    ': x',
    'no colon',
  ],
  ...[
    'Sec-Fetch-Site: cross-site',
    'X-Request-Id: a\tb',
    'Cookie: x=y',
    'Trailer: X',
    'Last-Event-ID: -1',
    'Range: bytes=0-',
  ],
]
const header = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(...lines) },
  {
    weight: 1,
    arbitrary: fc
      .tuple(fc.constantFrom('Authorization', 'Accept', 'X-Request-Id'), oddHeader)
      .map((pair) => pair.join(': ')),
  },
  { weight: 1, arbitrary: oddString },
)
const body = fc.constantFrom(
  ...[
    '',
    '',
    '{}',
    '{"ttlMs":1000}',
    '2\r\n{}\r\n0\r\n\r\n',
    '2\r\n{}\r\n',
    'zz\r\n{}',
    'ffffffffffffffff\r\n{}',
    '0\r\n\r\n',
  ],
  ...[
    '{}GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n',
    '0\r\n\r\nPOST /v1/locks/smuggled HTTP/1.1\r\n\r\n',
    'x'.repeat(70_000),
  ],
)

/** Bytes that are almost a request. */
export function rawRequest(): fc.Arbitrary<Buffer> {
  const whole = fc
    .record({
      line: fc.tuple(method, target, version).map((words) => words.join(' ')),
      host: fc.constantFrom(...Array(8).fill(['Host: localhost']), []),
      headers: fc.array(header, { maxLength: 5 }),
      body,
    })
    .map(({ line, host, headers, body }) =>
      Buffer.from(`${[line, ...host, ...headers].join('\r\n')}\r\n\r\n${body}`, 'latin1'),
    )
  const cut = fc
    .tuple(whole, fc.double({ min: 0, max: 1, noNaN: true }))
    .map(([all, share]) => all.subarray(0, all.length * share))
  const any = fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes))
  return fc.oneof({ weight: 10, arbitrary: whole }, { weight: 2, arbitrary: cut }, { weight: 1, arbitrary: any })
}
