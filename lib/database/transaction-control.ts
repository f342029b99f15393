/**
 * Recognizes SQL texts that begin or end a transaction. Work in a transaction of Lockstep may not send them.
 *
 * Inside a transaction, COMMIT cannot be run by a function or a DO block, and it cannot be prepared: it can only be a statement
 * of the text itself. So it is enough to look at the first words of each statement. Comments are skipped; so are strings, quoted
 * names and dollar-quoted bodies, in which a semicolon does not end a statement. SAVEPOINT, RELEASE and ROLLBACK TO are allowed.
 *
 * Strings are read as they are by default (standard_conforming_strings). Where that is off a statement may be missed; then the
 * transaction's id shows it afterwards (supervised-transaction.ts).
 */

/** A text without any of these words is harmless. */
const SUSPECT = /\b(?:commit|rollback|abort|end|begin|start|prepare)\b/i
const BEGINS_OR_ENDS =
  /^(?:commit|end|abort|begin|start\s+transaction|prepare\s+transaction|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b/i
/** Parts of a text that are skipped as a whole: comments, strings, quoted names, dollar-quoted bodies. */
const PIECE =
  /--[^\n]*|\/\*|\be'[^'\\]*(?:(?:\\[\s\S]|'')[^'\\]*)*'|'[^']*(?:''[^']*)*'|"[^"]*(?:""[^"]*)*"|(?<![\w$])\$(?:[a-z_\u0080-\uffff][\w\u0080-\uffff]*)?\$|;/giu

/**
 * Whether a text begins or ends a transaction. `perhaps`: only if it consists of several statements; in the body of an SQL
 * function (BEGIN ATOMIC) the same words are part of a single statement.
 */
export function controlsTransaction(text: string): 'yes' | 'no' | 'perhaps' {
  if (!SUSPECT.test(text)) return 'no'
  try {
    return inspect(text)
  } catch {
    return 'perhaps' // too long for a regular expression: then the server decides
  }
}

function inspect(text: string): 'yes' | 'no' | 'perhaps' {
  const [first = '', ...others] = statements(text).map((statement) => BEGINS_OR_ENDS.test(statement))
  if (first) return 'yes'
  if (!others.includes(true)) return 'no'
  return /\bbegin\s+atomic\b/i.test(text) ? 'perhaps' : 'yes'
}

/** The statements of a text, without comments, and with `x` for each string, quoted name and dollar-quoted body. */
function statements(text: string): string[] {
  const all = ['']
  const add = (piece: string) => {
    all[all.length - 1] += piece
  }
  let at = 0
  PIECE.lastIndex = 0
  for (let found = PIECE.exec(text); found; found = PIECE.exec(text)) {
    const [piece] = found
    add(text.slice(at, found.index))
    if (piece === ';') all.push('')
    else if (piece === '/*') PIECE.lastIndex = commentEnd(text, found.index)
    else if (piece.startsWith('$')) PIECE.lastIndex = after(text, piece, PIECE.lastIndex)
    // A string or name becomes a word that neither begins nor ends a transaction; a comment becomes a blank.
    add(piece === ';' || piece === '/*' || piece.startsWith('--') ? ' ' : ' x ')
    at = PIECE.lastIndex
  }
  add(text.slice(at))
  return all.map((statement) => statement.trim()).filter((statement) => statement !== '')
}

/** Where a block comment ends; block comments can be nested. */
function commentEnd(text: string, from: number): number {
  const marks = /\/\*|\*\//g
  marks.lastIndex = from
  let depth = 0
  for (let mark = marks.exec(text); mark; mark = marks.exec(text)) {
    depth += mark[0] === '/*' ? 1 : -1
    if (depth === 0) return marks.lastIndex
  }
  return text.length
}

function after(text: string, what: string, from: number): number {
  const at = text.indexOf(what, from)
  return at < 0 ? text.length : at + what.length
}
