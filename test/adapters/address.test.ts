/**
 * Where the database of a Lambda is: a host given alone or with a port, in the environment or in a secret; names, and literals of both
 * families. It is an address that Lockstep takes, and what is none ends in one sentence.
 */
import pg from 'pg'
import { expect, test } from 'vitest'
import { addressOf } from '../../functions/adapters/aws-secrets.ts'
import { checkEnvironment } from '../../functions/adapters/lambda-environment.ts'
import { checkedConnectionString } from '../../lib/database/index.ts'

const secret = { username: 'me:@', password: 'p' }
const reached = (url: string) => {
  const { host, port, user, database } = new pg.Client(checkedConnectionString('connectionString', url))
  expect(user).toBe('me:@')
  return `${host} ${port} ${database}`
}

test.each([
  [{ DATABASE_HOST: 'db.example.com' }, {}, 'db.example.com 5432 postgres'],
  [{ DATABASE_HOST: 'db.example.com:6432', DATABASE_NAME: 'x' }, {}, 'db.example.com 6432 x'],
  [{ DATABASE_HOST: '10.0.0.1' }, { port: 6432 }, '10.0.0.1 6432 postgres'],
  [{ DATABASE_HOST: '::1' }, {}, '::1 5432 postgres'],
  [{ DATABASE_HOST: '[::1]' }, {}, '::1 5432 postgres'],
  [{ DATABASE_HOST: '[::1]:6432' }, {}, '::1 6432 postgres'],
  [{ DATABASE_HOST: '[::1]:6432', DATABASE_PORT: '6432' }, {}, '::1 6432 postgres'],
  [{ DATABASE_HOST: '2001:DB8:0::5', DATABASE_PORT: '6432' }, {}, '2001:db8::5 6432 postgres'],
  [{}, { host: '::1', port: '6432', dbname: 'x' }, '::1 6432 x'],
  [{}, { host: '[::1]', port: 6432 }, '::1 6432 postgres'],
  [{}, { host: '[::1]:6432', port: 5432 }, '::1 6432 postgres'],
  [{ DATABASE_HOST: '::1' }, { host: 'other', port: 6432 }, '::1 6432 postgres'],
])('with %j and the secret %j is reached', (env, more, expected) => {
  expect(reached(addressOf({ ...secret, ...more }, env))).toBe(expected)
})

test.each([
  [
    { DATABASE_HOST: '[::1' },
    'DATABASE_HOST must be a name or an address, like db.example.com, 10.0.0.1, ::1 or [::1]:5432',
  ],
  [{ DATABASE_HOST: '[::g]' }, 'DATABASE_HOST must be a name or an address'],
  [{ DATABASE_HOST: 'fe80::1%eth0' }, 'DATABASE_HOST must be a name or an address'],
  [{ DATABASE_HOST: '10.0.0.256' }, 'DATABASE_HOST must be a name or an address'],
  [{ DATABASE_HOST: 'h:0' }, 'DATABASE_HOST must be a name or an address'],
  [{ DATABASE_HOST: 'postgres://h' }, 'DATABASE_HOST must be a name or an address'],
  [{ DATABASE_HOST: 'me@h' }, 'DATABASE_HOST must be a name or an address'],
  [{ DATABASE_PORT: '65536' }, 'DATABASE_PORT must be an integer, 1–65535'],
  [{ DATABASE_PORT: 'x' }, 'DATABASE_PORT must be an integer, 1–65535'],
  [{ DATABASE_HOST: 'h:1', DATABASE_PORT: '2' }, 'DATABASE_HOST has the port 1, and DATABASE_PORT is 2'],
])('%j ends the start of a function in one sentence', (env, sentence) => {
  expect(() => addressOf(secret, env)).toThrow(sentence)
  expect(() => checkEnvironment({ DATABASE_SECRET_ARN: 'arn', LOCKSTEP_API_KEYS: 'off', ...env })).toThrow(sentence)
})

test.each([
  [{}, 'The secret of the database names no host, and DATABASE_HOST is not set'],
  [{ host: '[::1' }, 'host in the secret of the database must be a name or an address'],
  [{ host: 'h', port: 0.5 }, 'port in the secret of the database must be an integer, 1–65535'],
  [{ host: 'h', port: 'x' }, 'port in the secret of the database must be an integer, 1–65535'],
])('a secret with %j is refused in one sentence, which does not show it', (more, sentence) => {
  expect(() => addressOf({ ...secret, ...more }, {})).toThrow(sentence)
})
