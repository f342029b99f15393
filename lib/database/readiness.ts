/**
 * Whether the server goes on after an error.
 *
 * A FATAL error is the server's last answer: the connection ends, even if its 'end' event has not come yet. The severity says so, but
 * it is translated, as lc_messages says, and pg does not show the field that is not. So it is read from the protocol: after every other
 * error the server says that it is ready for the next statement.
 */
import type pg from 'pg'

export class Readiness {
  /** How many statements were sent, and with how many of them, in the same order, the server has done. */
  #sent = 0
  #done = 0
  #ended = false
  readonly #waiting = new Set<{ nth: number; resolve: (ready: boolean) => void }>()

  constructor(client: pg.Client) {
    client.connection.on('readyForQuery', () => {
      this.#done++
      for (const each of this.#waiting) if (this.#done >= each.nth) this.#settle(each, true)
    })
    client.once('end', () => this.end())
  }

  /**
   * Called before each statement of the connection. @returns a function for the case that it fails: it resolves to true when the server
   * is ready for the next one, and to false if the connection ends.
   */
  sending(): () => Promise<boolean> {
    const nth = ++this.#sent
    return () =>
      new Promise((resolve) => {
        if (this.#done >= nth || this.#ended) resolve(this.#done >= nth)
        else this.#waiting.add({ nth, resolve })
      })
  }

  /** The connection has ended. */
  end(): void {
    this.#ended = true
    for (const each of this.#waiting) this.#settle(each, false)
  }

  #settle(each: { nth: number; resolve: (ready: boolean) => void }, ready: boolean): void {
    this.#waiting.delete(each)
    each.resolve(ready)
  }
}
