/**
 * `pg` for the tests themselves, in a run where everything is odd (TEST_ODD, vitest.config.ts): clients of a test have the standard
 * settings and parsers, so that what they read says what is in the database.
 */
import pg from 'pg'
import { standard } from './odd.ts'

// Proxies and not classes of their own: a test may replace a method of the prototype, for all clients of the process.
const Client = new Proxy(pg.Client, {
  construct: (target, [config], self) => Reflect.construct(target, [standard(config)], self),
})
const Pool = new Proxy(pg.Pool, {
  construct: (target, [config], self) => Reflect.construct(target, [{ Client, ...config }], self),
})

export default { ...pg, Client, Pool }
