/**
 * Ways to a database over both families of addresses, on a real server: literals in every form, names of which one family answers, and
 * names of which none does.
 */
import dns from 'node:dns'
import { once } from 'node:events'
import * as net from 'node:net'
import { afterEach, describe, expect, inject, test, vi } from 'vitest'
import { createLockstep } from '../../lib/index.ts'
import { freshDatabase } from '../support/database.ts'

const open: net.Server[] = []
afterEach(() => {
  vi.restoreAllMocks()
  for (const server of open.splice(0)) server.close()
})

const database = new URL(inject('serverUrl'))
/** Leads to the test's server. */
async function forwarder(host: string): Promise<number> {
  const server = net.createServer((client) => {
    const upstream = net.connect(Number(database.port), database.hostname)
    client.pipe(upstream).pipe(client)
    for (const each of [client, upstream]) each.on('error', () => {})
    client.on('close', () => upstream.destroy())
    upstream.on('close', () => client.destroy())
  })
  open.push(server)
  await once(server.listen(0, host), 'listening')
  return (server.address() as net.AddressInfo).port
}

/** Lets the name both.test have these addresses. */
function named(...addresses: string[]): void {
  const real = dns.lookup
  vi.spyOn(dns, 'lookup').mockImplementation(((name: string, options: object, done: (...args: unknown[]) => void) => {
    if (name !== 'both.test') return real(name, options, done as never)
    done(
      null,
      addresses.map((address) => ({ address, family: net.isIP(address) })),
    )
  }) as never)
}

async function tries(connectionString: string): Promise<void> {
  await using lockstep = createLockstep({ connectionString })
  await using hold = await lockstep.locks.acquire('addresses')
  expect(hold.token).toBeGreaterThan(0n)
}

describe('a lock is acquired', () => {
  test.each([
    ['[::1]:PORT/', ''],
    ['[0:0::1]:PORT/', ''],
    ['[::1%25lo]:PORT/', ''],
    ['[::1%lo]:PORT/', ''],
    ['/', '?host=::1&port=PORT'],
    ['/', '?host=[::1]&port=PORT'],
    ['/', '?host=%5B::1%5D&port=PORT'],
    ['/', '?port=PORT&host=[::1%25lo]'],
  ])('by the literal in postgres://…@%sname%s', async (where, query) => {
    const db = await freshDatabase()
    try {
      const port = String(await forwarder('::1'))
      const { username, pathname } = new URL(db.url)
      await tries(`postgres://${username}@${where}${pathname.slice(1)}${query}`.replace('PORT', port))
    } finally {
      await db.close()
    }
  })

  test.each([
    ['IPv6 first, and only IPv4 answers', '127.0.0.1', ['::1', '127.0.0.1']],
    ['IPv4 first, and only IPv6 answers', '::1', ['127.0.0.1', '::1']],
    ['two addresses of a family, and the second answers', '127.0.0.1', ['127.0.0.66', '127.0.0.1']],
  ])('by a name: %s', async (_, answers, addresses) => {
    const db = await freshDatabase()
    try {
      const port = await forwarder(answers)
      named(...addresses)
      await tries(Object.assign(new URL(db.url), { hostname: 'both.test', port }).href)
    } finally {
      await db.close()
    }
  })
})

test('a name of which no address answers is UNAVAILABLE, and the cause names each', async () => {
  const port = await forwarder('127.0.0.1')
  await new Promise((closed) => open.splice(0)[0]?.close(closed))
  named('::1', '127.0.0.1')
  await using lockstep = createLockstep({ connectionString: `postgres://x@both.test:${port}/x` })
  await expect(lockstep.ready()).rejects.toMatchObject({
    code: 'UNAVAILABLE',
    cause: { message: `connect ECONNREFUSED ::1:${port}; connect ECONNREFUSED 127.0.0.1:${port}` },
  })
})
