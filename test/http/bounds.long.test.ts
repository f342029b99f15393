/** The bounds of answers (bounds.suite.ts) through a transaction pooler. */
import { boundsOf } from './bounds.suite.ts'

boundsOf(true)
