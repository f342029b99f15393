/**
 * K(name), the key of a name's advisory lock: the first 64 bits of SHA-256 over `lock`, a zero byte and the name, in UTF-8. It is the
 * same function as lockstep.key (db/migrations/0009_keys.sql), for the path where microseconds count.
 */
import { createHash } from 'node:crypto'
import { BoundedMap } from '../base/index.ts'

// A name is often locked again, and released: computing its key takes a tenth of a hold's time.
const known = new BoundedMap<string, string>(4_096)

/** K(name): a signed 64-bit number as text, so that it needs no conversion as a parameter. */
export function keyOf(name: string): string {
  let key = known.get(name)
  if (key === undefined) {
    key = createHash('sha256').update(`lock\0${name}`).digest().readBigInt64BE(0).toString()
    known.set(name, key)
  }
  return key
}
