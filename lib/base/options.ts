/**
 * Options: which ones a verb has, and the check that a call names no other. An option that does not exist is a mistake: `ttl` for
 * `ttlMs` would silently be another kind of hold.
 */
import { wrongType } from './invalid-argument.ts'

/** The names of a verb's options. */
export type Known = ReadonlySet<string>

/** The names of the options of type O. The compiler refuses a list that lacks one, or has another. */
export function known<O>(names: { [K in keyof Required<O>]: true }): Known {
  return new Set(Object.keys(names))
}

/** Names that several verbs have alone. */
export const SIGNAL = known<{ signal?: AbortSignal }>({ signal: true })
export const GRACE = known<{ graceMs?: number }>({ graceMs: true })
export const TRX = known<{ trx?: unknown }>({ trx: true })

/**
 * Checks that the options of a call are an object, that each is one that the verb has, and that their `signal`, if there is one, is
 * an AbortSignal. A caller in plain JavaScript may pass anything.
 * @param names  those that there are. @default any
 * @param field  where the options are, if they are not the call's own.
 * @throws {TypeError} with `code` INVALID_ARGUMENT and `field`.
 */
export function checkOptions(value: unknown, names?: Known, field = 'options'): asserts value is object {
  if (typeof value !== 'object' || value === null) throw wrongType(field, 'an object', value)
  if (names !== undefined) {
    for (const name in value) {
      if (!names.has(name) && Object.hasOwn(value, name)) throw noSuchOption(name, value, names, field)
    }
  }
  const { signal } = value as { signal?: Partial<AbortSignal> | null }
  if (signal !== undefined && typeof signal?.throwIfAborted !== 'function') {
    throw wrongType('signal', 'an AbortSignal', signal)
  }
}

function noSuchOption(name: string, options: object, names: Known, field: string) {
  const all = [...names].map((each) => ({ each, far: distance(name.toLowerCase(), each.toLowerCase()) }))
  const [nearest] = all.sort((a, b) => a.far - b.far)
  // as far as half of the longer name: `ttl` may mean `ttlMs`, and `x` means nothing
  const close = nearest && nearest.far <= Math.max(name.length, nearest.each.length) / 2 ? nearest.each : undefined
  const hint = close ? `did you mean \`${close}\`?` : `there are ${[...names].map((each) => `\`${each}\``).join(', ')}`
  const at = field === 'options' ? name : `${field}.${name}`
  return wrongType(at, `left out: there is no such option (${hint})`, (options as Record<string, unknown>)[name])
}

/** How many characters must be added, removed or changed to make one word of the other (V. Levenshtein, 1965). */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const changed = (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(changed, (row[j] as number) + 1, (next[j - 1] as number) + 1))
    }
    row = next
  }
  return row[b.length] as number
}
