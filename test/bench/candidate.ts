/**
 * A process that leads or waits, of a bench that kills leaders and counts what candidates ask.
 *
 * Statements are counted where they are sent, in the process itself: exactly, without a lag, and told apart by their text.
 * The bench holds the server's own count of commits beside it.
 */

import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { createLockstep } from '../../lib/index.ts'
import { connectEtcd, type Servers } from './servers.ts'

export type Failover = 'lease' | 'connection'

type Order =
  /** Answers the token when it leads; etcd has none. */
  | { do: 'lead'; system: Failover | 'etcd'; name: string; ttlMs: number }
  /** Waits in line, so many times, and does not answer. */
  | { do: 'wait'; name: string; candidates: number }
  /** Answers what was sent so far. */
  | { do: 'count' }

export interface Statements {
  all: number
  renewals: number
  /** Leases in those renewals. */
  renewed: number
  /** By which a session proves that it lives. */
  beats: number
  /** Connections opened: a transaction each for the server, and dearer than most statements. */
  connections: number
}

/** From now on counts the statements of this process. */
export function countStatements(): () => Statements {
  const counted: Statements = { all: 0, renewals: 0, renewed: 0, beats: 0, connections: 0 }
  type Query = string | { text: string; values?: unknown[] }
  const { query, connect } = pg.Client.prototype as unknown as {
    query(first: Query, values?: unknown[]): unknown
    connect(): unknown
  }
  Object.assign(pg.Client.prototype, {
    query(this: pg.Client, first: Query, values?: unknown[], ...rest: []) {
      const asked = typeof first === 'string' ? { text: first, values } : { values, ...first }
      counted.all += 1
      if (asked.text.includes('renew_leases')) {
        counted.renewals += 1
        counted.renewed += (asked.values as unknown[][])[0]?.length ?? 0
      }
      if (asked.text === 'select 1') counted.beats += 1
      return query.call(this, first, values, ...rest)
    },
    connect(this: pg.Client, ...rest: []) {
      counted.connections += 1
      return connect.call(this, ...rest)
    },
  })
  return () => ({ ...counted })
}

// ── The parent ────────────────────────────────────────────────────────────────────────────────────────────────────

export class Candidate implements Disposable {
  readonly #child: ChildProcess
  readonly #ended: Promise<never>

  private constructor(child: ChildProcess) {
    this.#child = child
    this.#ended = once(child, 'exit').then(([code]) => Promise.reject(new Error(`A candidate ended with ${code}`)))
    this.#ended.catch(() => {}) // at the end it may
  }

  static async start({ databaseUrl, etcdPort }: Servers): Promise<Candidate> {
    const child = fork(fileURLToPath(import.meta.url), [databaseUrl, String(etcdPort ?? '')], {
      serialization: 'advanced', // bigints as they are
    })
    const candidate = new Candidate(child)
    await candidate.#answer()
    return candidate
  }

  lead(system: Failover | 'etcd', name: string, ttlMs: number): Promise<{ token: bigint }> {
    return this.#ask({ do: 'lead', system, name, ttlMs })
  }

  wait(name: string, candidates: number): void {
    this.#child.send({ do: 'wait', name, candidates } satisfies Order)
  }

  count(): Promise<Statements> {
    return this.#ask({ do: 'count' })
  }

  /** It runs no handler, and says goodbye to nobody. */
  kill(): void {
    this.#child.kill('SIGKILL')
  }

  #ask<T>(order: Order): Promise<T> {
    this.#child.send(order)
    return this.#answer() as Promise<T>
  }

  async #answer(): Promise<unknown> {
    const [answer] = await Promise.race([once(this.#child, 'message'), this.#ended])
    return answer
  }

  [Symbol.dispose](): void {
    if (this.#child.connected) this.#child.disconnect() // it ends then
  }
}

// ── The child ─────────────────────────────────────────────────────────────────────────────────────────────────────

function main([databaseUrl = '', etcdPort]: string[]): void {
  const counted = countStatements()
  const lockstep = createLockstep({ connectionString: databaseUrl, applicationName: 'bench-candidate' })

  async function obey(order: Order): Promise<unknown> {
    if (order.do === 'count') return counted()
    if (order.do === 'wait') {
      for (let i = 0; i < order.candidates; i++) {
        void lockstep.leaders.campaign(order.name).then(() => {
          throw new Error('A candidate was elected beside the leader')
        })
      }
      return undefined
    }
    const { system, name, ttlMs } = order
    if (system === 'etcd') {
      const campaign = connectEtcd(Number(etcdPort))
        .election(name, ttlMs / 1_000)
        .campaign('killed')
      await campaign.wait()
      return { token: 0n }
    }
    const { token } = await lockstep.leaders.campaign(name, { ttlMs, failover: system })
    return { token }
  }

  process.on('message', async (order: Order) => {
    const answer = await obey(order)
    if (answer !== undefined) process.send?.(answer)
  })
  process.on('disconnect', () => process.exit())
  process.send?.('up')
}

if (import.meta.filename === process.argv[1]) main(process.argv.slice(2))
