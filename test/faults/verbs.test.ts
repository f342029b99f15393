/** Faults in statements of every verb: each way of failing, by some verbs; and that no verb of the package is left out. */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { expect, test } from 'vitest'
import { faultsOfVerbs, VERBS } from './verbs.suite.ts'

faultsOfVerbs('short')

/** Members that send no statement of their own. */
const NONE: Record<string, string[]> = {
  Lockstep: [],
  Locks: ['close'], // Lockstep.close calls it
  Leaders: ['close'],
  Time: ['now', 'after', 'before'], // they answer from what is known
  Tasks: ['preview'], // it computes
  Events: [],
}
/** What a verb gives; what its members must keep is more than an answer, and is in the other suites, whose text names them. */
const ELSEWHERE: Record<string, { file: string; none: string[] }> = {
  Hold: { file: 'locks.suite.ts', none: ['isTrusted', 'toJSON'] },
  Term: { file: 'locks.suite.ts', none: ['isTrusted', 'toJSON'] },
  Worker: { file: 'rooms.suite.ts', none: [] },
  Consumer: { file: 'rooms.suite.ts', none: [] },
}
const API = fs.readFileSync(path.resolve(import.meta.dirname, '../../docs/api.txt'), 'utf8')

/** The methods of a class or an interface of docs/api.txt. */
function members(name: string): string[] {
  const body = new RegExp(`^export (?:class|interface) ${name}\\b[^{]*\\{\\n([^]*?)^\\}`, 'm').exec(API)?.[1] ?? ''
  const found = [...body.matchAll(/^ {2}(\w+)(?:<[^(]*>)?\(/gm)].map(([, member = '']) => member)
  return [...new Set(found)].filter((member) => member !== 'constructor').sort()
}

test.each(Object.keys(NONE))('each verb of %s that docs/api.txt has is among them', (room) => {
  const all = members(room)
  expect(all.length).toBeGreaterThan(1)
  expect([...Object.keys(VERBS[room] ?? {}), ...(NONE[room] ?? [])].sort()).toEqual(all)
})

test.each(Object.entries(ELSEWHERE))('each method of a %s is in the other suites', (name, { file, none }) => {
  const text = fs.readFileSync(path.join(import.meta.dirname, file), 'utf8')
  const all = members(name).filter((member) => !none.includes(member))
  expect(all.length).toBeGreaterThan(0)
  expect(all.filter((member) => !text.includes(`.${member}(`))).toEqual([])
})
