/** The error for a mistake in a call: it names the argument and what that may be. */

/**
 * A `TypeError` or `RangeError` about a mistake in a call: `code` INVALID_ARGUMENT; `field`, the name of the argument; `expected`, the
 * values that it may have, in words.
 */
export type InvalidArgument = (TypeError | RangeError) & { code: 'INVALID_ARGUMENT'; field: string; expected: string }

/** An error for a value of the wrong type. */
export function wrongType(field: string, expected: string, got: unknown): InvalidArgument {
  return Object.assign(new TypeError(`Expected \`${field}\` to be ${expected}, got ${shown(got)}`), {
    code: 'INVALID_ARGUMENT' as const,
    field,
    expected,
  })
}

/** An error for a value of the right type outside its range. */
export function outOfRange(field: string, expected: string, got: unknown): InvalidArgument {
  return Object.assign(new RangeError(`Expected \`${field}\` to be ${expected}, got ${shown(got)}`), {
    code: 'INVALID_ARGUMENT' as const,
    field,
    expected,
  })
}

function shown(value: unknown): string {
  if (typeof value === 'string') {
    return value.length > 80 ? `a string of ${value.length} characters` : JSON.stringify(value)
  }
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'an array' : 'an object'
  return String(value)
}
