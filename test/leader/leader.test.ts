/** The suite of leaders on a direct connection. */
import { leaderSuite } from './leader.suite.ts'

leaderSuite({ pooled: false })
