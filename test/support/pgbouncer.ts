/** Debian's PgBouncer in front of a database, in transaction mode: there session locks and LISTEN fail silently. */

import { once } from 'node:events'
import * as fs from 'node:fs'
import * as net from 'node:net'
import * as path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { freePort, guarded, serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'

export interface PoolSize {
  /** How many server connections the clients share. @default 3 */
  size?: number
  /** How many client connections it accepts. @default 100 */
  clients?: number
  /** Its pool_mode. @default 'transaction' */
  mode?: 'transaction' | 'statement'
}

/** Whether PgBouncer is installed; else skip the test and say why. */
export function pgbouncerAvailable(): boolean {
  return pgbouncerPath() !== undefined
}

function pgbouncerPath(): string | undefined {
  const folders = (process.env.PATH ?? '').split(path.delimiter).filter(Boolean)
  const candidates = [
    process.env.PGBOUNCER ?? '',
    ...[...folders, '/usr/sbin'].map((folder) => path.join(folder, 'pgbouncer')),
  ]
  return candidates.find((file) => {
    try {
      fs.accessSync(file, fs.constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

/** Starts PgBouncer in front of a database. Like PostgreSQL it refuses to run as root. */
export async function pgbouncer(
  target: string,
  { size = 3, clients = 100, mode = 'transaction' }: PoolSize,
): Promise<{ url: string; stop(): Promise<void> }> {
  const binary = pgbouncerPath()
  if (binary === undefined) throw new Error('PgBouncer is not installed: see pgbouncerAvailable')
  const user = serverUser()
  const { hostname, port, pathname, username, password } = new URL(target)
  const name = decodeURIComponent(pathname.slice(1))
  const server: Record<string, string> = {
    host: hostname,
    port: port || '5432',
    dbname: name,
    ...(username && { user: decodeURIComponent(username) }),
    ...(password && { password: decodeURIComponent(password) }),
  }
  const listenPort = await freePort()
  const dir = fs.mkdtempSync(path.join(temporaryFolder(user), 'lockstep-pgbouncer-'))
  const file = path.join(dir, 'pgbouncer.ini')
  fs.writeFileSync(
    file,
    `[databases]
${name} = ${Object.entries(server)
      .map(([key, value]) => `${key}='${value.replaceAll("'", "''")}'`)
      .join(' ')}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${listenPort}
unix_socket_dir =
auth_type = any
pool_mode = ${mode}
default_pool_size = ${size}
max_client_conn = ${clients}
server_lifetime = 3600
ignore_startup_parameters = options
`,
  )
  if (user) for (const each of [dir, file]) fs.chownSync(each, user.uid, user.gid)
  const child = guarded([binary, file], { user, stopWith: 'KILL', remove: dir })
  for (;;) {
    if (await accepts(listenPort)) break
    const ended = await Promise.race([child.exited, delay(15, 'waiting')])
    if (ended !== 'waiting') throw new Error(`PgBouncer did not start: ${child.log()}`)
  }
  child.unref()
  return {
    url: `postgres://${username}@127.0.0.1:${listenPort}/${name}`,
    async stop() {
      child.end()
      await child.exited
    },
  }
}

async function accepts(port: number): Promise<boolean> {
  const socket = net.connect(port, '127.0.0.1')
  const answer = await once(socket, 'connect').then(
    () => true,
    () => false,
  )
  socket.destroy()
  return answer
}
