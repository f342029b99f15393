/**
 * What an answer looks like: for the compiler, which checks what a handler answers, and for the OpenAPI document.
 *
 * Objects are open: a later version may add properties. Numbers of 64 bits are decimal strings, because JSON numbers lose
 * precision above 2^53.
 */
import { type JsonSchema, type ObjectOf, objectJson, type Shape } from './schema.ts'

const shape = <T>(json: JsonSchema): Shape<T> => ({ json })

export const any = shape<unknown>({})
export const string = shape<string>({ type: 'string' })
export const boolean = shape<boolean>({ type: 'boolean' })
export const number = shape<number>({ type: 'number' })
export const integer = shape<number>({ type: 'integer' })
export const uuid = shape<string>({ type: 'string', format: 'uuid' })
/** An instant as `Date.toISOString` writes it. */
export const instant = shape<string>({ type: 'string', format: 'date-time', example: '2026-01-01T12:00:00.000Z' })
/** A fencing token. */
export const token = shape<string>({ type: 'string', pattern: '^[1-9][0-9]{0,18}$', example: '4711' })
/** The position of an event in its stream, or its cursor: its place among all events. */
export const position = shape<string>({ type: 'string', pattern: '^(0|[1-9][0-9]{0,18})$', example: '42' })

/** One of these words. */
export const word = <const W extends string>(...words: W[]) => shape<W>({ type: 'string', enum: words })

export const array = <T>(items: Shape<T>) => shape<T[]>({ type: 'array', items: items.json })

export function object<F extends { readonly [name: string]: Shape<unknown> }>(properties: F): Shape<ObjectOf<F>> {
  return shape(objectJson(properties))
}

/** The properties of another object and these. */
export function extended<T, F extends { readonly [name: string]: Shape<unknown> }>(base: Shape<T>, properties: F) {
  return shape<T & ObjectOf<F>>({ allOf: [base.json, objectJson(properties)] })
}

/** The same or null. */
export function nullable<T>({ json }: Shape<T>): Shape<T | null> {
  const { type, enum: words, ...rest } = json
  if (type === undefined) return shape({ anyOf: [json, { type: 'null' }] })
  return shape({ ...rest, type: [type, 'null'], ...(Array.isArray(words) && { enum: [...words, null] }) })
}

/** `next` of a page. */
export const next = shape<string | null>({ type: ['string', 'null'], description: 'null: this was the last page' })
