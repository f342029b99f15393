/** The suite of groups on a direct connection. */
import { groupSuite } from './group.suite.ts'

groupSuite({ pooled: false })
