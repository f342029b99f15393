/** A cache: a map with a limit. A new entry beyond the limit removes the oldest entry. */
export class BoundedMap<K, V> extends Map<K, V> {
  readonly #most: number
  readonly #onEvict: (() => void) | undefined

  /**
   * @param most     how many entries it keeps.
   * @param onEvict  called each time that an entry was removed for a new one.
   */
  constructor(most: number, onEvict?: () => void) {
    super()
    this.#most = most
    this.#onEvict = onEvict
  }

  override set(key: K, value: V): this {
    if (this.size >= this.#most && !this.has(key)) {
      for (const [oldest] of this) {
        this.delete(oldest)
        break
      }
      this.#onEvict?.()
    }
    return super.set(key, value)
  }
}
