/**
 * Clocks that are really wrong: Debian's libfaketime under a PostgreSQL server, or under a process of Lockstep. The monotonic
 * clock is not changed.
 */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'
import { type DedicatedServer, dedicatedServer } from './database.ts'

function library(): string | undefined {
  const folders = ['/usr/lib/x86_64-linux-gnu/faketime', '/usr/lib/aarch64-linux-gnu/faketime', '/usr/lib64/faketime']
  const candidates = [process.env.FAKETIME_LIBRARY ?? '', ...folders.map((dir) => path.join(dir, 'libfaketimeMT.so.1'))]
  return candidates.find((file) => file !== '' && fs.existsSync(file))
}

/** Whether libfaketime is installed; else skip the test and say why. */
export const faketimeAvailable = (): boolean => library() !== undefined

export interface WrongClock extends Disposable {
  /** Sets the clock for the processes that use it. `'+3.25 x1.00003'`: 3.25 seconds ahead, and faster. */
  set(how: string): void
  /** The environment of a process that uses it. */
  env: Record<string, string>
}

/** A clock that can be set. */
export function wrongClock(how: string): WrongClock {
  const preload = library()
  if (preload === undefined) throw new Error('libfaketime is not installed: see faketimeAvailable')
  const dir = fs.mkdtempSync(path.join(temporaryFolder(serverUser()), 'lockstep-faketime-'))
  fs.chmodSync(dir, 0o755)
  const file = path.join(dir, 'clock')
  const set = (to: string) => {
    fs.writeFileSync(`${file}.new`, `${to}\n`, { mode: 0o644 })
    fs.renameSync(`${file}.new`, file) // so that no reader sees half of it
  }
  set(how)
  const env = {
    LD_PRELOAD: preload,
    FAKETIME_TIMESTAMP_FILE: file,
    FAKETIME_NO_CACHE: '1',
    FAKETIME_DONT_FAKE_MONOTONIC: '1',
  }
  return { set, env, [Symbol.dispose]: () => fs.rmSync(dir, { recursive: true, force: true }) }
}

/** A separate server with a wrong clock, migrated. */
export async function skewedServer(clock: WrongClock): Promise<DedicatedServer> {
  return under(clock, dedicatedServer)
}

/** Programs that are started while `work` runs use that clock: they inherit the environment of this process. */
export async function under<T>(clock: WrongClock, start: () => Promise<T>): Promise<T> {
  Object.assign(process.env, clock.env)
  try {
    return await start()
  } finally {
    for (const name of Object.keys(clock.env)) delete process.env[name]
  }
}
