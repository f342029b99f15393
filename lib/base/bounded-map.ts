/** A map for what can be found out again: when there is too much, it forgets what it has had for the longest. */
export class BoundedMap<K, V> extends Map<K, V> {
  readonly #most: number
  readonly #forgot: (() => void) | undefined

  /** @param forgot  is told each time that something was forgotten. */
  constructor(most: number, forgot?: () => void) {
    super()
    this.#most = most
    this.#forgot = forgot
  }

  override set(key: K, value: V): this {
    if (this.size >= this.#most && !this.has(key)) {
      for (const [oldest] of this) {
        this.delete(oldest)
        break
      }
      this.#forgot?.()
    }
    return super.set(key, value)
  }
}
