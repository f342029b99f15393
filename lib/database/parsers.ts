/**
 * The parsers of values from the database, for Lockstep's own statements and for pg-boss's.
 *
 * node-postgres has one table of parsers for the whole process, and an application may change it: `pg.types.setTypeParser(20,
 * BigInt)`, or dates as texts. Its own statements must keep these parsers, and Lockstep's must not depend on them. So each statement
 * of Lockstep's own connections is sent with this table. It has what node-postgres has as its default, for the types that Lockstep
 * and pg-boss select; every other type is a text.
 *
 * A statement in a transaction of the caller gets the caller's parsers, because the caller's client need not be pg's. There every
 * value is selected as a text (caller-transaction.ts).
 */

type Parse = (text: string) => unknown

const DATE =
  /^(\d{4,})-(\d\d)-(\d\d)(?: (\d\d):(\d\d):(\d\d)(?:\.(\d+))?)?(?:([+-]\d\d)(?::(\d\d))?(?::(\d\d))?)?( BC)?$/

/** A date or an instant in the style ISO, such as `2026-01-31 12:00:00.123456+05:53:28`. Without an offset it is local. */
const date: Parse = (value) => {
  if (value === 'infinity') return Number.POSITIVE_INFINITY
  if (value === '-infinity') return Number.NEGATIVE_INFINITY
  const [, year, month, day, h = 0, m = 0, s = 0, fraction = '', zone, zoneM = 0, zoneS = 0, bc] =
    DATE.exec(value) ?? []
  const y = bc === undefined ? Number(year) : 1 - Number(year)
  const ms = Number(fraction.slice(0, 3).padEnd(3, '0'))
  const at = new Date(0)
  if (zone === undefined) {
    at.setFullYear(y, Number(month) - 1, Number(day))
    at.setHours(Number(h), Number(m), Number(s), ms)
    return at
  }
  at.setUTCFullYear(y, Number(month) - 1, Number(day))
  at.setUTCHours(Number(h), Number(m), Number(s), ms)
  const offset = Math.abs(Number(zone)) * 3_600 + Number(zoneM) * 60 + Number(zoneS)
  return new Date(at.getTime() - (zone.startsWith('-') ? -offset : offset) * 1_000)
}

const bytes: Parse = (text) => Buffer.from(text.slice(2), 'hex')

/** Parses an array: `{1,NULL,"a \"b\"",{…}}`, perhaps after its bounds, as in `[0:1]={1,2}`. */
function array(parse: Parse): Parse {
  return (text) => {
    const token = /([{}])|"((?:[^"\\]|\\.)*)"|([^,{}"]+)|,/gsy
    token.lastIndex = text.indexOf('{')
    const open: unknown[][] = [[]]
    for (let found = token.exec(text); found; found = token.exec(text)) {
      const [, brace, quoted, plain] = found
      const inner = open.at(-1) as unknown[]
      if (brace === '{') {
        const next: unknown[] = []
        inner.push(next)
        open.push(next)
      } else if (brace === '}') open.pop()
      else if (quoted !== undefined) inner.push(parse(quoted.replace(/\\(.)/gs, '$1')))
      else if (plain !== undefined) inner.push(plain === 'NULL' ? null : parse(plain))
    }
    return open[0]?.[0]
  }
}

const text: Parse = (value) => value
const boolean: Parse = (value) => value === 't'
const json: Parse = (value) => JSON.parse(value)

/** The oid of a type, the oid of its arrays, and its parser. */
const TYPES: [oid: number, arrays: number, Parse][] = [
  [16, 1000, boolean],
  [17, 1001, bytes],
  [20, 1016, text], // bigint
  [21, 1005, Number],
  [23, 1007, Number],
  [25, 1009, text],
  [26, 1028, Number], // oid
  [114, 199, json],
  [700, 1021, Number],
  [701, 1022, Number],
  [1043, 1015, text], // varchar
  [1082, 1182, date],
  [1114, 1115, date], // timestamp
  [1184, 1185, date], // timestamptz
  [2950, 2951, text], // uuid
  [3802, 3807, json], // jsonb
]
const parsers = new Map(
  TYPES.flatMap(([oid, arrays, parse]): [number, Parse][] => [
    [oid, parse],
    [arrays, array(parse)],
  ]),
)

/** The option `types` of a statement of pg. */
export const PARSERS = {
  // biome-ignore lint/suspicious/noExplicitAny: as pg has it
  getTypeParser: (oid: number): any => parsers.get(oid) ?? text,
}
