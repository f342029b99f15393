/** The suite of streams, on a direct connection. */
import { eventSuite } from './stream.suite.ts'

eventSuite({ pooled: false })
