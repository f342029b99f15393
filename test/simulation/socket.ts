/**
 * A connection between a simulated process and the simulated server: what pg uses of a socket of Node.
 *
 * Each direction keeps its order, as TCP does. A piece of data takes as long as the network says. The network may swallow everything (a
 * cable that was pulled), and either side may end the connection or lose it.
 */
import { EventEmitter } from 'node:events'
import type { Process, World } from './scheduler.ts'

/** What the server is told of a connection. */
export interface Line {
  /** Sends data to the client. */
  answer(data: Buffer): void
  /** Closes the connection in order, after all that was answered. */
  hangUp(): void
  readonly swallowed: boolean
  readonly process: Process
}

/** The other side of it. */
export interface Peer {
  connected(line: Line): void
  heard(data: Buffer): void
  /** The client has ended or lost its side. */
  left(): void
}

/** How long a piece of data is on its way, in ms. */
export type Delay = () => number

export class Socket extends EventEmitter implements Line {
  writable = true
  readonly localPort = 1
  readonly readyState = 'open'
  readonly #world: World
  readonly process: Process
  readonly #peer: Peer
  readonly #delay: Delay
  #closed = false
  #corked: Buffer[] | undefined
  /** When the last piece of each direction arrives: the next does not before it. */
  #there = 0
  #back = 0
  /** Whether nothing arrives any more, in either direction. */
  swallowed = false

  constructor(world: World, peer: Peer, delay: Delay) {
    super()
    this.#world = world
    this.process = world.current as Process
    this.#peer = peer
    this.#delay = delay
    this.process.dies.add(this.die)
  }

  connect(): this {
    this.#toServer(() => {
      this.#peer.connected(this)
      this.#toClient(() => this.emit('connect'))
    })
    return this
  }

  // What is written while it is corked arrives in one piece.
  cork(): void {
    this.#corked ??= []
  }

  uncork(): void {
    const pieces = this.#corked
    this.#corked = undefined
    if (pieces && pieces.length > 0) this.write(Buffer.concat(pieces))
  }

  write(data: Buffer, then?: unknown, last?: unknown): boolean {
    const copy = Buffer.from(data)
    if (this.#corked) this.#corked.push(copy)
    else this.#toServer(() => this.#peer.heard(copy))
    const written = typeof then === 'function' ? then : last
    if (typeof written === 'function') queueMicrotask(written as () => void)
    return true
  }

  end(): this {
    if (!this.writable) return this
    this.writable = false
    this.#toServer(() => {
      this.#peer.left()
      this.#toClient(() => this.#close())
    })
    return this
  }

  destroy(error?: Error): this {
    if (this.#closed) return this
    this.writable = false
    this.#toServer(() => this.#peer.left())
    if (error) this.emit('error', error)
    this.#world.after(0, () => this.#close(), this.process)
    return this
  }

  answer(data: Buffer): void {
    this.#toClient(() => this.emit('data', data))
  }

  hangUp(): void {
    this.#toClient(() => {
      this.emit('end')
      this.writable = false
      this.#close()
    })
  }

  /** The connection breaks: both sides learn of it. */
  cut(): void {
    this.swallowed = false
    this.#peer.left()
    this.#toClient(() => {
      this.writable = false
      this.emit('error', Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' }))
      this.#close()
    })
  }

  /** The process has died, and its kernel says so. */
  readonly die = (): void => {
    if (!this.#closed) this.#toServer(() => this.#peer.left())
    this.#closed = true
  }

  get open(): boolean {
    return !this.#closed
  }

  #close(): void {
    if (this.#closed) return
    this.#closed = true
    this.process.dies.delete(this.die)
    this.emit('close')
  }

  #toServer(arrives: () => void): void {
    this.#there = Math.max(this.#there, this.#world.now + this.#delay())
    this.#world.at(this.#there, () => this.swallowed || arrives(), undefined)
  }

  #toClient(arrives: () => void): void {
    this.#back = Math.max(this.#back, this.#world.now + this.#delay())
    const late = () => this.swallowed || this.#closed || arrives()
    this.#world.at(this.#back, late, this.process)
  }

  // What pg calls too, and what means nothing here.
  setNoDelay(): this {
    return this
  }
  setKeepAlive(): this {
    return this
  }
  ref(): this {
    return this
  }
  unref(): this {
    return this
  }
  pause(): this {
    return this
  }
  resume(): this {
    return this
  }
}
