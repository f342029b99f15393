/**
 * The OpenAPI document in the hands of others: two linters find nothing, and a client that is generated from it compiles, with what
 * must be sent and nothing else. The tools are a package of their own (package.json here), which is
 * installed when it is missing.
 */
import { execFile } from 'node:child_process'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createApp } from '../../functions/app.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { environmentOf, installPackages } from '../tools/packages.ts'

const HERE = import.meta.dirname
const BIN = path.join(HERE, 'node_modules/.bin')
const CLIENT = `
import createClient from 'openapi-fetch'
import type { paths } from './schema.js'

const client = createClient<paths>({ baseUrl: 'http://127.0.0.1:3000', headers: { Authorization: 'Bearer id.secret' } })
const path = { name: 'a/b' }

const granted = await client.POST('/v1/locks/{name}', { params: { path }, body: { ttlMs: 30_000 } })
if (granted.error) throw new Error(\`\${granted.error.code}: \${granted.error.detail}\`)
const token: string = granted.data.token
await client.PATCH('/v1/locks/{name}', { params: { path }, body: { token } })
await client.DELETE('/v1/locks/{name}', { params: { path, query: { token } } })
const { data: page } = await client.GET('/v1/locks')
const since: string | null | undefined = page?.locks[0]?.holders[0]?.since
await client.POST('/v1/leaders/{name}', { params: { path }, body: { ttlMs: 30_000 } })
await client.POST('/v1/tasks/{name}', { params: { path }, body: { data: { n: 1 } } })
await client.PUT('/v1/groups/{name}', { params: { path }, body: {} })
await client.PUT('/v1/schedules/{name}', { params: { path }, body: { cron: '0 4 * * *', queue: 'q' } })
await client.POST('/v1/streams/{name}', { params: { path }, body: { events: [{ type: 't', data: {} }] } })
console.log(since)

// @ts-expect-error a token is needed
await client.PATCH('/v1/locks/{name}', { params: { path }, body: { ttlMs: 30_000 } })
// @ts-expect-error it is a number
await client.POST('/v1/locks/{name}', { params: { path }, body: { ttlMs: '30000' } })
`

const AWAY = /\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT)\b/
const missing = await installPackages('test/openapi').then(
  () => undefined,
  (error: Error) => {
    // What is wrong in that package is a failure; a registry that cannot be reached is not.
    if (!AWAY.test(error.message)) throw error
    return AWAY.exec(error.message)?.[0]
  },
)
if (missing !== undefined)
  console.log(`The OpenAPI tools could not be downloaded, so these tests are left out: ${missing}`)

describe.skipIf(missing !== undefined)('the OpenAPI document', () => {
  let folder: string
  let document: Record<string, unknown>
  beforeAll(async () => {
    folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-openapi-')) // one of its own, which is removed again
    await using lockstep = createLockstep({ connectionString: 'postgres://nobody@127.0.0.1:1/none' }) // it asks nothing
    const rooms = { tasks: createTasks(lockstep), events: createEvents(lockstep) }
    const response = await createApp(lockstep, { ...rooms, version: '1.2.3' }).request('/openapi.json')
    document = (await response.json()) as Record<string, unknown>
    fs.writeFileSync(path.join(folder, 'openapi.json'), JSON.stringify(document, null, 2))
    fs.writeFileSync(path.join(folder, 'spectral.json'), '{ "extends": ["spectral:oas"] }')
    fs.symlinkSync(path.join(HERE, 'node_modules'), path.join(folder, 'node_modules'))
  })
  afterAll(() => folder && fs.rmSync(folder, { recursive: true, force: true }))

  /** Runs a tool of the package in the folder of the document. */
  async function run(tool: string, ...args: string[]): Promise<{ code: number; said: string }> {
    const environment = { ...environmentOf('test/openapi'), REDOCLY_TELEMETRY: 'off', NO_COLOR: '1' }
    try {
      const { stdout, stderr } = await promisify(execFile)(path.join(BIN, tool), args, {
        cwd: folder,
        env: environment,
      })
      return { code: 0, said: stdout + stderr }
    } catch (error) {
      const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string }
      return { code, said: `${stdout}${stderr}` }
    }
  }

  test('has neither an error nor a warning of redocly', { timeout: 120_000 }, async () => {
    const { code, said } = await run('redocly', 'lint', 'openapi.json', '--extends=recommended', '--format=json')
    const { totals } = JSON.parse(said.slice(said.indexOf('{'), said.lastIndexOf('}') + 1))
    expect(totals, said.slice(0, 2_000)).toEqual({ errors: 0, warnings: 0, ignored: 0 })
    expect(code).toBe(0)
  })

  test('has neither an error nor a warning of spectral', { timeout: 120_000 }, async () => {
    const args = ['lint', '--ruleset', 'spectral.json', '--fail-severity', 'hint', '--format', 'text', 'openapi.json']
    const { code, said } = await run('spectral', ...args)
    expect(code, said.slice(0, 2_000)).toBe(0)
  })

  test('gives a client that compiles under strict, with what must be sent and nothing else', {
    timeout: 120_000,
  }, async () => {
    const { code, said } = await run('openapi-typescript', 'openapi.json', '-o', 'schema.d.ts')
    expect(code, said).toBe(0)
    fs.writeFileSync(path.join(folder, 'client.ts'), CLIENT)
    fs.writeFileSync(path.join(folder, 'package.json'), '{ "type": "module" }')
    const strict = { strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, noEmit: true }
    const compilerOptions = { ...strict, module: 'nodenext', target: 'es2022', lib: ['es2022', 'dom'], types: [] }
    fs.writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['client.ts'] }))
    const compiled = await run('tsc', '-p', '.')
    expect(compiled.said).toBe('')
    expect(compiled.code).toBe(0)
  })

  test('has patterns that engines of every kind read: no escapes of Unicode, and no look ahead', () => {
    const patterns = [...JSON.stringify(document).matchAll(/"pattern":("(?:[^"\\]|\\.)*")/g)].map(([, text]) =>
      JSON.parse(text as string),
    )
    expect(patterns.length).toBeGreaterThan(10)
    for (const pattern of patterns) {
      expect(pattern).not.toMatch(/\\[pPu]|\(\?/)
      for (const flags of ['', 'u']) expect(() => new RegExp(pattern, flags), `${pattern} ${flags}`).not.toThrow()
    }
    const name = new RegExp(patterns.find((pattern) => pattern.includes('\\x1f')))
    for (const good of ['a/b', 'é', '🔒', '']) expect(name.test(good), good).toBe(true)
    for (const bad of ['a\nb', '\x00', '\x7f', '\x85']) expect(name.test(bad), JSON.stringify(bad)).toBe(false)
  })
})
