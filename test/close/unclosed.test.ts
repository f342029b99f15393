/** A process that never closes (unclosed.suite.ts), on direct connections. */
import { unclosedOf } from './unclosed.suite.ts'

unclosedOf(false)
