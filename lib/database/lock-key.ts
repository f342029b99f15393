/**
 * K(name), the key of a name's advisory lock: the first 64 bits of SHA-256 over `lock`, a zero byte and the name, in UTF-8. The twin of
 * lockstep.key (db/migrations/0009_keys.sql), for the path that is measured in microseconds.
 */
import { createHash } from 'node:crypto'

/** A signed number of 64 bits, as text: so a parameter of it costs no conversion. */
export const keyOf = (name: string): string =>
  createHash('sha256').update(`lock\0${name}`).digest().readBigInt64BE(0).toString()
