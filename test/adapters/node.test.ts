/**
 * The Node adapter and the command: real processes, real sockets, their own embedded PostgreSQL.
 */
import { type ChildProcessByStdio, execFileSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as net from 'node:net'
import * as os from 'node:os'
import * as path from 'node:path'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { type ServeOptions, serve } from '../../functions/adapters/node.ts'
import { createLockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { ask } from '../support/query-once.ts'
import { fakeServer } from '../time/ntp-server.ts'

const CLI = fileURLToPath(new URL('../../functions/cli/index.ts', import.meta.url))
const KEY = `ci:${createHash('sha256').update('secret').digest('hex')}:locks:write`

let database: FreshDatabase
/** Clients that send half a request. They run during the other tests, because this takes half a minute. */
let slow: { url: string; answers: Promise<string[]>; close(): Promise<void> }
beforeAll(async () => {
  database = await freshDatabase()
  const { url, close } = await serve({ lockstep: createLockstep({ connectionString: database.url }), port: 0 })
  const head = 'POST /v1/locks/slow HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
  const halves = [...Array<string>(50).fill(`${head}X: `), `${head}Content-Length: 1000\r\n\r\n{`]
  slow = { url, close, answers: Promise.all(halves.map((half) => sent(url, half))) }
  slow.answers.catch(() => {})
})
afterAll(async () => {
  await slow?.close()
  await database?.close()
})

const leftovers: (() => unknown)[] = []
afterEach(async () => {
  for (const remove of leftovers.splice(0).reverse()) await remove()
})

/** A folder that the embedded server's user can enter. */
function folder(): string {
  const made = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-node-'))
  fs.chmodSync(made, 0o755)
  leftovers.push(() => fs.rmSync(made, { recursive: true, force: true }))
  return made
}

interface Run {
  child: ChildProcessByStdio<null, Readable, Readable>
  out(): string
  err(): string
  /** Resolves when it has printed this; rejects if it ends before. */
  printed(pattern: RegExp): Promise<RegExpExecArray>
  /** Its exit code. */
  ended: Promise<number | null>
}

function lockstep(args: string[], env: Record<string, string> = {}, cwd = folder()): Run {
  const { PATH = '' } = process.env
  const child = spawn(process.execPath, [CLI, ...args], {
    cwd,
    env: { PATH, PORT: '0', LOCKSTEP_NTP_SERVERS: 'off', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  leftovers.push(async () => {
    child.kill('SIGKILL')
    await ended
  })
  let [out, err] = ['', '']
  child.stdout.on('data', (bytes) => (out += bytes))
  child.stderr.on('data', (bytes) => (err += bytes))
  const ended = once(child, 'close').then(([code]) => code as number | null)
  const printed = async (pattern: RegExp) => {
    for (;;) {
      const found = pattern.exec(out)
      if (found) return found
      const event = await Promise.race([once(child.stdout, 'data'), ended.then(() => 'ended')])
      if (event === 'ended' && !pattern.test(out)) throw new Error(`It ended without printing ${pattern}: ${out}${err}`)
    }
  }
  return { child, out: () => out, err: () => err, printed, ended }
}

const listening = async (run: Run) => (await run.printed(/listening on (http:\S+?)[,\s]/))[1] as string
const post = (url: string, body: object = {}, init: RequestInit = {}) =>
  fetch(url, {
    method: 'POST',
    body: JSON.stringify(body),
    headers: { 'content-type': 'application/json' },
    ...init,
  })
const until = async (what: () => unknown) => {
  for (const deadline = Date.now() + 10_000; !(await what()); await delay(10)) {
    if (Date.now() > deadline) throw new Error('It did not happen in 10 s')
  }
}
const waiting = (url: string, n: number) =>
  until(async () => ((await (await fetch(url)).json()) as { waiting: number }).waiting === n)

/** Whether this process may mount a file system. It is tried, on a folder of its own. */
function mayMount(): boolean {
  const at = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-mount-'))
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', at], { stdio: 'ignore' })
    execFileSync('umount', [at])
    return true
  } catch {
    return false
  } finally {
    fs.rmdirSync(at)
  }
}

/** The response to these bytes, until the server closes the connection. */
async function sent(url: string, bytes: string): Promise<string> {
  const { hostname, port } = new URL(url)
  const socket = net.connect(Number(port), hostname)
  socket.write(bytes)
  let text = ''
  for await (const chunk of socket) text += chunk
  return text
}

describe('lockstep start', () => {
  test('starts its own PostgreSQL, prints its address and an example; Ctrl-C ends waiting requests, then all of it; the data stays', async () => {
    const home = folder()
    const pidFile = path.join(home, '.lockstep', 'postmaster.pid')
    const run = lockstep([], {}, home)
    const url = await listening(run)
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/)
    await run.printed(/curl .*-d '.*'/s)
    expect(run.out()).toMatch(
      /^starting PostgreSQL, data in \.lockstep\/ …\nmigrations applied: 0001_\w+.*\nlistening on .*, without keys: /,
    )

    const [, server] = /\n {2}database {2}(postgres:\/\/postgres@127\.0\.0\.1:\d+\/postgres)\n/.exec(run.out()) ?? []
    expect(await ask(server as string, 'select from lockstep.migration limit 1')).toHaveLength(1)
    expect(run.out()).toContain(`\n  routes    ${url}/openapi.json\n`)
    const [, target = '', type = '', body = ''] =
      /curl -i -X POST (\S+) .*'(Content-Type: .*)' -d '(.*)'/s.exec(run.out()) ?? []
    const tried = await fetch(target, { method: 'POST', body, headers: [type.split(': ') as [string, string]] })
    expect(tried.status).toBe(201)
    expect((await post(`${url}/v1/locks/kept`, { ttlMs: 3_600_000 })).status).toBe(201)
    expect((await fetch(`${url}/readyz`)).status).toBe(200)

    const second = lockstep([], {}, home)
    expect(await second.ended).toBe(1)
    expect(second.err()).toMatch(/^PostgreSQL runs already on .*\n$/)
    expect((await fetch(`${url}/readyz`)).status).toBe(200)

    const wait = post(`${url}/v1/locks/kept`, { waitMs: 20_000 })
    await waiting(`${url}/v1/locks/kept`, 1)
    run.child.kill('SIGINT')
    const ended = await wait
    expect([ended.status, ended.headers.get('retry-after'), ended.headers.get('connection')]).toEqual([
      503,
      '1',
      'close',
    ])
    expect(await run.ended).toBe(0)
    expect(run.out()).toMatch(/stopping …\nstopped\n$/)
    expect(run.err()).toBe('')
    expect(fs.existsSync(pidFile)).toBe(false)

    const again = lockstep(['start'], {}, home)
    const there = await listening(again)
    expect(again.out()).toMatch(/schema is up to date \(\d{4}_\w+\)/)
    expect((await post(`${there}/v1/locks/kept`)).status).toBe(423)
    again.child.kill('SIGTERM')
    expect(await again.ended).toBe(0)
  })

  test('stopped while it starts leaves nothing running', async () => {
    const home = folder()
    const run = lockstep([], {}, home)
    await run.printed(/starting PostgreSQL/)
    run.child.kill('SIGTERM')
    expect(await run.ended).toBe(0)
    expect(run.out()).toMatch(/stopped\n$/)
    expect(run.err()).toBe('')
    expect(fs.existsSync(path.join(home, '.lockstep', 'postmaster.pid'))).toBe(false)
  })

  test('a second signal ends it at once, and its PostgreSQL follows', async () => {
    const home = folder()
    const run = lockstep([], {}, home)
    const { hostname, port } = new URL(await listening(run))
    const slow = net.connect(Number(port), hostname).on('error', () => {})
    slow.write(
      'POST /v1/locks/slow HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{',
    )
    await until(async () => (await fetch(`http://${hostname}:${port}/healthz`)).ok) // so the earlier bytes have arrived
    run.child.kill('SIGINT')
    await run.printed(/stopping/)
    run.child.kill('SIGINT')
    expect(await run.ended).toBe(1)
    await until(() => !fs.existsSync(path.join(home, '.lockstep', 'postmaster.pid')))
  })

  test('on a port that is in use ends with an error, before a PostgreSQL is started', async () => {
    const other = net.createServer().listen(0, '127.0.0.1')
    await once(other, 'listening')
    leftovers.push(() => other.close())
    const home = folder()
    const { port } = other.address() as net.AddressInfo
    const run = lockstep([], { PORT: String(port) }, home)
    expect(await run.ended).toBe(1)
    expect(run.err()).toBe(`Port ${port} on 127.0.0.1 is taken by another program: stop it, or choose another PORT\n`)
    expect(run.out()).toBe('')
    expect(fs.readdirSync(home)).toEqual([])
  })

  test.skipIf(!mayMount())('on a disk that is full says so in one sentence, and leaves nothing', async () => {
    const home = folder()
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=24m,mode=755', 'tmpfs', home])
    leftovers.push(() => execFileSync('umount', [home]))
    const run = lockstep([], {}, home)
    expect(await run.ended).toBe(1)
    expect(run.err()).toMatch(/^The disk of \S+\.lockstep is full: PostgreSQL needs about 100 MB for new data\. .*\n$/)
    expect(fs.readdirSync(home)).toEqual([])
  })

  test('serves the database of DATABASE_URL, on a public address with keys', async () => {
    const run = lockstep([], { DATABASE_URL: database.url, HOST: '0.0.0.0', LOCKSTEP_API_KEYS: KEY })
    const url = (await listening(run)).replace('0.0.0.0', '127.0.0.1')
    expect(run.out()).toContain("-H 'Authorization: Bearer id.secret'")
    expect(run.out()).toContain(`\n  routes    ${url}/openapi.json\n`)
    const secret = new URL(database.url)
    secret.password = 'hunter2'
    secret.searchParams.set('application_name', 'hunter3')
    const other = lockstep([], { DATABASE_URL: secret.href })
    await other.printed(/curl/)
    expect(other.out()).toContain(`\n  database  postgres://${secret.username}@${secret.host}${secret.pathname}\n`)
    expect(other.out()).not.toMatch(/hunter/)
    expect(run.out()).not.toContain('without keys')
    expect((await post(`${url}/v1/locks/keyed`)).status).toBe(401)
    const headers = { 'content-type': 'application/json', authorization: 'Bearer ci.secret' }
    expect((await post(`${url}/v1/locks/keyed`, {}, { headers })).status).toBe(201)
    run.child.kill('SIGTERM')
    expect(await run.ended).toBe(0)
  })

  test('serves below a base path', async () => {
    const run = lockstep([], { DATABASE_URL: database.url, LOCKSTEP_BASE_PATH: '/coord' })
    const url = await listening(run)
    expect(url).toMatch(/:\d+\/coord$/)
    expect((await fetch(`${url}/readyz`)).status).toBe(200)
    expect((await fetch(url.replace('/coord', '/readyz'))).status).toBe(404)
    run.child.kill('SIGTERM')
    expect(await run.ended).toBe(0)
  })

  test.each([
    [{ PORT: '65536' }, 'PORT must be a whole number, 0–65535, not "65536"'],
    [{ PORT: '-1' }, 'PORT must be a whole number, 0–65535, not "-1"'],
    [{ PORT: '80.5' }, 'PORT must be a whole number, 0–65535, not "80.5"'],
    [{ PORT: 'http' }, 'PORT must be a whole number, 0–65535, not "http"'],
    [{ HOST: 'no host' }, 'HOST must be an address or a name, not "no host"'],
    [{ HOST: 'nowhere.invalid' }, 'HOST is nowhere.invalid, which is no address and no known name'],
    [
      { HOST: '0.0.0.0' },
      'Without keys it listens on loopback only, and HOST is 0.0.0.0: set LOCKSTEP_API_KEYS, or HOST=127.0.0.1',
    ],
    [
      { HOST: '::' },
      'Without keys it listens on loopback only, and HOST is ::: set LOCKSTEP_API_KEYS, or HOST=127.0.0.1',
    ],
    [{ HOST: '0.0.0.0', LOCKSTEP_API_KEYS: ' ' }, 'Without keys it listens on loopback only'],
    [{ LOCKSTEP_BASE_PATH: '/a/' }, 'LOCKSTEP_BASE_PATH must be like /coord'],
    [{ LOCKSTEP_API_KEYS: `${KEY},x` }, 'LOCKSTEP_API_KEYS, entry 2: `sha256-of-secret` must be'],
    [
      { DATABASE_URL: 'mysql://root:hunter2@db/x' },
      'DATABASE_URL must be like postgres://user:password@host:port/database',
    ],
    [
      { DATABASE_URL: 'postgres://root:hunter2@::1:5432/x' },
      'DATABASE_URL must be a Postgres URL whose IPv6 address is valid and in brackets, like postgres://',
    ],
    [
      { DATABASE_URL: 'postgres://root:hunter2@db:65536/x' },
      'DATABASE_URL must be a Postgres URL whose port is an integer, 1–65535',
    ],
    [{ DATABASE_URL: 'hunter2' }, 'DATABASE_URL must be like postgres://user:password@host:port/database'],
  ])('with %j refuses before anything is started', async (env, sentence) => {
    const home = folder()
    const run = lockstep([], env as Record<string, string>, home)
    expect(await run.ended).toBe(1)
    expect(run.err()).toContain(sentence)
    expect(run.err().split('\n').length).toBe(2)
    expect(run.err()).not.toContain('hunter2')
    expect(run.out()).toBe('')
    expect(fs.readdirSync(home)).toEqual([])
  })

  test('ends with an error that shows no password if its database does not respond', async () => {
    const run = lockstep([], { DATABASE_URL: 'postgres://me:hunter2@127.0.0.1:1/x' })
    expect(await run.ended).toBe(1)
    expect(run.err()).toBe('The database cannot be reached (connect ECONNREFUSED 127.0.0.1:1)\n')
    expect(run.out()).toBe('')
  })
})

describe('lockstep', () => {
  test('migrate brings a database up to date, and reports it', async () => {
    await using empty = await freshDatabase({ empty: true })
    for (const words of [/^migrations applied: 0001_\w+.*\n$/, /^schema is up to date \(\w+\)\n$/]) {
      const run = lockstep(['migrate'], { DATABASE_URL: empty.url, HOST: '0.0.0.0' })
      expect(await run.ended).toBe(0)
      expect(run.out()).toMatch(words)
    }
  })

  test('measures true time, prints how exactly, and names a wrong server', async () => {
    const servers = await Promise.all([0, 0, 0, 10_000].map((wrongMs) => fakeServer({ wrongMs })))
    leftovers.push(...servers.map((each) => () => each[Symbol.asyncDispose]()))
    const names = servers.map(({ name }) => name)
    const env = { DATABASE_URL: database.url, LOCKSTEP_NTP_SERVERS: ` ${names.join(', ')} ` }
    const run = lockstep([], env)
    const url = await listening(run)
    await run.printed(/true time is known to within \d+\.\d ms, synchronized\n/)
    expect(run.out()).toContain(`asking ${names.join(', ')} for true time (LOCKSTEP_NTP_SERVERS)\n`)
    const answer = await (await fetch(`${url}/v1/time`)).json()
    expect(answer).toMatchObject({ status: 'synchronized', source: 'database+ntp', falsetickers: [names[3]] })
    run.child.kill('SIGINT')
    expect(await run.ended).toBe(0)
    expect(run.err()).toBe('')
  })

  test('measures by one trusted server, and says so', async () => {
    await database.pool.query('update lockstep.time_anchor set server = 0, claimed_until = null')
    const server = await fakeServer()
    leftovers.push(() => server[Symbol.asyncDispose]())
    const run = lockstep([], {
      DATABASE_URL: database.url,
      LOCKSTEP_NTP_SERVERS: '',
      LOCKSTEP_TRUSTED_NTP_SERVER: server.name,
    })
    const url = await listening(run)
    await run.printed(/true time is known to within \d+\.\d ms, trusted\n/)
    expect(run.out()).toContain(`asking ${server.name} for true time (LOCKSTEP_TRUSTED_NTP_SERVER), without a vote\n`)
    const answer = await (await fetch(`${url}/v1/time`)).json()
    expect(answer).toMatchObject({ status: 'trusted', trusted: server.name })
    run.child.kill('SIGINT')
    expect(await run.ended).toBe(0)
  })

  test.each([
    [
      { LOCKSTEP_TRUSTED_NTP_SERVER: 'a.example', LOCKSTEP_NTP_SERVERS: 'off' },
      /^LOCKSTEP_TRUSTED_NTP_SERVER is one server without a vote, /,
    ],
    [
      { LOCKSTEP_TRUSTED_NTP_SERVER: 'a,b,c', LOCKSTEP_NTP_SERVERS: '' },
      /^LOCKSTEP_TRUSTED_NTP_SERVER must be one server, host\[:port\]: .*\n$/,
    ],
  ])('%j is refused in one sentence', async (env, sentence) => {
    const run = lockstep([], { DATABASE_URL: database.url, ...env })
    expect(await run.ended).toBe(1)
    expect(run.err()).toMatch(sentence)
  })

  test('reports once that no NTP server responds, and serves', async () => {
    await database.pool.query('update lockstep.time_anchor set server = 0, claimed_until = null')
    const env = { DATABASE_URL: database.url, LOCKSTEP_NTP_SERVERS: '127.0.0.1:1,127.0.0.1:2,127.0.0.1:3' }
    const run = lockstep([], env)
    const url = await listening(run)
    await until(() => run.err() !== '')
    expect(run.err()).toBe('true time is not known yet: Only 0 of 3 NTP servers gave a time (LOCKSTEP_NTP_SERVERS)\n')
    expect(await (await fetch(`${url}/v1/time`)).json()).toMatchObject({ status: 'unsynchronized', earliest: null })
    run.child.kill('SIGINT')
    expect(await run.ended).toBe(0)
  })

  test('with --no-migrate serves on a newer schema; without it refuses to start', async () => {
    await using newer = await freshDatabase()
    await newer.pool.query(`insert into lockstep.migration (name, "timestamp") values ('9999_later', '2099-01-01')`)
    const refused = lockstep([], { DATABASE_URL: newer.url, LOCKSTEP_NTP_SERVERS: 'off' })
    expect(await refused.ended).toBe(1)
    expect(refused.err()).toMatch(/^The database has migration 9999_later, which this version/)
    const run = lockstep(['start', '--no-migrate'], { DATABASE_URL: newer.url, LOCKSTEP_NTP_SERVERS: 'off' })
    const url = await listening(run)
    expect(run.out()).toMatch(/^listening/)
    expect((await fetch(`${url}/readyz`)).status).toBe(200)
    run.child.kill('SIGTERM')
    expect(await run.ended).toBe(0)
  })

  test.each(['time.example', 'a.example,b.example', 'a.example,b.example,c.example:0', 'a.example,b.example,', 'OFF'])(
    'LOCKSTEP_NTP_SERVERS=%s is refused in one sentence',
    async (servers) => {
      const run = lockstep([], { DATABASE_URL: database.url, LOCKSTEP_NTP_SERVERS: servers })
      expect(await run.ended).toBe(1)
      expect(run.err()).toMatch(
        /^LOCKSTEP_NTP_SERVERS must be host\[:port\],…, 3–16 of them, or off: Expected `servers`.*\n$/,
      )
    },
  )

  test('--version and --help print, and start nothing', async () => {
    const version = lockstep(['--version'])
    const { version: expected } = JSON.parse(fs.readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
    expect([await version.ended, version.out()]).toEqual([0, `${expected}\n`])
    const help = lockstep(['-h'])
    expect(await help.ended).toBe(0)
    for (const word of [
      'PORT',
      'HOST',
      'DATABASE_URL',
      'LOCKSTEP_API_KEYS',
      'LOCKSTEP_NTP_SERVERS',
      'LOCKSTEP_BASE_PATH',
      'migrate',
    ])
      expect(help.out()).toContain(word)
  })

  test.each([
    [['stop'], 2, 'There is no command "stop": try --help\n'],
    [['start', 'now'], 2, 'There is no command "start now": try --help\n'],
    [['--port', '80'], 2, "Unknown option '--port'"],
    [['migrate'], 1, 'migrate needs DATABASE_URL'],
    [['migrate', '--no-migrate'], 2, '--no-migrate goes with start: try --help'],
  ])('%j is refused', async (args, code, sentence) => {
    const run = lockstep(args)
    expect(await run.ended).toBe(code)
    expect(run.err()).toContain(sentence)
    expect(run.err().split('\n').length).toBe(2)
  })
})

describe('the Node adapter', () => {
  async function start(options: Partial<ServeOptions> = {}) {
    const lockstep = createLockstep({ connectionString: database.url })
    const server = await serve({ lockstep, port: 0, ...options })
    leftovers.push(() => server.close())
    return server
  }

  test('without keys refuses web pages, and requests for other host names', async () => {
    const { url } = await start()
    const get = (head: string) => sent(url, `GET /v1/locks/x HTTP/1.1\r\n${head}\r\nConnection: close\r\n\r\n`)
    for (const head of [
      'Host: localhost',
      'Host: 127.0.0.1:3000',
      'Host: [::1]',
      'Host: localhost\r\nSec-Fetch-Site: none',
    ]) {
      expect(await get(head), head).toMatch(/^HTTP\/1.1 200/)
    }
    for (const head of [
      'Host: evil.example',
      'Host: localhost.evil.example',
      'Host: localhost\r\nSec-Fetch-Site: cross-site',
      'Host: localhost\r\nOrigin: http://evil.example',
      'Host: localhost\r\nOrigin: null\r\nSec-Fetch-Site: same-origin',
    ]) {
      expect(await get(head), head).toMatch(/^HTTP\/1.1 403.*FORBIDDEN/s)
    }
    const open = await start({ origins: ['https://app.example.com'] })
    for (const [origin, status] of [
      ['https://app.example.com', 200],
      ['https://evil.example', 403],
    ]) {
      const head = `Host: localhost\r\nOrigin: ${origin}\r\nSec-Fetch-Site: cross-site\r\nConnection: close`
      const answer = await sent(open.url, `GET /v1/locks/x HTTP/1.1\r\n${head}\r\n\r\n`)
      expect(answer).toMatch(new RegExp(`^HTTP/1.1 ${status}`))
    }
    const keyed = await start({ keys: KEY })
    expect(await sent(keyed.url, 'GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n')).toMatch(
      /^HTTP\/1.1 200/,
    )
  })

  test('takes a client that disconnects out of the queue', async () => {
    const { url } = await start()
    const lock = `${url}/v1/locks/hang-up`
    const { token } = (await (await post(lock)).json()) as { token: string }
    const client = new AbortController()
    const wait = post(lock, { waitMs: 20_000 }, { signal: client.signal }).catch((error) => error.name)
    await waiting(lock, 1)
    client.abort()
    expect(await wait).toBe('AbortError')
    await waiting(lock, 0)
    await fetch(`${lock}?token=${token}`, { method: 'DELETE' })
    expect(await (await fetch(lock)).json()).toMatchObject({ held: false })
  })

  test('a stop ends idle connections at once, and closes the library', async () => {
    const { url, close } = await start()
    const { hostname, port } = new URL(url)
    const idle = net.connect(Number(port), hostname)
    idle.write('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
    await once(idle, 'data')
    const ended = once(idle, 'close')
    await Promise.all([close(), close(), ended]) // keep-alive alone would last longer than the limit of this test
    await expect(fetch(url)).rejects.toThrow()
  })

  test('a stop lets a request in flight finish, and its response has Connection: close', async () => {
    const { url, close } = await start()
    const other = await database.pool.connect()
    await other.query('begin; lock table lockstep.lease in access exclusive mode')
    const answer = post(`${url}/v1/locks/in-flight`)
    await until(
      async () =>
        (
          await other.query(`select from pg_locks where not granted and relation = 'lockstep.lease'::regclass
             and database = (select oid from pg_database where datname = current_database())`)
        ).rows.length,
    )
    const closed = close()
    await other.query('commit')
    other.release()
    expect([(await answer).status, (await answer).headers.get('connection')]).toEqual([201, 'close'])
    await closed
  })

  test('a stop waits for a request that never ends no longer than drainMs', async () => {
    const { url, close } = await start({ drainMs: 200 })
    const slow = sent(url, 'POST /v1/locks/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{').catch(
      (error) => error.code,
    )
    expect((await fetch(`${url}/healthz`)).status).toBe(200)
    await close()
    expect(await slow).toBeTypeOf('string')
  })

  test.each([
    ['not HTTP', 'nonsense\r\n\r\n', 400],
    ['a target that is not ASCII', 'GET /v1/locks/é HTTP/1.1\r\nHost: localhost\r\n\r\n', 400],
    [
      'two lengths',
      'POST /v1/locks/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n',
      400,
    ],
    ['no host', 'GET /v1/locks HTTP/1.1\r\nConnection: close\r\nHost: a b\r\n\r\n', 400],
    ['a backslash', 'GET /v1/locks/a\\b HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\n\r\n', 400],
    ['headers without end', `GET /v1/locks/${'x'.repeat(20_000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`, 431],
    [
      'an announced body that is too large',
      'POST /v1/locks/a HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\nContent-Length: 70000\r\n\r\n',
      413,
    ],
    [
      'a length beside chunks, which hides a request in a body',
      'POST /v1/locks/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
      400,
    ],
    [
      'chunks that are not the last coding',
      'POST /v1/locks/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n',
      400,
    ],
    ['a folded header', 'GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\nConnection: close\r\n\r\n', 400],
    ['a blank before a colon', 'GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length : 5\r\n\r\n', 400],
    ['a path with ..', 'GET /v1/locks/../../x HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\n\r\n', 400],
    ['CONNECT', 'CONNECT example.com:443 HTTP/1.1\r\nHost: localhost\r\n\r\n', 405],
    ['TRACE', 'TRACE /healthz HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\n\r\n', 405],
  ])('%s is answered with a problem', async (_, bytes, status) => {
    const { url } = await start()
    const [head = '', body = ''] = (await sent(url, bytes)).split('\r\n\r\n')
    expect(head).toMatch(new RegExp(`^HTTP/1.1 ${status} `))
    expect(head).toMatch(/content-type: application\/problem\+json/i)
    expect(JSON.parse(body)).toMatchObject({
      type: 'about:blank',
      status,
      code: expect.any(String),
      detail: expect.any(String),
    })
  })

  test('a client that sends slowly gets 408 and is disconnected, and delays no other client', {
    timeout: 60_000,
  }, async () => {
    expect((await fetch(`${slow.url}/healthz`)).status).toBe(200)
    for (const answer of await slow.answers) expect(answer).toMatch(/^HTTP\/1\.1 408 .*"code":"TIMEOUT"/s)
    expect(await (await fetch(`${slow.url}/v1/locks/slow`)).json()).toMatchObject({ held: false })
  })

  test('refuses a public address without keys, also as a library', async () => {
    await expect(start({ host: '0.0.0.0' })).rejects.toThrow('Without keys it listens on loopback only')
    await expect(start({ host: '0.0.0.0', keys: KEY })).resolves.toBeDefined()
    await expect(start({ host: 'localhost' })).resolves.toBeDefined()
  })
})
