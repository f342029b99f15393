/**
 * Whether a history of concurrent operations is linearizable: whether each operation can be given one point between its invocation
 * and its answer, such that the object, taken through the operations in the order of these points, answers as it did.
 *
 * HOW. The search of Wing and Gong: of the operations that were invoked before the first answer that is left, one is next; each is
 * tried in turn, and where none is possible the last choice is undone. Lowe's addition makes it fast: a set of operations that led
 * to the same state before is not tried twice. Of Porcupine it has the model as a function, and the linked list of invocations and
 * answers from which operations are lifted.
 *
 * - AN OPERATION WITHOUT AN ANSWER (its process was killed, the network failed) may take effect at any time after its invocation, or
 *   never. Such operations are tried last, and of two that are alike only the one that was invoked first. Where the same answered
 *   operations have led to the same state before, with some or all of the unanswered ones that are used up now, nothing is gained.
 * - AN OPERATION THAT NEVER CHANGES ANYTHING, a read, is placed as soon as it is possible: what comes after it would be possible
 *   without it too, so nothing else needs to be tried.
 * - THE ORDER OF CHOICE: the operation that was answered first is tried first. It is nearly always right, so a history of a hundred
 *   thousand operations takes about as many steps.
 * - A SET of answered operations is told apart by 64 bits (Zobrist). Two sets of one state share them with a probability of 1 in 10¹⁹.
 * - A NONDETERMINISTIC OBJECT, such as a lease that may expire, has several next states. Each is tried.
 *
 * A history that is not linearizable is reported by its shortest prefix that is not: what was placed last, in which state the object
 * is then, and which operations cannot come next.
 *
 * @see Wing & Gong, "Testing and verifying concurrent objects", 1993 · Lowe, "Testing for linearizability", 2017 · Porcupine
 */

export interface Timed {
  /** When it was invoked, and when it was answered, in milliseconds on a clock that all processes share. Infinity: no answer. */
  from: number
  to: number
  /** The answer; undefined: there is none. */
  output?: unknown
}

/** The time in which the point of an operation must lie, given what was placed before it and what is left. */
export interface Window {
  earliest: number
  latest: number
}

export interface Model<State, Op extends Timed> {
  initial: State
  /** The states in which the object may be after the operation; none: it cannot come next. */
  step(state: State, op: Op, window: Window): readonly State[]
  /** States are equal when their keys are. */
  key(state: State): string
  /** Whether the operation changes no state, whatever it is. @default none is */
  reads?(op: Op): boolean
  /** Operations without an answer that have the same effect have the same word. @default each is different from the others */
  alike?(op: Op): string | undefined
}

export interface Culprit<State, Op> {
  /** How many operations the shortest prefix has that is not linearizable, with those that have no answer in it. */
  operations: number
  /** The last ones that could be placed, in their order, of the attempt that came farthest. */
  placed: Op[]
  /** The state after these. */
  state: State
  /** The operations that were answered, one of which should come next, and cannot. */
  impossible: Op[]
}

export type Verdict<State, Op> =
  | { is: 'linearizable' }
  | { is: 'undecided'; steps: number }
  | { is: 'not linearizable'; culprit: Culprit<State, Op> }

/** How many operations are tried before the search is given up. */
const MOST_STEPS = 5_000_000
/** How many of the operations that were placed last are shown. */
const SHOWN = 12

/** @param mostSteps  how many operations are tried before it answers `undecided`. */
export function check<State, Op extends Timed>(
  model: Model<State, Op>,
  history: readonly Op[],
  mostSteps = MOST_STEPS,
): Verdict<State, Op> {
  const found = search(model, history, mostSteps)
  return found.is === 'not linearizable' ? shortest(model, history, mostSteps, found) : found
}

// A prefix of a linearizable history is linearizable, so the shortest one that is not can be found by halving.
function shortest<State, Op extends Timed>(
  model: Model<State, Op>,
  history: readonly Op[],
  mostSteps: number,
  whole: Verdict<State, Op>,
): Verdict<State, Op> {
  const ends = history
    .map(({ to }) => to)
    .filter((to) => to < Infinity)
    .sort((a, b) => a - b)
  let verdict = whole
  for (let [least, most] = [0, ends.length - 1]; least < most; ) {
    const middle = Math.floor((least + most) / 2)
    const found = search(model, prefix(history, ends[middle] as number), mostSteps)
    if (found.is === 'not linearizable') [most, verdict] = [middle, found]
    else least = middle + 1
  }
  return verdict
}

/** What was known at that time. */
export function prefix<Op extends Timed>(history: readonly Op[], until: number): Op[] {
  return history
    .filter(({ from }) => from <= until)
    .map((op) => (op.to <= until || op.to === Infinity ? op : { ...op, to: Infinity, output: undefined }))
}

/** An invocation or an answer, in a list in the order of time. An operation that is placed is lifted out of the list. */
class Event<Op> {
  before!: Event<Op>
  after: Event<Op> | undefined
  readonly op: Numbered<Op>
  /** The answer, of an invocation. */
  readonly answer: Event<Op> | undefined

  constructor(op: Numbered<Op>, answer?: Event<Op>) {
    this.op = op
    this.answer = answer
  }

  lift(): void {
    this.before.after = this.after
    if (this.after) this.after.before = this.before
  }

  unlift(): void {
    this.before.after = this
    if (this.after) this.after.before = this
  }
}

interface Numbered<Op> {
  op: Op
  /** Two random numbers of 32 bits. */
  left: number
  right: number
  /** Of one without an answer, its bit among these; else 0. */
  bit: bigint
  /** Undefined: it has no answer. */
  call: Event<Op> | undefined
  placed: boolean
  alike: string | undefined
}

interface Choice<State, Op> {
  it: Numbered<Op>
  state: State
  /** It changes nothing, and may be placed too early: so its time says nothing of those that come after it. */
  reads?: boolean
}

interface Frame<State, Op> extends Choice<State, Op> {
  earliest: number
  next: Generator<Choice<State, Op>>
}

function search<State, Op extends Timed>(
  model: Model<State, Op>,
  history: readonly Op[],
  mostSteps: number,
): Verdict<State, Op> {
  const { head, open, answered } = listed(model, history)
  const seen = new Map<string, bigint[]>()
  let [left, right, steps, done, used] = [0, 0, 0, 0, 0n]

  function* choices(state: State, earliest: number): Generator<Choice<State, Op>> {
    const calls: Numbered<Op>[] = []
    let event = head.after
    for (; event?.answer; event = event.after) calls.push(event.op)
    const latest = event?.op.op.to ?? Infinity
    const window = (op: Op): Window => ({ earliest: Math.max(earliest, op.from), latest })
    const key = model.key(state)
    const possible: Choice<State, Op>[] = []
    for (const it of calls.sort((a, b) => a.op.to - b.op.to)) {
      const states = model.step(state, it.op, window(it.op))
      if (states.length > 0 && model.reads?.(it.op)) return yield { it, state, reads: true }
      for (const next of states) possible.push({ it, state: next })
    }
    yield* possible
    const tried = new Set<string>()
    for (const it of open) {
      if (it.op.from > latest) break
      if (it.placed || (it.alike !== undefined && tried.has(it.alike))) continue
      if (it.alike !== undefined) tried.add(it.alike)
      for (const next of model.step(state, it.op, window(it.op))) {
        if (model.key(next) !== key) yield { it, state: next } // without an effect it may as well never take effect
      }
    }
  }
  const toggle = (it: Numbered<Op>) => {
    used ^= it.bit
    if (!it.call) return
    left ^= it.left
    right ^= it.right
  }
  /** Whether this state was reached by the same answered operations, and by no other of those without an answer. */
  const isSeen = (key: string) => {
    const before = seen.get(key) ?? []
    if (before.some((those) => (those & used) === those)) return true
    seen.set(key, [...before.filter((those) => (those & used) !== used), used])
    return false
  }

  const stack: Frame<State, Op>[] = []
  let [state, earliest, next] = [model.initial, -Infinity, choices(model.initial, -Infinity)]
  let farthest = -1
  let culprit: Culprit<State, Op> | undefined
  while (done < answered) {
    if (++steps > mostSteps) return { is: 'undecided', steps }
    const choice = next.next()
    if (!choice.done) {
      const { it, state: to, reads } = choice.value
      const since = reads ? earliest : Math.max(earliest, it.op.from)
      toggle(it)
      const key = `${left} ${right} ${since} ${model.key(to)}`
      if (isSeen(key)) {
        toggle(it)
        continue
      }
      place(it)
      if (it.call) done++
      stack.push({ it, state, earliest, next })
      state = to
      earliest = since
      next = choices(state, earliest)
      continue
    }
    if (done > farthest) {
      farthest = done
      const placed = stack.slice(-SHOWN).map(({ it }) => it.op)
      culprit = { operations: history.length, placed, state, impossible: callsOf(head) }
    }
    const last = stack.pop()
    if (!last) return { is: 'not linearizable', culprit: culprit as Culprit<State, Op> }
    unplace(last.it)
    toggle(last.it)
    if (last.it.call) done--
    ;({ state, earliest, next } = last)
  }
  return { is: 'linearizable' }
}

function listed<State, Op extends Timed>({ alike }: Model<State, Op>, history: readonly Op[]) {
  const open: Numbered<Op>[] = []
  const events: { at: number; answer: boolean; event: Event<Op> }[] = []
  let answered = 0
  for (const [i, op] of history.toSorted((a, b) => a.from - b.from).entries()) {
    const it: Numbered<Op> = {
      op,
      left: mixed(2 * i),
      right: mixed(2 * i + 1),
      bit: 0n,
      call: undefined,
      placed: false,
      alike: undefined,
    }
    if (op.to === Infinity) {
      it.alike = alike?.(op)
      it.bit = 1n << BigInt(open.length)
      open.push(it)
      continue
    }
    answered++
    const answer = new Event(it)
    it.call = new Event(it, answer)
    events.push({ at: op.from, answer: false, event: it.call }, { at: op.to, answer: true, event: answer })
  }
  // At the same time an invocation comes before an answer: then the two operations are concurrent.
  events.sort((a, b) => a.at - b.at || Number(a.answer) - Number(b.answer))
  const head = new Event<Op>(undefined as never)
  let last = head
  for (const { event } of events) {
    last.after = event
    event.before = last
    last = event
  }
  return { head, open, answered }
}

function callsOf<Op>(head: Event<Op>): Op[] {
  const calls: Op[] = []
  for (let event = head.after; event?.answer; event = event.after) calls.push(event.op.op)
  return calls
}

function place<Op>(it: Numbered<Op>): void {
  it.placed = true
  it.call?.lift()
  it.call?.answer?.lift()
}

function unplace<Op>(it: Numbered<Op>): void {
  it.placed = false
  it.call?.answer?.unlift()
  it.call?.unlift()
}

/** 32 bits that look random (the finalizer of MurmurHash3). */
function mixed(n: number): number {
  let h = n + 0x9e3779b9
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return h ^ (h >>> 16)
}
