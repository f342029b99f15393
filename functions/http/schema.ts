/**
 * One description of a value in JSON, for three readers: the compiler, the OpenAPI document and the check of a request.
 *
 * A {@link Shape} is a JSON Schema with the TypeScript type of its values. A {@link Field} is a shape that can also read a
 * value from outside. Answers are shapes (shapes.ts), which nothing reads. Requests are fields (fields.ts).
 *
 * There is no schema library here. Our fields need little of one: each has a single message, its whole allowed range in words,
 * and its own JSON Schema, because the value that is read (a bigint) is not the one that is sent (a string). In a library both are
 * exceptions, and it adds 16 kB of gzip (zod/mini) to 67 (zod with an OpenAPI generator) to a Worker; this file and fields.ts add 2.
 */

/** One input that is wrong, and what would have been right. */
export interface FieldError {
  field: string
  expected: string
}

/** JSON Schema 2020-12, which OpenAPI 3.1 uses. */
export type JsonSchema = { readonly [keyword: string]: unknown }

/** What values of type T look like in JSON. */
export interface Shape<T> {
  readonly json: JsonSchema
  /** An object may be without this property. */
  readonly optional?: true
  /** For the compiler only. */
  readonly type?: T
}

/** A shape that can be read from a request. */
export interface Field<T> extends Shape<T> {
  /**
   * Returns the value that was sent. If it is wrong, adds to `errors` what would have been right, and the result means nothing.
   * @param path  of the value, for the errors: `options.group.id`; '' for the whole body.
   */
  readonly read: (value: unknown, path: string, errors: FieldError[]) => T | undefined
}

/** The type of a shape's values. */
export type ValueOf<S> = S extends Shape<infer T> ? T : never

type OptionalKeys<F> = { [K in keyof F]: F[K] extends { optional: true } ? K : never }[keyof F]
type Flat<T> = { [K in keyof T]: T[K] }
/** The type of an object with these properties. */
export type ObjectOf<F> = Flat<
  { [K in Exclude<keyof F, OptionalKeys<F>>]: ValueOf<F[K]> } & { [K in OptionalKeys<F>]?: ValueOf<F[K]> }
>

/** Keywords of JSON Schema that say something about a value and do not restrict it. */
export interface Annotations {
  readonly description?: string
  readonly default?: unknown
  readonly example?: unknown
}

/** The same shape with annotations. */
export function described<S extends Shape<unknown>>(shape: S, annotations: string | Annotations): S {
  const more = typeof annotations === 'string' ? { description: annotations } : annotations
  return { ...shape, json: { ...shape.json, ...more } }
}

/** A property that an object may be without. */
export function optional<S extends Shape<unknown>>(
  shape: S,
  annotations: string | Annotations = {},
): S & { readonly optional: true } {
  return { ...described(shape, annotations), optional: true }
}

const definitions = new Map<string, JsonSchema>()
const REFERENCE = '#/components/schemas/'

/** The same shape with a name: the document has it once, under `components`, and refers to it. */
export function named<S extends Shape<unknown>>(name: string, shape: S, description?: string): S {
  definitions.set(name, description === undefined ? shape.json : { ...shape.json, description })
  return { ...shape, json: { $ref: REFERENCE + name } }
}

/** The definitions of all the names that something of the document refers to. */
export function components(of: unknown, found: Record<string, JsonSchema> = {}): Record<string, JsonSchema> {
  if (typeof of !== 'object' || of === null) return found
  const { $ref } = of as { $ref?: unknown }
  const name = typeof $ref === 'string' ? $ref.slice(REFERENCE.length) : ''
  const definition = definitions.get(name)
  if (definition && !(name in found)) {
    found[name] = definition
    components(definition, found)
  }
  for (const inner of Object.values(of)) components(inner, found)
  return found
}

// A default is said in words. As a keyword, generators of types take it for a property that is always there, so that a request
// could not be written without it.
function said({ default: value, ...json }: JsonSchema): JsonSchema {
  if (value === undefined) return json
  const first = json.description === undefined ? '' : `${json.description}. `
  return { ...json, description: `${first}Default: ${JSON.stringify(value)}` }
}

/** The JSON Schema of an object with these properties. */
export function objectJson(properties: { readonly [name: string]: Shape<unknown> }): JsonSchema {
  const all = Object.entries(properties)
  const required = all.filter(([, shape]) => !shape.optional).map(([name]) => name)
  return {
    type: 'object',
    properties: Object.fromEntries(all.map(([name, { json }]) => [name, said(json)])),
    ...(required.length > 0 && { required }),
  }
}
