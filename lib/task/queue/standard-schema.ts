/**
 * Checks data by a schema of the user's. The interface is Standard Schema, which zod, Valibot, ArkType and others share. It is
 * copied here, as its authors recommend, instead of being a dependency.
 * @see https://standardschema.dev
 */
import { wrongType } from '../../base/index.ts'

/** A schema of zod, Valibot, ArkType, or any other library that implements Standard Schema. */
export interface StandardSchema<Input = unknown, Output = Input> {
  readonly '~standard': {
    readonly version: 1
    readonly vendor: string
    readonly validate: (value: unknown) => Result<Output> | Promise<Result<Output>>
    readonly types?: { readonly input: Input; readonly output: Output } | undefined
  }
}
type Result<Output> = { readonly value: Output; readonly issues?: undefined } | { readonly issues: readonly Issue[] }
interface Issue {
  readonly message: string
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined
}

/** Returns what the schema makes of `value`. @throws {TypeError} `code` INVALID_ARGUMENT; `field`, like data.address.street */
export async function validated<Output>(schema: StandardSchema<unknown, Output>, value: unknown): Promise<Output> {
  const result = await schema['~standard'].validate(value)
  if (!result.issues) return result.value
  const [issue] = result.issues
  const path = (issue?.path ?? []).map((step) => String(typeof step === 'object' ? step.key : step))
  const at = path.reduce((from: unknown, step) => (from as Record<string, unknown> | null)?.[step], value)
  throw wrongType(['data', ...path].join('.'), `data that matches its schema (${issue?.message})`, at)
}
