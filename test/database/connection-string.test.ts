/** Connection strings: a wrong one is refused when the Lockstep is made, and TLS is asked for without a warning. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as path from 'node:path'
import { text } from 'node:stream/consumers'
import pg from 'pg'
import { describe, expect, inject, test } from 'vitest'
import { checkedConnectionString } from '../../lib/database/connection-string.ts'
import { createLockstep } from '../../lib/index.ts'
import { migrate } from '../../lib/setup/migrate.ts'

const FORM = 'postgres://user:password@host:port/database'
const wrong = [
  ['postgres://u:s3cret@a,b/db', 'of one host: several are not supported yet'],
  ['postgres://u:s3cret@a:5432,b:5433/db', 'of one host: several are not supported yet'],
  ['postgres://u:s3cret@/db?host=a,b', 'of one host: several are not supported yet'],
  ['postgres://u:s3cret@/db?host=a%2Cb', 'of one host: several are not supported yet'],
  ['postgres://u:s3cret#1@h/db', 'without #: write it as %23'],
  ['postgres://u:12#s3cret@h/db', 'without #: write it as %23'],
  ['postgres://u:pass/s3cret@h/db', `like ${FORM}, with special characters percent-encoded`],
  ['postgres://u:12/s3cret@h/db', `like ${FORM}, with special characters percent-encoded`],
  ['postgres://u:pass?s3cret@h/db', `like ${FORM}, with special characters percent-encoded`],
  ['postgres://u:s3cret%E0%A4@h/db', `like ${FORM}, with special characters percent-encoded`],
  ['postgres://u:s3cret@h:port/db', `like ${FORM}, with special characters percent-encoded`],
  ['postgres://u:s3cret@::1/db', 'whose IPv6 address is valid and in brackets, like postgres://'],
  ['postgres://u:s3cret@::1:5432/db', 'whose IPv6 address is valid and in brackets, like postgres://'],
  ['postgres://u:s3cret@fe80::1%25eth0/db', 'whose IPv6 address is valid and in brackets, like postgres://'],
  ['postgres://u:s3cret@[::1/db', 'whose IPv6 address is valid and in brackets, like postgres://'],
  ['postgres://u:s3cret@::1]:5432/db', 'whose IPv6 address is valid and in brackets, like postgres://'],
  ['postgres://u:s3cret@[::g]:5432/db', 'whose IPv6 address is valid and in brackets, like postgres://'],
  ['postgres://u:s3cret@[10.0.0.1]/db', 'whose IPv6 address is valid and in brackets, like postgres://'],
  ['postgres://u:s3cret@[h]/db', 'whose IPv6 address is valid and in brackets, like postgres://'],
  ['postgres://u:s3cret@[]:5432/db', 'whose IPv6 address is valid and in brackets, like postgres://'],
  ['postgres://u:s3cret@/db?host=[::1]:5432', 'whose parameter host is a name or an address without a port'],
  ['postgres://u:s3cret@/db?host=h:5432', 'whose parameter host is a name or an address without a port'],
  ['postgres://u:s3cret@/db?host=%5B::g%5D', 'whose parameter host is a name or an address without a port'],
  ['postgres://u:s3cret@10.0.0.256/db', 'whose IPv4 address has four numbers of 0–255'],
  ['postgres://u:s3cret@/db?host=10.0.0.256', 'whose IPv4 address has four numbers of 0–255'],
  ['postgres://u:s3cret@h:0/db', 'whose port is an integer, 1–65535'],
  ['postgres://u:s3cret@h:65536/db', 'whose port is an integer, 1–65535'],
  ['postgres://u:s3cret@[::1]:65536/db', 'whose port is an integer, 1–65535'],
  ['postgres://u:s3cret@/db?port=0', 'whose port is an integer, 1–65535'],
  ['postgres://u:s3cret@/db?host=h&port=x', 'whose port is an integer, 1–65535'],
  ['host=localhost port=5432 password=s3cret', `not in the form host=… port=…: write it as ${FORM}`],
  ['  dbname = s3cret', `not in the form host=… port=…: write it as ${FORM}`],
  ['s3cret', `like ${FORM}`],
] as const

describe('a connection string that is wrong', () => {
  test.each(wrong)('is refused at creation, and never shown: %s', async (wrongly, why) => {
    const fine = inject('serverUrl')
    const refused = async (field: string, work: () => unknown) => {
      const error = await (async () => work())().then(
        () => undefined,
        (error) => error,
      )
      expect(error).toMatchObject({ name: 'TypeError', code: 'INVALID_ARGUMENT', field })
      expect(error.message).toContain(`Expected \`${field}\` to be a Postgres URL ${why}`)
      expect(`${error.stack}${JSON.stringify(error)}${error.cause}`).not.toContain('s3cret')
    }
    await refused('connectionString', () => createLockstep({ connectionString: wrongly }))
    await refused('directConnectionString', () =>
      createLockstep({ connectionString: fine, directConnectionString: wrongly }),
    )
    await refused('connectionString', () => migrate(wrongly))
  })

  test.each([undefined, '', 7])('of the wrong type is refused too: %s', (connectionString) => {
    expect(() => createLockstep({ connectionString: connectionString as string })).toThrow(TypeError)
  })
})

test.each([
  ['postgres://u:p%23w@h:1/db', { host: 'h', port: 1, user: 'u', password: 'p#w', database: 'db' }],
  ['postgresql://u:p%2Fw,x@h/db', { host: 'h', user: 'u', password: 'p/w,x', database: 'db' }],
  ['postgres://u:a@b@h/db', { host: 'h', password: 'a@b' }],
  ['postgres://u:100%@h/db', { host: 'h', password: '100%' }],
  ['postgres://u:a b@h/db', { host: 'h', password: 'a b' }],
  ['postgres://u@h/d@b', { host: 'h', database: 'd@b' }],
  ['postgres://u@[::1]:5/db', { host: '::1', port: 5 }],
  ['postgres://u@[0:0::1]/db', { host: '::1' }],
  ['postgres://u:p[w@[::1]:5/db', { host: '::1', port: 5, password: 'p[w' }],
  ['postgres://u@10.0.0.1:5/db', { host: '10.0.0.1', port: 5 }],
  ['postgres://u@/db?host=::1&port=5', { host: '::1', port: 5 }],
  ['postgres://u@/db?host=fe80::1%25eth0', { host: 'fe80::1%eth0' }],
  ['postgres://u@/db?host=/var/run', { host: '/var/run', database: 'db' }],
  ['postgres://u@%2Fvar%2Frun/db', { host: '/var/run', database: 'db' }],
  ['postgres:///db', { database: 'db' }],
  ['socket:/var/run?db=x', { host: '/var/run', database: 'x' }],
  ['/var/run db', { host: '/var/run', database: 'db' }],
])('a string that pg can read is left as it is: %s', (string, parts) => {
  expect(checkedConnectionString('x', string)).toBe(string)
  const { host, port, user, password, database } = new pg.Client(string)
  expect({ host, port, user, password, database }).toMatchObject(parts)
})

test.each([
  ['postgres://u:p@[fe80::1%25eth0]:5/db', { host: 'fe80::1%eth0', port: 5, user: 'u', password: 'p', database: 'db' }],
  ['postgres://u:p@[fe80::1%eth0]/db?a=b', { host: 'fe80::1%eth0', password: 'p', database: 'db' }],
  ['postgres://u:10%@[fe80::1%25eth0]/db', { host: 'fe80::1%eth0', password: '10%', database: 'db' }],
  ['postgres://u:a@b@[fe80::1%25eth0]/db', { host: 'fe80::1%eth0', password: 'a@b', database: 'db' }],
  ['postgres://[fe80::1%25eth0]', { host: 'fe80::1%eth0' }],
  ['postgres://u@/db?host=[::1]&port=5', { host: '::1', port: 5, database: 'db' }],
  ['postgres://u@/db?port=5&host=%5B::1%5D', { host: '::1', port: 5, database: 'db' }],
  ['postgres://u@/db?host=[fe80::1%25eth0]&port=5', { host: 'fe80::1%eth0', port: 5 }],
])('an IPv6 address that pg cannot read is given to it in the form that it can: %s', (string, parts) => {
  const { host, port, user, password, database } = new pg.Client(checkedConnectionString('x', string))
  expect({ host, port, user, password, database }).toMatchObject(parts)
})

describe('sslmode', () => {
  test.each([
    ['postgres://h/db?sslmode=require', 'postgres://h/db?sslmode=verify-full'],
    ['postgres://h/db?a=b&sslmode=prefer&c=d', 'postgres://h/db?a=b&sslmode=verify-full&c=d'],
    ['postgres://h/db?sslmode=verify-ca&sslrootcert=/x', 'postgres://h/db?sslmode=verify-full&sslrootcert=/x'],
    ['postgres://h/db?sslmode=no-verify', 'postgres://h/db?sslmode=no-verify'],
    ['postgres://h/db?sslmode=disable', 'postgres://h/db?sslmode=disable'],
    ['postgres://h/db?uselibpqcompat=true&sslmode=require', 'postgres://h/db?uselibpqcompat=true&sslmode=require'],
  ])('is given to pg in words that mean the same now and later: %s', (string, given) => {
    expect(checkedConnectionString('x', string)).toBe(given)
  })

  test.each(['require', 'prefer', 'verify-ca'])('%s prints no warning', async (mode) => {
    const url = Object.assign(new URL(inject('serverUrl')), { search: `?sslmode=${mode}` }).href
    const program = `
      const { createLockstep } = await import(${JSON.stringify(path.resolve('lib/index.ts'))})
      const { migrate } = await import(${JSON.stringify(path.resolve('lib/setup/migrate.ts'))})
      const message = (error) => console.log(error.message, error.cause?.message)
      await migrate(process.argv[1]).catch(message)
      const lockstep = createLockstep({ connectionString: process.argv[1] })
      await lockstep.ready().catch(message)
      await lockstep.locks.acquire('x').catch(message)`
    const child = spawn(process.execPath, ['--input-type=module', '-e', program, url], { stdio: 'pipe' })
    const [out, errors] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')])
    const refused = 'The database cannot be reached The server does not support SSL connections\n' // TLS was asked for
    expect([out, errors]).toEqual([refused.repeat(3), ''])
  })
})
