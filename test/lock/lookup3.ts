/**
 * The hash that K was until 0.6, hashtextextended, run backwards: Jenkins' lookup3, whose steps can all be undone. For the test that
 * shows why K is SHA-256 now (keys.test.ts).
 */

/** What lockstep.key was made with. */
export const OLD_SEED = 5497548331942713701n

const rot = (x: number, k: number) => ((x << k) | (x >>> (32 - k))) >>> 0
const word = (x: number) => x >>> 0
type State = [a: number, b: number, c: number]

function mix([a, b, c]: State): State {
  a = word(word(a - c) ^ rot(c, 4))
  c = word(c + b)
  b = word(word(b - a) ^ rot(a, 6))
  a = word(a + c)
  c = word(word(c - b) ^ rot(b, 8))
  b = word(b + a)
  a = word(word(a - c) ^ rot(c, 16))
  c = word(c + b)
  b = word(word(b - a) ^ rot(a, 19))
  a = word(a + c)
  c = word(word(c - b) ^ rot(b, 4))
  b = word(b + a)
  return [a, b, c]
}

function unmix([a, b, c]: State): State {
  b = word(b - a)
  c = word(word(c ^ rot(b, 4)) + b)
  a = word(a - c)
  b = word(word(b ^ rot(a, 19)) + a)
  c = word(c - b)
  a = word(word(a ^ rot(c, 16)) + c)
  b = word(b - a)
  c = word(word(c ^ rot(b, 8)) + b)
  a = word(a - c)
  b = word(word(b ^ rot(a, 6)) + a)
  c = word(c - b)
  a = word(word(a ^ rot(c, 4)) + c)
  return [a, b, c]
}

function unfinal([a, b, c]: State): State {
  c = word(word(c + rot(b, 24)) ^ b)
  b = word(word(b + rot(a, 14)) ^ a)
  a = word(word(a + rot(c, 4)) ^ c)
  c = word(word(c + rot(b, 16)) ^ b)
  b = word(word(b + rot(a, 25)) ^ a)
  a = word(word(a + rot(c, 11)) ^ c)
  c = word(word(c + rot(b, 14)) ^ b)
  return [a, b, c]
}

/** Another text of 24 printable characters whose old hash is `hash`; it begins with `prefix`, of at most 11 bytes. */
export function forge(prefix: string, hash: bigint, seed = OLD_SEED): string {
  const bits = BigInt.asUintN(64, hash)
  const [b, c] = [Number(bits >> 32n), Number(bits & 0xffffffffn)]
  const start = word(0x9e3779b9 + 24 + 3923095)
  const seeded = mix([word(start + Number(seed >> 32n)), word(start + Number(seed & 0xffffffffn)), start])
  const bytes = Buffer.alloc(24)
  for (let tried = 0; ; tried++) {
    bytes.write(`${prefix}${tried.toString(36).padStart(12 - prefix.length, '0')}`.slice(0, 12))
    const half = mix(seeded.map((x, i) => word(x + bytes.readUInt32LE(4 * i))) as State)
    // Nothing asks what `a` is at the end: 2 ** 32 last blocks to choose from, of which 1 in 150,000 can be printed.
    for (let a = 0; a < 4_000_000; a++) {
      const wanted = unmix(unfinal([a, b, c]))
      let printable = true
      for (let i = 0; i < 3 && printable; i++) {
        const block = word((wanted[i] as number) - (half[i] as number))
        bytes.writeUInt32LE(block, 12 + 4 * i)
        for (let at = 12 + 4 * i; at < 16 + 4 * i; at++) {
          const byte = bytes[at] as number
          if (byte < 0x21 || byte > 0x7e) printable = false
        }
      }
      if (printable) return bytes.toString('latin1')
    }
  }
}
