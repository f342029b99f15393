/**
 * A name, and the number that its holders increment under their fence: what may be answered in which state.
 *
 * - A grant needs a free name, and its token is larger than every earlier one.
 * - A lease ends by a release, or at the earliest `ttlMs` after its grant or its last renewal that is recorded. (Renewals that
 *   a hold makes by itself are not recorded; they only let it last longer.)
 * - A connection or transaction hold may be lost at any time, with its connection; after the next grant nothing is written under it.
 * - A fenced write happens under the token that holds the name, and finds the number as the write before left it.
 * - A crash of the server forgets tokens under which nothing was committed, and may undo the last release of a lease.
 *
 * Not judged: what `get` says of a hold that is no lease; it is a help for people, and may name the one before.
 */
import type { Model, Window } from './checker.ts'
import type { Input, Output, Recorded } from './record.ts'

type Kind = 'lease' | 'connection' | 'transaction'
export interface LockState {
  holder: { token: number; kind: Kind; until: number } | null
  /** The largest token that was granted, and the largest that a crash does not forget. */
  last: number
  durable: number
  /** A lease whose release may be undone by a crash. */
  undone: number | null
  n: number
}

/** How early a lease may seem to end: two clocks of one machine are compared, of which NTP may slow one down. */
const TOLERANCE = 0.01

export const lockModel: Model<LockState, Recorded> = {
  initial: { holder: null, last: 0, durable: 0, undone: null, n: 0 },
  key: ({ holder, last, durable, undone, n }) =>
    `${holder ? `${holder.token} ${holder.kind} ${holder.until}` : ''}|${last}|${durable}|${undone}|${n}`,
  reads: ({ input }) => input.do === 'read' || input.do === 'trusted',
  alike: ({ input }) => JSON.stringify(input),
  step(state, { input, output }, window) {
    const verb = VERBS[input.do]
    if (!verb) throw new Error(`The model has no ${input.do}`)
    return verb(state, input, output as Answer | undefined, window)
  },
}

/**
 * The history, with the tokens of grants that were not answered and that somebody saw all the same: each may be of any acquire without an
 * answer. What nobody saw is left out: a grant that changes no answer may as well not have happened.
 */
export function withSeen(history: Recorded[]): Recorded[] {
  const open = history.filter(({ input, to }) => input.do === 'acquire' && to === Infinity)
  const got = history.filter(({ input }) => input.do === 'get').map(({ output }) => output as Answer | undefined)
  const seen = new Set(got.flatMap((answer) => (answer?.kind === 'lease' && answer.token ? [answer.token] : [])))
  const granted = history.filter(({ input }) => input.do === 'acquire').map(({ output }) => (output as Answer)?.token)
  for (const token of granted) if (token) seen.delete(token)
  const [first] = open.toSorted((a, b) => a.from - b.from)
  const answered = history.filter((op) => !open.includes(op))
  if (!first) return answered
  return [
    ...answered,
    ...[...seen].map((token) => ({ ...first, input: { do: 'acquire', kind: 'lease', seen: token } })),
  ]
}

type Answer = Exclude<Output, 'none'> & { token?: number; n?: number; kind?: Kind; lost?: boolean }
type Verb = (state: LockState, input: Input, answer: Answer | undefined, window: Window) => LockState[]

const VERBS: Record<string, Verb> = {
  // One without an answer is never needed to explain another answer, unless its token was seen: `withSeen`.
  acquire(state, { kind, ttlMs, seen }, answer, window) {
    const token = answer?.token ?? (seen as number | undefined) ?? 0
    if (token <= state.last || !isFree(state, window)) return []
    const taken = (answer?.kind ?? kind) as Kind
    const holder = { token, kind: taken, until: answer ? untilOf(taken, ttlMs, window) : -Infinity }
    if (taken !== 'lease') return [{ ...state, last: token, holder }]
    return [{ ...state, last: token, holder, durable: token, undone: null }]
  },

  renew(state, { token, ttlMs }, answer, window) {
    const holder = heldBy(state, token)
    if (answer?.lost) {
      if (!holder) return [state]
      return isFree(state, window) ? [{ ...state, holder: null }] : []
    }
    if (holder?.kind !== 'lease') return []
    return [{ ...state, holder: { ...holder, until: answer ? untilOf('lease', ttlMs, window) : holder.until } }]
  },

  write(state, { token }, answer) {
    if (!heldBy(state, token)) return []
    const n = state.n + 1
    if (answer && answer.n !== n) return []
    return [{ ...state, n, durable: Math.max(state.durable, token as number), undone: null }]
  },

  // Of a connection hold that was lost unnoticed a release succeeds; one that had no answer at first may end as lost.
  release(state, { token, kind }, answer) {
    const held = heldBy(state, token)
    const released = { ...state, holder: null, undone: kind === 'lease' ? (token as number) : state.undone }
    if (answer?.lost) return held ? [state, released] : [state]
    if (held) return [released]
    return kind === 'lease' ? [] : [state]
  },

  trusted: (state, { token }) => (heldBy(state, token) ? [state] : []),

  transaction(state, _, answer, window) {
    if (!isFree(state, window)) return []
    const n = state.n + 1
    if (!answer) return [{ ...state, holder: null, n }] // its token is not known, so later ones are not compared with it
    const { token = 0 } = answer
    if (token <= state.last || answer.n !== n) return []
    return [{ holder: null, last: token, durable: token, undone: null, n }]
  },

  get(state, _, answer, window) {
    if (!answer || (answer.kind && answer.kind !== 'lease')) return [state]
    if (!answer.kind) return isFree(state, window) ? [{ ...state, holder: null }] : []
    return heldBy(state, answer.token) ? [state] : []
  },

  read: (state, _, answer) => (!answer || answer.n === state.n ? [state] : []),

  crash(state) {
    const { holder, durable, undone } = state
    const after = { ...state, last: durable, holder: holder?.kind === 'lease' ? holder : null }
    const states = [state, after]
    if (undone !== null && !after.holder) {
      states.push({ ...after, holder: { token: undone, kind: 'lease', until: -Infinity } })
    }
    return states
  },
}

/** The hold, if it has this token. */
function heldBy({ holder }: LockState, token: unknown): LockState['holder'] {
  return holder?.token === token ? holder : null
}

/** Whether nobody has the name, or the hold may have ended by itself. */
function isFree({ holder }: LockState, { latest }: Window): boolean {
  return holder?.kind !== 'lease' || latest >= holder.until
}

/** When a lease that is granted or renewed now ends at the earliest; -Infinity: that is not known. */
function untilOf(kind: Kind, ttlMs: unknown, { earliest }: Window): number {
  return kind === 'lease' && typeof ttlMs === 'number' ? earliest + ttlMs * (1 - TOLERANCE) : -Infinity
}
