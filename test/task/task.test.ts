/** The suite of tasks on a direct connection. */
import { taskSuite } from './task.suite.ts'

taskSuite({ pooled: false })
