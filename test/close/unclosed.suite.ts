/** A process that never calls `close()`: what it has done by then decides whether it ends (unclosed-process.ts). */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { createLockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { ENDS, STAYS } from './unclosed.ts'

/** Defines the test. @param pooled  without direct connections. */
export function unclosedOf(pooled: boolean): void {
  let db: FreshDatabase
  beforeAll(async () => {
    db = await freshDatabase()
  })
  afterAll(() => db?.close())

  const children: ChildProcess[] = []
  afterEach(() => {
    for (const child of children.splice(0)) child.kill('SIGKILL')
  })

  test('a process that was never closed ends by itself once nothing is held or waited for, and else it stays', async () => {
    const run = async (what: string, stays: boolean) => {
      const file = path.join(import.meta.dirname, 'unclosed-process.ts')
      const child = spawn(process.execPath, [file, db.url, what, String(pooled)], { stdio: 'pipe' })
      children.push(child)
      const errors = text(child.stderr)
      const exited = once(child, 'exit').then(([code]) => code as number | null)
      const done = await createInterface({ input: child.stdout })[Symbol.asyncIterator]().next()
      // An idle connection would keep it for 10 s at least, a session for ever. What stays must not end in a time that is long for an end.
      const late = new Promise((resolve) => setTimeout(resolve, stays ? 1_500 : 6_000, 'stays'))
      const outcome = await Promise.race([exited, late])
      child.kill('SIGKILL')
      return { what, said: done.value, outcome, errors: await errors }
    }
    /** Four at a time. */
    const all = async (names: string[], stays: boolean) => {
      for (let i = 0; i < names.length; i += 4) {
        const some = names.slice(i, i + 4)
        const done = await Promise.all(some.map((what) => run(what, stays)))
        expect(done).toEqual(some.map((what) => ({ what, said: 'done', outcome: stays ? 'stays' : 0, errors: '' })))
      }
    }
    await using other = createLockstep({ connectionString: db.url })
    await using held = await other.locks.acquire('held by another')
    await all(ENDS, false)
    await all(STAYS, true)
    expect(held.isTrusted()).toBe(true)
  }, 120_000)
}
