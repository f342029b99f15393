/**
 * The record of what processes did, as a history for checker.ts. A process writes one line when it invokes an operation, before it
 * does anything, and one when it has the answer. If it is killed in between, or learns nothing of the outcome, the operation stays
 * open: it may have had its effect, or may have it later.
 *
 * The clock is CLOCK_MONOTONIC, which is the same in all processes of a machine. (Tests with wrong clocks leave that one alone:
 * support/faketime.ts.)
 */
import type { Timed } from './checker.ts'

/** An operation: what was asked, of which object, and the answer. */
export interface Recorded extends Timed {
  process: string
  /** The object. */
  on: string
  input: Input
  output?: Output
}
export interface Input {
  do: string
  [what: string]: unknown
}
/** `none`: it certainly had no effect, and tells nothing. */
export type Output = 'none' | { [what: string]: unknown }

const OPENED = 'op '
const ANSWERED = 'answer '
const now = () => Number(process.hrtime.bigint()) / 1e6

/** Records operations, one line for each event. */
export class Recorder {
  readonly #write: (line: string) => void
  #number = 0

  constructor(write: (line: string) => void = console.log) {
    this.#write = write
  }

  /** An operation is invoked now. Returns what records its answer. */
  open(on: string, input: Input): (output: Output) => void {
    const id = this.#number++
    this.#write(OPENED + text({ id, on, input, from: now() }))
    return (output) => this.#write(ANSWERED + text({ id, output, to: now() }))
  }

  /**
   * Does it, and records it.
   * @param answer   what is recorded of the result.
   * @param refused  what is recorded of an error; undefined: the outcome is not known.
   */
  async do<T>(
    on: string,
    input: Input,
    it: () => Promise<T> | T,
    answer: (result: T) => Output,
    refused: (error: unknown) => Output | undefined = () => undefined,
  ): Promise<T> {
    const answered = this.open(on, input)
    try {
      const result = await it()
      answered(answer(result))
      return result
    } catch (error) {
      const output = refused(error)
      if (output !== undefined) answered(output)
      throw error
    }
  }
}

/** The lines of all processes. */
export class History {
  readonly #all: Recorded[] = []
  readonly #open = new Map<string, Recorded>()

  /** An operation of this process: as {@link Recorder.open}. */
  open(process: string, on: string, input: Input): (output: Output) => void {
    const it: Recorded = { process, on, input, from: now(), to: Infinity }
    this.#all.push(it)
    return (output) => void Object.assign(it, { output, to: now() })
  }

  /** Takes a line of a process, if it is one of a record. */
  take(process: string, line: string): boolean {
    if (line.startsWith(OPENED)) {
      const { id, on, input, from } = JSON.parse(line.slice(OPENED.length))
      const it: Recorded = { process, on, input, from, to: Infinity }
      this.#all.push(it)
      this.#open.set(`${process} ${id}`, it)
    } else if (line.startsWith(ANSWERED)) {
      const { id, output, to } = JSON.parse(line.slice(ANSWERED.length))
      const it = this.#open.get(`${process} ${id}`)
      if (it) Object.assign(it, { output, to })
      this.#open.delete(`${process} ${id}`)
    } else return false
    return true
  }

  /** The operations on each object, without those that tell nothing. */
  byObject(): Map<string, Recorded[]> {
    return Map.groupBy(
      this.#all.filter(({ output }) => output !== 'none'),
      ({ on }) => on,
    )
  }

  get size(): number {
    return this.#all.length
  }
}

// Tokens and positions are bigints, and small.
const text = (value: unknown) => JSON.stringify(value, (_, each) => (typeof each === 'bigint' ? Number(each) : each))
