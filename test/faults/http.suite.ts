/**
 * Every route of the functions over HTTP, while a statement of its request fails, in every way in which one can. The answer is the usual one,
 * or the refusal that docs/errors.md has for a database that fails; it is as the OpenAPI document says. The same request
 * through another process is then answered as ever, or says that it was done before: nothing is half done.
 *
 * The requests are those that every runtime must answer alike (adapters/runtime/contract.ts), in their order: each needs what the
 * earlier ones have made.
 */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { createApp } from '../../functions/app.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { type Case, GOOD, KEYS, requestOf, valueAt } from '../adapters/runtime/contract.ts'
import { type Answered, wrong } from '../fuzz/answer.ts'
import type { Document } from '../fuzz/request.ts'
import { freshDatabase } from '../support/database.ts'
import { FAULTS, wire } from '../support/faulty-wire.ts'
import { leftInProcess, leftOnServer, ofProcess, type ProcessResources } from '../support/resources.ts'
import { CODES } from './codes.ts'
import { settles } from './settles.ts'

const STATES = ['53200', '57014', '40001', 'XX000', '53100', '40P01', '55P03', '08006']
/** How many statements of a request are made to fail, one after the other: the others are of loops, or of the next turn. */
const MOST = 3
/** What a repeated request may be told: its effect is there. */
const DONE = [200, 202, 204, 404, 409, 412, 423, 504]

/** Registers the tests: `npm test` has all routes meet one way of failing, the long ones each way. */
export function faultsOfHttp(which: 'short' | 'all'): void {
  let before: ProcessResources
  beforeAll(async () => {
    before = await ofProcess()
  })
  afterAll(async () => expect(await leftInProcess(before)).toEqual([]))

  const faults = which === 'all' ? FAULTS : (['mute'] as const)
  test.each(faults)('whichever of the first statements of a route meets: %s', { timeout: 300_000 }, async (fault) => {
    await using db = await freshDatabase()
    await using line = await wire(db.url)
    const doors = [line.url, db.url].map((connectionString, i) => {
      const lockstep = createLockstep({ connectionString, applicationName: i === 0 ? 'faulty door' : 'other door' })
      const rooms = { tasks: createTasks(lockstep, { onError() {} }), events: createEvents(lockstep, { onError() {} }) }
      const app = createApp(lockstep, { ...rooms, keys: KEYS, onError() {} })
      return { lockstep, ask: (path: string, init: RequestInit) => app.request(path, init) }
    }) as [Door, Door]
    const [faulty, other] = doors
    const kept = new Map<string, string>()
    const ask = async ({ ask }: Door, each: Case) => {
      const bodiless = ['GET', 'HEAD'].includes(each.method)
      const { path, init } = requestOf(bodiless ? { ...each, body: undefined } : each, kept)
      return { path, answer: await seen(await settles(`${each.method} ${path}`, Promise.resolve(ask(path, init)))) }
    }
    try {
      const document: Document = JSON.parse(
        (await ask(other, { method: 'GET', path: '/openapi.json', status: 200 })).answer.text,
      )
      const violations: string[] = []
      let hits = 0
      const without = async (each: Case) => {
        const { path, answer } = await ask(other, each)
        const what = `${each.method} ${path}, without a fault`
        const found = wrong(document, each.method, path, answer)
        if (found) violations.push(`${what}: ${found}`)
        else if (answer.status !== each.status && !DONE.includes(answer.status)) {
          violations.push(`${what}: it answered ${answer.status}`)
        }
        if (answer.status < 300 || answer.status === each.status) keep(each, answer, kept)
      }
      for (const [i, each] of GOOD.entries()) {
        // What a lost answer would have told, later requests need.
        if (each.keep) await without(each)
        for (let nth = 1; nth <= MOST; nth++) {
          line.arm({ nth, fault, sqlState: STATES[(i + nth) % STATES.length] as string })
          const { path, answer } = await ask(faulty, each)
          const { hit } = line
          line.arm()
          if (hit === undefined) break // it has no such statement
          hits++
          const found = wrongUnder(document, each.method, path, answer)
          if (found) violations.push(`${each.method} ${path}, statement ${nth}: ${found}`)
        }
        if (!each.keep) await without(each)
      }
      expect(violations).toEqual([])
      expect(hits).toBeGreaterThan(50)
    } finally {
      await settles('close', Promise.all(doors.map(({ lockstep }) => lockstep.close())))
    }
    expect(await leftOnServer(db.url, '% door')).toEqual([])
  })

  test('each operation of the document is among the requests', async () => {
    const lockstep = createLockstep({ connectionString: 'postgres://127.0.0.1:1/nowhere' })
    const app = createApp(lockstep, { tasks: createTasks(lockstep), events: createEvents(lockstep) })
    const document: Document = await (await app.request('/openapi.json')).json()
    const made = (method: string, template: string) => {
      const path = new RegExp(`^${template.replaceAll(/\{\w+\}/g, '[^/?]+')}(\\?|$)`)
      return GOOD.some((each) => each.method === method && path.test(each.path))
    }
    const missing = Object.entries<Document>(document.paths).flatMap(([path, item]) =>
      Object.keys(item).flatMap((verb) => (made(verb.toUpperCase(), path) ? [] : [`${verb.toUpperCase()} ${path}`])),
    )
    // It does not end, so it has no answer: leaders.observe is among the verbs (verbs.suite.ts).
    expect(missing).toEqual(['GET /v1/leaders/{name}/observe'])
    await lockstep.close()
  })
}

interface Door {
  lockstep: ReturnType<typeof createLockstep>
  ask: (path: string, init: RequestInit) => Response | Promise<Response>
}

const seen = async (response: Response): Promise<Answered> => ({
  status: response.status,
  type: response.headers.get('Content-Type')?.split(';')[0] ?? '',
  text: await response.text(),
})

/** The fault of an answer while the database fails; undefined: there is none. */
function wrongUnder(document: Document, method: string, path: string, answer: Answered): string | undefined {
  if (answer.status !== 503) return wrong(document, method, path, answer)
  if (path.endsWith('z') || method === 'HEAD') return undefined // in a form of its own, or in none
  const { code, detail } = JSON.parse(answer.text) as { code?: string; detail?: string }
  if (code !== 'UNAVAILABLE' || !CODES.includes(code)) return `a 503 with the code ${code}: ${detail}`
  return /select |lockstep\.\w+\(|injected|iniettato/.test(answer.text)
    ? `a 503 that shows the statement: ${detail}`
    : undefined
}

function keep({ keep: names = {} }: Case, { text }: Answered, kept: Map<string, string>): void {
  for (const [name, at] of Object.entries(names)) {
    const value = valueAt(JSON.parse(text), at)
    if (value !== undefined) kept.set(name, String(value))
  }
}
