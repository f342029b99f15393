/**
 * A process that leads or waits, for a bench that kills leaders and counts the statements of candidates.
 *
 * Each process counts the statements that it sends: exactly, without a delay, and by kind, from their text. The bench compares
 * this with the server's own count of commits.
 */

import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { createLockstep } from '../../lib/index.ts'
import { connectEtcd, type Servers } from './servers.ts'

export type Failover = 'lease' | 'connection'

type Order =
  /** Campaigns; answers with the token when it leads (etcd has none). */
  | { do: 'lead'; system: Failover | 'etcd'; name: string; ttlMs: number }
  /** Starts so many candidates in the wait queue, and does not answer. */
  | { do: 'wait'; name: string; candidates: number }
  /** Answers with the counts so far. */
  | { do: 'count' }

export interface Statements {
  all: number
  renewals: number
  /** The number of leases in those renewals. */
  renewed: number
  /** The heartbeats of a session. */
  beats: number
  /** The number of connections opened: each is a transaction for the server, and costs more than most statements. */
  connections: number
}

/** Counts the statements of this process from now on. */
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
    this.#ended.catch(() => {}) // at the end it may exit
  }

  static async start({ databaseUrl, etcdPort }: Servers): Promise<Candidate> {
    const child = fork(fileURLToPath(import.meta.url), [databaseUrl, String(etcdPort ?? '')], {
      serialization: 'advanced', // passes bigints unchanged
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

  /** Kills the process: no handler runs, and nothing is released. */
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
    if (this.#child.connected) this.#child.disconnect() // then it ends
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
          throw new Error('A candidate was elected while there was a leader')
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
