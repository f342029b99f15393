/** The environment of the command: every mistake in it is found before anything is started. */
import * as os from 'node:os'
import * as path from 'node:path'
import type { InvalidArgument } from '../../lib/base/index.ts'
import { checkedConnectionString } from '../../lib/database/index.ts'
import { type Ntp, ntp } from '../../lib/time/ntp/index.ts'
import { checkBasePath, checkOrigins, parseKeys } from '../http/index.ts'

export interface Settings {
  port: number
  host: string
  url: string | undefined
  keys: string | undefined
  basePath: string
  /** The origins of web pages that may ask. */
  origins: string[]
  ntp: Ntp | undefined
  /** Where the data of the embedded PostgreSQL goes when the working directory cannot hold it, in this order. */
  dataFallbacks: string[]
}

/** @throws {Error} in one sentence: which variable is wrong, and what it may be. */
export function readSettings(env: NodeJS.ProcessEnv): Settings {
  const port = env.PORT || '3000'
  if (!/^\d{1,5}$/.test(port) || Number(port) > 65_535) {
    throw new Error(`PORT must be a whole number, 0–65535, not ${JSON.stringify(port)}`)
  }
  const host = env.HOST || '127.0.0.1'
  if (!/^[\w.:%-]+$/.test(host)) throw new Error(`HOST must be an address or a name, not ${JSON.stringify(host)}`)
  const url = env.DATABASE_URL || undefined
  if (url) checkUrl(url)
  parseKeys(env.LOCKSTEP_API_KEYS)
  const basePath = env.LOCKSTEP_BASE_PATH ?? ''
  checkBasePath(basePath, 'LOCKSTEP_BASE_PATH')
  const origins = (env.LOCKSTEP_ORIGINS ?? '').split(',').flatMap((origin) => origin.trim() || [])
  checkOrigins(origins, 'LOCKSTEP_ORIGINS')
  return {
    port: Number(port),
    host,
    url,
    keys: env.LOCKSTEP_API_KEYS,
    basePath,
    origins,
    ntp: readServers(env),
    dataFallbacks: dataFallbacks(env),
  }
}

function checkUrl(url: string): void {
  let wanted = 'like postgres://user:password@host:port/database, special characters percent-encoded'
  try {
    checkedConnectionString('DATABASE_URL', url)
    if (/^postgres(ql)?:/.test(url)) return
  } catch (error) {
    wanted = (error as InvalidArgument).expected.replace(/^a Postgres URL (?=like )/, '')
  }
  throw new Error(`DATABASE_URL must be ${wanted}`)
}

// The XDG Base Directory Specification: state of a program that is kept between its runs. Root's home is closed to the server's user.
function dataFallbacks(env: NodeJS.ProcessEnv): string[] {
  const uid = process.getuid?.()
  const state = env.XDG_STATE_HOME || (uid === 0 ? '/var/lib' : path.join(os.homedir(), '.local/state'))
  return [
    path.join(state, 'lockstep'),
    path.join('/var/tmp', `lockstep-${uid}`),
    path.join(os.tmpdir(), `lockstep-${uid}`),
  ]
}

function readServers(env: NodeJS.ProcessEnv): Ntp | undefined {
  const list = env.LOCKSTEP_NTP_SERVERS?.trim()
  const trusted = env.LOCKSTEP_TRUSTED_NTP_SERVER?.trim()
  if (trusted && list) {
    throw new Error(
      'LOCKSTEP_TRUSTED_NTP_SERVER is one server without a vote, and LOCKSTEP_NTP_SERVERS is a vote: set one of them',
    )
  }
  if (trusted) {
    try {
      return ntp({ trusted })
    } catch (error) {
      throw new Error(`LOCKSTEP_TRUSTED_NTP_SERVER must be one server, host[:port]: ${(error as Error).message}`)
    }
  }
  if (!list) return ntp()
  if (list === 'off') return undefined
  try {
    return ntp({ servers: list.split(',').map((server) => server.trim()) })
  } catch (error) {
    throw new Error(`LOCKSTEP_NTP_SERVERS must be host[:port],…, 3–16 of them, or off: ${(error as Error).message}`)
  }
}
