/** A process that never closes (unclosed.suite.ts), without direct connections. */
import { unclosedOf } from './unclosed.suite.ts'

unclosedOf(true)
