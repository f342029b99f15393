import { lockSuite } from './lock.suite.ts'

lockSuite({ pooled: false })
