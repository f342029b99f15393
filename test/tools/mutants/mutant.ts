/** A fatal bug that is put in on purpose. */
export interface Mutant {
  /** What is wrong with it, as a sentence. */
  bug: string
  /** The file that is changed, from the root. */
  file: string
  /** A text that the file has once, and what it becomes. */
  from: string
  to: string
  /** The tests that find it: files of test/. */
  files: string[]
  /** A part of the names of the tests that are run, or several parts with `|` between them. @default all of these files */
  tests?: string
}
