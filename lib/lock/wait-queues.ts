/** The wait queues of a process, one for each name that it holds or wants: a caller asks here, and its answer is a promise. */
import { LeaseHeldError, onAbort } from '../base/index.ts'
import type { Session } from '../database/index.ts'
import type { ConnectionHold } from './connection-hold.ts'
import { type Answers, type Contender, ContenderOf, type Want } from './contender.ts'
import type { LockContext } from './context.ts'
import { WaitQueue } from './wait-queue.ts'

// A timer's longest is 24 days; a longer wait has no end.
const LONGEST_MS = 2 ** 31 - 1

export interface WaitOptions {
  /** Milliseconds. 0: one attempt, and only if nobody of this process has the name or waits for it. */
  waitMs: number
  /** What remains of it. @default all */
  leftMs?: number | undefined
  signal: AbortSignal | undefined
  /** For a connection hold: the session that all attempts of the process share. */
  session?: Session | undefined
}

export class WaitQueues {
  readonly context: LockContext
  readonly #queues = new Map<string, WaitQueue>()

  constructor(context: LockContext) {
    this.context = context
  }

  /**
   * Waits for a name.
   * @throws {LeaseHeldError} the wait ran out. And the signal's reason; and why the database could not be asked.
   */
  ask<Kind extends Want['kind']>(
    name: string,
    want: Extract<Want, { kind: Kind }>,
    options: WaitOptions,
  ): Promise<Answers[Kind]> {
    const { waitMs, leftMs = waitMs, signal, session } = options
    if (signal?.aborted) return Promise.reject(signal.reason)
    const queue = this.#queues.get(name)
    // Its holder may have been granted it while this call asked what it has.
    const { named = false, holder = '' } = want as { named?: boolean; holder?: string }
    const same = named ? queue?.heldBy(holder) : undefined
    if (same) return Promise.resolve(same.again() as Answers[Kind])
    if (queue && waitMs <= 0) return Promise.reject(new LeaseHeldError(name, 0))
    const asked = new ContenderOf<Kind>(want, waitMs > 0)
    const contender = asked as unknown as Contender // one of the three, which no type parameter can say
    if (queue) queue.join(contender)
    else this.#open(name, contender, session)
    // Most calls can only be granted or refused; they do not pay for what ends a wait.
    const bounded = waitMs > 0 && leftMs <= LONGEST_MS
    if (signal || bounded) this.#bound(name, contender, waitMs, bounded ? leftMs : undefined, signal)
    return asked.answer
  }

  // Ends the wait of a contender with its time, or its signal.
  #bound(name: string, contender: Contender, waitMs: number, leftMs: number | undefined, signal?: AbortSignal): void {
    const leave = (why: unknown) => {
      this.#queues.get(name)?.leave(contender)
      contender.refuse(why)
    }
    const off = onAbort(signal, () => leave(signal?.reason))
    const tooLate = () => leave(new LeaseHeldError(name, waitMs))
    const timer = leftMs === undefined ? undefined : setTimeout(tooLate, Math.max(leftMs, 1))
    const answered = () => {
      clearTimeout(timer)
      off()
    }
    contender.answer.then(answered, answered)
  }

  #open(name: string, first: Contender, session: Session | undefined): void {
    const queue = new WaitQueue(this.context, name, first, session, () => {
      if (this.#queues.get(name) === queue) this.#queues.delete(name)
    })
    this.#queues.set(name, queue)
  }

  /** Whether a caller of this process has the name or waits for it. */
  has(name: string): boolean {
    return this.#queues.has(name)
  }

  /** What a holder of this process has by its connection; undefined: nothing. */
  heldBy(name: string, holder: string): ConnectionHold | undefined {
    return this.#queues.get(name)?.heldBy(holder)
  }

  /** The pids of this process's connections that wait, or hold what they have waited for. */
  get ourPids(): number[] {
    return this.context.sessions.waitingPids
  }

  /** How many callers of this process wait for a name. */
  waiting = (name: string): number => this.#queues.get(name)?.length ?? 0

  /** Settles when the first attempt of a queue is over; undefined: none is under way. */
  firstAttempt(name: string): Promise<void> | undefined {
    return this.#queues.get(name)?.firstAttempt
  }

  /** Refuses every caller that waits. */
  refuseAll(why: unknown): void {
    for (const queue of this.#queues.values()) queue.refuseAll(why)
  }
}
