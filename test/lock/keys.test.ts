/** K: the advisory lock of a name. That it cannot be chosen, that other programs can compute it, and what of the old hash stays. */
import { createHash } from 'node:crypto'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { keyOf } from '../../lib/database/lock-key.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { forge, OLD_SEED } from './lookup3.ts'

let db: FreshDatabase
beforeAll(async () => {
  db = await freshDatabase()
})
afterAll(() => db?.close())

const one = async (expression: string, ...values: unknown[]) =>
  String((await db.pool.query(`select ${expression} as it`, values)).rows[0].it)
const oldHash = (name: string) => one(`hashtextextended($1 collate "C", ${OLD_SEED})`, name)

test('a name that was made to have the K of another has it no longer: it takes neither a lock nor a stream', async () => {
  const forged = forge('ci/', BigInt(await oldHash('prod/deploy')))
  expect(forged).toMatch(/^ci\/[\x21-\x7e]{21}$/)
  expect(await oldHash(forged)).toBe(await oldHash('prod/deploy')) // so it would have been the same lock
  expect(await one('lockstep.key($1) <> lockstep.key($2)', forged, 'prod/deploy')).toBe('true')
  await using lockstep = createLockstep({ connectionString: db.url })
  await using held = await lockstep.locks.acquire('prod/deploy')
  await using other = await lockstep.locks.tryAcquire(forged)
  expect([held, other].map((hold) => hold?.kind)).toEqual(['connection', 'connection'])

  const gate = forge('ci/', BigInt(await oldHash('stream\torders')))
  await using blocks = await lockstep.locks.acquire(gate)
  expect((await createEvents(lockstep).append('orders', { type: 'x' })).last).toBe(1n)
  expect(blocks.isTrusted()).toBe(true)
})

const NAMES = [
  ...[
    'a',
    '',
    'prod/deploy',
    '\\',
    '\\\\000',
    '\\x41',
    'a\\',
    `'"; --`,
    'leader\tx',
    'é',
    '日本語',
    '😀',
    '\u0001\u007f',
  ],
  ...['x'.repeat(255), '😀'.repeat(255), '\\'.repeat(64), 'lock'],
]

test.each([
  ['lockstep.key($1)', 'lock'],
  ['lockstep.gate($1)', 'stream'],
  [`lockstep.key_of('an' || 'other', $1)`, 'another'],
])(
  '%s is the first 64 bits of SHA-256 over its domain, a zero byte and the name in UTF-8',
  async (expression, domain) => {
    for (const name of NAMES) {
      const hash = createHash('sha256').update(`${domain}\0${name}`, 'utf8').digest()
      expect(await one(expression, name), name).toBe(String(hash.readBigInt64BE()))
    }
  },
)

test('the key that the library makes of a name is that of the database', async () => {
  for (const name of NAMES) expect(keyOf(name), name).toBe(await one('lockstep.key($1)', name))
})

test('where the domain ends is never in doubt', async () => {
  const all = await Promise.all(
    [
      ['a', 'bc'],
      ['ab', 'c'],
      ['abc', ''],
      ['', 'abc'],
    ].map((pair) => one('lockstep.key_of($1, $2)', ...pair)),
  )
  expect(new Set(all).size).toBe(4)
})

test('the partition of a stream, and the lock of its listeners, are what they were', async () => {
  for (const name of NAMES) {
    const bucket = await one(`(hashtextextended($1 collate "C", 5497548331942713703) & 32767)`, name)
    expect(await one('lockstep.bucket($1)', name)).toBe(bucket)
  }
  expect(await one('lockstep.events_key()')).toBe(await oldHash('event\tlisteners'))
})

test('it is inlined: no function of ours is called for it', async () => {
  for (const expression of ['lockstep.key($1)', 'lockstep.gate($1)', 'lockstep.events_key()']) {
    await db.pool.query(`drop table if exists names; create table names (n text)`)
    const { rows } = await db.pool.query(`explain verbose select ${expression.replace('$1', 'n')} from names`)
    expect(JSON.stringify(rows)).not.toContain('lockstep.')
  }
})
