/** A caller that wants a name, from its call to its answer. */
import type { Stopwatch } from '../base/index.ts'
import type { Grant, GrantRequest } from '../lease/index.ts'
import type { ConnectionHold, ConnectionRequest } from './connection-hold.ts'

/** What a caller wants of a name: to hold it by this process's connection, by a lease, or by a transaction of its own. */
export type Want =
  | ({ kind: 'connection' } & ConnectionRequest)
  | { kind: 'lease'; request: GrantRequest }
  | { kind: 'transaction' }

/** What it is answered. */
export interface Answers {
  connection: ConnectionHold
  lease: LeaseAnswer
  transaction: Turn
}

export interface LeaseAnswer {
  grant: Grant
  /** When the grant was attempted: the lease is trusted from then on. */
  attempted: Stopwatch
}

/** The right to ask the database for the name, before every other caller of this process, until `end` is called. */
export interface Turn {
  end(): void
  /** Whether it waits where the server does not see it: then it is counted here. */
  polls: boolean
}

type Kinds = Want['kind']

export class ContenderOf<Kind extends Kinds> {
  readonly want: Extract<Want, { kind: Kind }>
  /** Whether it waits after its first attempt. */
  readonly patient: boolean
  readonly #settle: Settle<Answers[Kind]> = Promise.withResolvers<Answers[Kind]>()

  constructor(want: Extract<Want, { kind: Kind }>, patient: boolean) {
    this.want = want
    this.patient = patient
  }

  /** Rejects with why it was not served. */
  get answer(): Promise<Answers[Kind]> {
    return this.#settle.promise
  }

  /** The first of {@link serve} and {@link refuse} counts. */
  serve(answer: Answers[Kind]): void {
    this.#settle.resolve(answer)
  }

  refuse(error: unknown): void {
    this.#settle.reject(error)
  }
}

interface Settle<Answer> {
  promise: Promise<Answer>
  resolve(answer: Answer): void
  reject(error: unknown): void
}

export type Contender = { [Kind in Kinds]: ContenderOf<Kind> }[Kinds]

export const wantsConnection = (it: Contender): it is ContenderOf<'connection'> => it.want.kind === 'connection'
export const wantsLease = (it: Contender): it is ContenderOf<'lease'> => it.want.kind === 'lease'
export const wantsTransaction = (it: Contender): it is ContenderOf<'transaction'> => it.want.kind === 'transaction'
