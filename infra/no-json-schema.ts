/**
 * Replaces zod's reader of JSON Schema, which we never call: 3 kB of gzip of a Worker. wrangler.jsonc substitutes this file.
 */
export function fromJSONSchema(): never {
  throw new Error('Not in this bundle')
}
