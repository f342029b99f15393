/**
 * Strange inputs that a client may send all the same: values for the library, JSON texts, names in a path, headers.
 *
 * Each list is short, and each entry has a reason: it has broken something, here or in another program. No entry contains a
 * word that an answer may not contain (answer.ts), because an answer may quote the request.
 */
import * as fc from 'fast-check'

/** Names that requests share, so that they use each other's locks, jobs and events. */
export const NAMES = ['a', 'b', 'a/b', 'a b', 'ä🔒', 'c.d-e_f']

/** Strings that some programs mistake for something else. */
const STRINGS = [
  ...[
    '',
    ' ',
    '.',
    '..',
    '../..',
    '/',
    'a\0b',
    'a\r\nX-Injected: 1',
    '\u001b[31m',
    '\u202e',
    '\ufeff',
    '\ud800',
    'x\udc00',
  ],
  ...["'", '"', "'); drop table t; --", '$1', '#{x}', '%s%n', '\\', '{{7*7}}', '__proto__', 'constructor', 'toString'],
  ...[
    '0',
    '-1',
    '1e3',
    '0x10',
    '٣',
    '9223372036854775807',
    '9223372036854775808',
    '9'.repeat(400),
    'NaN',
    'null',
    'true',
  ],
  ...['x'.repeat(255), 'x'.repeat(256), '🔒'.repeat(255), '🔒'.repeat(256), 'x'.repeat(5_000), 'ﷺ'.repeat(90)],
  ...['2026-02-30T00:00:00Z', '+275760-09-13T00:00:00Z', '0000-01-01T00:00:00Z', '99 99 * * *', '* * 31 2 *'],
]
export const oddString = fc.oneof(fc.constantFrom(...STRINGS), fc.string({ unit: 'binary', maxLength: 12 }))

const nested = (open: string, close: string, depth: number, inner = '') =>
  open.repeat(depth) + inner + close.repeat(depth)

/** JSON texts, some of them not quite valid. */
export const oddJson = fc.oneof(
  fc.constantFrom(
    ...['null', 'true', 'false', '[]', '{}', '[[]]', '""', '0', '-0', '-1', '0.1', '1e400', '-1e400', '1e-400', '1E2'],
    ...[
      '9007199254740993',
      '9223372036854775808',
      '9'.repeat(400),
      '"\\ud800"',
      '"\\u0000"',
      '{"\\u0000":1}',
      '"\\ud83d\\udd12"',
    ],
    ...['{"__proto__":{"x":1}}', '{"constructor":{"prototype":1}}', '{"toJSON":1}', '{"then":1}', '{"length":-1}'],
    ...[nested('[', ']', 900), nested('[', ']', 1_001), nested('[', ']', 20_000), nested('{"a":', '}', 5_000, '1')],
    ...[
      `"${'x'.repeat(5_000)}"`,
      `"${'x'.repeat(70_000)}"`,
      `[${'0,'.repeat(20_000)}0]`,
      'NaN',
      'undefined',
      "'a'",
      '01',
      '+1',
    ],
  ),
  oddString.map((text) => JSON.stringify(text)),
  fc.json({ maxDepth: 3 }),
)

/** Whole bodies that are not JSON, or not the expected one. */
export const oddBody = fc.oneof(
  fc.constantFrom(
    ...[
      '',
      ' ',
      '{',
      '}',
      '{}{}',
      '{"a":1,}',
      '\ufeff{}',
      '// {}',
      '{"a":1 "b":2}',
      'null',
      '[]',
      '"{}"',
      '7',
      '-',
      '\0',
    ],
    ...[
      '{"token":"1","token":"2"}',
      '{"ttlMs":1000,"ttlMs":-1}',
      nested('[', ']', 30_000),
      `{"x":"${'y'.repeat(70_000)}"}`,
    ],
  ),
  fc.json(),
  fc.string({ unit: 'binary' }),
)

/** The segments of a path. */
export const oddSegment = fc.oneof(
  fc.constantFrom(
    ...['', '.', '..', '%2e', '%2E%2e', '%2e.', '%00', 'a%00b', '%0d%0aX-Injected:%201', '%0a', '%7f', '%c2%85', '%1b'],
    ...[
      '%',
      '%z',
      '%zz',
      'a%2',
      '%ff',
      '%c3',
      '%ed%a0%80',
      '%c0%af',
      '%2f',
      '%2F%2F',
      '%252f',
      '%25',
      '%5c',
      '+',
      '%20',
      ';a=b',
    ],
    ...[
      '*',
      ':name',
      '{name}',
      'é',
      '🔒',
      'x'.repeat(256),
      'x'.repeat(8_000),
      '%F0%9F%94%92'.repeat(256),
      'claim',
      'lag',
      'observe',
    ],
  ),
  oddString.map((text) => encodeURIComponent(text.toWellFormed())),
)

/** The values of a header, as far as fetch accepts them. */
export const oddHeader = fc.oneof(
  fc.constantFrom(
    ...['', ' ', ',', ';', '*/*', 'text/event-stream', 'text/event-stream;q=0', 'é', 'x'.repeat(4_000), '1', '-1'],
  ),
  fc.constantFrom(
    ...['application/json; charset=utf-16', 'application/jsonp', 'text/plain', 'multipart/form-data', '100-continue'],
  ),
  fc.constantFrom(
    ...['Bearer', 'Bearer ', 'Bearer .', 'Bearer all', 'Bearer all.', 'Bearer .x', 'bearer all.x', 'Basic YTpi'],
  ),
  fc.constantFrom(
    ...['9223372036854775806', '9223372036854775807', '1.vacant', '0', 'null', '99999999999999999999', '1e3'],
  ),
  fc.string({
    unit: fc
      .integer({ min: 33, max: 255 })
      .filter((n) => n < 127 || n > 160)
      .map((n) => String.fromCharCode(n)),
  }),
)

const circle: Record<string, unknown> = {}
circle.self = circle

/** Values for the library that TypeScript refuses, and JavaScript accepts. */
export const oddValue: fc.Arbitrary<unknown> = fc.oneof(
  fc.constantFrom<unknown>(undefined, null, true, false, 0, -0, -1, 1.5, 999, 1_000, 3_600_001, 2 ** 31, 2 ** 53, 1e21),
  fc.constantFrom<unknown>(
    Number.NaN,
    Infinity,
    -Infinity,
    0n,
    1n,
    -1n,
    2n ** 63n - 1n,
    2n ** 63n,
    -(2n ** 63n),
    2n ** 70n,
  ),
  fc.constantFrom<unknown>(
    [],
    [null],
    {},
    circle,
    Object.create(null),
    new Map(),
    new Date(Number.NaN),
    new Date(8.64e15),
  ),
  fc.constantFrom<unknown>(Symbol('s'), () => {}, /x/, new Error('x'), new Uint8Array(3), 'a', {
    toJSON: () => undefined,
  }),
  oddString,
)
