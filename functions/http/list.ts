/** Lists: pages of what has a name, in the order of the names. */
import { LIMITS } from '../../lib/index.ts'
import * as field from './fields.ts'
import { optional } from './schema.ts'

/** The query of a list. */
export const List = {
  prefix: optional(field.text({ min: 0, max: LIMITS.name.max })),
  limit: optional(field.digits({ min: 1, max: 1000 })),
  after: optional(field.text(LIMITS.name), '`next` of the page before'),
}

/** Where the page after this one begins; null: this was the last. */
export function nextOf(page: (string | { name: string })[], limit: number): string | null {
  const last = page.length === limit ? page.at(-1) : undefined
  return typeof last === 'object' ? last.name : (last ?? null)
}
