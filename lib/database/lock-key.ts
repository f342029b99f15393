/**
 * K(name), the key of a name's advisory lock: the first 64 bits of SHA-256 over `lock`, a zero byte and the name, in UTF-8. It is the
 * same function as lockstep.key (db/migrations/0009_keys.sql), for the path where microseconds count.
 */
import { createHash } from 'node:crypto'

/** K(name): a signed 64-bit number as text, so that it needs no conversion as a parameter. */
export const keyOf = (name: string): string =>
  createHash('sha256').update(`lock\0${name}`).digest().readBigInt64BE(0).toString()
