/** The suite of streams on a direct connection. */
import { eventSuite } from './event.suite.ts'

eventSuite({ pooled: false })
