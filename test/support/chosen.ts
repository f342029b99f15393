/** A part of the tests of a file: what `npm test` runs of a suite whose other tests last longer. */
import { test } from 'vitest'

/** vitest's `test`, also its `each`, `for` and so on: it registers a test whose name is wanted, and leaves out every other. */
export function chosen(wanted: (name: string) => boolean): typeof test {
  const choosing = <F extends object>(api: F): F =>
    new Proxy(api, {
      apply(target, self, args: unknown[]) {
        const [name] = args
        // A call without a name gives a function that takes one.
        const call = () => Reflect.apply(target as (...args: unknown[]) => object, self, args)
        if (typeof name !== 'string') return choosing(call())
        return wanted(name) ? call() : undefined
      },
      get(target, key) {
        const value = Reflect.get(target, key)
        return typeof value === 'function' ? choosing(value) : value
      },
    })
  return choosing(test)
}
