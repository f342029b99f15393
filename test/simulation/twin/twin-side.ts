/** The side of the simulated server: its sessions settle when nothing is planned in its world any more. */
import pg from 'pg'
import { keyOf } from '../../../lib/database/lock-key.ts'
import { seeded } from '../../chaos/random.ts'
import { Process, World } from '../scheduler.ts'
import type { Backend } from '../server/backend.ts'
import { SECRET_CHANNEL } from '../server/elections.ts'
import { type LeaseRow, Transaction } from '../server/rows.ts'
import { Server } from '../server/server.ts'
import { Socket } from '../socket.ts'
import { Session, Side, type State, type Step } from './side.ts'

const HOUR_MS = 3_600_000
const read = (json: string | null) => (json === null ? null : JSON.parse(json))

export class TwinSide extends Side {
  readonly world = new World()
  readonly server: Server
  readonly backends: Backend[] = []
  readonly #process = new Process('script')

  constructor(names: string[]) {
    super(names)
    const faults = { fate: () => ({}), refusal: () => undefined, notification: () => [0.1] }
    this.server = new Server(this.world, seeded(1), faults)
  }

  override async open(at: number): Promise<void> {
    let backend: Backend | undefined
    const socket = () => {
      backend = this.server.open()
      return new Socket(this.world, backend, () => 0.1)
    }
    this.#do(() => {
      const session = new Session(new pg.Client('postgres://u@server:5432/d'), SECRET_CHANNEL)
      this.sessions[at] = session
      session.client.connect().catch((error) => this.world.fail(error))
    })
    await this.#run(socket)
    this.backends[at] = backend as unknown as Backend
    const session = this.sessions[at] as Session
    session.pid = this.backends[at]?.pid as number
  }

  override async step(step: Step): Promise<State> {
    this.#do(() => {
      if ('text' in step) this.send(step.session, step.text, step.values)
      if ('expire' in step)
        this.#set(step.expire, ({ holder, expiresAt }) => holder !== null && expiresAt < Infinity, -1)
      if ('cancel' in step) this.server.cancel(this.sessions[step.cancel]?.pid as number)
      if ('terminate' in step && !this.backends[step.terminate]?.ended)
        this.server.terminate(this.backends[step.terminate] as Backend)
      if ('end' in step) this.sessions[step.end]?.client.end()
    })
    await this.#run()
    const { leases, locks, now } = this.server
    const rows = leases.names.sort().map((name) => {
      const row = leases.get(name) as NonNullable<ReturnType<typeof leases.get>>
      const { holder, token, ttlMs, expiresAt, meta, witness = null, deposed = false, revision = null } = row
      const state = holder === null ? 'free' : expiresAt === Infinity ? 'connection' : expiresAt > now ? 'live' : 'over'
      const shown = { name, holder, token, ttl_ms: ttlMs, meta: read(meta), witness, deposed, revision, state }
      return { ...shown, seen_over: row.overAt != null }
    })
    const candidates = leases.names.sort().flatMap((of) =>
      this.server.candidates.of(of).map(({ name, holder, priority, place, meta, witness, expiresAt }) => ({
        ...{ name, holder, priority, place, meta: read(meta), witness, stays: expiresAt === Infinity },
      })),
    )
    const found: State['locks'] = {}
    for (const name of this.names) {
      const holder = locks.holder(keyOf(name))
      const waiting = locks.waiting(keyOf(name)).map((backend) => this.backends.indexOf(backend))
      if (holder || waiting.length > 0) found[name] = { holder: holder ? this.backends.indexOf(holder) : -1, waiting }
    }
    const state = this.seen(rows, candidates, found)
    for (const name of leases.names)
      if (name.startsWith('leader')) this.#set(name, (row) => row.holder === null, -HOUR_MS)
    return state
  }

  #do(what: () => void): void {
    this.world.after(0, what, this.#process)
  }

  // As a statement of another session would, if nobody has the row.
  #set(name: string, which: (row: LeaseRow) => boolean, ms: number): void {
    const { leases, now } = this.server
    const row = leases.get(name)
    const trx = new Transaction('1', this.backends[0] as Backend)
    if (!row || !which(row) || !leases.tryLock(name, 'no key update', trx)) return
    leases.write(name, { ...row, expiresAt: now + ms }, trx)
    leases.end(trx, true)
  }

  // Until nothing is planned any more: then each session has answered, or waits.
  async #run(socket: () => object = () => ({})): Promise<void> {
    await this.world.run(
      1,
      socket,
      () => false,
      () => {},
    )
  }

  override async close(): Promise<void> {}
}
