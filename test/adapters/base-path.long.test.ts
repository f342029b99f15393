/**
 * A base path: what a domain, or something in front, leaves at the beginning of every path. The same on Node, Lambda and in a Worker.
 */
import * as path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { lambda } from '../../functions/adapters/lambda.ts'
import { serve } from '../../functions/adapters/node.ts'
import { createApp } from '../../functions/app.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { INSTALL_MS } from '../tools/packages.ts'
import { restEvent, whole } from './runtime/events.ts'
import { gatewayEvent, lambdaEnv, startWorker, urlEvent } from './runtime/runtimes.ts'
import { installWrangler } from './runtime/wrangler.ts'

type Ask = (at: string, method?: string) => Promise<{ status: number; body: string }>

let db: FreshDatabase
const opened: Lockstep[] = [] // by the functions
const asks: Record<string, Ask> = {}
const ends: (() => PromiseLike<unknown>)[] = []
const tasks = (lockstep: Lockstep) => {
  opened.push(lockstep)
  return createTasks(lockstep)
}
beforeAll(installWrangler, INSTALL_MS)
beforeAll(async () => {
  db = await freshDatabase()
  const server = await serve({
    lockstep: createLockstep({ connectionString: db.url }),
    port: 0,
    basePath: '/api/coord',
  })
  const worker = await startWorker(db.url, 'off', { entry: path.join(import.meta.dirname, 'runtime/based.worker.ts') })
  ends.push(
    () => server.close(),
    () => worker[Symbol.asyncDispose](),
  )
  const over = async (response: Response) => ({ status: response.status, body: await response.text() })
  asks.Node = async (at, method = 'GET') => over(await fetch(server.url + at, { method }))
  asks['a Worker'] = async (at, method = 'GET') => over(await worker.fetch(at, { method }))
  const its = lambda({ env: lambdaEnv(db.url), basePath: '/api/coord', tasks })
  asks['Lambda, by its URL'] = (at, method = 'GET') => whole(its, urlEvent(at, { method }))
  asks['Lambda, by an HTTP API'] = (at, method = 'GET') => whole(its, gatewayEvent(at, { method }))
  asks['Lambda, by a REST API'] = (at, method = 'GET') => whole(its, restEvent(at, { method }))
})
afterAll(async () => {
  for (const end of ends) await end()
  for (const each of opened) await each.close()
  await db?.close()
})

describe.each(['Node', 'a Worker', 'Lambda, by its URL', 'Lambda, by an HTTP API', 'Lambda, by a REST API'])(
  '%s',
  (name) => {
    const ask: Ask = (...call) => (asks[name] as Ask)(...call)

    test('answers below it, and nowhere else', async () => {
      expect((await ask('/api/coord/healthz')).status).toBe(200)
      expect((await ask('/api/coord/readyz')).status).toBe(200)
      const lock = `/api/coord/v1/locks/${encodeURIComponent('a & b')}`
      expect((await ask(lock, 'POST')).status).toBeOneOf([201, 423])
      expect(JSON.parse((await ask(lock)).body).name).toBe('a & b')
      for (const at of ['/healthz', '/v1/time', '/', '/api/coordv1/time', '/api/coord/api/coord/healthz']) {
        const { status, body } = await ask(at)
        expect([at, status, JSON.parse(body).code]).toEqual([at, 404, 'NOT_FOUND'])
      }
      for (const at of ['/api/coord', '/api/coord/']) {
        const { status, body } = await ask(at)
        expect([at, status, JSON.parse(body).links?.health]).toEqual([at, 200, '/api/coord/healthz'])
      }
      expect((await ask('/api/coord/healthz', 'POST')).status).toBe(405)
      if (name === 'Lambda, by an HTTP API') return // which decodes
      const broken = JSON.parse((await ask('/api/coord/v1/locks/%ff')).body)
      expect(broken.errors).toMatchObject([{ field: 'name' }])
    })

    test('says it in the document', async () => {
      const { servers, paths } = JSON.parse((await ask('/api/coord/openapi.json')).body)
      expect(servers).toEqual([{ url: '/api/coord' }])
      expect(Object.keys(paths)).toContain('/v1/locks/{name}')
    })
  },
)

test('of an HTTP API is below its stage, and one that is named like the stage is not taken for it', async () => {
  const its = lambda({ env: lambdaEnv(db.url), basePath: '/coord', tasks })
  const status = async (rawPath: string, stage: string) =>
    (await whole(its, { ...gatewayEvent('/', {}, stage), rawPath })).status
  expect(await status('/coord/v1/time', '$default')).toBe(200)
  expect(await status('/prod/coord/v1/time', 'prod')).toBe(200)
  expect(await status('/coord/v1/time', 'prod')).toBe(200) // a domain, without the stage
  expect(await status('/coord/v1/time', 'coord')).toBe(200)
  expect(await status('/coord/coord/v1/time', 'coord')).toBe(404)
})

test('a key is needed below it as anywhere', async () => {
  await using lockstep = createLockstep({ connectionString: db.url })
  const app = createApp(lockstep, { basePath: '/b', keys: `k:${'0'.repeat(64)}:admin` })
  for (const at of ['/b/v1/locks/a', '/b/v1/time', '/b/readyz', '/b/openapi.json']) {
    expect((await app.request(at)).status).toBe(401)
  }
  expect((await app.request('/b/healthz')).status).toBe(200)
})

test.each(['coord', '/', '/a/', '//a', '/a b', '/a?b', '/%61', '/.', '/a/../b'])('%s is refused', async (basePath) => {
  await using lockstep = createLockstep({ connectionString: db.url })
  expect(() => createApp(lockstep, { basePath })).toThrow('basePath must be like /coord')
  expect(() => lambda({ env: lambdaEnv(db.url), basePath })).toThrow('basePath must be like /coord')
  await expect(serve({ lockstep, port: 0, basePath })).rejects.toThrow('basePath must be like /coord')
})
