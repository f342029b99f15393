/** The suite of time on a direct connection. */
import { timeSuite } from './time.suite.ts'

timeSuite({ pooled: false })
