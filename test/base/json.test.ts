/** Values and JSON: what is refused because it would be stored as something else, and errors, of which all is kept that can be. */
import { describe, expect, test } from 'vitest'
import { exact, jsonText, storableError } from '../../lib/base/index.ts'

describe('the JSON of a value', () => {
  test.each<[unknown]>([
    [Number.NaN],
    [Number.POSITIVE_INFINITY],
    [{ a: [{ b: Number.NEGATIVE_INFINITY }] }],
    [{ a: null, b: new Number(Number.NaN) }],
    [{ toJSON: () => ({ ratio: 0 / 0 }) }],
  ])('never turns a number into null: %o is refused', (value) => {
    expect(() => jsonText('data', value, 100)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', field: 'data', expected: expect.stringContaining('finite') }),
    )
  })

  test.each<[unknown]>([[null], [{ a: null }], ['null'], [[undefined, 1e308]], [{ null: -0 }]])(
    'of %o is what JSON.stringify makes of it',
    (value) => {
      expect(jsonText('data', value, 100)).toBe(JSON.stringify(value))
    },
  )
})

describe('a stored error', () => {
  test('keeps name, message, code, stack and cause, whatever characters are in them', () => {
    const cause = Object.assign(new TypeError('low \udc00'), { code: 'INNER\0' })
    const error = Object.assign(new RangeError('a\0b \ud800', { cause }), {
      code: 'E_CODE',
      detail: { 'k\0': '\udfff' },
    })
    const stored = storableError(error)
    expect(stored).toMatchObject({
      ...{ name: 'RangeError', message: 'a\\0b \ufffd', code: 'E_CODE', detail: { 'k\\0': '\ufffd' } },
      stack: expect.stringContaining('json.test'),
      cause: {
        name: 'TypeError',
        message: 'low \ufffd',
        code: 'INNER\\0',
        stack: expect.stringContaining('json.test'),
      },
    })
    expect(jsonText('error', stored, 100_000)).toBe(JSON.stringify(stored))
  })

  test('keeps the errors of an AggregateError', () => {
    const { errors } = storableError(new AggregateError([new Error('a\0'), 'b\ud800'], 'both')) as { errors: unknown[] }
    expect(errors).toMatchObject([{ message: 'a\\0' }, 'b\ufffd'])
  })

  test.each<[unknown, unknown]>([
    ['a\0', 'a\\0'],
    [7n, '7'],
    [Number.NaN, 'NaN'],
    [undefined, null],
    [null, null],
    [() => 1, null],
    [Symbol('s'), 'Symbol(s)'],
    [new Date(0), '1970-01-01T00:00:00.000Z'],
    [
      [1, undefined, { a: 1n, f() {} }],
      [1, null, { a: '1' }],
    ],
    [JSON.parse('{"__proto__":{"a":1}}'), JSON.parse('{"__proto__":{"a":1}}')],
  ])('of %o is %o', (thrown, stored) => {
    expect(storableError(thrown)).toEqual(stored)
  })

  test('is made of what cannot be read, too', () => {
    const thrown = {
      get message() {
        throw new Error()
      },
    }
    expect(storableError(thrown)).toEqual({ message: 'What was thrown cannot be shown' })
  })

  test('leaves out what contains itself', () => {
    const error: Error & { self?: unknown } = new Error('round')
    error.self = { error, kept: 1 }
    expect(storableError(error)).toMatchObject({ message: 'round', self: { kept: 1 } })
  })

  test('ends, where the same things are met again and again', () => {
    let many: unknown[] = []
    for (let i = 0; i < 40; i++) many = [many, many]
    expect(JSON.stringify(storableError({ message: 'm', many })).length).toBeLessThan(10_000_000)
  })
})

test('an answer with 64-bit numbers has them as decimal strings in JSON, and as bigints in code', () => {
  const answer = exact({ token: 2n ** 62n, inner: exact({ position: 1n }), at: new Date(0) })
  expect(answer.token + 1n).toBe(2n ** 62n + 1n)
  expect(JSON.stringify(answer)).toBe(
    '{"token":"4611686018427387904","inner":{"position":"1"},"at":"1970-01-01T00:00:00.000Z"}',
  )
})
