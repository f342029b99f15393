/**
 * Which texts begin or end a transaction: those that work in a transaction of Lockstep's may not send.
 *
 * COMMIT cannot come from within a function or a DO block there, nor can it be prepared: only a statement of the text itself
 * can be one. So it is enough to look at the first words of each statement, past comments, and past strings, names and bodies
 * between dollars, in which a semicolon ends nothing. SAVEPOINT, RELEASE and ROLLBACK TO are not among them.
 *
 * This reads strings as they are by default (standard_conforming_strings). What is passed over where that is off, the
 * transaction's id tells afterwards (supervised-transaction.ts).
 */

/** Worth a closer look at all. */
const SUSPECT = /\b(?:commit|rollback|abort|end|begin|start|prepare)\b/i
const BEGINS_OR_ENDS =
  /^(?:commit|end|abort|begin|start\s+transaction|prepare\s+transaction|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b/i
/** What is one piece: comments, strings, names, bodies between dollars. */
const PIECE =
  /--[^\n]*|\/\*|\be'[^'\\]*(?:(?:\\[\s\S]|'')[^'\\]*)*'|'[^']*(?:''[^']*)*'|"[^"]*(?:""[^"]*)*"|(?<![\w$])\$(?:[a-z_\u0080-\uffff][\w\u0080-\uffff]*)?\$|;/giu

/**
 * Whether a text begins or ends a transaction. `perhaps`: only if it is several statements, for in the body of an SQL
 * function (BEGIN ATOMIC) the same words are part of one.
 */
export function controlsTransaction(text: string): 'yes' | 'no' | 'perhaps' {
  if (!SUSPECT.test(text)) return 'no'
  try {
    return look(text)
  } catch {
    return 'perhaps' // longer than an expression can match: the server tells
  }
}

function look(text: string): 'yes' | 'no' | 'perhaps' {
  const [first = '', ...others] = statements(text).map((statement) => BEGINS_OR_ENDS.test(statement))
  if (first) return 'yes'
  if (!others.includes(true)) return 'no'
  return /\bbegin\s+atomic\b/i.test(text) ? 'perhaps' : 'yes'
}

/** The statements of a text, without comments; strings and names are blanks. */
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
    // Something is there, and it is no word that begins or ends a transaction; of a comment, nothing but a blank.
    add(piece === ';' || piece === '/*' || piece.startsWith('--') ? ' ' : ' x ')
    at = PIECE.lastIndex
  }
  add(text.slice(at))
  return all.map((statement) => statement.trim()).filter((statement) => statement !== '')
}

/** Comments between stars can hold others. */
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
