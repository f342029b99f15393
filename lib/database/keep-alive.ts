/**
 * Whether a connection keeps the process alive.
 *
 * A program that forgets `close()` must be able to end. So an idle connection does not keep it: the socket is unreferenced, as pg's
 * pool does it with `allowExitOnIdle`. A connection keeps the process alive while it has users: holds, waits, listeners, and
 * statements under way.
 */
import type pg from 'pg'

export class KeepAlive {
  readonly #socket: { ref(): void; unref(): void }
  readonly #users = new Set<unknown>()

  constructor(client: pg.Client) {
    this.#socket = client as unknown as { ref(): void; unref(): void } // not in pg's types
    this.#socket.unref()
  }

  add(user: unknown): void {
    if (this.#users.size === 0) this.#socket.ref()
    this.#users.add(user)
  }

  delete(user: unknown): void {
    if (this.#users.delete(user) && this.#users.size === 0) this.#socket.unref()
  }
}
