/**
 * Lists: pages of what has a name, in the order of the names.
 *
 * A page has no more than an answer may carry (`LIMITS.answerBytes`), but always one. It is counted as the string of JSON that a
 * carrier may make of the answer: Lambda does, and refuses an answer whose string is too long.
 */
import { LIMITS } from '../../lib/index.ts'
import * as field from './fields.ts'
import { described, optional } from './schema.ts'
import * as shape from './shapes.ts'

/** The query of a list. */
export const List = {
  prefix: optional(field.text({ min: 0, max: LIMITS.name.max })),
  limit: optional(field.digits({ min: 1, max: 1000 }), {
    default: 100,
    description: 'The most of a page, which ends earlier at 5 MB. `next` says whether there are more',
  }),
  after: optional(field.text(LIMITS.name), '`next` of the page before'),
}

/** Whether an answer shows all there are. */
export const More = described(shape.boolean, 'There are more than the answer shows, which ends at 5 MB')

type Listed = string | { name: string } | { stream: string }

/** A page as it is sent, and where the page after it begins; null: this is the last. @param limit  how many were asked for. */
export function pageOf<T extends Listed>(all: T[], limit: number): { page: T[]; next: string | null } {
  const page = fitting(all)
  const last = page.length < all.length || page.length === limit ? page.at(-1) : undefined
  return { page, next: last === undefined ? null : nameOf(last) }
}

export function nameOf(item: Listed): string {
  return typeof item === 'string' ? item : 'name' in item ? item.name : item.stream
}

/** As many of the items, the first ones, as an answer may carry. */
export function fitting<T>(all: T[]): T[] {
  let left: number = LIMITS.answerBytes
  const end = all.findIndex((item) => {
    left -= sentBytes(item)
    return left < 0
  })
  return end < 0 ? all : all.slice(0, Math.max(end, 1))
}

const encoder = new TextEncoder()

// UTF-8 has at most three bytes for a unit of UTF-16. It is counted exactly only where that matters.
function sentBytes(item: unknown): number {
  const json = JSON.stringify(item)
  return json.length < 300 ? json.length * 3 : encoder.encode(JSON.stringify(json)).length
}
