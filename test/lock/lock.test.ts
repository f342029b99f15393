/** The suite of locks on a direct connection. */
import { lockSuite } from './lock.suite.ts'

lockSuite({ pooled: false })
