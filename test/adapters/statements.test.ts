/** The statements of all verbs over HTTP, as a pooler or a proxy between Lockstep and its database sees them. */
import { describe, expect, test } from 'vitest'
import { worker } from '../../functions/adapters/cloudflare.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { freshDatabase, pgbouncerAvailable } from '../support/database.ts'
import { AUTHORIZED, type Case, contract, KEYS, transcript } from './runtime/contract.ts'
import { type Asked, type Runtime, startNode } from './runtime/runtimes.ts'
import { cacheable, unsupported } from './runtime/statements.ts'
import { wiretap } from './runtime/wiretap.ts'

const door = worker({ tasks: (each) => createTasks(each), events: (each) => createEvents(each) })

/** The Worker's own `fetch`, in this process. What `Request` refuses to be made of is not asked. */
const startHere = async (url: string): Promise<Runtime> => {
  const fetch = async (at: string, asked: Asked = {}) => {
    const request = await (async () => new Request(`https://worker${at}`, asked))().catch(() => undefined)
    const env = { HYPERDRIVE: { connectionString: url }, LOCKSTEP_API_KEYS: KEYS }
    return request ? await door.fetch(request, env, { waitUntil: () => {} }) : new Response(null, { status: 400 })
  }
  return { fetch, follow: fetch, [Symbol.asyncDispose]: async () => {} }
}

/** The texts that the whole contract sends. */
async function sentBy(url: string, start: (url: string) => Promise<Runtime>): Promise<string[]> {
  await using wire = await wiretap(url)
  await using runtime = await start(wire.url)
  const document = await (await runtime.fetch('/openapi.json', { headers: AUTHORIZED })).json()
  const cases: Case[] = contract(document)
  await transcript(runtime, cases)
  return [...new Set(wire.statements)]
}

describe('of a Worker', () => {
  test('none keeps state in a session, and none could be answered by a cache', async () => {
    await using db = await freshDatabase({ role: true })
    const sent = await sentBy(db.roleUrl, startHere)
    expect(sent.length).toBeGreaterThan(40)
    expect(unsupported(sent)).toEqual([])
    expect(await cacheable(sent, db.pool)).toEqual([])
  }, 90_000)
})

describe.skipIf(!pgbouncerAvailable())('of a server (skipped without PgBouncer)', () => {
  test('behind a transaction pooler none keeps state in a session: no session lock, no LISTEN', async () => {
    await using db = await freshDatabase({ role: true, pooled: true })
    const sent = await sentBy(db.pooledRoleUrl, (url) => startNode(url, KEYS))
    expect(sent.length).toBeGreaterThan(40)
    // The greeting of a connection sets something only if it is direct (database/settings.ts).
    const others = sent.filter((each) => !each.includes('case when direct then'))
    expect(unsupported(others)).toEqual([])
  }, 90_000)
})

test('the same server on a direct connection does take session locks, and listens', async () => {
  await using db = await freshDatabase({ role: true })
  const sent = await sentBy(db.roleUrl, (url) => startNode(url, KEYS))
  expect(unsupported(sent)).not.toEqual([])
}, 90_000)
